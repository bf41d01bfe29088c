"""From a path to a Checkpoint: the format, then the container around the weights."""

from __future__ import annotations

import os
from typing import NamedTuple

from ckptool.checkpoint import Checkpoint, Contents, WeightSet
from ckptool.containers import choose, find
from ckptool.errors import CkptError, quoted
from ckptool.files import ByteFile
from ckptool.formats import read_contents
from ckptool.places import is_folder, open_bytes


class Opened(NamedTuple):
    """A file that was read but of which no weight set is chosen yet."""

    path: str
    nbytes: int
    contents: Contents
    sets: tuple[WeightSet, ...]


def read(
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    darknet: bool = False,
    memory: int = 0,
) -> Checkpoint:
    """The checkpoint in a file: key to LazyTensor; nothing is read but headers, nothing is run.

    `weights` names the weight set where the file holds several; `darknet` says that a file of no
    other format is darknet's, whatever it is called. Whoever wants all of it says how much `memory`
    there is: a local file of at most so many bytes is brought into it from the start.

    Raises: CkptError.
    """
    opened = open_file(path, darknet=darknet, memory=memory)
    try:
        chosen = choose(opened.sets, weights)
    except CkptError as error:
        raise error.located(quoted(opened.path)) from None
    return Checkpoint(opened.path, opened.nbytes, chosen, opened.sets, opened.contents)


def open_file(path: str | os.PathLike[str], *, darknet: bool = False, memory: int = 0) -> Opened:
    """The contents of a file, or of the one in a folder, and its weight sets.

    Raises: CkptError.
    """
    name = os.fspath(path)
    if is_folder(name):
        from ckptool.formats.folders import checkpoint_in

        name = checkpoint_in(name)
    file = open_bytes(name)
    name = file.path
    local = file if isinstance(file, ByteFile) and 0 < file.size <= memory else None
    # Where there is a lease to be had, it is read once it is known what of it goes where.
    ahead = local.read_ahead() if local and not local.is_leasable() else None
    try:
        contents = read_contents(file, darknet_meant=darknet)
        sets = find(contents.root, file.size)
        file.check_unchanged()
    except CkptError as error:
        raise error.located(quoted(name)) from None
    if local:
        local.read_from(ahead)  # not before: the headers would wait for it
    return Opened(name, file.size + contents.shards_nbytes, contents, sets)
