"""Load a checkpoint into a live model: the library call for model-loading code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint
from ckptool.compare import compare
from ckptool.errors import PlanError, quoted
from ckptool.planning import Options, Plan, execute, make_plan
from ckptool.reading import read
from ckptool.verification import load_strictly, module_specs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and what was done to the weights on the way."""

    file: str
    weights: str
    plan: Plan
    notes: tuple[str, ...] = ()


def load_into(
    model: torch.nn.Module,
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    class_map: str | None = None,
    weights: str | None = None,
) -> Loaded:
    """Load the weights into the model, strictly, after every exact edit that they need.

    The live model is the target: its keys, its class count, its dtype. `class_map` allows the
    class count to change (see `ckptool convert --class-map`).

    Raises: CkptError that explains; the model is as it was then.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    target = target_of_module(model)
    notes: tuple[str, ...] = ()
    if compare(opened.weights.specs, target.specs, opened.weights.versions).fits:
        plan, edited = make_plan(opened.weights, None, Options()), opened.weights
    else:
        options = Options(class_map=class_map)
        plan = make_plan(opened.weights, target, options)
        edited, applied = execute(plan, opened.weights)
        notes = tuple(note for result in applied for note in result.notes)
    load_strictly(model, edited)
    return Loaded(opened.path, opened.weights.name, plan, notes)


def target_of_module(model: torch.nn.Module) -> Target:
    """A live model as a target: what its state dict has."""
    specs = module_specs(model)
    if not specs:
        raise PlanError(f"{quoted(type(model).__name__)} has no tensors", code="plan.model")
    return Target(f"{type(model).__module__}.{type(model).__name__}", specs)
