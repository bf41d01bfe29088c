"""Fold a bias into the BatchNorm behind it: `running_mean -= bias`; the function stays the same.

Options: `biases`, key of a bias to the keys of the running means of every BatchNorm that its
convolution feeds. The biases are removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import numpy_dtype
from ckptool.errors import PlanError, VerificationError, counted, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "fold"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights without the biases, the running means lowered by them.

    Raises: PlanError if a bias or a mean is not there, or if their lengths differ.
    """
    tensors = dict(weights.tensors)
    touched = []
    made: dict[tuple[LazyTensor, LazyTensor], LazyTensor] = {}
    for bias_key, means in options["biases"].items():
        bias = _vector(tensors, bias_key)
        for key in means:
            mean = _vector(tensors, key)
            if mean.shape != bias.shape:
                raise PlanError(
                    f"{quoted(bias_key)} has {bias.shape[0]} values, {quoted(key)} {mean.shape[0]}",
                    code="plan.fold",
                )
            # Norms that are one tensor under several keys stay one.
            tensors[key] = made.setdefault(
                (mean, bias), LazyTensor(mean.spec, Lowered(key, mean, bias))
            )
            touched.append(key)
        del tensors[bias_key]
    removed = tuple(options["biases"])
    note = (
        f"{counted(len(removed), 'redundant bias', 'redundant biases')} folded into "
        f"{counted(len(touched), 'running mean')}"
    )
    return Applied(
        replace(weights, tensors=tensors), EXACT, tuple(touched), dropped=removed, notes=(note,)
    )


def describe(options: Mapping[str, Any]) -> str:
    """`take 36 biases into the means behind`."""
    return f"take {counted(len(options['biases']), 'bias', 'biases')} into the means behind"


def _vector(tensors: Mapping[str, LazyTensor], key: str) -> LazyTensor:
    tensor = tensors.get(key)
    if tensor is None or len(tensor.shape) != 1:
        raise PlanError(f"{quoted(key)} is not a vector in the file", code="plan.fold")
    return tensor


@dataclass(frozen=True, slots=True)
class Lowered:
    """A running mean minus a bias."""

    key: str
    mean: LazyTensor
    bias: LazyTensor

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The mean and the bias."""
        return self.mean, self.bias

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The difference, computed in float64."""
        import numpy

        value = self.mean.numpy().astype(numpy.float64) - self.bias.numpy().astype(numpy.float64)
        yield memoryview(value.astype(numpy_dtype(spec.dtype)).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The largest rounding; VerificationError unless written + bias is the mean again."""
        import numpy

        mean, bias, new = (
            tensor.numpy().astype(numpy.float64) for tensor in (self.mean, self.bias, written)
        )
        error = float(numpy.abs(new + bias - mean).max(initial=0.0))
        scale = float(numpy.abs(mean - bias).max(initial=0.0))
        epsilon = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
        if error > scale * epsilon.get(spec.dtype, 2.0**-11) + 2.0**-24 * (spec.dtype == "float16"):
            raise VerificationError(f"{quoted(self.key)}: a folded mean is off by {error:g}")
        return {"rounding": error}
