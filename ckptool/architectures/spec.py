"""What an architecture wants of a checkpoint, as plain data."""

from __future__ import annotations

import math
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
    `last`, None); `counted` whether the architecture's class count includes it. `init` is the
    distribution that the architecture starts rows with: `zeros`, `constant` (value), `normal`
    (standard deviation), `uniform` (limit), all about 0, or one whose number follows from the
    tensor's shape and so from the class count: `xavier_uniform`, `kaiming_normal` (of the
    outgoing fan, for ReLU). `init_for` gives the number.
    """

    groups: int = 1
    kept: int = 0
    per_class: int = 1
    background: str | None = None
    counted: bool = False
    init: tuple[str, tuple[float, ...]] = ("zeros", ())

    def init_for(self, shape: tuple[int, ...]) -> tuple[str, tuple[float, ...]]:
        """The distribution for a tensor of this shape: `zeros`, `constant`, `normal`, `uniform`.

        Source: torch 2.15 `torch/nn/init.py` (fans, gains).
        """
        kind = self.init[0]
        if kind not in ("xavier_uniform", "kaiming_normal"):
            return self.init
        window = math.prod(shape[2:])
        fan_in, fan_out = shape[1] * window, shape[0] * window
        if kind == "xavier_uniform":
            return "uniform", (math.sqrt(6 / (fan_in + fan_out)),)
        return "normal", (math.sqrt(2 / fan_out),)


# Far above all label sets there are, and few enough to be counted through.
_MOST_CLASSES = 1_000_000

Legacy = Mapping[str, tuple[tuple[str, str | None], ...]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture's manifest and its card.

    `specs` is the ordered manifest at `num_classes` classes, the architecture's default. `axes`
    are the class-dependent tensors, by key, empty if nothing depends on the class count;
    `layouts` are their row layouts, without those of which the order is not known (a user's own
    head of many rows per class). `parameters` counts the elements that are trained, not those of
    buffers. `aliases` are groups of keys that share a tensor. `derived` are keys whose values
    follow from the configuration and are regenerated, never converted. `card` is what no file
    stores (image size, BN eps, mean, …), by name, as JSON values. `source` names the packages and
    versions that the manifest was measured with; `needs` the packages that a live model needs.
    `dialect` is the spelling of the keys, None for the architecture's own (see `ckptool.dialects`).
    `legacy` are the old keys that the model's own classes rename as they load a file in which the
    version of their module is below 2, or missing: (old, new) pairs by the module's path. A key
    whose new name is None they leave out, whatever the version.

    Architectures with equal manifests share the very object `specs` if both are built in. Where
    `axes` is not empty and `num_classes` is None, the architecture (a user's callable) has no
    default: `specs` is then the manifest at some small count, and `manifest` wants a number.
    """

    name: str
    family: str
    num_classes: int | None
    specs: Mapping[str, TensorSpec]
    axes: Mapping[str, ClassAxis] = field(default_factory=dict)
    layouts: Mapping[str, RowLayout] = field(default_factory=dict)
    parameters: int = 0
    aliases: tuple[tuple[str, ...], ...] = ()
    derived: tuple[str, ...] = ()
    card: Mapping[str, object] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    dialect: str | None = None
    legacy: Legacy = field(default_factory=dict)

    def manifest(self, num_classes: int | None = None) -> Mapping[str, TensorSpec]:
        """The ordered manifest for a class count, the default one if it is None.

        Raises: ArchitectureError if the architecture cannot have that many classes, or if it has
        no default.
        """
        if num_classes is None and self.num_classes is None and self.axes:
            raise ArchitectureError(
                f"{quoted(self.name)} has no default class count",
                hint="--num-classes N",
                code="architecture.classes",
            )
        if num_classes is None or num_classes == self.num_classes:
            return self.specs
        if not self.axes or not 1 <= num_classes <= _MOST_CLASSES:
            raise ArchitectureError(
                f"{quoted(self.name)} cannot have {num_classes:,} classes"
                + ("" if self.axes else ": nothing was found in it that depends on a class count"),
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


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of `ckptool archs`: an architecture without its manifest.

    `keys` and `parameters` count at `num_classes`, the default; `image_size` is (height, width),
    None where the architecture has none of its own.
    """

    name: str
    family: str
    keys: int
    parameters: int
    num_classes: int | None
    image_size: tuple[int, int] | None
    needs: tuple[str, ...] = ()
