"""File formats: one module each, found by content. FORMATS is tried in order.

A format is a module with NAME, `sniff(head, file)` and `read(file)`; darknet comes first, since it
is known by the file's name alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from ckptool.checkpoint import Contents
from ckptool.errors import OutputError, quoted
from ckptool.files import Readable

if TYPE_CHECKING:
    from ckptool.formats.atomic import Output
    from ckptool.formats.payload import Payload


class Format(Protocol):
    """What a module must offer to be a format."""

    NAME: str

    def sniff(self, head: bytes, file: Readable) -> bool:
        """Whether the file is of this format, from its first 4 KiB."""

    def read(self, file: Readable) -> Contents:
        """What the file holds; nothing but headers is read."""


# A module is imported when the ones before it did not recognise a file: few files need them all.
FORMATS = (
    "darknet",
    "safetensors",
    "npz",
    "torch_zip",
    "torch_legacy",
    "torch_tar",
    "dcp",
    "pickled",
)
_HEAD = 4096


WRITERS = {
    ".safetensors": "safetensors_writer",
    ".pth": "torch_zip_writer",
    ".pt": "torch_zip_writer",
    ".ckpt": "torch_zip_writer",
    ".bin": "torch_zip_writer",
    ".pkl": "numpy_pickle_writer",
    ".weights": "darknet_writer",
}


def writer_for(path: str) -> Callable[[Output, Payload], None]:
    """The writer of a path's suffix.

    Raises: OutputError for a suffix that none belongs to.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in WRITERS:
        raise OutputError(
            f"{quoted(path)}: no format is written under the suffix {quoted(suffix)}",
            hint=f"one of {' '.join(WRITERS)}",
            code="output.suffix",
        )
    module = import_module(f"ckptool.formats.{WRITERS[suffix]}")
    return cast("Callable[[Output, Payload], None]", module.write)


def read_contents(file: Readable, *, darknet_meant: bool = False) -> Contents:
    """What a file holds, read by the first format that recognises it.

    A file that none recognises is read as darknet's if that is meant.

    Raises: FormatError, NotACheckpointError, UnsupportedError.
    """
    from ckptool.formats import sharded

    if sharded.sniff(_head(file), file):
        return sharded.read(file, _read_one)
    return _read_one(file, darknet_meant=darknet_meant)


def _read_one(file: Readable, *, darknet_meant: bool = False) -> Contents:
    """What one file holds: an index of shards is none, so that a shard cannot be an index."""
    head = _head(file)
    for name in FORMATS:
        module = cast(Format, import_module(f"ckptool.formats.{name}"))
        if module.sniff(head, file):
            return module.read(file)
    from ckptool.formats import darknet, foreign

    if darknet_meant and darknet.plausible(head, file):
        return darknet.read(file)
    raise foreign.explain(head, file)


def _head(file: Readable) -> bytes:
    return file.read(0, min(_HEAD, file.size))
