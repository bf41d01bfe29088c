"""What `plan` and `convert` show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptool.compare import COUNTER
from ckptool.errors import counted, listed, printable, quoted
from ckptool.grouping import group
from ckptool.plugins import EXACT, LOSSY, SELECTIVE, describe
from ckptool.render.words import number, size, table, wrapped

if TYPE_CHECKING:
    from ckptool.plans import Plan
    from ckptool.plugins import Applied
    from ckptool.writing import Result

_MOST_DROPPED = 8
_GRADES = {
    SELECTIVE: "selective: exact for what is kept",
    LOSSY: "lossy: it changes values or makes new ones",
}
# What the edits measure, as it is shown; of a count, for one and for several; zero is not shown.
_COUNTS = {
    "flushed": ("value became zero", "values became zero"),
    "clamped": ("value was clamped", "values were clamped"),
    "new_rows": ("row is new", "rows are new"),
}
_WORST = {
    "relative_error": "worst relative error",
    "rounding": "worst rounding",
    "response_change": "worst change of the response to a grey image",
}


def plan_text(
    found: Plan, applied: Sequence[Applied] = (), also_fits: Sequence[str] = (), width: int = 100
) -> str:
    """What `plan` and `convert --dry-run` show: the steps, and what they leave out and make."""
    lines = [_aim(found), ""]
    lines += _steps(found, width)
    notes = [note for result in applied for note in result.notes]
    dropped = [key for result in applied for key in result.dropped]
    lines += _remarks(notes, dropped, {}, also_fits, width)
    return "\n".join(lines)


def result_json(found: Result) -> dict[str, Any]:
    """The JSON of `convert`."""
    return {
        "input": found.input,
        "output": found.output,
        "arch": found.plan.arch,
        "also_fits": list(found.also_fits),
        "plan": found.plan.to_json(),
        "dropped": list(found.dropped),
        "verified": found.verified,
        "fits_strict": found.fits_strict,
        "bytes": found.nbytes,
        "sha256": found.sha256,
        "seconds": {name: round(value, 3) for name, value in found.seconds.items()},
        "notes": list(found.notes),
        "measured": {
            key: {name: number(value) for name, value in values.items()}
            for key, values in found.measured.items()
        },
    }


def result_text(found: Result, width: int = 100) -> str:
    """What `convert` shows: that the file is there and proven, what was done, and what it cost."""
    lines = [
        f"{printable(found.output)}: {size(found.nbytes)}, written, read back and proven",
        *wrapped(verdict(found), width, "", "  "),
        "",
        *_steps(found.plan, width),
        *_remarks(found.notes, found.dropped, found.measured, found.also_fits, width),
    ]
    return "\n".join(lines)


def _aim(found: Plan) -> str:
    """What the plan is for."""
    if not found.steps:
        return f"{_target(found)}: nothing is to be done"
    return f"{_target(found)}: {counted(len(found.steps), 'step')}"


def _target(found: Plan) -> str:
    name = found.arch or found.like
    if name is None:
        return "a plan without an architecture"
    classes = found.num_classes
    count = "" if classes is None else f" with {counted(classes, 'class', 'classes')}"
    return f"a plan for {printable(name)}{count}"


def verdict(found: Result) -> str:
    """Whether the output fits what it was made for."""
    name = found.plan.arch or found.plan.like
    if found.fits_strict is None or name is None:
        return "no architecture was named or recognised: what is not in a step is as it was"
    classes = found.plan.num_classes
    count = "" if classes is None else f" with {counted(classes, 'class', 'classes')}"
    if found.output.endswith(".weights"):
        return f"it is a darknet file of {printable(name)}{count}: darknet loads it with that cfg"
    if not found.fits_strict:
        return f"it does NOT fit {printable(name)}{count}: `ckptool diff` says why"
    dialect = found.plan.dialect
    spelled = "" if dialect is None else f", as {quoted(dialect)} spells it"
    return f"it fits {printable(name)}{count}{spelled}: load_state_dict(strict=True) succeeds"


def _steps(found: Plan, width: int) -> list[str]:
    """The steps as a table, and what the grades mean that are not exact."""
    if not found.steps:
        return ["  no step: the tensors are as they were"]
    rows = [
        [str(position), step.edit, f"{step.keys:,}", step.grade]
        for position, step in enumerate(found.steps, 1)
    ]
    what = ["what", *(describe(step.edit, step.options) for step in found.steps)]
    lines = []
    for line, text in zip(_even(table([["", "edit", "keys", "class"], *rows])), what, strict=True):
        lines += wrapped(text, width, line, " " * len(line))
    grades = dict.fromkeys(step.grade for step in found.steps if step.grade != EXACT)
    return lines + [f"  ({_GRADES[grade]})" for grade in grades]


def _even(lines: Sequence[str]) -> list[str]:
    """The lines, filled up to one length and to the next column."""
    length = max(map(len, lines)) + 2
    return [line.ljust(length) for line in lines]


def _remarks(
    notes: Iterable[str],
    dropped: Sequence[str],
    measured: Mapping[str, Mapping[str, float]],
    also_fits: Sequence[str],
    width: int,
) -> list[str]:
    texts = list(notes)
    if dropped:
        patterns = [pattern for pattern, _, _ in group((key, 0) for key in dropped)]
        if len(patterns) > _MOST_DROPPED and all(key.endswith(COUNTER) for key in dropped):
            patterns = [f"*.{COUNTER}"]
        texts.append(f"left out, {len(dropped):,}: {listed(patterns, _MOST_DROPPED)}")
    cost = _cost(measured)
    if cost:
        texts.append(cost)
    if also_fits:
        texts.append(f"also fits, with the same plan: {listed(also_fits, 8)}")
    lines = [line for text in texts for line in wrapped(text, width, "  ", "    ")]
    return ["", *lines] if lines else []


def _cost(measured: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence on what the edits cost: counts in all, of the rest the worst and its key."""
    counts: dict[str, float] = {}
    worst: dict[str, tuple[float, str]] = {}
    for key, values in measured.items():
        for name, value in values.items():
            if isinstance(value, int):
                counts[name] = counts.get(name, 0) + value
            else:
                worst[name] = max(worst.get(name, (0.0, key)), (value, key))
    parts = [
        counted(int(count), *_COUNTS.get(name, (_words(name),) * 2))
        for name, count in counts.items()
        if count
    ]
    parts += [
        f"{_WORST.get(name, _words(name))} {value:.2g} in {quoted(key)}"
        for name, (value, key) in worst.items()
        if value
    ]
    return f"measured: {'; '.join(parts)}" if parts else ""


def _words(name: str) -> str:
    """What a third party's edit measures, by the name that it gives."""
    return printable(name.replace("_", " "))
