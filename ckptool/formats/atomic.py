"""Writing files: the only module that creates one.

A file appears under its name complete and checked, or not at all: it is written beside the target
under a temporary name, flushed to the disk, checked by the caller, and renamed. What a killed run
leaves behind is recognised by its name and its free lock, and removed by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from ckptool.errors import OutputError, quoted
from ckptool.files import BLOCK, Readable

_PREFIX, _SUFFIX = ".ckptool-", ".tmp"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_COPY = 1 << 30  # bytes that one copy inside the kernel may take

T = TypeVar("T")


class Output:
    """A file being written, from its start to its end; `position` is how far it has come."""

    __slots__ = ("descriptor", "path", "position")

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        self.position = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self.write_at(self.position, data)
        self.position += len(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset; the position stays."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.descriptor, view, offset)
            view = view[count:]
            offset += count

    def copy(self, source: Readable, offset: int, length: int) -> None:
        """Append a range of another file, inside the kernel where the file systems can."""
        descriptor = getattr(source, "fileno", lambda: -1)()
        while length and descriptor >= 0:
            try:
                count = os.copy_file_range(
                    descriptor, self.descriptor, min(length, _COPY), offset, self.position
                )
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                break
            if not count:
                break
            offset += count
            length -= count
            self.position += count
        for block in source.blocks(offset, length, BLOCK):
            self.write(block)


def replace_file(
    path: str, fill: Callable[[Output], None], check: Callable[[str], T], *, force: bool = False
) -> T:
    """Write a file through `fill` and give it its name once `check`, given the path, returns.

    Raises: OutputError if the target exists and `force` is not set, or if the system refuses.
    """
    existing = refuse_target(path, force=force)
    folder = os.path.dirname(path) or "."
    try:
        _remove_stale(folder)
        # A new file gets the mode that the umask leaves, a replaced one keeps its own.
        with _temporary(folder, 0o666 if existing is None else 0o600) as output:
            fill(output)
            if existing is not None:
                os.fchmod(output.descriptor, stat.S_IMODE(existing.st_mode))
            os.fsync(output.descriptor)
            result = check(output.path)
            os.rename(output.path, path)
        _sync_folder(folder)
    except OSError as error:
        raise _refused_by_system(path, error) from None
    return result


def replace_set(
    paths: Sequence[str],
    fill: Callable[[str, Output], None],
    check: Callable[[str], T],
    *,
    force: bool = False,
) -> T:
    """Write several files of one folder through `fill`, and give them their names together.

    `check` is given a folder with all of them under their final names. The last file is the index
    of the others: it is the first to go where a set is replaced and the last to come, so that no
    reader finds a mixed set.

    Raises: OutputError, as `replace_file`.
    """
    folder = os.path.dirname(paths[0]) or "."
    existing = [refuse_target(path, force=force) for path in paths]
    try:
        _remove_stale(folder)
        with _temporary_folder(folder) as temporary:
            for path, before in zip(paths, existing, strict=True):
                inside = os.path.join(temporary, os.path.basename(path))
                descriptor = os.open(inside, _NEW, 0o666 if before is None else 0o600)
                try:
                    fill(path, Output(descriptor, inside))
                    if before is not None:
                        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            result = check(temporary)
            if existing[-1] is not None:
                os.unlink(paths[-1])
                _sync_folder(folder)
            for path in paths:
                os.rename(os.path.join(temporary, os.path.basename(path)), path)
                _sync_folder(folder)
    except OSError as error:
        raise _refused_by_system(paths[-1], error) from None
    return result


def replace_text(path: str, text: str, *, force: bool = True) -> None:
    """Write a small text file.

    Raises: OutputError, as `replace_file`.
    """
    replace_file(path, lambda output: output.write(text.encode()), lambda _: None, force=force)


def refuse_target(path: str, *, force: bool = False) -> os.stat_result | None:
    """The status of the file that would be replaced, None if there is none.

    Raises: OutputError for a target that exists (without `force`) or is no regular file.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise OutputError(
                f"{quoted(path)}: there is no folder {quoted(folder)}", code="output.folder"
            ) from None
        return None
    except OSError as error:
        raise OutputError(
            f"{quoted(path)}: {os.strerror(error.errno or 0)}", code="output.system"
        ) from None
    if stat.S_ISLNK(status.st_mode):
        raise OutputError(
            f"{quoted(path)}: is a symbolic link; it would be replaced, not what it points to",
            hint=f"-o {os.path.realpath(path)}",
            code="output.link",
        )
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{quoted(path)}: exists and is not a regular file", code="output.kind")
    if not force:
        raise OutputError(
            f"{quoted(path)}: exists already", hint="--force replaces it", code="output.exists"
        )
    return status


def _refused_by_system(path: str, error: OSError) -> OutputError:
    reason = os.strerror(error.errno or 0)
    return OutputError(f"{quoted(path)}: cannot be written: {reason}", code="output.system")


@contextmanager
def _temporary_folder(parent: str) -> Iterator[str]:
    """A locked new folder in the parent, removed with what is left in it."""
    path = os.path.join(parent, f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}")
    os.mkdir(path, 0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        _remove_folder(path)
        os.close(descriptor)


@contextmanager
def _temporary(folder: str, mode: int) -> Iterator[Output]:
    """A locked new file in the folder, removed unless it was renamed."""
    while True:
        path = os.path.join(folder, f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}")
        descriptor = os.open(path, _NEW, mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                break  # nobody took it for a stale one before it was locked
        os.close(descriptor)
    try:
        yield Output(descriptor, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _remove_stale(folder: str) -> None:
    """Remove the temporary files of runs that are over: those that nobody holds a lock on."""
    for name in os.listdir(folder):
        if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
            continue
        path = os.path.join(folder, name)
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    _remove_folder(path)
                else:
                    os.unlink(path)
            finally:
                os.close(descriptor)


def _remove_folder(path: str) -> None:
    """Remove a temporary folder; there are only files in it."""
    with suppress(OSError):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
