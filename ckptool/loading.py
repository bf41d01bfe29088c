"""Load a checkpoint into a live model: the library call for model-loading code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptool.architectures import darknet_files
from ckptool.architectures.spec import Architecture
from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.dtypes import CAST_TARGETS, DTYPES, numpy_dtype
from ckptool.errors import ArchitectureError, LossError, PlanError, VerificationError, quoted
from ckptool.identification import DERIVED, is_named, recognised, without_segments
from ckptool.planning import Options, as_found, make_plan
from ckptool.plans import Plan, Step, execute, made
from ckptool.plugins import describe
from ckptool.plugins.cast import widens
from ckptool.reading import read
from ckptool.tensors import LazyTensor, TensorSpec
from ckptool.verification import has_own_rules, load_strictly, module_specs

if TYPE_CHECKING:
    import torch


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

    The live model is the target: its wrappers, its class count, its dtypes. `class_map` allows the
    class count to change (`coco90:voc20`, `first`, a file; see `ckptool convert --class-map`).
    Buffers that follow from the model's configuration, such as effdet's anchors, stay as they are.

    Raises: CkptError that explains; the model is as it was then.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    specs = module_specs(model)
    kept = tuple(key for key in specs if is_named(key, DERIVED))
    wanted = {key: spec for key, spec in specs.items() if key not in kept}
    found = _without(opened.weights, kept)
    fits = compare(found.specs, wanted, found.versions).fits
    rules = has_own_rules(model)
    if darknet_files.flat(opened.weights) is not None:
        opened = _keyed(opened, _live(model, wanted).target.architecture)
        found = _without(opened.weights, kept)
        fits = compare(found.specs, wanted, found.versions).fits
    if class_map is None and (fits or rules) and not _narrowed(found, wanted):
        _refuse_other_kinds(found, wanted)
        try:
            load_strictly(model, found, kept, certain=fits and not rules)
            return _loaded(opened, found, made(opened.weights, []), (), kept)
        except VerificationError:
            if fits:
                raise
    live = _live(model, wanted)
    plan = _plan(opened.weights, live, class_map)
    edited, applied = execute(plan, opened.weights)
    _refuse_other_kinds(edited, live.target.specs)
    load_strictly(model, _renamed(edited, live.names), kept, certain=not rules)
    notes = tuple(note for result in applied for note in result.notes)
    return _loaded(opened, edited, plan, notes, kept)


def _keyed(opened: Checkpoint, architecture: Architecture | None) -> Checkpoint:
    """A darknet file's checkpoint with the keys of the architecture that the live model is of."""
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
        for dtype, keys in _narrowed(edited, specs).items()
    ]
    return replace(plan, steps=made(weights, [*plan.steps, *steps]).steps) if steps else plan


def _told_to_callers(error: PlanError) -> PlanError:
    """The error with a hint that is not for the command line."""
    if error.code == "plan.class-count":
        hint = "load_into(..., class_map='first'), or two label sets such as 'coco90:voc20'"
        return PlanError(error.message, hint=hint, code=error.code)
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


def _without(weights: WeightSet, keys: Sequence[str]) -> WeightSet:
    gone = set(keys)
    tensors = {key: tensor for key, tensor in weights.tensors.items() if key not in gone}
    return replace(weights, tensors=tensors)


def _renamed(weights: WeightSet, names: Mapping[str, str]) -> WeightSet:
    """The weights under the live model's own keys, without `_metadata`: its versions are met."""
    tensors = {names.get(key, key): tensor for key, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, versions=None)


def _narrowed(weights: WeightSet, specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """The keys whose values might not fit into the model's floating type, by that type.

    torch casts while it loads, and what is too large becomes infinite without a word.
    """
    narrowed: dict[str, list[str]] = {}
    for key, tensor in weights.tensors.items():
        wanted = specs[key].dtype if key in specs else tensor.dtype
        if (
            tensor.dtype != wanted
            and DTYPES[tensor.dtype].kind == DTYPES[wanted].kind == "f"
            and not widens(tensor.dtype, wanted)
        ):
            narrowed.setdefault(wanted, []).append(key)
    return narrowed


def _refuse_other_kinds(weights: WeightSet, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse numbers that torch would turn into something else without a word.

    A counter may be stored as a float; a weight of bytes is a quantised one without its scale.
    """
    for key, tensor in weights.tensors.items():
        if key in specs and not _means_the_same(tensor, specs[key].dtype):
            raise LossError(
                f"{quoted(key)}: found {tensor.dtype}, the model has {specs[key].dtype}, which "
                "would not be the same values",
                code="loss.kind",
            )


def _means_the_same(tensor: LazyTensor, dtype: str) -> bool:
    """Whether the values are the same ones in a type of another kind."""
    import numpy

    found, wanted = DTYPES[tensor.dtype], DTYPES[dtype]
    if found == wanted or found.kind == wanted.kind in "fc" or found.kind == "b":
        return True
    quantised = found.itemsize == 1 and wanted.kind == "f" and tensor.numel > 1
    if "q" in (found.kind, wanted.kind) or found.kind == "c" or quantised:
        return False
    values = tensor.numpy()
    with numpy.errstate(invalid="ignore"):
        back = values.astype(numpy_dtype(dtype)).astype(values.dtype)
    return bool((values == back).all())


def _loaded(
    opened: Checkpoint,
    weights: WeightSet,
    plan: Plan,
    notes: tuple[str, ...],
    kept: tuple[str, ...],
) -> Loaded:
    count = len(weights.tensors)
    return Loaded(opened.path, opened.weights.name, count, plan, notes, kept)
