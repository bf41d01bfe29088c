"""What `plan` and `convert` show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptool.errors import printable
from ckptool.grouping import group
from ckptool.render.words import number, size, table

if TYPE_CHECKING:
    from ckptool.plans import Plan
    from ckptool.writing import Result


def plan_text(found: Plan) -> str:
    """What `plan` and `convert --dry-run` show."""
    rows = [["step", "edit", "keys", "class", "options"]]
    for position, step in enumerate(found.steps, 1):
        options = printable(str(dict(step.options)), 100)
        rows.append([str(position), step.edit, f"{step.keys:,}", step.grade, options])
    target = found.arch or "no architecture"
    lines = [f"plan for {target}, {len(found.steps)} steps", "", *table(rows)]
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
        "notes": list(found.notes),
        "measured": {
            key: {name: number(value) for name, value in values.items()}
            for key, values in found.measured.items()
        },
    }


def result_text(found: Result) -> str:
    """What `convert` shows."""
    lines = [f"{printable(found.output)}: written and verified, {size(found.nbytes)}"]
    lines += ["", *plan_text(found.plan).splitlines()]
    for note in found.notes:
        lines.append(f"  {note}")
    if found.dropped:
        keys = ", ".join(pattern for pattern, _, _ in group((k, 0) for k in found.dropped)[:8])
        lines.append(f"  dropped {len(found.dropped):,}: {printable(keys, 300)}")
    return "\n".join(lines)
