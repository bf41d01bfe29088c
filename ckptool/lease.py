"""A file that nobody writes to for a moment: whoever opens it for writing waits meanwhile.

Only on file systems that are written to through this kernel alone; elsewhere there is no lease to
be had, nor of a file that somebody else owns, or has open for writing.

Source: fcntl(2), "Leases", and statfs(2) (Linux man-pages 6.9).
"""

from __future__ import annotations

import fcntl
import signal
import sys

# ext2 to ext4, XFS, btrfs, F2FS, tmpfs, overlayfs: what fstatfs says of them.
_LOCAL = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994, 0x794C7630}
_STATFS = 256  # bytes, more than the structure has; it begins with the type


def take(descriptor: int) -> bool:
    """Whether nobody can write to the file from now on, until it is closed or given back.

    Who asks for that is held up by the kernel, for 45 seconds at most; but for an `open` to read
    that cuts the file off, which POSIX leaves undefined.
    """
    if sys.platform != "linux":
        return False
    try:
        if _file_system(descriptor) not in _LOCAL:
            return False
        # What tells that somebody waits: a signal that nothing happens at, if nobody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def is_undisputed(descriptor: int) -> bool:
    """Whether the lease is still there, and nobody waits for its end."""
    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def give_back(descriptor: int) -> None:
    """Let those who wait go on."""
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _file_system(descriptor: int) -> int:
    import ctypes

    found = ctypes.create_string_buffer(_STATFS)
    failed = ctypes.CDLL(None).fstatfs(descriptor, found)
    return 0 if failed else ctypes.c_long.from_buffer(found).value
