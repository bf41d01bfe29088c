"""Load a checkpoint into a live model: the library call for model-loading code."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.errors import PlanError, VerificationError, quoted
from ckptool.planning import Options, Plan, execute, make_plan
from ckptool.reading import read
from ckptool.tensors import TensorSpec

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
    if compare(opened.weights.specs, target.specs, opened.weights.versions).fits:
        plan, edited, notes = make_plan(opened.weights, None, Options()), opened.weights, ()
    else:
        options = Options(class_map=class_map)
        plan = make_plan(opened.weights, target, options)
        edited, applied = execute(plan, opened.weights)
        notes = tuple(note for result in applied for note in result.notes)
    load_strictly(model, edited)
    return Loaded(opened.path, opened.weights.name, plan, notes)


def load_strictly(model: torch.nn.Module, weights: WeightSet) -> None:
    """`load_state_dict(strict=True)` of weights that are read completely first.

    Raises: VerificationError with torch's own words if it refuses them.
    """
    state = state_dict(weights)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise VerificationError(
            f"load_state_dict(strict=True) refuses the weights: {error}",
            code="verification.load",
        ) from None


def state_dict(weights: WeightSet) -> OrderedDict[str, torch.Tensor]:
    """The weights as torch would have loaded them: ties kept, with their `_metadata`."""
    made: dict[Any, torch.Tensor] = {}
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, tensor in weights.tensors.items():
        if tensor not in made:
            made[tensor] = tensor.torch()
        state[key] = made[tensor]
    if weights.versions is not None:
        metadata = OrderedDict((path, {"version": n}) for path, n in weights.versions.items())
        state._metadata = metadata  # type: ignore[attr-defined]
    return state


def target_of_module(model: torch.nn.Module) -> Target:
    """A live model as a target: what its state dict has."""
    specs: Mapping[str, TensorSpec] = {
        key: TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for key, value in model.state_dict().items()
        if hasattr(value, "dtype")
    }
    if not specs:
        raise PlanError(f"{quoted(type(model).__name__)} has no tensors", code="plan.model")
    return Target(f"{type(model).__module__}.{type(model).__name__}", specs)


