"""From what is typed to the files that are meant, and where the result of each goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckptool.errors import CkptError, PlanError, quoted
from ckptool.files import ByteFile
from ckptool.fleet.tasks import digest
from ckptool.remote.urls import is_url, scheme

_MOST_NAMES = 1 << 30  # bytes of a file of names
_WILD = frozenset("*?[")


class Input(NamedTuple):
    """A file, and the part of its path that the output is named after.

    `state` is what a listing told of it, as `tasks.state_of` would; None where nothing did.
    """

    path: str
    part: str
    state: tuple[int, str] | None = None


def expanded(words: Iterable[str]) -> Iterator[Input]:
    """The files that are meant.

    A word is a path, a URL, a pattern with `*` of either, or `@FILE`, a file with one of them a
    line. What a pattern finds keeps the folders below the part that has no `*`; a folder is not
    meant where something inside it is found as well.

    Raises: CkptError for a pattern that finds nothing, or a list that cannot be read.
    """
    for word in words:
        if word.startswith("@"):
            yield from expanded(_lines(word[1:]))
        elif _WILD & set(word) and not os.path.exists(word):
            found = _found(word)
            above = {os.path.dirname(path.rstrip("/")) for path, _ in found}
            found = [(path, state) for path, state in found if path.rstrip("/") not in above]
            if not found:
                raise CkptError(f"{quoted(word)}: no file has such a name", code="file.missing")
            start = len(_fixed(word))
            yield from (Input(path, path[start:], state) for path, state in found)
        else:
            yield Input(word, os.path.basename(word.rstrip("/")))


def outputs(
    inputs: Iterable[Input], out: str, suffix: str, root: str | None = None
) -> Iterator[tuple[Input, str]]:
    """Each input and the path of its output below `out`; an input that is named twice comes once.

    `root` is a folder below which the inputs keep their folders.

    Raises: PlanError if two inputs have one output, or one is not below the root.
    """
    taken: dict[str, str] = {}
    for found in inputs:
        path = found.path
        below = found.part if root is None else _below(path, root)
        stem, old = os.path.splitext(below.removesuffix(".index.json"))
        name = (stem if old[1:].isalpha() else below.rstrip("/")) + suffix
        target = f"{out.rstrip('/')}/{name}"
        other = taken.setdefault(target, path)
        if other is path:
            yield found, target
        elif other != path:
            raise PlanError(
                f"{quoted(other)} and {quoted(path)} would both become {quoted(target)}",
                hint="--root FOLDER keeps the folders below it",
                code="batch.outputs",
            )


def _below(path: str, root: str) -> str:
    whole, base = path, root.rstrip("/") + "/"
    if not is_url(path):
        whole, base = os.path.abspath(path), os.path.abspath(root) + "/"
    if not whole.startswith(base):
        raise PlanError(f"{quoted(path)} is not below {quoted(root)}", code="batch.outputs")
    return whole[len(base) :]


def _lines(path: str) -> list[str]:
    file = ByteFile(path)
    text = str(file.read(0, min(file.size, _MOST_NAMES)), "utf-8", "surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _found(pattern: str) -> list[tuple[str, tuple[int, str] | None]]:
    """The sorted paths that a pattern fits, hidden ones left out, and what is known of each."""
    if is_url(pattern):
        from ckptool.remote import stores

        if scheme(pattern) in ("http", "https"):
            raise CkptError(
                f"{quoted(pattern)}: a web server does not list its files",
                hint="@FILE with a URL a line",
                code="batch.pattern",
            )
        listed = stores.matching(pattern).items()
        return [(url, (s.size, digest(s.version)) if s else None) for url, s in listed]
    return [(path, None) for path in sorted(glob.iglob(pattern, recursive=True))]


def _fixed(pattern: str) -> str:
    """The folders of a pattern before its first `*`."""
    first = min(pattern.index(sign) for sign in _WILD if sign in pattern)
    return pattern[: pattern.rfind("/", 0, first) + 1]
