"""Change the number of input channels of the first convolution.

Options: `key` of its weight and `to`. To one channel the weights are summed, which is exact for
grey images that were fed three times over; to more or fewer they are repeated in turn and scaled
by old / new, so that the response to a constant image stays the same.

Source: timm 1.0.31 `timm/models/_manipulate.py` (`adapt_input_conv`), which does the same from 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import numpy_dtype
from ckptool.errors import PlanError, VerificationError, counted, quoted
from ckptool.plugins import LOSSY, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "channels"

MOST = 1 << 12


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with another first convolution.

    Raises: PlanError if the key is not a convolution's weight.
    """
    key, wanted = options["key"], options["to"]
    tensor = weights.tensors.get(key)
    if tensor is None or len(tensor.shape) != 4 or not 1 <= wanted <= MOST:
        raise PlanError(
            f"{quoted(key)} is not the weight of a convolution that could take {wanted:,} channels",
            code="plan.channels",
        )
    found = tensor.shape[1]
    shape = (tensor.shape[0], wanted, *tensor.shape[2:])
    made = LazyTensor(TensorSpec(tensor.dtype, shape), Channels(key, tensor))
    how = "summed" if wanted == 1 else f"repeated in turn and scaled by {found}/{wanted}"
    note = f"{quoted(key)}: {found} input channels to {wanted}, {how}"
    return Applied(
        replace(weights, tensors={**weights.tensors, key: made}), LOSSY, (key,), notes=(note,)
    )


def describe(options: Mapping[str, Any]) -> str:
    """`conv_stem.weight takes 1 channel`."""
    return f"{quoted(options['key'])} takes {counted(options['to'], 'channel')}"


@dataclass(frozen=True, slots=True)
class Channels:
    """A convolution's weight with its input channels summed or repeated."""

    key: str
    input: LazyTensor

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The weight as it was."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The weight, computed in float64."""
        import numpy

        old = self.input.numpy().astype(numpy.float64)
        found, wanted = old.shape[1], spec.shape[1]
        if wanted == 1:
            new = old.sum(1, keepdims=True)
        else:
            new = numpy.take(old, [channel % found for channel in range(wanted)], 1)
            new = new * (found / wanted)
        new = numpy.ascontiguousarray(new.astype(numpy_dtype(spec.dtype)))
        yield memoryview(new.reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The worst change of the response to a grey image; VerificationError if it is not small.

        Repeated channels that do not come round evenly change it: then only finiteness is checked.
        """
        import numpy

        old = self.input.numpy().astype(numpy.float64).sum(1)
        new = written.numpy().astype(numpy.float64).sum(1)
        error = float(numpy.abs(new - old).max(initial=0.0))
        even = spec.shape[1] == 1 or spec.shape[1] % self.input.shape[1] == 0
        scale = float(numpy.abs(self.input.numpy().astype(numpy.float64)).sum(1).max(initial=0.0))
        if not numpy.isfinite(new).all() or (even and error > 0.01 * scale + 1e-6):
            raise VerificationError(f"{quoted(self.key)}: the channels do not add up again")
        return {"response_change": error}
