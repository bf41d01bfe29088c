"""Weights adapted to a live model, with its wrappers, its class count and its dtypes: by a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptool.architectures import darknet_files
from ckptool.architectures.spec import Architecture
from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.dtypes import CAST_TARGETS, DTYPES
from ckptool.errors import ArchitectureError, PlanError
from ckptool.identification import recognised, without_segments
from ckptool.planning import Options, as_found, make_plan
from ckptool.plans import Plan, Step, execute, made
from ckptool.strict import narrowed
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Adapted:
    """Weights under a live model's own keys, and what was done to make them so."""

    weights: WeightSet
    plan: Plan
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Live:
    """A live model: its own keys by their names without wrappers, and what they should hold."""

    names: Mapping[str, str]
    target: Target


def adapted(
    weights: WeightSet,
    model: torch.nn.Module,
    specs: Mapping[str, TensorSpec],
    class_map: str | None = None,
) -> Adapted:
    """The weights after every exact edit that the model needs, `specs` being what it wants.

    Raises: CkptError that explains why there is no such plan.
    """
    live = _live(model, specs)
    plan = _plan(weights, live, class_map)
    edited, applied = execute(plan, weights)
    notes = tuple(note for result in applied for note in result.notes)
    return Adapted(_renamed(edited, live.names), plan, notes)


def keyed(
    opened: Checkpoint, model: torch.nn.Module, specs: Mapping[str, TensorSpec]
) -> Checkpoint:
    """A darknet file's checkpoint with the keys of the architecture that the live model is of."""
    architecture = _live(model, specs).target.architecture
    try:
        return darknet_files.keyed(opened, architecture)
    except ArchitectureError as error:
        hint = "`ckptool convert` takes --arch darknet:FILE.cfg; load what it writes"
        raise ArchitectureError(error.message, hint=hint, code=error.code) from None


def _plan(weights: WeightSet, live: _Live, class_map: str | None) -> Plan:
    """The plan that makes the weights fit the live model, with casts where they are narrower."""
    specs, count = live.target.specs, live.target.num_classes
    floats = {spec.dtype for spec in specs.values() if DTYPES[spec.dtype].kind == "f"}
    options = Options(
        class_map=class_map,
        num_classes=count if class_map is not None else None,
        dtype=min(floats) if len(floats) == 1 and floats <= set(CAST_TARGETS) else None,
    )
    try:
        plan = make_plan(weights, live.target, options)
    except PlanError as error:
        raise _told_to_callers(error) from None
    edited, _ = execute(plan, weights)
    steps = [
        Step("cast", {"dtype": dtype, "only": keys})
        for dtype, keys in narrowed(edited, specs).items()
    ]
    return replace(plan, steps=made(weights, [*plan.steps, *steps]).steps) if steps else plan


def _told_to_callers(error: PlanError) -> PlanError:
    """The error with a hint that is not for the command line."""
    if error.code == "plan.class-count":
        hint = "load_into(..., class_map='first'), or two label sets such as 'coco90:voc20'"
        return PlanError(error.message, hint=hint, code=error.code)
    if error.code in ("plan.other-family", "plan.other-size"):
        return PlanError(
            error.message, hint="build that model, or load another file", code=error.code
        )
    if error.hint and error.hint.startswith("--"):
        hint = f"`ckptool convert` takes {error.hint}; load what it writes"
        return PlanError(error.message, hint=hint, code=error.code)
    return error


def _live(model: torch.nn.Module, specs: Mapping[str, TensorSpec]) -> _Live:
    """The model without its wrappers."""
    known = next(iter(recognised(specs)), None)
    architecture: Architecture | None = as_found(known) if known else None
    plain = {key: without_segments(key) for key in specs}
    prefix = known.prefix if known else _shared(list(plain.values()))
    names = {name.removeprefix(prefix): key for key, name in plain.items()}
    wanted = {name: specs[key] for name, key in names.items()}
    kind = f"{type(model).__module__}.{type(model).__name__}"
    count = known.num_classes if known else None
    return _Live(names, Target(kind, wanted, count, architecture))


def _shared(keys: Sequence[str]) -> str:
    """The prefix that leads to the innermost module that all keys are in."""
    module = keys[0].rpartition(".")[0]
    while module and not all(key.startswith(f"{module}.") for key in keys):
        module = module.rpartition(".")[0]
    return f"{module}." if module else ""


def _renamed(weights: WeightSet, names: Mapping[str, str]) -> WeightSet:
    """The weights under the live model's own keys, without `_metadata`: its versions are met."""
    tensors = {names.get(key, key): tensor for key, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, versions=None)
