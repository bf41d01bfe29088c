"""What an architecture wants of a checkpoint, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptool.errors import ArchitectureError, quoted
from ckptool.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class ClassAxis:
    """How one axis of a tensor grows with the class count: length = scale · classes + offset."""

    axis: int
    scale: int
    offset: int

    def length(self, num_classes: int) -> int:
        """The length of the axis for a class count."""
        return self.scale * num_classes + self.offset

    def classes(self, length: int) -> int | None:
        """The class count that gives a length, None if none does."""
        count, rest = divmod(length - self.offset, self.scale)
        return count if not rest and count >= 0 else None


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the rows of a class axis are ordered: `groups` blocks, one per anchor, one after another.

    Each block starts with `kept` rows that no class owns (YOLO's box and objectness), then has
    `per_class` rows for every class. `background` says where a background class stands (`first`,
    `last`, None); `counted` whether the architecture's class count includes it. `init` names how
    the architecture starts new rows (see `ckptool.plugins.heads`), with its parameters.
    """

    groups: int = 1
    kept: int = 0
    per_class: int = 1
    background: str | None = None
    counted: bool = False
    init: tuple[str, tuple[float, ...]] = ("zeros", ())


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture's manifest and its card.

    `specs` is the ordered manifest at `num_classes` classes, the architecture's default. `axes`
    are the class-dependent tensors, `layouts` their row layouts, by key; both empty if nothing
    depends on the class count. `aliases` are groups of keys that share a tensor. `derived` are
    keys whose values follow from the configuration and are regenerated, never converted. `card`
    is what no file stores (image size, BN eps, mean, …), by name. `source` names the packages and
    versions that the manifest was measured with; `needs` the packages that a live model needs.
    """

    name: str
    family: str
    num_classes: int | None
    specs: Mapping[str, TensorSpec]
    axes: Mapping[str, ClassAxis] = field(default_factory=dict)
    layouts: Mapping[str, RowLayout] = field(default_factory=dict)
    aliases: tuple[tuple[str, ...], ...] = ()
    derived: tuple[str, ...] = ()
    card: Mapping[str, object] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def manifest(self, num_classes: int | None = None) -> Mapping[str, TensorSpec]:
        """The ordered manifest for a class count, the default one if it is None.

        Raises: ArchitectureError if the architecture cannot have that many classes.
        """
        if num_classes is None or num_classes == self.num_classes:
            return self.specs
        if not self.axes or num_classes < 1:
            raise ArchitectureError(
                f"{quoted(self.name)} cannot have {num_classes:,} classes"
                + ("" if self.axes else ": nothing in it depends on a class count"),
                code="architecture.classes",
            )
        return {key: self._resized(key, spec, num_classes) for key, spec in self.specs.items()}

    def _resized(self, key: str, spec: TensorSpec, num_classes: int) -> TensorSpec:
        axis = self.axes.get(key)
        if axis is None:
            return spec
        shape = list(spec.shape)
        shape[axis.axis] = axis.length(num_classes)
        return TensorSpec(spec.dtype, tuple(shape))
