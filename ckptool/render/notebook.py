"""What a notebook shows of a Checkpoint, a Diff, a Plan: small tables, every name escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ckptool.errors import counted, printable
from ckptool.grouping import group_within
from ckptool.plugins import describe
from ckptool.render.words import format_name, size, spec_text

if TYPE_CHECKING:
    from ckptool.checkpoint import Checkpoint
    from ckptool.diagnose import Diff
    from ckptool.plans import Plan
    from ckptool.tensors import LazyTensor

_MOST = 16  # rows of a table


def checkpoint_html(found: Checkpoint) -> str:
    """The file, and its modules with their sizes."""
    name = found.weights.name
    weights = "" if name == "." else f", weights {printable(name)}"
    title = f"{printable(found.path)}: {format_name(found.contents.format)}{weights}"
    modules: dict[str, list[LazyTensor]] = {}
    for key, tensor in found.items():
        modules.setdefault(key.partition(".")[0], []).append(tensor)
    rows = [_module(module, tensors) for module, tensors in modules.items()]
    head = ("module", "tensors", "parameters", "size", "dtypes")
    total = _module("all", list(found.values()))
    return _paragraph(title) + _table(head, [*_cut(rows), total] if len(rows) > 1 else rows)


def diff_html(found: Diff) -> str:
    """The verdict, the causes with what to type, and the differences in groups."""
    verdict = "✓ it fits" if found.fits_strict else "✗ it does not load"
    if found.values is not None:
        verdict += ", values agree" if found.values.within else ", values differ"
    parts = [_paragraph(f"{printable(found.file)} against {printable(found.arch)}: {verdict}")]
    parts.append(_paragraph(", ".join(f"{n:,} {name}" for name, n in found.counts.items() if n)))
    if found.fix:
        parts.append(f"<pre>{escape(printable(found.fix, 2000))}</pre>")
    causes = [
        (str(number), printable(cause.summary, 500), printable(cause.fix or "", 500))
        for number, cause in enumerate(found.causes, 1)
    ]
    parts.append(_table(("", "cause", "options"), causes))
    entries = {entry.key: entry for entry in found.entries}
    groups = group_within([(entry.key, entry.kind) for entry in found.entries], _MOST)
    rows = []
    for pattern, kind, count in groups:
        entry = entries.get(pattern)
        sides = (spec_text(entry.found), spec_text(entry.wanted)) if entry else ("", "")
        rows.append((kind, printable(pattern), f"{count:,}", *sides))
    head = ("difference", "keys", "count", "found", "wanted")
    return "".join([*parts, _table(head, _cut(rows))])


def plan_html(found: Plan) -> str:
    """The target and the steps."""
    classes = found.num_classes
    count = "" if classes is None else f" with {counted(classes, 'class', 'classes')}"
    target = printable(found.arch or found.like or "no architecture")
    steps = counted(len(found.steps), "step")
    rows = [
        (str(number), step.edit, f"{step.keys:,}", step.grade, describe(step.edit, step.options))
        for number, step in enumerate(found.steps, 1)
    ]
    title = f"a plan for {target}{count}: {steps}"
    return _paragraph(title) + _table(("", "edit", "keys", "class", "what"), rows)


def _module(name: str, tensors: Sequence[LazyTensor]) -> tuple[str, ...]:
    return (
        printable(name),
        f"{len(tensors):,}",
        f"{sum(tensor.numel for tensor in tensors):,}",
        size(sum(tensor.nbytes for tensor in tensors)),
        ", ".join(dict.fromkeys(tensor.dtype for tensor in tensors)),
    )


def _cut(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first rows, and how many more there are."""
    if len(rows) <= _MOST:
        return list(rows)
    rest = f"and {len(rows) - _MOST + 1:,} more"
    return [*rows[: _MOST - 1], (rest, *[""] * (len(rows[0]) - 1))]


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, nothing at all if there are no rows."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
