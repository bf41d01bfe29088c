"""Give tensors another shape with the same elements in the same order.

Options: `shapes`, key to shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import (
    Extent,
    LazyTensor,
    TensorSpec,
    View,
    contiguous_strides,
    is_contiguous,
    is_possible,
)

NAME = "reshape"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with the new shapes.

    Raises: PlanError for a key that is not there, or a shape with another number of elements.
    """
    tensors = dict(weights.tensors)
    for key, shape in options["shapes"].items():
        if key not in tensors:
            raise PlanError(f"{quoted(key)} is not in the file", code="plan.reshape")
        tensors[key] = _reshaped(key, tensors[key], tuple(shape))
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(options["shapes"]))


def describe(options: Mapping[str, Any]) -> str:
    """`another shape: bn.num_batches_tracked becomes () and 11 more`."""
    (key, shape), *others = options["shapes"].items()
    more = f" and {len(others):,} more" if others else ""
    return f"another shape: {quoted(key)} becomes {tuple(shape)}{more}"


def _reshaped(key: str, tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    spec = TensorSpec(tensor.dtype, shape)
    if not is_possible(shape) or spec.numel != tensor.numel:
        raise PlanError(
            f"{quoted(key)}: shape {tensor.shape} cannot become {shape}", code="plan.reshape"
        )
    source = tensor.source
    if isinstance(source, View) and is_contiguous(tensor.shape, source.stride):
        source = View(
            source.record, source.offset, contiguous_strides(shape), source.conj, source.negative
        )
        return LazyTensor(spec, source)
    return LazyTensor(spec, Reshaped(tensor))


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The elements of a tensor, which may lie anyhow, row-major under another shape."""

    input: LazyTensor

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The tensor under its own shape."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The tensor's own elements, in their order."""
        return self.input.chunks(step)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """Where the elements lie, if they lie row-major."""
        return self.input.extent()
