"""Change the class count: only the rows of the class-dependent tensors that belong to a class.

Options: `from` and `to` (class counts as the architecture counts them), `map` (for each new class
the old one whose rows it gets, or null), `fresh` (names of those that get none, to be shown),
`seed`, and `tensors`: key to its class axis and row layout (see `ckptool.architectures.spec`), so
that a stored plan needs no architecture.

Source of the layouts: effdet 0.4.1, torchvision 0.29, Detectron2 at 02b5c4e, Tianxiaomo's YOLOv4.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckptool.architectures.spec import Architecture, RowLayout
from ckptool.checkpoint import WeightSet
from ckptool.dtypes import numpy_dtype
from ckptool.errors import PlanError, VerificationError, listed, quoted
from ckptool.plugins import LOSSY, SELECTIVE, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "heads"
NEW = -1

_Init = tuple[str, tuple[float, ...]]
_INITS = ("zeros", "constant", "normal", "uniform")


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with another class count; rows that no class owns are kept bit for bit.

    Raises: PlanError if a tensor has not the rows that its layout says, or if the map or the seed
    are none.
    """
    tensors = dict(weights.tensors)
    made: dict[object, LazyTensor] = {}
    for key, fields in options["tensors"].items():
        tensor = tensors.get(key)
        if tensor is None:
            raise PlanError(f"the head tensor {quoted(key)} is not in the file", code="plan.heads")
        axis, layout = fields["axis"], _layout(fields["layout"])
        length = layout.groups * (
            layout.kept + layout.per_class * _slots(layout, _count(options, "from"))
        )
        if not 0 <= axis < len(tensor.shape) or tensor.shape[axis] != length:
            raise PlanError(
                f"{quoted(key)}: found the shape {tensor.shape}, {options['from']} classes have "
                f"{length:,} rows along axis {axis}",
                code="plan.heads",
            )
        rows = picked_rows(layout, options["from"], options["map"])
        shape = (*tensor.shape[:axis], len(rows), *tensor.shape[axis + 1 :])
        init = _known(layout.init_for(shape))
        source = Rows(key, tensor, axis, rows, init, _count(options, "seed", 0))
        # Heads that are one tensor under several keys stay one.
        new = made.setdefault(
            (tensor, axis, rows, init), LazyTensor(TensorSpec(tensor.dtype, shape), source)
        )
        tensors[key] = new
    kept = sum(old is not None for old in options["map"])
    fresh = len(options["map"]) - kept
    note = f"{kept:,} of {len(options['map']):,} classes kept"
    if fresh:
        note += f", {fresh:,} newly initialised"
        if kept and options.get("fresh"):
            note += f": {listed(options['fresh'], 100 if fresh <= 100 else 20)}"
        elif not kept:
            note += "; `--class-map` keeps the rows of those that both label sets have"
    return Applied(
        replace(weights, tensors=tensors),
        LOSSY if fresh else SELECTIVE,
        tuple(options["tensors"]),
        notes=(note,),
    )


def describe(options: Mapping[str, Any]) -> str:
    """`from 90 classes to 20: 17 kept, 3 newly initialised (seed 0)`."""
    kept = sum(old is not None for old in options["map"])
    fresh = len(options["map"]) - kept
    new = f", {fresh:,} newly initialised (seed {options.get('seed', 0)})" if fresh else ""
    return f"from {options['from']:,} classes to {options['to']:,}: {kept:,} kept{new}"


def options_for(architecture: Architecture, found: int, wanted: int) -> dict[str, Any] | None:
    """The options for a class count, with no class kept; None if a row layout is not known."""
    axes, layouts = architecture.axes, architecture.layouts
    if not axes or axes.keys() - layouts.keys():
        return None
    background = any(layout.counted and layout.background for layout in layouts.values())
    return {
        "from": found,
        "to": wanted,
        "map": [None] * (wanted - background),
        "seed": 0,
        "tensors": {
            key: {"axis": axis.axis, "layout": asdict(layouts[key])} for key, axis in axes.items()
        },
    }


def picked_rows(
    layout: RowLayout, old_count: int, class_map: Sequence[int | None]
) -> tuple[int, ...]:
    """For each row of the new axis the old row that it copies, NEW where there is none.

    Raises: PlanError for a class that the old axis does not have.
    """
    old_slots = _slots(layout, old_count)
    classes = old_slots - (layout.background is not None)
    for old in class_map:
        if old is not None and not 0 <= old < classes:
            raise PlanError(
                f"the class map names the old class {old!r}, there are 0 … {classes - 1:,}",
                code="plan.class-map",
            )
    first = 1 if layout.background == "first" else 0
    # A slot is a class or the background; the map speaks of foreground classes only.
    slots: list[int | None] = [None if old is None else old + first for old in class_map]
    if layout.background == "first":
        slots.insert(0, 0)
    elif layout.background == "last":
        slots.append(old_slots - 1)
    kept, per_class = layout.kept, layout.per_class
    rows: list[int] = []
    for group in range(layout.groups):
        start = group * (kept + per_class * old_slots)
        rows += range(start, start + kept)
        for slot in slots:
            at = start + kept + per_class * (slot or 0)
            rows += [NEW] * per_class if slot is None else range(at, at + per_class)
    return tuple(rows)


def _layout(fields: Mapping[str, Any]) -> RowLayout:
    kind, parameters = fields["init"]
    return RowLayout(**{**fields, "init": (kind, tuple(parameters))})


def _known(init: _Init) -> _Init:
    if init[0] not in _INITS:
        raise PlanError(f"no initialisation is called {quoted(str(init[0]))}", code="plan.heads")
    return init


def _count(options: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """An option that counts; PlanError for a value that is no natural number."""
    value = options.get(name, default)
    if type(value) is not int or value < 0:
        raise PlanError(f"{quoted(name)} is {value!r}, wanted a whole number", code="plan.options")
    return value


def _slots(layout: RowLayout, count: int) -> int:
    """The number of classes with the background, where the layout has one."""
    return count + (layout.background is not None and not layout.counted)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor along one axis, in a new order, some of them newly initialised."""

    key: str
    input: LazyTensor
    axis: int
    rows: tuple[int, ...]
    init: _Init
    seed: int

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The tensor with the old rows."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The whole tensor: heads are small."""
        import numpy

        old = self.input.numpy()
        made = numpy.take(old, [max(row, 0) for row in self.rows], self.axis)
        fresh = [position for position, row in enumerate(self.rows) if row == NEW]
        if fresh:
            index = (slice(None),) * self.axis + (fresh,)
            shape = made[index].shape
            made[index] = self._fresh(shape).astype(numpy_dtype(spec.dtype))
        yield memoryview(numpy.ascontiguousarray(made).reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The number of new rows; VerificationError unless every kept row is the old one."""
        import numpy

        old, new = (
            numpy.moveaxis(tensor.numpy(), self.axis, 0) for tensor in (self.input, written)
        )
        for position, row in enumerate(self.rows):
            if row == NEW:
                if not numpy.isfinite(new[position].astype(numpy.float64)).all():
                    raise VerificationError(
                        f"{quoted(self.key)}: new row {position} is not finite",
                        code="verification.heads",
                    )
            elif new[position].tobytes() != old[row].tobytes():
                raise VerificationError(
                    f"{quoted(self.key)}: row {position} is not old row {row}",
                    code="verification.heads",
                )
        return {"new_rows": sum(row == NEW for row in self.rows)}

    def _fresh(self, shape: tuple[int, ...]) -> Any:
        """New values as the architecture starts them: the same for a seed and a key."""
        import numpy

        kind, parameters = self.init
        generator = numpy.random.default_rng([self.seed, zlib.crc32(self.key.encode())])
        if kind == "zeros":
            return numpy.zeros(shape)
        if kind == "constant":
            return numpy.full(shape, parameters[0])
        if kind == "normal":
            return generator.normal(0.0, parameters[0], shape)
        return generator.uniform(-parameters[0], parameters[0], shape)
