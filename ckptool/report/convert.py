"""The page of `convert`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ckptool.errors import listed, printable
from ckptool.plugins import EXACT, describe
from ckptool.render import convert as convert_text
from ckptool.render.words import size, spec_text
from ckptool.report.page import (
    BAR,
    BYTES,
    COUNT,
    TEXT,
    Cell,
    Column,
    Grid,
    Page,
    Point,
    Row,
    Status,
    class_words,
    point,
)

if TYPE_CHECKING:
    from ckptool.plans import Plan
    from ckptool.plugins import Applied
    from ckptool.writing import Prepared, Result

_EDITS = (
    Status("ok", "", "as it was"),
    Status("edited", "✎", "edited, exact"),
    Status("shape", "!", "edited, lossy"),
    Status("unexpected", "×", "left out"),
)


def conversion_page(
    prepared: Prepared, applied: Sequence[Applied], result: Result | None = None
) -> Page:
    """What a conversion does to each tensor, and what that cost; without a result it is a plan."""
    plan, source = prepared.plan, prepared.checkpoint.weights
    weights = applied[-1].weights if applied else source
    edits: dict[str, list[int]] = {}
    for number, done in enumerate(applied):
        for key in done.keys:
            edits.setdefault(key, []).append(number)
    measured = result.measured if result else {}
    rows = []
    for key, tensor in weights.tensors.items():
        steps = edits.get(key, [])
        lossy = any(applied[number].grade != EXACT for number in steps)
        before = source.tensors.get(key)
        costs = measured.get(key, {})
        cells: tuple[Cell, ...] = (
            spec_text(before.spec) if before else "",
            spec_text(tensor.spec),
            tensor.nbytes,
            ", ".join(str(number + 1) for number in steps),
            _worst(costs),
            sum(value for value in costs.values() if isinstance(value, int)) or None,
        )
        rows.append(Row(printable(key), 2 if lossy else int(bool(steps)), tensor.nbytes, cells))
    dropped = [key for done in applied for key in done.dropped]
    for key in dict.fromkeys(dropped):
        before = source.tensors.get(key)
        if before and key not in weights.tensors:
            cells = (spec_text(before.spec), "", before.nbytes, "", None, None)
            rows.append(Row(printable(key), 3, before.nbytes, cells))
    notes = result.notes if result else tuple(note for done in applied for note in done.notes)
    facts = [("steps", f"{len(plan.steps)}"), ("tensors", f"{len(weights.tensors):,}")]
    if result:
        facts += [
            ("output", printable(result.output)),
            ("size", size(result.nbytes)),
            ("sha256 of the source", result.sha256),
        ]
    return Page(
        "convert",
        printable(prepared.checkpoint.path),
        f"for {printable(plan.arch or plan.like or 'no architecture')}"
        + class_words(plan.num_classes),
        result.fits_strict if result else None,
        _verdict(result),
        facts=tuple(facts),
        heading="What to know",
        points=tuple(point("note", note) for note in notes) + _alike(prepared),
        statuses=_EDITS,
        columns=(
            Column("before", TEXT, "under the same key in the source"),
            Column("after", TEXT),
            Column("size", BYTES),
            Column("steps", TEXT, "the steps of the plan that touched it"),
            Column(
                "relative error", BAR, "the largest that the edits caused, values flushed aside"
            ),
            Column("values lost", COUNT, "values that became 0, were clamped or are new rows"),
        ),
        rows=tuple(rows),
        chart="relative error" if any(_worst(costs) for costs in measured.values()) else "",
        grids=(_steps(plan),),
    )


def _alike(prepared: Prepared) -> tuple[Point, ...]:
    names = listed(prepared.also_fits, 8)
    return (point("note", f"also fits, with the same plan: {names}"),) if names else ()


def _verdict(result: Result | None) -> tuple[tuple[bool | None, str], ...]:
    if result is None:
        return ((None, "a plan: nothing was written"),)
    proven = (result.verified, "written, read back and proven")
    return proven, (result.fits_strict, convert_text.verdict(result))


def _worst(costs: Mapping[str, float]) -> float | None:
    """The largest relative error that was measured."""
    return max((v for v in costs.values() if isinstance(v, float)), default=None) or None


def _steps(plan: Plan) -> Grid:
    rows = tuple(
        (str(number), step.edit, f"{step.keys:,}", step.grade, describe(step.edit, step.options))
        for number, step in enumerate(plan.steps, 1)
    )
    return Grid(
        "Plan",
        ("step", "edit", "keys", "class", "what"),
        rows,
        f"for weights with the signature {plan.signature}",
    )
