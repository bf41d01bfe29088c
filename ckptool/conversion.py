"""Convert: what the options and the file ask for becomes a plan, which is then carried out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ckptool.architectures import darknet_files, detectron2, find, frozen, lookalikes
from ckptool.architectures.spec import Architecture
from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.dtypes import SHORT
from ckptool.errors import PlanError, listed, quoted
from ckptool.formats import dcp
from ckptool.formats.sharded_writer import parse_size
from ckptool.guessing import guesses
from ckptool.identification import Candidate, candidates
from ckptool.planning import (
    Options,
    aim,
    architecture_of,
    as_found,
    asked_for,
    in_dialect,
    make_plan,
    refuse_other_count,
    with_channels,
)
from ckptool.plans import Plan, carried_out, execute, made, read_plan
from ckptool.plugins import Applied
from ckptool.reading import read
from ckptool.remote.urls import is_url
from ckptool.writing import Prepared, Progress, Result, carry_out


def convert(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str] | None = None,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    weights: str | None = None,
    force: bool = False,
    max_shard_size: str | int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Write the checkpoint as the options ask for it, and prove the file that was written.

    The options are the fields of `ckptool.planning.Options`; a `plan`, or the path of a stored one,
    takes their place.
    Without `output` the file is written beside the input under a name that says what was done.
    `max_shard_size` (`2GB`, or bytes) makes several files with an index of them.

    Raises: CkptError; nothing is written then.
    """
    prepared = prepare(
        checkpoint,
        arch=arch,
        like=like,
        plan=plan if plan is None or isinstance(plan, Plan) else read_plan(plan),
        weights=weights,
        options=asked(options),
    )
    path = default_output(prepared) if output is None else os.fspath(output)
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
    return prepare(checkpoint, arch=arch, like=like, weights=weights, options=asked(options)).plan


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
    path, target = os.fspath(output), None
    if path.endswith(".weights"):  # whose order only an architecture tells
        known = architecture_of(checkpoint.weights)
        target = Target(known.name, known.specs, known.num_classes, known) if known else None
    prepared = Prepared(checkpoint, make_plan(checkpoint.weights, None, Options()), target)
    return carry_out(prepared, path, force=force, progress=progress)


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
    options = options or Options()
    refuse_contradictions(arch, like, plan, options)
    named = arch if plan is None else plan.arch
    opened = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else read(checkpoint, weights=weights, darknet=darknet_files.is_darknet(named))
    )
    if plan is not None:
        opened = darknet_files.keyed(opened, frozen.find(plan.arch) if plan.arch else None)
        execute(plan, opened.weights)
        # Counts and grades as they are, not as the file of the plan says.
        again = made(opened.weights, plan.steps)
        return Prepared(opened, replace(plan, steps=again.steps), _planned_target(plan))
    if like is not None:
        return _alike(opened, like, options)
    if arch is not None:
        architecture = find(arch)
        opened = darknet_files.keyed(opened, architecture)
        weights_asked, _ = carried_out(asked_for(options), opened.weights)
        target = aim(weights_asked, in_dialect(architecture, options.to_dialect), options)
        if darknet_files.is_part(opened.weights):
            # Nothing fits strictly: the tensors under their keys are what can be had.
            found = replace(make_plan(opened.weights, None, options), arch=architecture.name)
            return Prepared(opened, found, target)
        found = make_plan(opened.weights, target, options)
        return Prepared(opened, found, target, lookalikes(architecture))
    return _identified(opened, options)


def asked(options: Mapping[str, Any]) -> Options:
    """The options of a call, where one text stands for a list of one."""
    lists = ("rename", "drop", "keep", "keep_fp32")
    values: dict[str, Any] = {
        name: ((value,) if isinstance(value, str) else tuple(value)) if name in lists else value
        for name, value in options.items()
    }
    return Options(**values)


def refuse_contradictions(
    arch: str | None,
    like: str | os.PathLike[str] | Checkpoint | None,
    plan: Plan | None,
    options: Options,
) -> None:
    """Refuse two targets, and a plan beside what the plan says already."""
    if arch is not None and like is not None:
        raise PlanError(
            "an architecture and another checkpoint are two targets",
            hint="either --arch ARCH or --like FILE2",
            code="plan.options",
        )
    if plan is None:
        return
    asked = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    asked += [name for name, value in (("arch", arch), ("like", like)) if value is not None]
    if asked:
        named = " ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise PlanError(
            f"a stored plan says everything itself: it cannot be combined with {quoted(named)}",
            hint="--plan alone, or the options alone",
            code="plan.options",
        )


def _alike(
    opened: Checkpoint, like: str | os.PathLike[str] | Checkpoint, options: Options
) -> Prepared:
    """The plan that makes the file like another one.

    Raises: PlanError if the class count that is asked for is not the other's.
    """
    other = like if isinstance(like, Checkpoint) else read(like)
    opened, other = darknet_files.paired(opened, other)
    architecture = architecture_of(other.weights)
    refuse_other_count(other.path, architecture, options.num_classes)
    count = architecture.num_classes if architecture else None
    target = Target(other.path, other.weights.specs, count, architecture)
    target = with_channels(target, options.in_chans)
    found = make_plan(opened.weights, target, options)
    return Prepared(opened, replace(found, arch=None, like=other.path), target)


def _identified(opened: Checkpoint, options: Options) -> Prepared:
    """The plan for what the file is; those that would get another plan make it ambiguous.

    Without `to_dialect` the file keeps the spelling that it has.

    Raises: PlanError if an architecture is needed and several fit, or none does.
    """
    if darknet_files.flat(opened.weights) is not None:
        return _identified_by_size(opened, options)
    named, _ = carried_out(asked_for(options), opened.weights)
    known = candidates(named)
    spelled = [_spelled(c, options) for c in known if c.fits]
    if options.accept_guess and not spelled:
        spelled = _guessed(named, options)
    targets = [aim(named, architecture, options) for architecture in spelled]
    fitting = list(dict.fromkeys(target.name for target in targets))
    uncast = replace(options, dtype=None, on_overflow="error", keep_fp32=())
    plans = [make_plan(opened.weights, target, uncast) for target in targets]
    if len({json.dumps(plan.to_json()["steps"]) for plan in plans}) == 1:
        found = make_plan(opened.weights, targets[0], options)
        return Prepared(opened, found, targets[0], tuple(fitting[1:]))
    if not options.need_architecture:
        return Prepared(opened, make_plan(opened.weights, None, options), None, tuple(fitting))
    about_heads = not fitting and options.to_dialect is None and options.from_dialect is None
    head = detectron2.head_of(named.specs) if about_heads else None
    if head is not None:
        # Which rows belong to which class, the keys of such a head tell without a manifest.
        plan = make_plan(opened.weights, aim(named, head, options), options)
        return Prepared(opened, replace(plan, arch=None))
    if fitting:
        raise PlanError(
            f"the file fits {listed(fitting, 8)}, which would be converted differently",
            hint=f"--arch {fitting[0]}",
            code="plan.ambiguous",
        )
    near = [candidate.arch for candidate in known]
    raise PlanError(
        "the file fits no architecture that ckptool knows, and only one tells which tensors "
        "the options are about",
        hint=f"--arch NAME; the nearest are {listed(near, 3)}" if near else "--arch NAME",
        code="plan.architecture",
    )


def _identified_by_size(opened: Checkpoint, options: Options) -> Prepared:
    """The plan for a darknet file whose size is that of one built-in network only.

    Raises: PlanError if it is that of several or of none.
    """
    known = [candidate.arch for candidate in candidates(opened.weights)]
    if len(known) == 1:
        return prepare(opened, arch=known[0], options=options)
    if known:
        raise PlanError(
            f"a darknet file has no keys, and several networks have files of its size: "
            f"{listed(known, 8)}",
            hint=f"--arch {known[0]}",
            code="plan.ambiguous",
        )
    raise PlanError(
        "a darknet file has no keys, and its size is that of no network that ckptool knows",
        hint="--arch darknet:FILE.cfg, with the cfg that the file was trained with",
        code="plan.architecture",
    )


def _guessed(weights: WeightSet, options: Options) -> list[Architecture]:
    """The architectures that the weights are of, if the order of their shapes may tell.

    Raises: PlanError if it tells nothing, or if the names contradict it.
    """
    found = guesses(weights.specs)
    if not found:
        raise PlanError(
            "there is no guess to accept: read in order, the shapes are of no architecture that "
            "ckptool knows",
            hint="--arch NAME",
            code="plan.guess",
        )
    best = [g for g in found if len(g.guess.extra) == len(found[0].guess.extra)]
    names = [name for g in best for name in (g.arch, *g.also)]
    return [in_dialect(find(name), options.to_dialect) for name in names]


def _spelled(candidate: Candidate, options: Options) -> Architecture:
    """The architecture of a candidate in the dialect that is asked for, else in the file's own."""
    if options.to_dialect is not None:
        return in_dialect(find(candidate.arch), options.to_dialect)
    found = as_found(candidate)
    assert found is not None
    return found


def _planned_target(plan: Plan) -> Target | None:
    """The target of a stored plan, if it names a built-in architecture.

    No other is looked up: a plan is a file from elsewhere, and must not name code to be run.
    """
    architecture = frozen.find(plan.arch) if plan.arch else None
    if architecture is None:
        return None
    architecture = in_dialect(architecture, plan.dialect)
    specs = architecture.manifest(plan.num_classes)
    target = Target(architecture.name, specs, plan.num_classes, architecture)
    for step in plan.steps:
        if step.edit == "channels":
            target = with_channels(target, step.options["to"])
    return target


def applied(prepared: Prepared) -> tuple[Applied, ...]:
    """What each step does to the weights; nothing is computed for it."""
    return execute(prepared.plan, prepared.checkpoint.weights)[1]


def default_output(prepared: Prepared) -> str:
    """The path beside the input whose name says what was done: `weights.fp32.c20.safetensors`."""
    plan = prepared.plan
    stem = _stem(prepared.checkpoint.path)
    words = [SHORT[plan.dtype]] if plan.dtype in SHORT else []
    if any(step.edit == "heads" for step in plan.steps):
        words.append(f"c{plan.num_classes}")
    words += [step.options["to"] for step in plan.steps if step.edit == "dialect"][-1:]
    return ".".join([stem, *(words or ["converted"]), "safetensors"])


def _stem(path: str) -> str:
    """The path without its suffix, or the folder's where the checkpoint is a folder."""
    folder, name = os.path.split(path)
    if name == dcp.INDEX:
        folder = folder if is_url(folder) else os.path.abspath(folder)
        return folder.removesuffix(".dcp")
    if path.startswith(("http://", "https://", "hf://")):
        folder = ""  # it is not written beside what is only read
    return os.path.join(folder, os.path.splitext(name.removesuffix(".index.json"))[0])
