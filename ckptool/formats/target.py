"""What stands where a file is to be written: it is refused, or its access rights are taken over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from ckptool.errors import OutputError, quoted

_ACCESS_LIST = "system.posix_acl_access"  # the extended attribute that Linux keeps it in


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
    except (OSError, ValueError) as error:
        raise refused_by_system(path, error) from None
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


def refuse_existing(paths: Iterable[str]) -> None:
    """Refuse any target that exists: several files cannot be replaced at once.

    Raises: OutputError.
    """
    for path in paths:
        try:
            refuse_target(path)
        except OutputError as error:
            if error.code != "output.exists":
                raise
            raise OutputError(
                f"{error.message}, and several files cannot be replaced at once",
                hint="-o ANOTHER, or remove the old files",
                code=error.code,
            ) from None


def refused_by_system(path: str, error: OSError | ValueError) -> OutputError:
    """The error for what the system refuses while a file is written."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return OutputError(f"{quoted(path)}: cannot be written: {reason}", code="output.system")


def take_over_access(descriptor: int, path: str) -> None:
    """Give a new file the owner, the mode and the access list of the one that it will replace.

    Where the group cannot be kept, it and all others get only what both had: never more.
    """
    before, own = os.stat(path), os.fstat(descriptor)
    mode = stat.S_IMODE(before.st_mode) & 0o777
    if own.st_uid != before.st_uid:
        with suppress(PermissionError):
            os.fchown(descriptor, before.st_uid, -1)
    if own.st_gid != before.st_gid:
        try:
            os.fchown(descriptor, -1, before.st_gid)
        except PermissionError:
            common = mode >> 3 & mode & 0o7
            mode = mode & 0o700 | common << 3 | common
    wanted, inherited = _access_list(path), _access_list(descriptor)
    if wanted is not None:
        os.setxattr(descriptor, _ACCESS_LIST, wanted)
    elif inherited is not None:
        os.removexattr(descriptor, _ACCESS_LIST)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def _access_list(file: str | int) -> bytes | None:
    """The access list beyond the mode; None where there is none, or no such thing."""
    try:
        return os.getxattr(file, _ACCESS_LIST)
    except OSError:
        return None
