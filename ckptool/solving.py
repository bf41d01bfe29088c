"""From weights and a target to the causes of their differences, each with what it explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckptool.causes import Cause, Situation, Target
from ckptool.causes.order import DETECTORS
from ckptool.checkpoint import WeightSet
from ckptool.compare import Comparison, compare
from ckptool.plugins import Applied, edit


@dataclass(frozen=True, slots=True)
class Solved:
    """What the detectors found: the causes, the weights after all their edits, what is left.

    `applied` has the result of each cause that has an edit, in order.
    """

    causes: tuple[Cause, ...]
    applied: tuple[tuple[Cause, Applied], ...]
    weights: WeightSet
    before: Comparison
    after: Comparison


def solve(weights: WeightSet, target: Target) -> Solved:
    """The causes of all differences, each with the keys that it explains, as far as any does."""
    before = compare(weights.specs, target.specs, weights.versions)
    origin = {key: key for key in weights.tensors}
    open_entries = _identities(before, origin)
    causes: list[Cause] = []
    applied: list[tuple[Cause, Applied]] = []
    for detect in DETECTORS:
        for cause in detect(Situation(weights, target)):
            if cause.edit is not None:
                result = edit(cause.edit).apply(weights, cause.options)
                origin = _followed(origin, weights, result.weights)
                weights = result.weights
                left = _identities(compare(weights.specs, target.specs, weights.versions), origin)
                keys = _ordered({key for _, key in open_entries - left}, before)
                cause = replace(cause, keys=cause.keys or keys)
                applied.append((cause, result))
                open_entries = left
            causes.append(cause)
        if causes and causes[-1].ends:
            break
    after = compare(weights.specs, target.specs, weights.versions)
    return Solved(tuple(causes), tuple(applied), weights, before, after)


def _ordered(keys: set[str], comparison: Comparison) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.key for entry in comparison.entries if entry.key in keys))


def _identities(comparison: Comparison, origin: Mapping[str, str]) -> set[tuple[str, str]]:
    """The differences that stop a load, each named so that it keeps its name across edits."""
    return {
        ("file", origin.get(entry.key, entry.key))
        if entry.kind == "unexpected"
        else ("wanted", entry.key)
        for entry in comparison.entries
        if entry.kind != "dtype"
    }


def _followed(origin: Mapping[str, str], before: WeightSet, after: WeightSet) -> dict[str, str]:
    """For each key after an edit the file's own key that it came from."""
    by_tensor = {id(tensor): key for key, tensor in before.tensors.items()}
    return {
        key: origin.get(key if key in before.tensors else by_tensor.get(id(tensor), key), key)
        for key, tensor in after.tensors.items()
    }
