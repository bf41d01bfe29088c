"""What the shell may complete: architectures, weight sets, the keys of the file, dialects.

click asks these functions when the user types Tab; whatever goes wrong, there is nothing to offer.
Names come from files that nobody trusts, and land on a command line: only those are offered that
mean nothing to a shell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING

from ckptool.errors import CkptError

if TYPE_CHECKING:
    import click

    Completer = Callable[[click.Context, click.Parameter, str], list[str]]

_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:*-]*|\.")
_ELEMENT_TYPES = ("fp32", "fp16", "bf16", "fp64")


def _offering(candidates: Callable[[click.Context, str], Iterable[str]]) -> Completer:
    """A completer of what begins as the word that is typed."""

    @wraps(candidates)
    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[str]:
        try:
            found = [name for name in candidates(context, typed) if name.startswith(typed)]
            return [name for name in found if _HARMLESS.fullmatch(name)]
        except CkptError:
            return []

    return complete


def _file(context: click.Context) -> str:
    """FILE, which click has not taken in yet while an option before it waits for its value."""
    from click.shell_completion import split_arg_string

    words = split_arg_string(os.environ.get("COMP_WORDS", ""))[2:]
    given = context.params.get("file") or next(filter(os.path.exists, words), None)
    if given is None:
        raise CkptError("no file is typed yet")
    return os.path.expanduser(given)


@_offering
def architectures(context: click.Context, typed: str) -> Iterable[str]:
    """The names of the architectures."""
    from ckptool.architectures import names

    return names()


@_offering
def dtypes(context: click.Context, typed: str) -> Iterable[str]:
    """The short names of the types to cast to."""
    return _ELEMENT_TYPES


@_offering
def dialects(context: click.Context, typed: str) -> Iterable[str]:
    """The names of the dialects, of the family of the architecture if that is typed already."""
    from ckptool.dialects import built_in, dialects_of

    arch = context.params.get("arch")
    if not arch:
        return dict.fromkeys(dialect.name for dialect in built_in())
    from ckptool.architectures import find

    return dict.fromkeys(dialect.name for dialect in dialects_of(find(arch)))


@_offering
def weight_sets(context: click.Context, typed: str) -> Iterable[str]:
    """The names of the weight sets in FILE."""
    from ckptool.reading import open_file

    return [item.name for item in open_file(_file(context)).sets]


@_offering
def other_weight_sets(context: click.Context, typed: str) -> Iterable[str]:
    """The names of the weight sets in FILE2."""
    from ckptool.reading import open_file

    return [item.name for item in open_file(context.params.get("like") or "").sets]


@_offering
def keys(context: click.Context, typed: str) -> Iterable[str]:
    """The keys of FILE, a level at a time: modules as globs, and what is typed to the last dot."""
    from ckptool.reading import read

    level = typed.count(".") + 1
    offered: dict[str, None] = {}
    for key in read(_file(context), weights=context.params.get("weights")):
        if key.startswith(typed):
            parts = key.split(".")
            module = ".".join(parts[:level])
            offered[key if len(parts) <= level else f"{module}.*"] = None
    return offered
