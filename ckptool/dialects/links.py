"""Which tensor of a dialect is which of the canonical spelling, worked out for one architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckptool.architectures.spec import Architecture
from ckptool.dialects.spec import Dialect, Move
from ckptool.errors import PlanError, quoted
from ckptool.rules import Bound, Rule, bind
from ckptool.tensors import TensorSpec

_PART = re.compile(r"\[([0-9]+)(?:/([0-9]+))?\]")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor, or a part of one: element `index`, or of `count` equal blocks block `index`."""

    key: str
    index: int | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a dialect and the canonical one with the same values, moved by `moves`."""

    theirs: Place
    canonical: Place
    moves: tuple[Move, ...] = ()


def place(name: str) -> Place:
    """The place that a rule's result names: `KEY`, `KEY[i]` or `KEY[i/n]`, wherever that stands."""
    match = _PART.search(name) if "[" in name else None
    if match is None:
        return Place(name)
    index, count = match.groups()
    return Place(_PART.sub("", name), int(index), int(count) if count else None)


def links(
    dialect: Dialect, architecture: Architecture, canonical: Mapping[str, TensorSpec]
) -> tuple[Link, ...]:
    """The links of all the architecture's tensors that a dialect has, in the manifest's order.

    `canonical` is the manifest under its canonical keys (`canonical_specs`).
    """
    rewrite = rewriting(dialect, architecture, inverse=True)
    found = []
    for name, spec in canonical.items():
        theirs = rewrite(name)
        if theirs is not None:
            own = place(theirs)
            found.append(Link(own, Place(name), moves_of(dialect, own.key)))
        elif len(spec.shape) == 1:
            parts = [(index, rewrite(f"{name}[{index}]")) for index in range(spec.shape[0])]
            found += [Link(place(t), Place(name, i)) for i, t in parts if t is not None]
    return tuple(found)


def canonical_specs(native: Dialect, architecture: Architecture) -> dict[str, TensorSpec]:
    """The architecture's manifest under the canonical keys, in its order."""
    rewrite = rewriting(native, architecture)
    return {rewrite(key) or key: spec for key, spec in architecture.specs.items()}


def rewriting(
    dialect: Dialect, architecture: Architecture, *, inverse: bool = False
) -> Callable[[str], str | None]:
    """The function from a dialect's keys to the canonical ones, or back; None: no rule fits."""
    bound = bound_rules(dialect, architecture, inverse=inverse)

    def rewrite(key: str) -> str | None:
        for rule in bound:
            name = rule.rewrite(key)
            if name is not None:
                return name
        return None

    return rewrite


def bound_rules(
    dialect: Dialect, architecture: Architecture, *, inverse: bool = False
) -> tuple[Bound, ...]:
    """The rules of a dialect with the tables that this architecture gives their holes."""
    tables = {
        name: table(architecture) if callable(table) else table
        for name, table in dialect.tables.items()
    }
    rules: Iterable[Rule] = dialect.rules
    if inverse:
        rules = [rule.inverse for rule in rules]
        tables = {name: _inverted(dialect.name, name, table) for name, table in tables.items()}
    return bind(rules, tables)


def moves_of(dialect: Dialect, key: str) -> tuple[Move, ...]:
    """What happens to the values of one of a dialect's keys, in order."""
    return tuple(move for glob, move in dialect.moves if fnmatchcase(key, glob))


def _inverted(dialect: str, name: str, table: Mapping[str, str]) -> dict[str, str]:
    inverted = {new: old for old, new in table.items()}
    if len(inverted) < len(table):
        raise PlanError(
            f"dialect {quoted(dialect)}: the table of {{{name}}} cannot be turned round",
            code="dialect.table",
        )
    return inverted
