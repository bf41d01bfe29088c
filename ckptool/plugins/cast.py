"""Cast floating tensors to another floating type; everything else is left as it is.

Options: `dtype`; `overflow` (`error`, `keep-fp32` or `clamp`: what happens to finite values that
the new type cannot hold); `keep_fp32` (globs of keys that stay float32); `except` (keys that are
never cast: buffers that the architecture derives).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import LossError, VerificationError, listed, quoted
from ckptool.plugins import EXACT, LOSSY, Applied
from ckptool.plugins.drop import matching
from ckptool.tensors import Extent, LazyTensor, TensorSpec, rechunk

NAME = "cast"

# Significant bits and largest finite value of each type.
_PRECISION = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
_LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
}
# The smallest positive value of each type, a subnormal.
_SMALLEST = {"float64": 5e-324, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with their floating tensors in another type; tied tensors stay tied.

    Raises: PlanError for a `keep_fp32` glob that matches nothing.
    """
    target = options["dtype"]
    untouched = set(options.get("except", ()))
    kept = set(matching(list(weights.tensors), list(options.get("keep_fp32", ()))))
    overflow = options.get("overflow", "error")
    cast: dict[LazyTensor, LazyTensor] = {}
    tensors: dict[str, LazyTensor] = {}
    keys = []
    large: list[str] = []
    grade = EXACT
    for key, tensor in weights.tensors.items():
        wanted = "float32" if key in kept else target
        if overflow == "keep-fp32" and _overflows(tensor, wanted):
            wanted = "float32"
            large.append(key)
        if DTYPES[tensor.dtype].kind != "f" or key in untouched or tensor.dtype == wanted:
            tensors[key] = tensor
            continue
        made = cast.get(tensor)
        if made is None or made.dtype != wanted:
            source = Cast(key, tensor, overflow)
            made = cast[tensor] = LazyTensor(TensorSpec(wanted, tensor.shape), source)
        tensors[key] = made
        keys.append(key)
        if not widens(tensor.dtype, wanted):
            grade = LOSSY
    notes = (f"{listed(large)} stay float32: values too large for {target}",) if large else ()
    return Applied(replace(weights, tensors=tensors), grade, tuple(keys), notes=notes)


def _overflows(tensor: LazyTensor, wanted: str) -> bool:
    """Whether a finite value of the tensor is too large for the type; reads the whole tensor."""
    import numpy

    if DTYPES[tensor.dtype].kind != "f" or widens(tensor.dtype, wanted):
        return False
    before, after = numpy_dtype(tensor.dtype), numpy_dtype(wanted)
    for chunk in tensor.chunks():
        values = numpy.frombuffer(chunk, before)
        with numpy.errstate(over="ignore"):
            cast = values.astype(after)
        if (numpy.isinf(cast) & numpy.isfinite(values)).any():
            return True
    return False


def widens(found: str, wanted: str) -> bool:
    """Whether every value of one floating type is a value of the other."""
    if found.startswith("float8"):
        return wanted in ("float32", "float64") or (
            wanted == "float16" and found != "float8_e8m0fnu"
        )
    return (
        _PRECISION[found] <= _PRECISION[wanted]
        and _LARGEST[found] <= _LARGEST[wanted]
        and (found, wanted) != ("float16", "bfloat16")
    )


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor's data in another floating type."""

    key: str
    input: LazyTensor
    overflow: str

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The input's chunks, cast.

        Raises: LossError for a finite value that would become infinite, unless it is clamped.
        """
        import numpy

        before, after = numpy_dtype(self.input.dtype), numpy_dtype(spec.dtype)
        narrow = not widens(self.input.dtype, spec.dtype)
        for chunk in self.input.chunks(step):
            values = numpy.frombuffer(chunk, before)
            with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
                cast = values.astype(after)
            if narrow:
                cast = self._checked(values, cast)
            yield memoryview(cast.view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def _checked(self, values: Any, cast: Any) -> Any:
        import numpy

        lost = numpy.isinf(cast) & numpy.isfinite(values)
        if not lost.any():
            return cast
        if self.overflow == "clamp":
            largest = cast.dtype.type(_LARGEST[cast.dtype.name])
            return numpy.where(lost, numpy.where(values > 0, largest, -largest), cast)
        worst = values[lost][numpy.abs(values[lost].astype(numpy.float64)).argmax()]
        raise LossError(
            f"{quoted(self.key)}: found {float(worst):g}, the largest {cast.dtype.name} is "
            f"{_LARGEST[cast.dtype.name]:g}: it would become infinite",
            hint="--on-overflow keep-fp32 (this tensor stays float32) or --on-overflow clamp",
            code="loss.overflow",
        )

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """What the cast cost: values flushed to zero, values clamped, the worst relative error.

        Raises: VerificationError for a value further off than the rounding of the type allows.
        """
        import numpy

        flushed = clamped = 0
        worst = 0.0
        bound = 2.0 ** -_PRECISION.get(spec.dtype, 8)
        smallest = _SMALLEST[spec.dtype]
        count = 1 << 20
        found_blocks = rechunk(written.chunks(), count * DTYPES[spec.dtype].itemsize)
        wanted_blocks = rechunk(self.input.chunks(), count * DTYPES[self.input.dtype].itemsize)
        for found, wanted in zip(found_blocks, wanted_blocks, strict=True):
            new = numpy.frombuffer(found, numpy_dtype(spec.dtype)).astype(numpy.float64)
            old = numpy.frombuffer(wanted, numpy_dtype(self.input.dtype)).astype(numpy.float64)
            flushed += int(((new == 0) & (old != 0)).sum())
            finite = numpy.isfinite(old)
            same = numpy.where(finite, True, (new == old) | (numpy.isnan(new) & numpy.isnan(old)))
            error = numpy.abs(new - old, where=finite, out=numpy.zeros_like(old))
            over = numpy.abs(old) > _LARGEST[spec.dtype]
            clamped += int((over & finite).sum())
            counted = finite & (old != 0) & ~over
            relative = numpy.zeros_like(old)
            numpy.divide(error, numpy.abs(old), out=relative, where=counted)
            off = finite & ~over & (error > bound * numpy.abs(old)) & (error > smallest / 2)
            if off.any() or not same.all():
                raise VerificationError(f"{quoted(self.key)}: a value is not the cast of its own")
            worst = max(worst, float(relative.max(initial=0.0)))
        return {"flushed": flushed, "clamped": clamped, "relative_error": worst}
