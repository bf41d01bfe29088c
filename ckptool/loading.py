"""Load a checkpoint into a live model: the library call for model-loading code."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.derived import DERIVED, is_named
from ckptool.errors import VerificationError
from ckptool.formats import darknet
from ckptool.plans import Plan, made
from ckptool.plugins import describe
from ckptool.reading import read
from ckptool.straight import load_straight
from ckptool.strict import (
    has_own_rules,
    load_strictly,
    module_specs,
    narrowed,
    refuse_other_kinds,
)

if TYPE_CHECKING:
    import torch


_SMALL = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and what was done to the weights on the way.

    `kept` are the buffers that follow from the model's configuration: they are as they were.
    """

    file: str
    weights: str
    tensors: int
    plan: Plan
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = (describe(step.edit, step.options) for step in self.plan.steps)
        return "\n".join([f"{self.file}: {self.tensors:,} tensors loaded", *steps, *self.notes])


def load_into(
    model: torch.nn.Module,
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    class_map: str | None = None,
    weights: str | None = None,
) -> Loaded:
    """Load the weights into the model, strictly, after every exact edit that they need.

    The live model is the target: its wrappers, its class count, its dtypes. `class_map` allows the
    class count to change (`coco90:voc20`, `first`, a file; see `ckptool convert --class-map`).
    Buffers that follow from the model's configuration, such as effdet's anchors, stay as they are.

    Raises: CkptError that explains; the model is as it was then. Where it is not, because a disk
    failed or somebody wrote to the file at the last moment, the message says so.
    """
    with _no_collection():
        return _load(model, checkpoint, class_map, weights)


def _load(
    model: torch.nn.Module,
    checkpoint: str | os.PathLike[str] | Checkpoint,
    class_map: str | None,
    weights: str | None,
) -> Loaded:
    specs = module_specs(model)
    kept = tuple(key for key in specs if is_named(key, DERIVED))
    wanted = {key: spec for key, spec in specs.items() if key not in kept}
    if isinstance(checkpoint, Checkpoint):
        opened = checkpoint
    else:
        room = sum(spec.nbytes for spec in specs.values())
        opened = read(checkpoint, weights=weights, memory=room + room // 4 + _SMALL)
    if darknet.KEY in opened.weights.tensors:
        from ckptool.adapting import keyed

        opened = keyed(opened, model, wanted)
    found = _without(opened.weights, kept)
    if class_map is None and load_straight(model, found.tensors, kept):
        return _loaded(opened, found, made(opened.weights, []), (), kept)
    fits = compare(found.specs, wanted, found.versions).fits
    rules = has_own_rules(model)
    if class_map is None and (fits or rules) and not narrowed(found, wanted):
        refuse_other_kinds(found, wanted)
        try:
            load_strictly(model, found, kept, certain=fits and not rules)
            return _loaded(opened, found, made(opened.weights, []), (), kept)
        except VerificationError:
            if fits:
                raise
    from ckptool.adapting import adapted  # most files fit as they are, and it takes its time

    edited = adapted(opened.weights, model, wanted, class_map)
    refuse_other_kinds(edited.weights, wanted)
    load_strictly(model, edited.weights, kept, certain=not rules)
    return _loaded(opened, edited.weights, edited.plan, edited.notes, kept)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles meanwhile: beside torch one takes as long as loading a network."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _without(weights: WeightSet, keys: Sequence[str]) -> WeightSet:
    gone = set(keys)
    tensors = {key: tensor for key, tensor in weights.tensors.items() if key not in gone}
    return replace(weights, tensors=tensors)


def _loaded(
    opened: Checkpoint,
    weights: WeightSet,
    plan: Plan,
    notes: tuple[str, ...],
    kept: tuple[str, ...],
) -> Loaded:
    count = len(weights.tensors)
    return Loaded(opened.path, opened.weights.name, count, plan, notes, kept)
