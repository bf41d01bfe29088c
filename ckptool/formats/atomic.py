"""Writing files: the only module that creates one.

A file appears under its name complete and checked, or not at all: it is written beside the target
under a temporary name, flushed to the disk while the caller checks it, and renamed. What a killed
run leaves behind is recognised by its name and its free lock, and removed by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from ckptool.errors import quoted
from ckptool.files import BLOCK, ByteFile, Readable
from ckptool.formats.target import (
    refuse_existing,
    refuse_target,
    refused_by_system,
    take_over_access,
)

_PREFIX, _SUFFIX = ".ckptool-", ".tmp"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What the kernel says where it cannot copy between these two files; a sandbox says EPERM.
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)

# Bytes that are written at once. For more the kernel looks for memory in large pages, which may
# take it longer than the copying.
_PIECE = 1 << 18

T = TypeVar("T")


class Output:
    """A file being written; `position` is where what is appended goes."""

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
            count = os.pwrite(self.descriptor, view[:_PIECE], offset)
            view = view[count:]
            offset += count

    def copy_at(self, at: int, source: Readable, offset: int, length: int) -> None:
        """Put a range of another file at an offset, inside the kernel where it can; as `write_at`.

        Raises: FormatError if the source ends before, OSError if the system refuses.
        """
        descriptor = source.fileno() if isinstance(source, ByteFile) else -1
        while length and descriptor >= 0:
            try:
                count = os.copy_file_range(descriptor, self.descriptor, length, offset, at)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in _NO_COPY:
                    break
                reason = f"{error.strerror}, copying from {quoted(source.path)}"
                raise OSError(error.errno, reason) from None
            if not count:
                break
            offset += count
            length -= count
            at += count
        for block in source.blocks(offset, length, BLOCK):
            self.write_at(at, block)
            at += len(block)


def replace_file(
    path: str, fill: Callable[[Output], None], check: Callable[[str], T], *, force: bool = False
) -> T:
    """Write a file through `fill` and give it its name once `check`, given the path, returns.

    A new file has the mode that the umask leaves, a replaced one keeps its own.

    Raises: OutputError if the target exists and `force` is not set, or if the system refuses.
    """
    existing = refuse_target(path, force=force)
    folder = os.path.dirname(path) or "."
    with _system_errors(path):
        _remove_stale(folder)
        with _temporary(folder, 0o666 if existing is None else 0o600) as output:
            fill(output)
            if existing is not None:
                take_over_access(output.descriptor, path)
            result = _while_flushed(output.descriptor, lambda: check(output.path))
            if force:
                refuse_target(path, force=True)  # once more: it may be a folder or a link only now
                os.rename(output.path, path)
            else:
                _publish(output.path, path, refuse_target)
                with suppress(OSError):  # gone where there are no links; else of the next run
                    os.unlink(output.path)
        _sync_folder(folder)
    return result


def write_set(
    paths: Sequence[str], fill: Callable[[str, Output], None], check: Callable[[str], T]
) -> T:
    """Write several new files of one folder through `fill`; the last gets its name last.

    `check` is given a folder with all of them under their final names. Several files cannot be
    replaced at once, so that none of them may exist.

    Raises: OutputError if one exists, or if the system refuses.
    """
    folder = os.path.dirname(paths[0]) or "."
    refuse_existing(paths)
    with _system_errors(paths[-1]):
        _remove_stale(folder)
        with _temporary_folder(folder) as temporary:
            for path in paths:
                inside = os.path.join(temporary, os.path.basename(path))
                descriptor = os.open(inside, _NEW, 0o666)
                try:
                    fill(path, Output(descriptor, inside))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            result = check(temporary)
            try:
                for path in paths:
                    if path == paths[-1]:
                        _sync_folder(folder)
                    inside = os.path.join(temporary, os.path.basename(path))
                    _publish(inside, path, lambda path: refuse_existing([path]))
                _sync_folder(folder)
            except BaseException:
                _withdraw(temporary)
                raise
    return result


def write_folder(path: str, fill: Callable[[str], None], check: Callable[[str], T]) -> T:
    """Fill a new folder, given a temporary one, and give it its name once `check` returns.

    Raises: OutputError if the target exists, or if the system refuses.
    """
    refuse_existing([path])
    folder = os.path.dirname(path) or "."
    with _system_errors(path):
        _remove_stale(folder)
        with _temporary_folder(folder) as temporary:
            inside = os.path.join(temporary, os.path.basename(path))
            os.mkdir(inside)
            try:
                fill(inside)
                for name in os.listdir(inside):
                    _sync(os.path.join(inside, name), os.O_RDONLY | os.O_CLOEXEC)
                _sync_folder(inside)
                result = check(inside)
                refuse_existing([path])
                os.rename(inside, path)
            except BaseException:
                _remove_folder(inside)
                raise
        _sync_folder(folder)
    return result


def replace_text(path: str, text: str, *, force: bool = True) -> None:
    """Write a small text file.

    Raises: OutputError, as `replace_file`.
    """
    replace_file(path, lambda output: output.write(text.encode()), lambda _: None, force=force)


def _while_flushed(descriptor: int, act: Callable[[], T]) -> T:
    """What an act returns; meanwhile the file goes to the disk, and is there when it returns."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(os.fsync, descriptor)
        result = act()
        flushed.result()
    return result


@contextmanager
def _system_errors(path: str) -> Iterator[None]:
    """What the system refuses, as an OutputError that names the target."""
    try:
        yield
    except OSError as error:
        raise refused_by_system(path, error) from None


@contextmanager
def _temporary(folder: str, mode: int) -> Iterator[Output]:
    """A locked new file in the folder, to be renamed; removed if anything fails."""
    descriptor, path = _claimed(folder, lambda path: os.open(path, _NEW, mode))
    try:
        yield Output(descriptor, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def _temporary_folder(parent: str) -> Iterator[str]:
    """A locked new folder in the parent, removed with what is in it."""

    def make(path: str) -> int:
        os.mkdir(path, 0o700)
        return os.open(path, _FOLDER)

    descriptor, path = _claimed(parent, make)
    try:
        yield path
    finally:
        _remove_folder(path)
        os.close(descriptor)


def _claimed(folder: str, make: Callable[[str], int]) -> tuple[int, str]:
    """The descriptor and the path of something new under a temporary name, locked."""
    while True:
        path = os.path.join(folder, f"{_PREFIX}{os.urandom(6).hex()}{_SUFFIX}")
        descriptor = make(path)
        # Where there are no locks, others cannot take one either, and leave it alone.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor, path
        os.close(descriptor)  # somebody took it for a stale one before it was locked


def _remove_stale(folder: str) -> None:
    """Remove what the user's runs that are over left: what nobody holds a lock on."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                with suppress(OSError):
                    _remove_if_stale(os.path.join(folder, name))


def _remove_if_stale(path: str) -> None:
    status = os.lstat(path)
    is_folder, is_file = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
    # root gives its file to the owner of the one that it will replace.
    ours = status.st_uid == os.geteuid() or (is_file and os.geteuid() == 0)
    if not ours or not (is_folder or is_file):
        return
    # NFS gives an exclusive lock only on what is open to be written.
    flags = _FOLDER if is_folder else os.O_RDWR | os.O_CLOEXEC
    descriptor = os.open(path, flags | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            _withdraw(path)
            _remove_folder(path)
        else:
            os.unlink(path)
    finally:
        os.close(descriptor)


def _publish(inside: str, path: str, refuse: Callable[[str], object]) -> None:
    """Give a new file its name, unless it is taken; the temporary name stays, too.

    A link is refused by the kernel where a renaming would replace what came in that instant. By
    both names a run that is killed in between is told from one that was done. A file system
    without hard links has neither: there `refuse` looks once more, and the file is renamed.
    """
    try:
        os.link(inside, path)
    except FileExistsError:
        # Over a network, a link that was made may be reported as one that was there before.
        if not _is_same(inside, path):
            refuse(path)
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse(path)
        os.rename(inside, path)


def _withdraw(temporary: str) -> None:
    """Take back the names that a set got, unless all of it did."""
    parent = os.path.dirname(temporary)
    published = {}
    for name in os.listdir(temporary):
        path = os.path.join(parent, name)
        published[path] = _is_same(os.path.join(temporary, name), path)
    if not all(published.values()):
        for path in published:
            if published[path]:
                os.unlink(path)


def _is_same(one: str, other: str) -> bool:
    """Whether two names are of one file, and not of links to it."""
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def _remove_folder(path: str) -> None:
    """Remove a temporary folder and what is in it."""
    with suppress(OSError):
        for name in os.listdir(path):
            inside = os.path.join(path, name)
            if os.path.isdir(inside) and not os.path.islink(inside):
                _remove_folder(inside)
            else:
                os.unlink(inside)
        os.rmdir(path)


def _sync_folder(folder: str) -> None:
    """Flush the names in a folder to the disk, where its file system and its mode allow it."""
    try:
        _sync(folder, _FOLDER)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES):
            raise


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
