"""Reading bytes: the only module that opens a file to read it.

Positional reads on one descriptor, never a memory map: a file that is cut short under way gives a
short read, which is an error here, where a map would give SIGBUS.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from ckptool.errors import CkptError, FormatError, quoted

if TYPE_CHECKING:
    from ckptool.ahead import Ahead

Block = bytes | memoryview
BLOCK = 1 << 21  # bytes that are read at once
_OTHERS = 256  # files that are open besides
AGAIN = "download or copy the file again"  # the hint for damage


class Readable(Protocol):
    """Bytes by position; `verified` remembers the offsets of records with a right checksum.

    `distant` tells a reader to spare what would be a request for each tensor.
    """

    path: str
    size: int
    verified: set[int]
    distant: bool

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the data ends before."""

    def blocks(self, offset: int, length: int, step: int = BLOCK) -> Iterator[Block]:
        """The bytes of a range, in order, at most `step` at a time."""

    def check_unchanged(self) -> None:
        """Raise if what is behind the bytes is no longer what was opened."""


class ByteFile:
    """An open regular file: its path, its size in bytes, and positional reads of it."""

    __slots__ = ("_ahead", "_descriptor", "_identity", "path", "size", "verified")

    distant = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = -1
        self._ahead: Ahead | None = None
        self.path = os.fspath(path)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self.path, flags)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CkptError(
                f"{quoted(self.path)}: found {_kind(status.st_mode)}, wanted a regular file",
                code="file.kind",
            )
        self.size = status.st_size
        self._identity = _identity(status)
        # Offsets of the records whose checksum was already found right: each is checked once.
        self.verified: set[int] = set()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; a later read raises."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """The descriptor, for a copy inside the kernel."""
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the file ends before."""
        data = self._pread(offset, length)
        if len(data) == length:
            return data
        parts = [data]
        have = len(data)
        while data and have < length:
            data = self._pread(offset + have, length - have)
            parts.append(data)
            have += len(data)
        if have < length:
            raise _ends_early(offset, have, length)
        return b"".join(parts)

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise self._failed(offset, error) from None

    def _failed(self, offset: int, error: OSError) -> CkptError:
        return CkptError(
            f"{quoted(self.path)}: at byte {offset:,}: cannot be read: {error.strerror}",
            code="file.unreadable",
        )

    def blocks(self, offset: int, length: int, step: int = BLOCK) -> Iterator[Block]:
        """The bytes of a range, in order, at most `step` at a time; if read ahead, in one piece."""
        ahead = self._ahead.get(offset, length) if self._ahead is not None else None
        if ahead is not None:
            yield ahead
            return
        end = offset + length
        while offset < end:
            size = min(step, end - offset)
            yield self.read(offset, size)
            offset += size

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill flat memory with the bytes from `offset`; FormatError if the file ends before."""
        have = 0
        while have < len(target):
            try:
                count = os.preadv(self._descriptor, [target[have:]], offset + have)
            except OSError as error:
                raise self._failed(offset + have, error) from None
            if not count:
                raise _ends_early(offset, have, len(target))
            have += count

    def lease(self) -> bool:
        """Whether nobody can write to the file from now on, until `release`.

        Not of a file that was read ahead: what is read then is not what is in the file now.
        """
        from ckptool import lease

        return self._ahead is None and lease.take(self._descriptor)

    def is_leasable(self) -> bool:
        """Whether there would be a lease just now."""
        leased = self.lease()
        if leased:
            self.release()
        return leased

    def is_undisputed(self) -> bool:
        """Whether the lease is still there, and nobody waits for its end."""
        from ckptool import lease

        return lease.is_undisputed(self._descriptor)

    def release(self) -> None:
        """Let others write to the file again."""
        from ckptool import lease

        lease.give_back(self._descriptor)

    def read_ahead(self) -> Ahead | None:
        """The whole file on its way into memory; None where there is none to be had."""
        from ckptool.ahead import Ahead

        with suppress(OSError, RuntimeError):
            return Ahead(self._descriptor, self.size)
        return None

    def read_from(self, ahead: Ahead | None) -> None:
        """From now on `blocks` gives what was read ahead, in one piece."""
        self._ahead = ahead

    def check_unchanged(self) -> None:
        """Raise if the file was written to, cut or replaced since it was opened."""
        if _identity(os.fstat(self._descriptor)) != self._identity:
            raise CkptError(
                f"{quoted(self.path)}: the file changed while it was read", code="file.changed"
            )


class MemoryFile:
    """Bytes that are in memory already, read like a file: what lies inside another format."""

    __slots__ = ("_data", "path", "size", "verified")

    distant = False

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self.path = path
        self.size = len(data)
        self.verified: set[int] = set()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the data ends before."""
        data = self._data[offset : offset + length]
        if len(data) < length:
            raise _ends_early(offset, len(data), length)
        return data

    def blocks(self, offset: int, length: int, step: int = BLOCK) -> Iterator[Block]:
        """The bytes of a range in one piece."""
        yield self.read(offset, length)

    def check_unchanged(self) -> None:
        """Nothing to do: the bytes are in memory."""


def sibling(path: str, name: str) -> str:
    """The path of a file in the same folder, whose name another file gives.

    Raises: FormatError for a name that is not a plain one, or a link that leads out of the folder
    (but for the cache of huggingface_hub, where links stay inside one `models--…` tree).
    """
    if not is_plain(name):
        raise FormatError(
            f"{quoted(name)} is not a plain file name: it could lead out of the folder",
            code="index.path",
        )
    folder = os.path.dirname(path)
    found = os.path.join(folder, name)
    real, home = os.path.realpath(found), os.path.realpath(folder)
    if os.path.dirname(real) != home:
        tree = next((part for part in home.split(os.sep) if part.startswith("models--")), None)
        inside = tree and real.startswith(home[: home.index(tree) + len(tree)] + os.sep)
        if not inside:
            raise FormatError(
                f"{quoted(name)} is a link that leads out of the folder", code="index.path"
            )
    return found


def allow_open(count: int) -> None:
    """Let so many more files be open at once, as far as the system lets us."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def is_plain(name: str) -> bool:
    """Whether a name is that of a file, and leads nowhere."""
    unsafe = name in ("", ".", "..") or name[0] == "-" or not name.isprintable()
    return not unsafe and not set(name) & set("/\\:")


def names_in(folder: str) -> list[str]:
    """The sorted names in a folder; CkptError if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from None


def cut_short(message: str) -> FormatError:
    """The error for a file that ends before what it says it holds."""
    return FormatError(message, hint=AGAIN, code="format.truncated")


def _ends_early(offset: int, have: int, length: int) -> FormatError:
    return cut_short(
        f"at byte {offset:,}: found {have:,} bytes, wanted {length:,}: the file ends early"
    )


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a special file")


def _unreadable(path: str, error: Exception) -> CkptError:
    if isinstance(error, FileNotFoundError):
        return CkptError(f"{quoted(path)}: no such file", code="file.missing")
    if isinstance(error, PermissionError):
        return CkptError(f"{quoted(path)}: no permission to read it", code="file.permission")
    if isinstance(error, ValueError):  # Python's own words differ between its versions
        reason = "its name has a null character in it"
    else:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return CkptError(f"{quoted(path)}: cannot be opened: {reason}", code="file.unreadable")
