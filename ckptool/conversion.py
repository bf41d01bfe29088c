"""Convert: what the options and the file ask for becomes a plan, which is then carried out."""

from __future__ import annotations

import json
import os
from typing import Any

from ckptool.architectures import find, lookalikes
from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint
from ckptool.diagnose import target_of
from ckptool.dtypes import SHORT
from ckptool.errors import PlanError, listed
from ckptool.formats.sharded_writer import parse_size
from ckptool.identification import candidates
from ckptool.planning import Options, Plan, aim, execute, make_plan
from ckptool.reading import read
from ckptool.writing import Prepared, Progress, Result, carry_out


def convert(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str] | None = None,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    plan: Plan | None = None,
    weights: str | None = None,
    force: bool = False,
    max_shard_size: str | int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Write the checkpoint as the options ask for it, and prove the file that was written.

    The options are the fields of `ckptool.planning.Options`; a stored `plan` takes their place.
    Without `output` the file is written beside the input under a name that says what was done.
    `max_shard_size` (`2GB`, or bytes) makes several files with an index of them.

    Raises: CkptError; nothing is written then.
    """
    prepared = prepare(
        checkpoint, arch=arch, like=like, plan=plan, weights=weights, options=Options(**options)
    )
    path = os.fspath(output) if output else default_output(prepared)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    return carry_out(prepared, path, force=force, max_shard_size=size, progress=progress)


def plan(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    weights: str | None = None,
    **options: Any,
) -> Plan:
    """The plan that `convert` would carry out; the options are those of `convert`.

    Raises: CkptError.
    """
    asked = Options(**options)
    return prepare(checkpoint, arch=arch, like=like, weights=weights, options=asked).plan


def write(
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the chosen weights as they are, in the format of the output's suffix.

    Raises: CkptError; nothing is written then.
    """
    prepared = Prepared(checkpoint, make_plan(checkpoint.weights, None, Options()))
    return carry_out(prepared, os.fspath(output), force=force, progress=progress)


def prepare(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    plan: Plan | None = None,
    weights: str | None = None,
    options: Options | None = None,
) -> Prepared:
    """The checkpoint and its plan; without `arch` the file is identified.

    Raises: CkptError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    if plan is not None:
        execute(plan, opened.weights)
        return Prepared(opened, plan, _planned_target(plan))
    options = options or Options()
    if like is not None:
        target = target_of(None, like, None)
        return Prepared(opened, make_plan(opened.weights, target, options), target)
    if arch is not None:
        target = aim(opened.weights, find(arch), options.num_classes)
        made = make_plan(opened.weights, target, options)
        return Prepared(opened, made, target, lookalikes(find(arch)))
    return _identified(opened, options)


def _identified(opened: Checkpoint, options: Options) -> Prepared:
    """The plan for what the file is; those that would get another plan make it ambiguous.

    Raises: PlanError if an architecture is needed and several fit, or none does.
    """
    fitting = [candidate.arch for candidate in candidates(opened.weights) if candidate.fits]
    targets = {name: aim(opened.weights, find(name), options.num_classes) for name in fitting}
    plans = {name: make_plan(opened.weights, targets[name], options) for name in fitting}
    if len({json.dumps(plan.to_json()["steps"]) for plan in plans.values()}) == 1:
        first, *others = fitting
        return Prepared(opened, plans[first], targets[first], tuple(others))
    if options.num_classes is None and options.in_chans is None:
        return Prepared(opened, make_plan(opened.weights, None, options), None, tuple(fitting))
    if fitting:
        raise PlanError(
            f"the file fits {listed(fitting, 8)}, which would be converted differently",
            hint=f"--arch {fitting[0]}",
            code="plan.ambiguous",
        )
    raise PlanError(
        "the file fits no architecture that ckptool knows, and only one tells which tensors "
        "depend on the class count",
        hint="--arch NAME; `ckptool identify` shows what comes near",
        code="plan.architecture",
    )


def _planned_target(plan: Plan) -> Target | None:
    """The target of a stored plan, as far as it names one."""
    if plan.arch is None:
        return None
    architecture = find(plan.arch)
    specs = architecture.manifest(plan.num_classes)
    return Target(plan.arch, specs, plan.num_classes, architecture)


def default_output(prepared: Prepared) -> str:
    """The path beside the input whose name says what was done: `weights.fp32.c20.safetensors`."""
    plan = prepared.plan
    stem = os.path.splitext(prepared.checkpoint.path)[0].removesuffix(".index")
    words = [] if plan.dtype is None else [SHORT[plan.dtype]]
    if any(step.edit == "heads" for step in plan.steps):
        words.append(f"c{plan.num_classes}")
    return ".".join([stem, *(words or ["converted"]), "safetensors"])
