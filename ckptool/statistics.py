"""Statistics of values, read once in a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptool.checkpoint import Finding
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import listed
from ckptool.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Of one tensor: extremes and mean of the finite values (None without any), counts of others.

    `zero_share` is the share of zeros among all elements.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    non_finite: int
    zero_share: float


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
                f"{count:,} values in {len(bad):,} tensors are not finite: {listed(bad, 3)}",
                bad,
            )
        )
    variances = {key: found for key, found in measured.items() if key.endswith("running_var")}
    low = tuple(k for k, v in variances.items() if v.minimum is not None and v.minimum <= 0)
    if low:
        findings.append(
            Finding(
                "variance",
                f"{len(low):,} running variances have values of 0 or less: {listed(low, 3)}",
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
                f"all {len(fresh):,} BatchNorm layers are as they start (mean 0, variance 1): "
                "was this model ever trained?",
                fresh,
            )
        )
    return findings


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
    for chunk in tensor.chunks():
        values: Any = numpy.frombuffer(chunk, kind)
        if DTYPES[tensor.dtype].kind == "c":
            values = numpy.abs(values)
        if DTYPES[tensor.dtype].kind == "f":
            values = values.astype(numpy.float64, copy=False)
        zeros += int((values == 0).sum())
        values = values[numpy.isfinite(values)]
        if values.size:
            finite += values.size
            total += float(values.sum(dtype=numpy.float64))
            low, high = float(values.min()), float(values.max())
            lowest = low if lowest is None else min(lowest, low)
            highest = high if highest is None else max(highest, high)
    mean = total / finite if finite else None
    share = zeros / tensor.numel if tensor.numel else 0.0
    return TensorStatistics(lowest, highest, mean, tensor.numel - finite, share)
