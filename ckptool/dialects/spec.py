"""What a dialect is, as data: one implementation's spelling of a family of architectures.

A family of architectures has one canonical spelling (effdet's for EfficientDet, the darknet layer
index for YOLO), to which every dialect has one table. So N dialects cost N tables, and any two of
them can be converted.

`KEY[i]` in a rule is the element i of a tensor along its first axis, `KEY[i/n]` the block i of n
equal blocks: what is one tensor in one spelling may be several in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ckptool.architectures.spec import Architecture
from ckptool.rules import Rule
from ckptool.tensors import TensorSpec

Table = Mapping[str, str] | Callable[[Architecture], Mapping[str, str]]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Move(Protocol):
    """A rearrangement of a tensor's values, from a dialect to the canonical spelling."""

    def axis(self, axis: int) -> int:
        """The dialect's axis that becomes a canonical one."""

    def carried(self, values: Any) -> Any:
        """The canonical array."""

    @property
    def inverse(self) -> Move:
        """The way back."""


@dataclass(frozen=True, slots=True)
class Permuted:
    """Axes in another order: the canonical axis i is the dialect's axis `axes[i]`."""

    axes: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """The dialect's axis that becomes a canonical one."""
        return self.axes[axis]

    def carried(self, values: Any) -> Any:
        """The canonical array."""
        return values.transpose(self.axes)

    @property
    def inverse(self) -> Permuted:
        """The way back."""
        return Permuted(tuple(map(self.axes.index, range(len(self.axes)))))


@dataclass(frozen=True, slots=True)
class Reversed:
    """Equal blocks along an axis in reverse order; of the first `within` rows only, if given.

    Two blocks are swapped halves. A tensor without the axis stays as it is.
    """

    axis_: int
    blocks: int
    within: int | None = None

    def axis(self, axis: int) -> int:
        """The dialect's axis that becomes a canonical one."""
        return axis

    def carried(self, values: Any) -> Any:
        """The canonical array."""
        if values.ndim <= self.axis_:
            return values
        before = (slice(None),) * self.axis_
        part = values[(*before, slice(self.within))]
        size = part.shape[self.axis_] // self.blocks
        result = values.copy()
        for block in range(self.blocks):
            there = slice(block * size, (block + 1) * size)
            back = self.blocks - 1 - block
            here = slice(back * size, (back + 1) * size)
            result[(*before, there)] = part[(*before, here)]
        return result

    @property
    def inverse(self) -> Reversed:
        """The way back, which is the same."""
        return self


@dataclass(frozen=True, slots=True)
class Aside:
    """Keys (a glob) that only one side has, and why nothing is lost without them."""

    keys: str
    reason: str


def _nothing(architecture: Architecture) -> Mapping[str, TensorSpec]:
    return {}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One implementation's spelling of architectures.

    `families` and `archs` (globs) are those of the architectures that it spells. `marks` are keys
    that all of these have in it, and that tell it from the other dialects. `rules` go from its keys
    to the canonical ones; `tables` are those of their holes, some of which follow from the
    architecture. `moves` say which of its keys (globs) have their values in another order. `drops`
    are keys of its own that the canonical spelling has not, `lacks` canonical keys that it has not;
    `makes` are those of `drops` that it wants all the same: they are filled with ones.

    `bn_eps` is the eps of its BatchNorms, None where it is the architecture's own. `part` names
    the part of the network that it spells, if not all of it. `when` says whose files are in it if
    their keys do not tell it from another dialect. `notes` are sentences on what no weights can
    carry, with the measured size. `aliases` are other names; `source` says where all this is from.
    """

    name: str
    families: tuple[str, ...]
    archs: tuple[str, ...]
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    tables: Mapping[str, Table] = field(default_factory=dict)
    moves: tuple[tuple[str, Move], ...] = ()
    drops: tuple[Aside, ...] = ()
    lacks: tuple[Aside, ...] = ()
    makes: Callable[[Architecture], Mapping[str, TensorSpec]] = _nothing
    bn_eps: float | None = None
    part: str | None = None
    when: str = ""
    notes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""
