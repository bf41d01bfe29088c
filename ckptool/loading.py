"""Load a checkpoint into a live model: the library call for model-loading code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptool.architectures.spec import Architecture
from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.dtypes import DTYPES
from ckptool.errors import PlanError, quoted
from ckptool.identification import DERIVED, candidates, is_named, without_segments
from ckptool.planning import Options, as_found, make_plan
from ckptool.plans import Plan, execute
from ckptool.plugins.cast import widens
from ckptool.reading import read
from ckptool.tensors import Inline, LazyTensor, TensorSpec
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


@dataclass(frozen=True, slots=True)
class _Live:
    """A live model: its own keys by their names without wrappers, and what they should hold."""

    names: Mapping[str, str]
    target: Target


def load_into(
    model: torch.nn.Module,
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    class_map: str | None = None,
    weights: str | None = None,
) -> Loaded:
    """Load the weights into the model, strictly, after every exact edit that they need.

    The live model is the target: its wrappers, its class count, its dtype. `class_map` allows the
    class count to change (`coco90:voc20`, `first`, a file; see `ckptool convert --class-map`).

    Raises: CkptError that explains; the model is as it was then.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    specs = module_specs(model)
    if not specs:
        raise PlanError(f"{quoted(type(model).__name__)} has no tensors", code="plan.model")
    dtype = _narrowing(opened.weights, specs)
    if dtype is None and compare(opened.weights.specs, specs, opened.weights.versions).fits:
        load_strictly(model, opened.weights)
        plan = make_plan(opened.weights, None, Options())
        return Loaded(opened.path, opened.weights.name, plan)
    live = _live(model, specs)
    count = live.target.num_classes if class_map is not None else None
    try:
        options = Options(class_map=class_map, num_classes=count, dtype=dtype)
        plan = make_plan(opened.weights, live.target, options)
    except PlanError as error:
        if error.code != "plan.class-count":
            raise
        hint = "load_into(..., class_map='first'), or two label sets such as 'coco90:voc20'"
        raise PlanError(error.message, hint=hint, code=error.code) from None
    edited, applied = execute(plan, opened.weights)
    derived = {k: v for k, v in model.state_dict().items() if is_named(k, DERIVED)}
    load_strictly(model, _renamed(edited, live.names), derived)
    notes = tuple(note for result in applied for note in result.notes)
    return Loaded(opened.path, opened.weights.name, plan, notes)


def _live(model: torch.nn.Module, specs: Mapping[str, TensorSpec]) -> _Live:
    """The model without its wrappers and derived buffers, which keep the values they have."""
    bare = WeightSet(".", {key: LazyTensor(spec, Inline(b"")) for key, spec in specs.items()})
    fitting = [candidate for candidate in candidates(bare) if candidate.fits]
    prefix = fitting[0].prefix if fitting else ""
    names = {
        without_segments(key).removeprefix(prefix): key
        for key in specs
        if not is_named(key, DERIVED)
    }
    wanted = {name: specs[key] for name, key in names.items()}
    kind = f"{type(model).__module__}.{type(model).__name__}"
    architecture: Architecture | None = None
    if fitting:
        architecture = as_found(fitting[0])
    count = fitting[0].num_classes if fitting else None
    return _Live(names, Target(kind, wanted, count, architecture))


def _renamed(weights: WeightSet, names: Mapping[str, str]) -> WeightSet:
    """The weights under the live model's own keys, without `_metadata`: its versions are met."""
    tensors = {names.get(key, key): tensor for key, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, versions=None)


def _narrowing(weights: WeightSet, specs: Mapping[str, TensorSpec]) -> str | None:
    """The model's floating type, if the file's values might not fit into it.

    torch casts while it loads, and what is too large becomes infinite without a word.
    """
    wanted = {spec.dtype for spec in specs.values() if DTYPES[spec.dtype].kind == "f"}
    found = {t.dtype for t in weights.tensors.values() if DTYPES[t.dtype].kind == "f"}
    if len(wanted) != 1:
        return None
    target = wanted.pop()
    return None if all(widens(dtype, target) for dtype in found) else target
