"""Where a path leads: to the local disk. The one place that decides how a file is opened."""

from __future__ import annotations

import os

from ckptool import files
from ckptool.files import ByteFile, Readable


def open_bytes(path: str) -> Readable:
    """The open file of a path."""
    return ByteFile(path)


def is_folder(path: str) -> bool:
    """Whether the path is that of a folder."""
    return os.path.isdir(path)


def names_in(folder: str) -> list[str]:
    """The sorted names in a folder; CkptError if it cannot be listed."""
    return files.names_in(folder)


def inside(folder: str, name: str) -> str:
    """The path of a name in a folder."""
    return os.path.join(folder, name)


def sibling(path: str, name: str) -> str:
    """The path of a file in the same folder, whose name another file gives.

    Raises: FormatError for a name that leads elsewhere.
    """
    return files.sibling(path, name)
