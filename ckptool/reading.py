"""From a path to a Checkpoint: the format, then the container around the weights."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckptool.checkpoint import Checkpoint, Contents, WeightSet
from ckptool.containers import choose, find
from ckptool.errors import CkptError, quoted
from ckptool.files import ByteFile, names_in
from ckptool.formats import read_contents
from ckptool.formats.foreign import explain_folder


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was read but of which no weight set is chosen yet."""

    path: str
    nbytes: int
    contents: Contents
    sets: tuple[WeightSet, ...]


def read(path: str | os.PathLike[str], *, weights: str | None = None) -> Checkpoint:
    """The checkpoint in a file: key to LazyTensor; nothing is read but headers, nothing is run.

    `weights` names the weight set where the file holds several.

    Raises: CkptError.
    """
    opened = open_file(path)
    try:
        chosen = choose(opened.sets, weights)
    except CkptError as error:
        raise error.located(quoted(opened.path)) from None
    return Checkpoint(opened.path, opened.nbytes, chosen, opened.sets, opened.contents)


def open_file(path: str | os.PathLike[str]) -> Opened:
    """The contents of a file, or of a folder with an index of shards, and its weight sets.

    Raises: CkptError.
    """
    name = _index_in(os.fspath(path))
    file = ByteFile(name)
    try:
        contents = read_contents(file)
        sets = find(contents.root, file.size)
        file.check_unchanged()
    except CkptError as error:
        raise error.located(quoted(name)) from None
    return Opened(name, file.size + contents.shards_nbytes, contents, sets)


def _index_in(path: str) -> str:
    """The path, or the one index of shards in it if it is a folder."""
    if not os.path.isdir(path):
        return path
    names = names_in(path)
    found = [name for name in names if name.endswith(".index.json")]
    if len(found) != 1:
        raise explain_folder(path, names)
    return os.path.join(path, found[0])
