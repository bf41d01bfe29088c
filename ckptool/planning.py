"""From weights, a target and options to a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptool import dialects
from ckptool.architectures import darknet_files, find, frozen
from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Target
from ckptool.causes.heads import stem
from ckptool.checkpoint import WeightSet
from ckptool.derived import DERIVED, is_named
from ckptool.dtypes import DTYPES, cast_target, widens
from ckptool.errors import PlanError, counted, listed, quoted
from ckptool.files import ByteFile
from ckptool.identification import (
    Candidate,
    candidates,
    class_count,
    prefixes,
    without_segments,
)
from ckptool.labels import class_map
from ckptool.plans import Plan, Step, carried_out, made, refuse_losses
from ckptool.plugins import channels
from ckptool.plugins.cast import OVERFLOWS, too_large
from ckptool.plugins.heads import options_for
from ckptool.rules import user_rule
from ckptool.solving import solve

_MOST_BYTES = 1 << 26  # of a mapping file


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask of a conversion, as `ckptool convert` names it.

    `keep` and `drop` are globs of the file's own keys; what the prefixes and `rename` name is what
    is left after them, `keep_fp32` the output's keys. A `rename` is `OLD=NEW` or `@FILE`. A dialect
    is what another implementation calls the keys; `from_dialect` is asked for where that cannot be
    seen. `accept_guess` pairs tensors under unknown names by the order of their shapes.
    """

    dtype: str | None = None
    num_classes: int | None = None
    class_map: str | None = None
    in_chans: int | None = None
    from_dialect: str | None = None
    to_dialect: str | None = None
    strip_prefix: str | None = None
    add_prefix: str | None = None
    rename: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    on_overflow: str = "error"
    keep_fp32: tuple[str, ...] = ()
    seed: int = 0
    accept_guess: bool = False

    @property
    def need_architecture(self) -> bool:
        """Whether only an architecture tells which tensors they are about."""
        about = (self.num_classes, self.class_map, self.in_chans, self.from_dialect)
        return self.accept_guess or any(o is not None for o in (*about, self.to_dialect))


def aim(weights: WeightSet, architecture: Architecture, options: Options) -> Target:
    """The architecture as a target, with the file's own class count if none is asked for.

    Raises: ArchitectureError if it cannot have that many classes.
    """
    count, own = options.num_classes, architecture.num_classes
    target = Target(architecture.name, architecture.specs, own, architecture)
    if count is None and architecture.axes:
        solved = solve(weights, with_channels(target, options.in_chans))
        changed = [cause.options["from"] for cause in solved.causes if cause.edit == "heads"]
        count = changed[0] if changed else class_count(solved.weights.specs, architecture.axes)
    if count is not None and count != own:
        target = replace(target, specs=architecture.manifest(count), num_classes=count)
    return with_channels(target, options.in_chans)


def architecture_of(weights: WeightSet) -> Architecture | None:
    """The architecture that the weights fit, under their own keys and with their class count.

    The first one if several do; None if none does.
    """
    found = next((candidate for candidate in candidates(weights) if candidate.fits), None)
    architecture = as_found(found) if found else None
    if found is None or architecture is None:
        return None
    own = {without_segments(key).removeprefix(found.prefix): key for key in weights.tensors}
    return replace(
        architecture,
        num_classes=found.num_classes,
        specs=weights.specs,
        axes={own[key]: axis for key, axis in architecture.axes.items()},
        layouts={own[key]: layout for key, layout in architecture.layouts.items()},
        aliases=(),
        derived=tuple(key for key in weights.tensors if is_named(key, DERIVED)),
    )


def as_found(candidate: Candidate) -> Architecture | None:
    """The built-in architecture of a candidate, in the candidate's dialect."""
    architecture = frozen.find(candidate.arch)
    own = dialects.native(architecture) if architecture else None
    spoken = (own.name, darknet_files.DIALECT) if own else ()
    if architecture is None or own is None or candidate.dialect in spoken:
        return architecture
    return in_dialect(architecture, candidate.dialect)


def make_plan(weights: WeightSet, target: Target | None, options: Options) -> Plan:
    """The steps that the options ask for and, with a target, those that its diff asks for.

    Raises: PlanError if the result would not fit the target, or for options that make no sense.
    """
    _check(options)
    steps = asked_for(options)
    asked, _ = carried_out(steps, weights)
    # What widens comes first, so that the edits compute with the wider type; what narrows last.
    first = options.dtype is not None and not options.keep_fp32 and _all_widen(asked, options.dtype)
    if first:
        widening = _cast(options, target, asked)
        asked, _ = carried_out(widening, asked)
        steps += widening
    if target is not None and options.from_dialect is not None:
        more = _from_dialect(asked, target, options.from_dialect)
        asked, _ = carried_out(more, asked)
        steps += more
    elif target is not None and options.to_dialect is not None:
        _refuse_either(asked, target)
    if target is not None:
        steps += _towards(asked, target, options)
    elif options.need_architecture:
        raise PlanError(
            "which tensors the class count, the input channels or a dialect are about, only an "
            "architecture tells",
            hint="--arch NAME",
            code="plan.architecture",
        )
    else:
        refuse_losses(asked)
    if options.dtype is not None and not first:
        edited, _ = carried_out(steps, weights)
        steps += _cast(options, target, edited)
    count = options.num_classes
    if target is not None and count is None:
        count = target.num_classes
    name = target.name if target else None
    dtype = None if options.dtype is None else cast_target(options.dtype)
    dialect = target.architecture.dialect if target and target.architecture else None
    return made(weights, steps, arch=name, num_classes=count, dtype=dtype, dialect=dialect)


def refuse_other_count(path: str, known: Architecture | None, asked: int | None) -> None:
    """Raise if another class count is asked for than the file has that shall be matched."""
    count = known.num_classes if known else None
    if asked is None or asked == count:
        return
    has = "has no class count that is known" if count is None else f"has {count:,} classes"
    raise PlanError(
        f"{quoted(path)} {has}, {asked:,} are asked for",
        hint="--arch ARCH instead of --like",
        code="plan.options",
    )


def in_dialect(architecture: Architecture, name: str | None) -> Architecture:
    """The architecture as the dialect of that name spells it; itself if there is no name.

    Raises: PlanError if it is not spelled so.
    """
    if name is None:
        return architecture
    return dialects.spelled(architecture, dialects.find(name, architecture))


def asked_for(options: Options) -> list[Step]:
    """The steps of the options that name keys: what is left out first, then the names.

    Raises: PlanError for a rule or a mapping file that is none.
    """
    steps = []
    if options.keep:
        steps.append(Step("drop", {"keep": list(options.keep)}))
    if options.drop:
        steps.append(Step("drop", {"drop": list(options.drop)}))
    if options.strip_prefix:
        steps.append(Step("rename", {"strip": options.strip_prefix}))
    if options.add_prefix:
        steps.append(Step("rename", {"add": options.add_prefix}))
    steps += [
        Step("rename", {"map": _names_in(text[1:])})
        for text in options.rename
        if text.startswith("@")
    ]
    rules = [user_rule(text) for text in options.rename if not text.startswith("@")]
    if rules:
        steps.append(Step("rename", {"rules": [[rule.old, rule.new] for rule in rules]}))
    return steps


def with_channels(target: Target, channels: int | None) -> Target:
    """The target with another number of input channels in its first convolution, its own if None.

    Raises: PlanError if it has none.
    """
    if channels is None:
        return target
    key = stem(target.specs)
    if key is None:
        raise PlanError(f"{quoted(target.name)} has no convolution", code="plan.channels")
    shape = target.specs[key].shape
    spec = replace(target.specs[key], shape=(shape[0], channels, *shape[2:]))
    return replace(target, specs={**target.specs, key: spec})


def _check(options: Options) -> None:
    """Refuse options that nobody can mean."""
    for name, value in (("num_classes", options.num_classes), ("in_chans", options.in_chans)):
        if value is not None and value < 1:
            raise PlanError(f"found {name} {value}, wanted at least 1", code="plan.options")
    if options.in_chans is not None and options.in_chans > channels.MOST:
        raise PlanError(
            f"found in_chans {options.in_chans:,}, wanted at most {channels.MOST:,}",
            code="plan.options",
        )
    if options.seed < 0:
        raise PlanError(f"found seed {options.seed}, wanted 0 or more", code="plan.options")
    if options.on_overflow not in OVERFLOWS:
        raise PlanError(
            f"found on_overflow {quoted(options.on_overflow)}, wanted one of {listed(OVERFLOWS)}",
            code="plan.options",
        )
    if options.dtype is None and (options.keep_fp32 or options.on_overflow != "error"):
        raise PlanError(
            "what to do with values that a dtype cannot hold makes no sense without a dtype",
            hint="--dtype fp16",
            code="plan.options",
        )


def _names_in(path: str) -> dict[str, str]:
    """The old and new names in a JSON file."""
    file = ByteFile(path)
    try:
        names = json.loads(file.read(0, min(file.size, _MOST_BYTES)))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{quoted(path)}: not JSON: {error}", code="plan.map") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise PlanError(
            f"{quoted(path)}: not a mapping of old to new names, such as "
            '{"neek.conv1.weight": "neck.conv1.weight"}',
            code="plan.map",
        )
    return names


def _from_dialect(weights: WeightSet, target: Target, name: str) -> list[Step]:
    """The steps from a dialect that the user names to the one that the target is spelled in."""
    architecture = target.architecture
    wanted = dialects.native(architecture) if architecture else None
    if architecture is None or wanted is None:
        raise PlanError(
            f"{quoted(target.name)} is spelled in no dialects", code="plan.architecture"
        )
    found = dialects.find(name, architecture)
    if found.name == wanted.name:
        return []
    specs = weights.specs
    marks = ((prefix, mark) for prefix in prefixes(specs) for mark in found.marks)
    prefix = next((prefix for prefix, mark in marks if prefix + mark in specs), "")
    edits = dialects.edits(found, wanted, architecture, prefix)
    return [Step(edit, options) for edit, options in edits.items()]


def _refuse_either(weights: WeightSet, target: Target) -> None:
    """Raise if the weights are in the target's dialect or in another one with the same keys.

    To leave them as they are would be a guess. From two other dialects the diff tells.
    """
    architecture = target.architecture
    wanted = dialects.native(architecture) if architecture else None
    if architecture is None or wanted is None:
        return
    own = find(architecture.name)
    keys = dialects.spelled(own, wanted).specs.keys()
    marked = [found for found, _ in dialects.recognised(weights.specs, prefixes(weights.specs))]
    alike = [
        found
        for found in marked
        if dialects.spells(found, own) and dialects.spelled(own, found).specs.keys() == keys
    ]
    others = [found for found in alike if found.name != wanted.name]
    if others and len(alike) > len(others):
        told = (f"{quoted(d.name)} ({d.when})" if d.when else quoted(d.name) for d in alike)
        raise PlanError(
            f"keys and shapes cannot tell whether the file is {' or '.join(told)} already",
            hint=f"--from-dialect {others[0].name}",
            code="plan.dialect",
        )


def _towards(weights: WeightSet, target: Target, options: Options) -> list[Step]:
    """The steps that make the weights fit the target."""
    solved = solve(weights, target)
    _refuse_obstacles(solved.causes, options)
    edited = (cause for cause in solved.causes if cause.edit is not None)
    steps = [Step(str(cause.edit), _mapped(cause, options)) for cause in edited]
    if not solved.after.fits:
        left = [entry.key for entry in solved.after.entries if entry.kind != "dtype"]
        raise PlanError(
            f"{counted(len(left), 'difference')} from {quoted(target.name)} that no edit removes: "
            f"{listed(left)}",
            hint="ckptool diff shows them all",
            code="plan.unexplained",
        )
    if options.class_map is not None and not any(step.edit == "heads" for step in steps):
        steps += _reordered(target, options)
    return steps


def _refuse_obstacles(causes: Sequence[Cause], options: Options) -> None:
    """Raise for the first cause that no edit removes, or that needs an option which is not given.

    The hint has the options for all of them.
    """
    stuck = [cause for cause in causes if cause.edit is None and not cause.automatic]
    unasked = [cause for cause in causes if not cause.automatic and not _allowed(cause, options)]
    for cause in (stuck or unasked)[:1]:
        hint = cause.fix if stuck else " ".join(c.fix for c in unasked if c.fix)
        raise PlanError(cause.summary, hint=hint or None, code=f"plan.{cause.code}")


def _mapped(cause: Cause, options: Options) -> Mapping[str, Any]:
    """The options of the edit that removes a cause, with what the user chose for it."""
    if cause.code != "class-count":
        return cause.options
    new = len(cause.options["map"])
    background = cause.options["to"] - new
    mapped = class_map(options.class_map, cause.options["from"] - background, new)
    chosen = {"map": list(mapped.rows), "fresh": list(mapped.fresh), "seed": options.seed}
    return {**cause.options, **chosen}


def _reordered(target: Target, options: Options) -> list[Step]:
    """The step of a class map between two label sets of one size; none if every class stays."""
    architecture, count = target.architecture, target.num_classes
    wanted = options_for(architecture, count, count) if architecture and count else None
    if wanted is None:
        raise PlanError(
            f"which rows of {quoted(target.name)} belong to which class is not known",
            code="plan.class-map",
        )
    names = len(wanted["map"])
    mapped = class_map(options.class_map, names, names)
    if mapped.rows == tuple(range(names)):
        return []
    chosen = {"map": list(mapped.rows), "fresh": list(mapped.fresh), "seed": options.seed}
    return [Step("heads", {**wanted, **chosen})]


def _allowed(cause: Cause, options: Options) -> bool:
    """Whether an option asks for an edit that does not preserve the function."""
    return (
        (cause.code == "class-count" and options.num_classes is not None)
        or (cause.code == "input-channels" and options.in_chans is not None)
        or (cause.code == "unknown-dialect" and options.accept_guess)
    )


def _all_widen(weights: WeightSet, dtype: str) -> bool:
    """Whether every floating tensor is of the type, or of one that it holds completely."""
    target = cast_target(dtype)
    found = {tensor.dtype for tensor in weights.tensors.values()}
    return all(widens(each, target) for each in found if DTYPES[each].kind == "f")


def _cast(options: Options, target: Target | None, weights: WeightSet) -> list[Step]:
    """The step that casts, none if everything is of the type already."""
    assert options.dtype is not None
    own = target.architecture.derived if target and target.architecture else ()
    derived = [key for key in weights.tensors if is_named(key, (*DERIVED, *own))]
    values: dict[str, Any] = {"dtype": cast_target(options.dtype), "overflow": options.on_overflow}
    if options.keep_fp32:
        values["keep_fp32"] = list(options.keep_fp32)
    if derived:
        values["except"] = derived
    if options.on_overflow == "keep-fp32":
        values["large"] = too_large(weights, values)
    step = Step("cast", values)
    return [step] if carried_out([step], weights)[1][0].keys else []
