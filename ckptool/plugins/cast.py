"""Cast floating tensors to another floating type; everything else is left as it is.

Options: `dtype`; `overflow` (`error`, `keep-fp32` or `clamp`: what happens to finite values that
the new type cannot hold); `large` (with `keep-fp32`: the keys that stay float32 because of it);
`keep_fp32` (globs of keys that stay float32); `except` (keys that are never cast: buffers that the
architecture derives); `only` (keys: no others are cast).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import CAST_TARGETS, DTYPES, LARGEST, PRECISION, numpy_dtype, widens
from ckptool.errors import LossError, PlanError, VerificationError, listed, quoted
from ckptool.plugins import EXACT, LOSSY, Applied
from ckptool.plugins.drop import matching
from ckptool.rounding import can_be_plain, has_infinity, is_same, plainly_rounded, rounded
from ckptool.tensors import Extent, LazyTensor, TensorSpec, rechunk

NAME = "cast"
OVERFLOWS = ("error", "keep-fp32", "clamp")

# The smallest positive value of each type, a subnormal.
_SMALLEST = {"float64": 5e-324, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
_BLOCK = 1 << 19  # elements that are checked at once


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with their floating tensors in another type; tied tensors stay tied.

    Raises: PlanError for options that are none, or a `keep_fp32` glob that matches nothing.
    """
    target, overflow = options["dtype"], options.get("overflow", "error")
    if target not in CAST_TARGETS or overflow not in OVERFLOWS:
        raise PlanError(
            f"cannot cast to {quoted(str(target))} with overflow {quoted(str(overflow))}; "
            f"wanted {listed(CAST_TARGETS)} and {listed(OVERFLOWS)}",
            code="plan.options",
        )
    # Whatever names one of two tied keys means both: they are one tensor.
    kept = _named(weights, matching(weights.tensors, options.get("keep_fp32", ())))
    kept |= _named(weights, options.get("large", ()))
    untouched = _named(weights, options.get("except", ()))
    chosen = _named(weights, options["only"]) if "only" in options else None
    made: dict[LazyTensor, LazyTensor] = {}
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in weights.tensors.items():
        new = made.get(tensor)
        if new is None:
            wanted = "float32" if kept and tensor in kept else target
            same = DTYPES[tensor.dtype].kind != "f" or tensor.dtype == wanted
            if same or tensor in untouched or not (chosen is None or tensor in chosen):
                new = tensor
            else:
                source = Cast(key, tensor, overflow)
                new = LazyTensor(TensorSpec(wanted, tensor.shape), source)
            made[tensor] = new
        # Of tied tensors that stay as they are, each stays its own object.
        tensors[key] = tensor if new.dtype == tensor.dtype else new
    keys = [key for key, tensor in weights.tensors.items() if tensors[key] is not tensor]
    exact = all(new is old or widens(old.dtype, new.dtype) for old, new in made.items())
    stay = options.get("large", ())
    verb = "stays" if len(stay) == 1 else "stay"
    notes = (f"{listed(stay)} {verb} float32: values too large for {target}",) if stay else ()
    grade = EXACT if exact else LOSSY
    return Applied(replace(weights, tensors=tensors), grade, tuple(keys), notes=notes)


def describe(options: Mapping[str, Any]) -> str:
    """`to float16, clamped to its range; *.bias stay float32`."""
    clamped = {"clamp": ", clamped to its range"}.get(options.get("overflow", ""), "")
    only = f", {len(options['only']):,} keys" if "only" in options else ""
    kept = [*options.get("keep_fp32", ()), *options.get("large", ())]
    rest = f"; {listed(kept, 3)} stay{'s' * (len(kept) == 1)} float32" if kept else ""
    derived = options.get("except", ())
    same = f"; {listed(derived, 2)} as before" if derived else ""
    return f"to {options['dtype']}{only}{clamped}{rest}{same}"


def too_large(weights: WeightSet, options: Mapping[str, Any]) -> list[str]:
    """The keys that a cast with these options would make infinite somewhere; reads all values."""
    result = apply(weights, {**options, "overflow": "error", "large": ()})
    found = {tensor for tensor in result.weights.tensors.values() if _overflows(tensor)}
    return [key for key, tensor in result.weights.tensors.items() if tensor in found]


def _named(weights: WeightSet, keys: Sequence[str]) -> set[LazyTensor]:
    return {weights.tensors[key] for key in keys if key in weights.tensors}


def _overflows(tensor: LazyTensor) -> bool:
    """Whether a tensor is a cast one that a finite value is too large for."""
    if not isinstance(tensor.source, Cast):
        return False
    try:
        for _ in tensor.chunks():
            pass
    except LossError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor's data in another floating type."""

    key: str
    input: LazyTensor
    overflow: str

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The tensor that is cast."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The input's chunks, cast.

        Raises: LossError for a finite value that would become infinite, unless it is clamped.
        """
        import numpy

        before = numpy_dtype(self.input.dtype)
        narrow = not widens(self.input.dtype, spec.dtype)
        for chunk in self.input.chunks(step):
            values = numpy.frombuffer(chunk, before)
            cast = rounded(values, spec.dtype)
            if narrow and has_infinity(cast):
                with numpy.errstate(invalid="ignore"):  # NaN that signals
                    cast = self._in_range(values, cast, spec.dtype)
            yield memoryview(cast.view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def _in_range(self, values: Any, cast: Any, dtype: str) -> Any:
        import numpy

        lost = numpy.isinf(cast) & numpy.isfinite(values)
        if not lost.any():
            return cast
        if self.overflow == "clamp":
            largest = cast.dtype.type(LARGEST[dtype])
            return numpy.where(lost, numpy.where(values > 0, largest, -largest), cast)
        worst = values[lost][numpy.abs(values[lost].astype(numpy.float64)).argmax()]
        raise LossError(
            f"{quoted(self.key)}: found {float(worst):g}, the largest {dtype} is "
            f"{LARGEST[dtype]:g}: it would become infinite",
            hint="--on-overflow keep-fp32 (this tensor stays float32) or --on-overflow clamp",
            code="loss.overflow",
        )

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """What the cast cost: values flushed to zero, values clamped, the worst relative error.

        The error is that of the values that are neither. What widens costs nothing.

        Raises: VerificationError for a value further off than the rounding of the type allows.
        """
        import numpy

        flushed = clamped = 0
        worst = 0.0
        found_blocks = rechunk(written.chunks(), _BLOCK * DTYPES[spec.dtype].itemsize)
        wanted_blocks = rechunk(self.input.chunks(), _BLOCK * DTYPES[self.input.dtype].itemsize)
        for found, wanted in zip(found_blocks, wanted_blocks, strict=True):
            new = numpy.frombuffer(found, numpy_dtype(spec.dtype))
            old = numpy.frombuffer(wanted, numpy_dtype(self.input.dtype))
            if is_same(old, new):
                continue
            if can_be_plain(old, new):
                chosen, worst = plainly_rounded(old, new, worst)
                if not chosen.size:
                    continue
                old, new = old[chosen], new[chosen]
            with numpy.errstate(over="ignore", invalid="ignore"):
                old, new = old.astype(numpy.float64), new.astype(numpy.float64)
                over = self._off_range(spec.dtype, old)
                if not self._is_cast(spec.dtype, old, new, over):
                    raise VerificationError(
                        f"{quoted(self.key)}: a value is not the cast of its own",
                        code="verification.cast",
                    )
            zero = (new == 0) & (old != 0)
            flushed += int(zero.sum())
            clamped += int(over.sum())
            counted = numpy.isfinite(old) & (old != 0) & ~zero & ~over
            error = numpy.abs(new[counted] / old[counted] - 1)
            worst = max(worst, float(error.max(initial=0.0)))
        if widens(self.input.dtype, spec.dtype):
            return {}
        return {"flushed": flushed, "clamped": clamped, "relative_error": worst}

    def _off_range(self, dtype: str, old: Any) -> Any:
        """Where a finite value is so large that it would round to infinity: half a step above."""
        import math

        import numpy

        largest, precision = LARGEST[dtype], PRECISION[dtype]
        half = 2.0 ** (math.frexp(largest)[1] - precision - 1)
        rounded = old
        if self.input.dtype == "float64" and precision < PRECISION["float32"]:
            rounded = old.astype(numpy.float32).astype(numpy.float64)
        return numpy.isfinite(old) & (numpy.abs(rounded) - largest >= half)

    def _is_cast(self, dtype: str, old: Any, new: Any, over: Any) -> bool:
        """Whether every new value is an old one, rounded, clamped, or not a finite one either."""
        import numpy

        finite = numpy.isfinite(old)
        same = (new == old) | (numpy.isnan(new) & numpy.isnan(old))
        if not same[~finite].all() or not numpy.isfinite(new[finite]).all():
            return False
        if not (new[over] == numpy.copysign(LARGEST[dtype], old[over])).all():
            return False
        if (numpy.signbit(new) != numpy.signbit(old))[finite].any():  # of a zero, too
            return False
        inside = finite & ~over
        error = numpy.abs(new[inside] - old[inside])
        # Rounded twice on the way from float64, a value may be a little further off.
        slack = 1 + 2.0**-10 * (self.input.dtype == "float64")
        exponent = numpy.frexp(old[inside])[1]
        half_step = numpy.ldexp((old[inside] != 0) * slack, exponent - PRECISION[dtype] - 1)
        # Below a power of two the steps are shorter, and nothing above it is rounded to them.
        near = (error <= half_step) & (numpy.frexp(new[inside])[1] >= exponent)
        return bool((near | (error <= _SMALLEST[dtype] / 2 * slack)).all())
