"""The format of torch before 1.6: a file that is one legacy stream.

Source: `torch/serialization.py` (`_legacy_load`; torch 2.15).
"""

from __future__ import annotations

from ckptool.checkpoint import Contents, Finding
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable
from ckptool.formats.globals import label
from ckptool.formats.graph import value_of
from ckptool.formats.legacy_stream import MAGIC, Values, names_of, parse
from ckptool.formats.rebuild import Storages
from ckptool.records import Record

NAME = "torch-legacy"
_MAGIC = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
_FRAMED = 11  # where the magic number stands in protocol 4: behind PROTO and FRAME


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file starts with a pickle of torch's magic number."""
    at = _FRAMED if head[2:3] == b"\x95" else 2
    return head.startswith(b"\x80") and head.startswith(_MAGIC, at)


def read(file: Readable) -> Contents:
    """The file's value; only the pickles and the storages' lengths are read.

    Raises: FormatError.
    """
    stream = parse(file, 0, file.size)

    def record(key: str, nbytes: int) -> Record:
        found = stream.records.get(key)
        if found is None:
            raise FormatError(f"storage {quoted(key)} is not in the file", code="storage.missing")
        if found.nbytes != nbytes:
            raise FormatError(
                f"storage {quoted(key)}: found {found.nbytes:,} bytes, wanted {nbytes:,}",
                code="storage.size",
            )
        return found

    values = Values(file, stream.base, stream.pickle.data)
    storages = Storages(record, values.record, values.storage)
    findings = [
        Finding("no-checksums", "the legacy format has no checksums: damage cannot be seen")
    ]
    if stream.end < file.size:
        findings.append(
            Finding(
                "trailing-bytes",
                f"{file.size - stream.end:,} bytes behind the last storage belong to nothing",
            )
        )
    return Contents(
        NAME,
        value_of(stream.pickle.root, storages),
        label(names_of(stream.pickles)),
        tuple(findings),
    )
