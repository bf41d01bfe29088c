"""Give BatchNorms the eps of another implementation: `running_var += from - to`.

Options: `from` and `to`. What the norms compute stays the same, but for rounding: they divide by
the root of running_var + eps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import LossError, PlanError, VerificationError, counted, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "eps"

_VARIANCES = ("running_var", "moving_variance")
_ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float16": 2.0**-24}


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with every running variance moved by the difference of the two eps.

    Raises: PlanError if there is no BatchNorm in them.
    """
    before, after = float(options["from"]), float(options["to"])
    made: dict[LazyTensor, LazyTensor] = {}
    tensors = dict(weights.tensors)
    touched = []
    for key, tensor in weights.tensors.items():
        if key.endswith(_VARIANCES) and DTYPES[tensor.dtype].kind == "f":
            # Norms that are one tensor under several keys stay one.
            tensors[key] = made.setdefault(
                tensor, LazyTensor(tensor.spec, Shifted(key, tensor, before, after))
            )
            touched.append(key)
    if not touched:
        raise PlanError("there is no `running_var` in the weights", code="plan.eps")
    note = f"BatchNorm's eps {before:g} to {after:g}, made up for in {len(touched):,} variances"
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(touched), notes=(note,))


def describe(options: Mapping[str, Any]) -> str:
    """`0.0001 to 1e-05, made up for in the running variances`."""
    return f"{options['from']:g} to {options['to']:g}, made up for in the running variances"


@dataclass(frozen=True, slots=True)
class Shifted:
    """A running variance under another eps."""

    key: str
    input: LazyTensor
    before: float
    after: float

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The variance as it was."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The variance, computed in float64.

        Raises: LossError for a channel that would have none left.
        """
        import numpy

        old = self.input.numpy().astype(numpy.float64)
        change = self.before - self.after
        new = old + change
        # A variance of 0 may be off by the rounding of an eps that was added to it before.
        low = numpy.flatnonzero((new < -_ROUNDING["float32"] * abs(change)) & (old >= 0))
        if len(low):
            raise LossError(
                f"{quoted(self.key)}: channel {low[0]:,} has the variance {old.flat[low[0]]:g}; "
                f"with eps {self.after:g} instead of {self.before:g} it would have to be "
                f"{new.flat[low[0]]:g} ({counted(len(low), 'such channel')})",
                hint="leave the step `eps` out of the plan that `ckptool plan -o PLAN.json` writes "
                "and run that: such channels then come out smaller",
                code="loss.eps",
            )
        new = numpy.where((new < 0) & (old >= 0), 0, new).astype(numpy_dtype(spec.dtype))
        yield memoryview(new.reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The largest relative rounding of variance + eps.

        Raises: VerificationError unless that sum is, for every channel, what it was.
        """
        import numpy

        old = self.input.numpy().astype(numpy.float64) + self.before
        new = written.numpy().astype(numpy.float64) + self.after
        error = numpy.abs(new - old)
        rounding = _ROUNDING.get(spec.dtype, 2.0**-8)
        bound = rounding * numpy.maximum(numpy.abs(new - self.after), abs(self.before - self.after))
        off = error > bound + _SMALLEST.get(spec.dtype, 1e-44)
        if (off & numpy.isfinite(old)).any():
            raise VerificationError(f"{quoted(self.key)}: variance + eps is not what it was")
        sound = numpy.isfinite(old) & (old != 0)
        relative = error[sound] / numpy.abs(old[sound])
        return {"relative_error": float(relative.max(initial=0.0))}
