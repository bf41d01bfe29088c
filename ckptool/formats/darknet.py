"""Darknet's `.weights`: a short header, then float32 numbers whose meaning only a cfg knows.

The format has no magic number and no sizes, so it is never guessed from content alone.

Source: AlexeyAB/darknet `src/parser.c` (`load_weights_upto`).
"""

from __future__ import annotations

from struct import Struct

from ckptool.checkpoint import Contents, Finding
from ckptool.errors import FormatError
from ckptool.files import Readable
from ckptool.formats.flat import FlatTree
from ckptool.records import Record
from ckptool.tensors import LazyTensor, TensorSpec, View

NAME = "darknet"
KEY = "(darknet floats)"
_VERSION = Struct("<3i")


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is called `.weights` and starts with a plausible darknet header."""
    return file.path.endswith(".weights") and plausible(head, file)


def plausible(head: bytes, file: Readable) -> bool:
    """Whether the bytes could be a darknet header: small version numbers, whole floats behind."""
    if len(head) < 16:
        return False
    major, minor, revision = _VERSION.unpack_from(head)
    return 0 <= major <= 9 and 0 <= minor <= 99 and 0 <= revision <= 99 and any((major, minor))


def wide_seen(major: int, minor: int) -> bool:
    """Whether a file of that version counts the images it has seen in 64 bits, not in 32."""
    return major * 10 + minor >= 2


def read(file: Readable) -> Contents:
    """One flat float32 tensor; `major`, `minor`, `revision` and `seen` are the metadata.

    Raises: FormatError if the bytes behind the header are not whole floats.
    """
    major, minor, revision = _VERSION.unpack(file.read(0, 12))
    if major >= 1000 or minor >= 1000:
        raise FormatError(
            f"darknet version {major}.{minor}: readers disagree on such a header",
            code="darknet.version",
        )
    start = 20 if wide_seen(major, minor) else 16
    seen = int.from_bytes(file.read(12, start - 12), "little")
    size = file.size - start
    if size % 4:
        raise FormatError(
            f"{size:,} bytes behind the darknet header are not whole float32 numbers: "
            f"{size % 4} left over",
            code="darknet.size",
        )
    record = Record(file, start, size, size, name="darknet")
    tensor = LazyTensor(TensorSpec("float32", (size // 4,)), View(record, 0, (1,)))
    metadata = {
        "major": str(major),
        "minor": str(minor),
        "revision": str(revision),
        "seen": str(seen),
    }
    findings = (
        Finding("no-keys", "a darknet file has no keys: an architecture tells what it holds"),
        Finding("no-checksums", "a darknet file has no checksums: damage cannot be seen"),
    )
    return Contents(NAME, FlatTree({KEY: tensor}), (), findings, metadata)
