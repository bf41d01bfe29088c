"""File formats: one module each, found by content. FORMATS is tried in order.

A format is a module with NAME, `sniff(head, file)` and `read(file)`; darknet comes first, since it
is known by the file's name alone.
"""

from __future__ import annotations

from typing import Protocol

from ckptool.checkpoint import Contents
from ckptool.files import Readable
from ckptool.formats import (
    darknet,
    foreign,
    pickled,
    safetensors,
    sharded,
    torch_legacy,
    torch_tar,
    torch_zip,
)


class Format(Protocol):
    """What a module must offer to be a format."""

    NAME: str

    def sniff(self, head: bytes, file: Readable) -> bool:
        """Whether the file is of this format, from its first 4 KiB."""

    def read(self, file: Readable) -> Contents:
        """What the file holds; nothing but headers is read."""


FORMATS: tuple[Format, ...] = (darknet, torch_zip, torch_legacy, safetensors, torch_tar, pickled)
_HEAD = 4096


def read_contents(file: Readable) -> Contents:
    """What a file holds, read by the first format that recognises it.

    Raises: FormatError, NotACheckpointError, UnsupportedError.
    """
    head = file.read(0, min(_HEAD, file.size))
    if sharded.sniff(head, file):
        return sharded.read(file, read_contents)
    for module in FORMATS:
        if module.sniff(head, file):
            return module.read(file)
    raise foreign.explain(head, file)
