"""A fault in a batch, the finding that names it, and the proof that it is an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckptool.preflight import Report

Loss = Callable[[Any, Any, Any], dict[str, float]]


@dataclass(frozen=True)
class Fault:
    """What is done to a correct batch, what `check` says then, and what the model makes of it.

    `breaks` gets images and targets that it may not change, and gives the faulty ones; `mends` the
    ones that should have been, the correct batch where it is None. `proof` is a part of the text of
    an exception, or `not finite`, or `another loss`.
    """

    name: str
    breaks: Callable[[Any, Any], tuple[Any, Any]]
    finding: str
    where: str
    count: int
    proof: str
    mends: Callable[[Any, Any], tuple[Any, Any]] | None = None


def put(**values: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A change of targets by key; a function gets a copy of what is there."""

    def breaks(images: Any, targets: Any) -> tuple[Any, Any]:
        made = dict(targets)
        for key, value in values.items():
            made[key] = value(targets[key].clone()) if callable(value) else value
        return images, made

    return breaks


def cell(at: Any, value: Any) -> Callable[[Tensor], Tensor]:
    """A change of a tensor in one place."""

    def change(tensor: Tensor) -> Tensor:
        tensor[at] = torch.as_tensor(value, dtype=tensor.dtype)
        return tensor

    return change


def assert_found(report: Report, fault: Fault) -> None:
    """The report has this one finding and no other."""
    assert [str(finding) for finding in report.findings] == [fault.finding]
    (finding,) = report.findings
    assert (finding.where, finding.count) == (fault.where, fault.count)


def assert_proved(fault: Fault, run: Loss, model: Any, batch: tuple[Any, Any]) -> None:
    """The model raises, gives what is not finite, or learns something else than it should."""
    broken = fault.breaks(*batch)
    if fault.proof not in ("not finite", "another loss"):
        try:
            found = run(model, *broken)
        except Exception as error:
            assert fault.proof in f"{type(error).__name__}: {error}"
            return
        raise AssertionError(f"did not raise: {found}")
    found = run(model, *broken)
    if fault.proof == "not finite":
        assert not all(map(math.isfinite, found.values())), found
        return
    right = run(model, *(fault.mends(*batch) if fault.mends else batch))
    assert all(map(math.isfinite, right.values())), right
    assert found != right
