"""Statistics of values, read once in a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptool.checkpoint import Finding
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import counted, listed
from ckptool.tensors import LazyTensor

_FP16_INFINITE = 65_520.0  # from here on a value is rounded to infinity
_FP16_ZERO = -25  # below 2^-25 to zero


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Of one tensor: extremes and mean of the finite values (None without any), counts of others.

    `zero_share` is the share of zeros among all elements. `magnitudes` counts the finite values
    that are not 0 by the power of two below them: those from 2^n to 2^(n+1) under n.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    non_finite: int
    zero_share: float
    magnitudes: Mapping[int, int] = field(default_factory=dict)


def measure(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorStatistics]:
    """The statistics of each tensor whose values are numbers; complex ones by their modulus."""
    return {
        key: _measured(tensor)
        for key, tensor in tensors.items()
        if DTYPES[tensor.dtype].numpy is not None
    }


def value_findings(
    tensors: Mapping[str, LazyTensor], measured: Mapping[str, TensorStatistics]
) -> list[Finding]:
    """What the values say: non-finite ones, impossible variances, layers never trained."""
    findings = []
    bad = tuple(key for key, found in measured.items() if found.non_finite)
    if bad:
        count = sum(measured[key].non_finite for key in bad)
        findings.append(
            Finding(
                "non-finite",
                f"{counted(count, 'value')} in {counted(len(bad), 'tensor')} "
                f"{'is' if count == 1 else 'are'} not finite: {listed(bad, 3)}",
                bad,
            )
        )
    findings += _range_findings(tensors, measured)
    variances = {key: found for key, found in measured.items() if key.endswith("running_var")}
    low = tuple(k for k, v in variances.items() if v.minimum is not None and v.minimum <= 0)
    if low:
        findings.append(
            Finding(
                "variance",
                f"{counted(len(low), 'running variance has', 'running variances have')} "
                f"values of 0 or less: {listed(low, 3)}",
                low,
            )
        )
    fresh = tuple(
        key
        for key, found in variances.items()
        if found.minimum == found.maximum == 1 and _zero(measured, key[: -len("var")] + "mean")
    )
    if fresh and len(fresh) < len(variances):
        findings.append(
            Finding(
                "untrained-batchnorm",
                f"{len(fresh):,} of {len(variances):,} BatchNorm layers are as they start "
                f"(mean 0, variance 1): {listed(fresh, 3)}",
                fresh,
            )
        )
    elif fresh:
        findings.append(
            Finding(
                "untrained-batchnorm",
                (
                    "the BatchNorm layer is as it starts"
                    if len(fresh) == 1
                    else f"all {len(fresh):,} BatchNorm layers are as they start"
                )
                + " (mean 0, variance 1): was this model ever trained?",
                fresh,
            )
        )
    return findings


def _range_findings(
    tensors: Mapping[str, LazyTensor], measured: Mapping[str, TensorStatistics]
) -> list[Finding]:
    """What a cast to float16 would make infinite, or zero."""
    wide = {
        key: found
        for key, found in measured.items()
        if DTYPES[tensors[key].dtype].kind == "f" and tensors[key].dtype != "float16"
    }
    large = tuple(key for key, found in wide.items() if _largest(found) >= _FP16_INFINITE)
    small = {}
    for key, found in wide.items():
        count = sum(n for at, n in found.magnitudes.items() if at < _FP16_ZERO)
        # A few of millions of weights are always as small, and nobody misses them.
        if count > tensors[key].numel / 1000 or (count and key.endswith("running_var")):
            small[key] = count
    findings = []
    if large:
        findings.append(
            Finding(
                "fp16-overflow",
                f"{counted(len(large), 'tensor has', 'tensors have')} values that are infinite in "
                f"float16, whose largest is 65,504: {listed(large, 3)}",
                large,
            )
        )
    if small:
        findings.append(
            Finding(
                "fp16-underflow",
                f"{counted(sum(small.values()), 'value')} in {counted(len(small), 'tensor')} "
                f"would be 0 in float16: {listed(small, 3)}",
                tuple(small),
            )
        )
    return findings


def _largest(found: TensorStatistics) -> float:
    return max(abs(found.minimum or 0.0), abs(found.maximum or 0.0))


def _zero(measured: Mapping[str, TensorStatistics], key: str) -> bool:
    found = measured.get(key)
    return found is not None and found.minimum == found.maximum == 0


def _measured(tensor: LazyTensor) -> TensorStatistics:
    import numpy

    kind = numpy_dtype(tensor.dtype)
    lowest: float | None = None
    highest: float | None = None
    total = 0.0
    finite = zeros = 0
    magnitudes: Counter[int] = Counter()
    for chunk in tensor.chunks():
        values: Any = numpy.frombuffer(chunk, kind)
        with numpy.errstate(invalid="ignore", over="ignore"):  # NaN that signals
            if DTYPES[tensor.dtype].kind == "c":
                values = numpy.abs(values)
            if DTYPES[tensor.dtype].kind == "f":
                values = values.astype(numpy.float64, copy=False)
        zeros += int((values == 0).sum())
        values = values[numpy.isfinite(values)]
        if values.size:
            finite += values.size
            with numpy.errstate(over="ignore"):
                total += float(values.sum(dtype=numpy.float64))
            magnitudes.update(_magnitudes(values))
            low, high = float(values.min()), float(values.max())
            lowest = low if lowest is None else min(lowest, low)
            highest = high if highest is None else max(highest, high)
    mean = total / finite if finite else None
    share = zeros / tensor.numel if tensor.numel else 0.0
    found = dict(sorted(magnitudes.items()))
    return TensorStatistics(lowest, highest, mean, tensor.numel - finite, share, found)


def _magnitudes(values: Any) -> dict[int, int]:
    """How many values lie in each octave, zeros aside."""
    import numpy

    _, exponents = numpy.frexp(values[values != 0].astype(numpy.float64, copy=False))
    if not exponents.size:
        return {}
    lowest = int(exponents.min())
    counts = numpy.bincount(exponents - lowest)
    return {lowest + int(at) - 1: int(counts[at]) for at in numpy.flatnonzero(counts)}
