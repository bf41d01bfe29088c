"""Edits: each a module that turns one weight set into another, lazily.

An edit is a module (or object) with NAME and `apply(weights, options) -> Applied`; the options are
JSON values, and they alone determine the result. Third parties add theirs by the entry point group
`ckptool.plugins`, whose name is the edit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, listed, quoted

EXACT, SELECTIVE, LOSSY = "exact", "selective", "lossy"

EDITS = (
    "rename",
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


@dataclass(frozen=True, slots=True)
class Applied:
    """An edit's result.

    `grade` is exact (the function is preserved), selective (exact on what is kept) or lossy;
    `keys` are the keys of the result that the edit touched, `dropped` those it removed, `notes`
    one sentence each on what it did not carry over.
    """

    weights: WeightSet
    grade: str
    keys: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Edit(Protocol):
    """What a module must offer to be an edit."""

    def apply(self, weights: WeightSet, options: Mapping[str, Any]) -> Applied:
        """The edited weights; PlanError for options that do not fit them."""


def edit(name: str) -> Edit:
    """The edit of that name, built in or by entry point.

    Raises: PlanError if there is none.
    """
    if name in EDITS:
        found: Edit = import_module(f"ckptool.plugins.{name}")
        return found
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group="ckptool.plugins")}
    if name not in points:
        raise PlanError(
            f"no edit is called {quoted(name)}; there are {listed([*EDITS, *points], 20)}",
            code="plan.edit",
        )
    loaded: Edit = points[name].load()
    return loaded
