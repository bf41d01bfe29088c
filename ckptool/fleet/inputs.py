"""From what is typed to the files that are meant, and where the result of each goes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from ckptool import places
from ckptool.errors import CkptError, PlanError, quoted
from ckptool.files import ByteFile
from ckptool.fleet.tasks import digest
from ckptool.remote.urls import is_url, is_web, shown

if TYPE_CHECKING:
    from ckptool.remote.stores import Stat

_MOST_NAMES = 1 << 30  # bytes of a file of names
_WILD = frozenset("*?[")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}(\.\w+)$")


class Input(NamedTuple):
    """A file, and the part of its path that the output is named after.

    `state` is what a listing told of it, as `tasks.state_of` would; None where nothing did.
    `found` is whether a pattern found it, and nobody named it.
    """

    path: str
    part: str
    state: tuple[int, str] | None = None
    found: bool = False


def expanded(words: Iterable[str]) -> Iterator[Input]:
    """The files that are meant.

    A word is a path, a URL, a pattern with `*` of either, or `@FILE`, a file with one of them a
    line. What a pattern finds keeps the folders below the part that has no `*`; a folder is not
    meant where something inside it is found as well. A shard with its index beside it means the
    whole set, which then comes as often as it has shards.

    Raises: CkptError for a pattern that finds nothing, or a list that cannot be read.
    """
    whole = cache(_whole)
    for given in _expanded(words):
        folder, name = os.path.split(given.path)
        index = _SHARD.sub(rf"\1{_INDEX}", name)
        if index != name and whole(places.inside(folder, index)):
            part = given.part.removesuffix(name) + index
            given = Input(places.inside(folder, index), part, None, given.found)
        yield given


def _expanded(words: Iterable[str]) -> Iterator[Input]:
    for word in words:
        if word.startswith("@"):
            yield from _expanded(_lines(word[1:]))
        elif _WILD & set(_named(word)) and not os.path.exists(word):
            found = _found(word)
            above = {os.path.dirname(path.rstrip("/")) for path, _ in found}
            found = [(path, state) for path, state in found if path.rstrip("/") not in above]
            if not found:
                raise CkptError(
                    f"{quoted(shown(word))}: no file has such a name", code="file.missing"
                )
            start = len(_fixed(word))
            yield from (Input(path, path[start:], state, True) for path, state in found)
        else:
            yield Input(word, os.path.basename(_named(word).rstrip("/")))


def _whole(index: str) -> bool:
    """Whether there is such an index."""
    if not is_url(index):
        return os.path.exists(index)
    from ckptool.remote import stores

    with suppress(CkptError):
        return stores.exists(index)
    return False


def outputs(
    inputs: Iterable[Input], out: str, suffix: str, root: str | None = None
) -> Iterator[tuple[Input, str]]:
    """Each input and the path of its output below `out`; an input that is named twice comes once.

    `root` is a folder below which the inputs keep their folders.

    Raises: PlanError if two inputs have one output, or one is not below the root.
    """
    taken: dict[str, str] = {}
    given: set[str] = set()
    for found in inputs:
        path = known_as(found.path)
        if path in given:
            continue
        given.add(path)
        below = found.part if root is None else _below(_named(path), root)
        stem, old = os.path.splitext(below.removesuffix(_INDEX))
        name = (stem if old[1:].isalpha() else below.rstrip("/")) + suffix
        target = f"{out.rstrip('/')}/{name}"
        other = taken.setdefault(target, path)
        if other is not path:
            both = f"{quoted(shown(other))} and {quoted(shown(path))}"
            raise PlanError(
                f"{both} would both become {quoted(target)}",
                hint="--root FOLDER keeps the folders below it",
                code="batch.outputs",
            )
        yield found._replace(path=path), target


def without(
    inputs: Iterable[Input], out: str, made: Callable[[], Iterable[str]]
) -> Iterator[Input]:
    """The inputs but for those that patterns found among the outputs in `out`, shards too.

    `made` gives the outputs; it is asked only if it matters.
    """
    home = known_as(out).rstrip("/") + "/"
    home = "" if home == "./" else home
    outputs: set[str] | None = None
    for given in inputs:
        path = known_as(given.path)
        if given.found and path.startswith(home):
            if outputs is None:
                outputs = {known_as(output).removesuffix(_INDEX) for output in made()}
            folder, name = os.path.split(path.removesuffix(_INDEX))
            whole = os.path.join(folder, _SHARD.sub(r"\1", name))
            if outputs & {path.removesuffix(_INDEX), folder, whole}:
                continue
        yield given


def known_as(path: str) -> str:
    """One text for the ways to write a path, which still leads where it led."""
    return path if is_url(path) else str(PurePath(path))


def _below(path: str, root: str) -> str:
    whole, base = path, root.rstrip("/") + "/"
    if not is_url(path):
        whole, base = os.path.abspath(path), os.path.abspath(root) + "/"
    if not whole.startswith(base):
        raise PlanError(f"{quoted(path)} is not below {quoted(root)}", code="batch.outputs")
    return whole[len(base) :]


def _named(word: str) -> str:
    """A word without the query of a URL, which may hold a secret, and any signs."""
    return shown(word) if is_web(word) else word


def _lines(path: str) -> list[str]:
    file = ByteFile(path)
    text = str(file.read(0, min(file.size, _MOST_NAMES)), "utf-8", "surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _found(pattern: str) -> list[tuple[str, tuple[int, str] | None]]:
    """The sorted paths that a pattern fits, hidden ones left out, and what is known of each."""
    if is_url(pattern):
        from ckptool.remote import stores

        if is_web(pattern):
            raise CkptError(
                f"{quoted(shown(pattern))}: a web server does not list its files",
                hint="@FILE with a URL a line",
                code="batch.pattern",
            )
        listed = stores.matching(pattern).items()
        return [(url, _state(url, told)) for url, told in listed]
    return [(path, None) for path in sorted(glob.iglob(pattern, recursive=True))]


def _state(url: str, told: Stat | None) -> tuple[int, str] | None:
    """What a listing tells; of a folder or an index that is not enough."""
    if told is None or told.folder or url.endswith(_INDEX):
        return None
    return told.size, digest(told.version)


def _fixed(pattern: str) -> str:
    """The folders of a pattern before its first `*`."""
    first = min(pattern.index(sign) for sign in _WILD if sign in pattern)
    return pattern[: pattern.rfind("/", 0, first) + 1]
