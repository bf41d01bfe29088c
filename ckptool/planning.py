"""From a checkpoint, a target and options to a plan, and from a plan to edited weights.

The plan is the work: what `--dry-run` prints is what `convert` runs, and a stored plan is run by
the same function.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Target
from ckptool.causes.heads import stem
from ckptool.checkpoint import WeightSet
from ckptool.dtypes import cast_target
from ckptool.errors import PlanError, listed, quoted
from ckptool.files import ByteFile
from ckptool.identification import DERIVED, is_named
from ckptool.labels import class_map
from ckptool.plugins import Applied, edit
from ckptool.rules import user_rule
from ckptool.solving import solve

VERSION = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One edit with its options; `keys` is how many keys it touches, `grade` what it costs."""

    edit: str
    options: Mapping[str, Any]
    keys: int = 0
    grade: str = "exact"


@dataclass(frozen=True, slots=True)
class Plan:
    """An ordered list of edits, bound to weights of one signature."""

    signature: str
    steps: tuple[Step, ...]
    arch: str | None = None
    num_classes: int | None = None
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "version": VERSION,
            "signature": self.signature,
            "target": {"arch": self.arch, "num_classes": self.num_classes, "dtype": self.dtype},
            "steps": [
                {"edit": s.edit, "options": dict(s.options), "keys": s.keys, "class": s.grade}
                for s in self.steps
            ],
        }


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask of a conversion, as `ckptool convert` names it."""

    dtype: str | None = None
    num_classes: int | None = None
    class_map: str | None = None
    in_chans: int | None = None
    strip_prefix: str | None = None
    add_prefix: str | None = None
    rename: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    on_overflow: str = "error"
    keep_fp32: tuple[str, ...] = ()
    seed: int = 0


def aim(weights: WeightSet, architecture: Architecture, num_classes: int | None) -> Target:
    """The architecture as a target, with the file's own class count if none is asked for.

    Raises: ArchitectureError if it cannot have that many classes.
    """
    default = Target(architecture.name, architecture.specs, architecture.num_classes, architecture)
    if num_classes is None and architecture.axes:
        causes = solve(weights, default).causes
        counts = [cause.options["from"] for cause in causes if cause.code == "class-count"]
        num_classes = counts[0] if counts else None
    if num_classes is None or num_classes == architecture.num_classes:
        return default
    specs = architecture.manifest(num_classes)
    return Target(architecture.name, specs, num_classes, architecture)


def make_plan(weights: WeightSet, target: Target | None, options: Options) -> Plan:
    """The steps that the options ask for and, with a target, those that its diff asks for.

    Raises: PlanError if the result would not fit the target.
    """
    steps = _asked_for(options)
    asked, _ = execute(made(weights, steps), weights)
    if target is not None and options.in_chans is not None:
        target = _with_channels(target, options.in_chans)
    if target is not None:
        steps += _towards(asked, target, options)
    elif options.num_classes is not None:
        raise PlanError(
            "which tensors depend on the class count, only an architecture tells",
            hint="--arch NAME",
            code="plan.architecture",
        )
    if options.dtype is not None:
        edited, _ = execute(made(weights, steps), weights)
        steps.append(_cast(options, target, edited))
    count = options.num_classes
    if target is not None and count is None:
        count = target.num_classes
    name = target.name if target else None
    dtype = None if options.dtype is None else cast_target(options.dtype)
    return made(weights, steps, arch=name, num_classes=count, dtype=dtype)


def _asked_for(options: Options) -> list[Step]:
    """The steps of the options that name keys."""
    steps = []
    if options.strip_prefix:
        steps.append(Step("rename", {"strip": options.strip_prefix}))
    if options.add_prefix:
        steps.append(Step("rename", {"add": options.add_prefix}))
    if options.rename:
        rules = [user_rule(text) for text in options.rename]
        steps.append(Step("rename", {"rules": [[rule.old, rule.new] for rule in rules]}))
    if options.drop:
        steps.append(Step("drop", {"drop": list(options.drop)}))
    if options.keep:
        steps.append(Step("drop", {"keep": list(options.keep)}))
    return steps


def _towards(weights: WeightSet, target: Target, options: Options) -> list[Step]:
    """The steps that make the weights fit the target."""
    solved = solve(weights, target)
    steps = []
    for cause in solved.causes:
        if cause.edit is None:
            raise PlanError(cause.summary, hint=cause.fix, code=f"plan.{cause.code}")
        if not cause.automatic and not _allowed(cause, options):
            raise PlanError(cause.summary, hint=cause.fix, code=f"plan.{cause.code}")
        steps.append(Step(cause.edit, _mapped(cause, options)))
    if not solved.after.fits:
        left = [entry.key for entry in solved.after.entries if entry.kind != "dtype"]
        raise PlanError(
            f"{len(left):,} differences from {quoted(target.name)} are left that no edit "
            f"removes: {listed(left)}",
            hint="ckptool diff shows them all",
            code="plan.unexplained",
        )
    return steps


def _mapped(cause: Cause, options: Options) -> Mapping[str, Any]:
    """The options of the edit that removes a cause, with what the user chose for it."""
    if cause.code != "class-count":
        return cause.options
    new = len(cause.options["map"])
    background = cause.options["to"] - new
    mapped = class_map(options.class_map, cause.options["from"] - background, new)
    chosen = {"map": list(mapped.rows), "fresh": list(mapped.fresh), "seed": options.seed}
    return {**cause.options, **chosen}


def _allowed(cause: Cause, options: Options) -> bool:
    """Whether an option asks for an edit that does not preserve the function."""
    return (cause.code == "class-count" and options.num_classes is not None) or (
        cause.code == "input-channels" and options.in_chans is not None
    )


def _with_channels(target: Target, channels: int) -> Target:
    """The target with another number of input channels in its first convolution."""
    key = stem(target.specs)
    if key is None:
        raise PlanError(f"{quoted(target.name)} has no convolution", code="plan.channels")
    shape = target.specs[key].shape
    spec = replace(target.specs[key], shape=(shape[0], channels, *shape[2:]))
    return replace(target, specs={**target.specs, key: spec})


def _cast(options: Options, target: Target | None, weights: WeightSet) -> Step:
    assert options.dtype is not None
    own = target.architecture.derived if target and target.architecture else ()
    derived = [key for key in weights.tensors if is_named(key, (*DERIVED, *own))]
    values: dict[str, Any] = {"dtype": cast_target(options.dtype), "overflow": options.on_overflow}
    if options.keep_fp32:
        values["keep_fp32"] = list(options.keep_fp32)
    if derived:
        values["except"] = derived
    return Step("cast", values)


def signature(weights: WeightSet) -> str:
    """A digest of keys, shapes and dtypes: a plan fits every file that has the same."""
    lines = (
        f"{key}\t{tensor.dtype}\t{','.join(map(str, tensor.shape))}\n"
        for key, tensor in weights.tensors.items()
    )
    return "sha256:" + hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def execute(plan: Plan, weights: WeightSet) -> tuple[WeightSet, tuple[Applied, ...]]:
    """The weights after all steps, lazily, and what each step did.

    Raises: PlanError if the plan was made for weights with another signature.
    """
    found = signature(weights)
    if found != plan.signature:
        raise PlanError(
            f"the plan was made for other weights: found {found[:19]}…, "
            f"wanted {plan.signature[:19]}…",
            hint="ckptool plan makes one for this file",
            code="plan.signature",
        )
    results = []
    for step in plan.steps:
        result = edit(step.edit).apply(weights, step.options)
        weights = result.weights
        results.append(result)
    return weights, tuple(results)


def made(weights: WeightSet, steps: Sequence[Step], **target: Any) -> Plan:
    """The plan of some steps for some weights, with the number of keys and the grade of each."""
    first = weights
    counted = []
    for step in steps:
        result = edit(step.edit).apply(weights, step.options)
        weights = result.weights
        touched = len(result.keys) + len(result.dropped)
        counted.append(replace(step, keys=touched, grade=result.grade))
    return Plan(signature(first), tuple(counted), **target)


def read_plan(path: str) -> Plan:
    """The plan that a file holds; PlanError unless it holds one."""
    file = ByteFile(path)
    try:
        value = json.loads(file.read(0, file.size))
        target = value["target"]
        steps = tuple(
            Step(str(s["edit"]), dict(s["options"]), int(s["keys"]), str(s["class"]))
            for s in value["steps"]
        )
        version, bound = value["version"], str(value["signature"])
        plan = Plan(bound, steps, target["arch"], target["num_classes"], target["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"not a plan: {quoted(str(error))}", code="plan.format") from None
    if version != VERSION:
        raise PlanError(f"found plan version {version}, wanted {VERSION}", code="plan.version")
    return plan
