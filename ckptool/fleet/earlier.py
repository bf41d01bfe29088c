"""What an earlier attempt of this batch left under the name of an output: it gives way, no other.

A batch may have been killed, a worker lost, or the news of what it did: then the output is there,
and the journal does not know.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress

from ckptool import places
from ckptool.destinations import is_dcp
from ckptool.errors import CkptError
from ckptool.formats.dcp import INDEX
from ckptool.formats.sharded_writer import index_path
from ckptool.remote.urls import is_url


def gives_way(output: str, since: float, *, several: bool) -> bool:
    """Whether what may stand there can be replaced: it was written since then, or is not there.

    What consists of several files cannot be replaced at once: it is removed if it is ours.
    """
    try:
        if several or is_dcp(output):
            for path in _pieces(output):
                if _is_ours(path, since):
                    _remove(path)
            if is_dcp(output) and not is_url(output):
                with suppress(OSError):
                    os.rmdir(output)
        return _is_ours(output, since)
    except CkptError:
        return False


def _is_ours(path: str, since: float) -> bool:
    """What is not there yet is: who puts it there meanwhile is an attempt that was given up."""
    if since == 0.0:
        return True
    if is_url(path):
        from ckptool.remote import stores

        when = stores.modified(path)
        return when is None or when >= math.floor(since)  # stores tell whole seconds
    try:
        return os.lstat(path).st_mtime >= since
    except OSError:
        return True


def _pieces(output: str) -> list[str]:
    """The files of an output of several, the one first that makes a whole of them."""
    if is_dcp(output):
        home, wanted, first = output.rstrip("/"), re.compile(".+"), INDEX
    else:
        home, name = os.path.split(output)
        stem, suffix = map(re.escape, os.path.splitext(name))
        first = index_path(name)
        wanted = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?{suffix}|{re.escape(first)}")
    try:
        names = places.names_in(home or ".")
    except CkptError:
        return []
    found = [name for name in names if wanted.fullmatch(name)]
    return [places.inside(home, name) for name in sorted(found, key=lambda name: name != first)]


def _remove(path: str) -> None:
    if is_url(path):
        from ckptool.remote import stores

        stores.remove(path)
        return
    with suppress(OSError):
        os.unlink(path)
