"""Where a path leads: to the local disk or, as a URL, elsewhere; the one place that decides it.

What is elsewhere is imported only when a path leads there.
"""

from __future__ import annotations

import os

from ckptool import files
from ckptool.errors import FormatError, quoted
from ckptool.files import ByteFile, MemoryFile, Readable
from ckptool.remote.urls import is_url

_OF_FILES = tuple(
    ".safetensors .pth .pt .ckpt .bin .pkl .npz .weights .json .metadata .tar .pyth".split()
)


def open_bytes(path: str) -> Readable:
    """The open file of a path."""
    if is_url(path):
        from ckptool.remote.file import RemoteFile

        return RemoteFile(path)
    return ByteFile(path)


def is_folder(path: str) -> bool:
    """Whether the path is that of a folder; a URL with a file's suffix is not asked about."""
    if not is_url(path):
        return os.path.isdir(path)
    if path.endswith("/"):
        return True
    if path.startswith("http") or path.endswith(_OF_FILES):
        return False
    from ckptool.remote import stores

    return stores.stat(path).folder


def names_in(folder: str) -> list[str]:
    """The sorted names in a folder; CkptError if it cannot be listed."""
    if is_url(folder):
        from ckptool.remote import stores

        return stores.names_in(folder)
    return files.names_in(folder)


def inside(folder: str, name: str) -> str:
    """The path of a name in a folder."""
    return os.path.join(folder, name)


def sibling(path: str, name: str) -> str:
    """The path of a file in the same folder, whose name another file gives.

    Raises: FormatError for a name that leads elsewhere.
    """
    if is_url(path):
        if not files.is_plain(name):
            raise FormatError(
                f"{quoted(name)} is not a plain file name: it could lead out of the folder",
                code="index.path",
            )
        return os.path.join(os.path.dirname(path), name)
    return files.sibling(path, name)


def is_stored(file: Readable) -> bool:
    """Whether the bytes are those of a file, and not of something inside one."""
    return not isinstance(file, MemoryFile)
