"""Edits: each a module that turns one weight set into another, lazily.

An edit is a module (or object) with `apply(weights, options) -> Applied` and `describe(options)`;
the options are JSON values, and they alone determine the result. Third parties add theirs by the
entry point group `ckptool.plugins`, whose name is the edit's.

What an edit computes is a tensor whose source computes it when it is read. Such a source may have
`check(spec, written)`, which compares what was written with what it was computed from, and
`inputs`, the tensors that it is computed from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, listed, printable, quoted
from ckptool.tensors import LazyTensor

EXACT, SELECTIVE, LOSSY = "exact", "selective", "lossy"
GRADES = (EXACT, SELECTIVE, LOSSY)

EDITS = (
    "rename",
    "dialect",
    "eps",
    "drop",
    "fill",
    "reshape",
    "fold",
    "materialise",
    "anchors",
    "channels",
    "heads",
    "cast",
)
_GROUP = "ckptool.plugins"


@dataclass(frozen=True, slots=True)
class Applied:
    """An edit's result.

    `grade` is exact (the function is preserved), selective (exact on what is kept) or lossy;
    `keys` are the keys of the result that the edit touched, `dropped` those it removed, `notes`
    one sentence each on what its user should know of it.
    """

    weights: WeightSet
    grade: str
    keys: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Edit(Protocol):
    """What a module must offer to be an edit; `describe` may be left out by a third party's."""

    def apply(self, weights: WeightSet, options: Mapping[str, Any]) -> Applied:
        """The edited weights; PlanError for options that do not fit them."""

    def describe(self, options: Mapping[str, Any]) -> str:
        """What the edit does with these options, in a few words."""


def edit(name: str) -> Edit:
    """The edit of that name, built in or by entry point.

    Raises: PlanError if there is none, or if it does not load.
    """
    if name in EDITS:
        found: Edit = import_module(f"ckptool.plugins.{name}")
        return found
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group=_GROUP)}
    if name not in points:
        raise PlanError(
            f"no edit is called {quoted(name)}; there are {listed([*EDITS, *points], 20)}",
            hint="a plan that uses a package's edit needs that package installed",
            code="plan.edit",
        )
    try:
        loaded: Edit = points[name].load()
    except Exception as error:
        raise PlanError(
            f"the edit {quoted(name)} of {quoted(points[name].value)} does not load: "
            f"{type(error).__name__}: {error}",
            code="plan.edit",
        ) from error
    if not callable(getattr(loaded, "apply", None)):
        raise PlanError(
            f"the edit {quoted(name)} of {quoted(points[name].value)} has no `apply`",
            code="plan.edit",
        )
    return loaded


def apply(name: str, options: Mapping[str, Any], weights: WeightSet) -> Applied:
    """The result of an edit whose options come from elsewhere: a plan, or another package.

    Raises: PlanError for whatever the edit raises on options that are not its own.
    """
    found = edit(name)
    try:
        result = found.apply(weights, options)
        describe(name, options)  # what cannot be told either is none of its options
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PlanError(
            f"the edit {quoted(name)} cannot be carried out with its options: "
            f"{type(error).__name__}: {error}",
            code="plan.options",
        ) from error
    if not isinstance(result, Applied) or result.grade not in GRADES:
        raise PlanError(f"the edit {quoted(name)} gave no result of its kind", code="plan.edit")
    return result


def describe(name: str, options: Mapping[str, Any]) -> str:
    """What an edit does with these options, in a few words; their JSON if it does not say."""
    tell = getattr(edit(name), "describe", None)
    return printable(tell(options) if tell else json.dumps(dict(options)), 200)


def costs(planned: LazyTensor, written: LazyTensor) -> dict[str, float]:
    """What the edits behind a tensor cost, measured on what was written; empty if none computed it.

    Counts add up over the edits, of everything else the largest value stands.

    Raises: VerificationError if a check fails, at any edit.
    """
    check = getattr(planned.source, "check", None)
    found = dict(check(planned.spec, written)) if check else {}
    for tensor in getattr(planned.source, "inputs", ()):
        for name, value in costs(tensor, tensor).items():
            before = found.get(name, 0)
            found[name] = before + value if isinstance(value, int) else max(before, value)
    return found
