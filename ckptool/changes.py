"""How far two checkpoints are apart, as data: by tensor, by module, in all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ckptool.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class Change:
    """How one tensor differs from another of its shape, or several tensors from theirs.

    `changed` elements differ in value, `outside` of them by more than the tolerances allow,
    `non_finite` of them since only one side is a number, or infinities differ. `max_abs` is the
    largest |found - wanted| of the others, None for types that cannot be computed with. `identical`
    says that the dtypes and all bits are the same. The sums are over the tensors that are not.
    """

    key: str
    elements: int
    dtypes: tuple[str, str] = ("float32", "float32")
    identical: bool = True
    changed: int = 0
    outside: int = 0
    non_finite: int = 0
    max_abs: float | None = 0.0
    delta_squares: float = 0.0
    found_squares: float = 0.0
    wanted_squares: float = 0.0
    products: float = 0.0

    @property
    def relative_l2(self) -> float | None:
        """The length of the difference as a share of the wanted one's; infinite if that is 0.

        Infinite, too, where the lengths themselves are beyond float64.
        """
        if self.max_abs is None:
            return None
        if not self.delta_squares:
            return 0.0
        if not self.wanted_squares or math.isinf(self.delta_squares):
            return math.inf
        return math.sqrt(self.delta_squares) / math.sqrt(self.wanted_squares)

    @property
    def cosine(self) -> float | None:
        """The cosine between the two; 1 for the same, None where a length is 0 or infinite."""
        if self.identical:
            return 1.0
        lengths = math.sqrt(self.found_squares) * math.sqrt(self.wanted_squares)
        if not lengths or math.isinf(lengths):
            return None
        return max(-1.0, min(1.0, self.products / lengths))

    @property
    def counts(self) -> bool:
        """Whether these are whole numbers or booleans, not weights."""
        return DTYPES[self.dtypes[1]].kind in "iub"

    @property
    def share(self) -> float:
        """The share of elements whose values differ."""
        return self.changed / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """The changes of a module's tensors taken together, and how many of the tensors changed."""

    total: Change
    tensors: int
    changed: int


@dataclass(frozen=True, slots=True)
class Values:
    """The changes of all tensors that both sides have in one shape, what changed most first.

    `edits` name what was done to the found side before: edits that preserve every value.
    `left_out` are the keys that only one side has, or both in different shapes.
    """

    rtol: float
    atol: float
    tensors: tuple[Change, ...]
    edits: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def identical(self) -> int:
        """How many tensors are equal to the last bit."""
        return sum(change.identical for change in self.tensors)

    @property
    def within(self) -> bool:
        """Whether no element is outside the tolerances: |found - wanted| ≤ atol + rtol·|wanted|."""
        return not any(change.outside for change in self.tensors)

    @property
    def counters(self) -> ModuleChange:
        """The changes of all whole numbers and booleans, which are counters and indices."""
        return _together("", [change for change in self.tensors if change.counts])

    def modules(self, most: int = 16) -> list[ModuleChange]:
        """The changes by module, what changed most first: as deep as there are at most so many.

        Counters are left out: a step of training changes every one of them beyond comparison.
        """
        weights = [change for change in self.tensors if not change.counts]
        groups = _by_depth(weights, 1)
        for depth in range(2, 9):
            deeper = _by_depth(weights, depth)
            if len(deeper) > most:
                break
            groups = deeper
        found = [_together(name, changes) for name, changes in groups.items()]
        return sorted(found, key=lambda module: rank(module.total))


def added(one: Change, other: Change) -> Change:
    """Two changes taken together, under the first one's key."""
    unknown = one.max_abs is None or other.max_abs is None
    return Change(
        one.key,
        one.elements + other.elements,
        one.dtypes,
        one.identical and other.identical,
        one.changed + other.changed,
        one.outside + other.outside,
        one.non_finite + other.non_finite,
        None if unknown else max(one.max_abs or 0.0, other.max_abs or 0.0),
        one.delta_squares + other.delta_squares,
        one.found_squares + other.found_squares,
        one.wanted_squares + other.wanted_squares,
        one.products + other.products,
    )


def rank(change: Change) -> tuple[object, ...]:
    """What sorts changes: lost numbers first, the identical last, counters behind weights."""
    size = change.relative_l2
    return (
        not change.non_finite,
        not change.changed,
        change.counts,
        -(math.inf if size is None else size),
        change.identical,
    )


def _by_depth(changes: Iterable[Change], depth: int) -> dict[str, list[Change]]:
    """The changes by the first segments of their keys, never by their last."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        parts = change.key.split(".")
        groups.setdefault(".".join(parts[:-1][:depth]) or change.key, []).append(change)
    return groups


def _together(name: str, changes: list[Change]) -> ModuleChange:
    total = Change(name, 0)
    for change in changes:
        total = added(total, change)
    return ModuleChange(total, len(changes), sum(bool(change.changed) for change in changes))
