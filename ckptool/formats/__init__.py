"""File formats: one module each, found by content, tried in the order of `formats`.

A format is a module with NAME, `sniff(head, file)` and `read(file)`; darknet comes first, since it
is known by the file's name alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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


def formats() -> Iterator[Format]:
    """The formats in the order in which they are tried.

    Each is imported when the ones before it did not recognise a file, since few files need them
    all: by statements, so that no name is ever looked up while a file is read.
    """
    from ckptool.formats import darknet, safetensors

    yield darknet
    yield safetensors
    from ckptool.formats import npz, torch_zip

    yield npz
    yield torch_zip
    from ckptool.formats import torch_legacy

    yield torch_legacy
    from ckptool.formats import dcp, pickled, torch_tar

    yield torch_tar
    yield dcp
    yield pickled


def writer_for(path: str) -> Callable[[Output, Payload], None]:
    """The writer of a path's suffix.

    Raises: OutputError for a suffix that none belongs to.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in WRITERS:
        raise OutputError(
            f"{quoted(path)}: no format is written under the suffix {quoted(suffix)}",
            hint=f"one of {' '.join(WRITERS)} .dcp",
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
    for module in formats():
        if module.sniff(head, file):
            return module.read(file)
    from ckptool.formats import darknet, foreign

    if darknet_meant and darknet.plausible(head, file):
        return darknet.read(file)
    raise foreign.explain(head, file)


def _head(file: Readable) -> bytes:
    return file.read(0, min(_HEAD, file.size))
