"""Add tensors that are all zeros: counters, and biases in front of a BatchNorm.

Options: `zeros`, key to (dtype, shape). Counters and such biases at zero change nothing that the
network computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, counted, listed
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import Inline, LazyTensor, TensorSpec, is_possible

NAME = "fill"

_MOST_BYTES = 1 << 28  # counters and biases are small


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with the new tensors, each behind the others of its module.

    Raises: PlanError for a key that is there already, or for a shape that no small tensor has.
    """
    specs = {k: TensorSpec(dtype, tuple(shape)) for k, (dtype, shape) in options["zeros"].items()}
    if not all(is_possible(spec.shape) and spec.nbytes < _MOST_BYTES for spec in specs.values()):
        raise PlanError(f"{listed(specs)}: not the shapes of small tensors", code="plan.options")
    added = {key: LazyTensor(spec, Inline(bytes(spec.nbytes))) for key, spec in specs.items()}
    there = [key for key in added if key in weights.tensors]
    if there:
        raise PlanError(f"{listed(there)} would be added twice", code="plan.collision")
    tensors = in_modules(weights.tensors, added)
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(added))


def describe(options: Mapping[str, Any]) -> str:
    """`add 36 tensors of zeros: fpn.resample.3.conv.conv.bias and 35 more`."""
    keys = list(options["zeros"])
    return f"add {counted(len(keys), 'tensor')} of zeros: {listed(keys, 1)}"


def in_modules(
    tensors: Mapping[str, LazyTensor], added: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Both mappings as one, each added key behind the last one of its module, or at the end."""
    last = {key.rpartition(".")[0]: key for key in tensors}
    behind: dict[str, list[str]] = {}
    for key in added:
        behind.setdefault(last.get(key.rpartition(".")[0], ""), []).append(key)
    merged: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        merged[key] = tensor
        for new in behind.get(key, ()):
            merged[new] = added[new]
    for new in behind.get("", ()):
        merged.setdefault(new, added[new])
    return merged
