"""The page of `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptool.errors import printable
from ckptool.preflight.coco import id_text
from ckptool.render import check as check_text
from ckptool.report.page import (
    Grid,
    Page,
    class_words,
    point,
)

if TYPE_CHECKING:
    from ckptool.preflight import Finding, Report


def check_page(report: Report) -> Page:
    """What a check found, and what the data set holds."""
    summary = report.summary
    good = None if report.warnings and not report.errors else not report.errors
    facts: list[tuple[str, str]] = []
    grids = []
    if summary is not None:
        facts = [
            ("images", f"{summary.images:,}"),
            ("boxes", f"{summary.boxes:,}"),
            ("crowds left aside", f"{summary.crowds:,}"),
            ("scaled to", summary.input),
            ("anchors", summary.anchors),
        ]
        rows = tuple(
            (
                printable(id_text(c.id)),
                printable(c.name),
                _number(c.label),
                _number(c.row),
                f"{c.boxes:,}",
            )
            for c in summary.categories
        )
        head = ("id", "class", "label", "row of the head", "boxes")
        grids.append(Grid("Classes", head, rows, "which row of the head learns which class"))
        sizes = tuple(
            (f"{each.low:g} to {each.high:g}", f"{each.boxes:,}", _number(each.unmatched))
            for each in summary.sizes
        )
        grids.append(Grid("Sizes of the boxes", ("pixels", "boxes", "without an anchor"), sizes))
    return Page(
        "check",
        printable(summary.file if summary else "one batch"),
        f"against {printable(report.arch or 'a model')}{class_words(report.num_classes)}",
        good,
        ((good, check_text.verdict(report)),),
        facts=tuple((name, text) for name, text in facts if text),
        heading="Findings",
        points=tuple(
            point(item.severity, f"{item.message} ({item.code}{_places(item)}){_advice(item)}")
            for item in report.findings
        ),
        grids=tuple(grid for grid in grids if grid.rows),
    )


def _places(item: Finding) -> str:
    """Where the first place of a finding is, and how many there are."""
    times = f", {item.count:,} times" if item.count > 1 else ""
    return (f"; first: {item.where}" if item.where else "") + times


def _advice(item: Finding) -> str:
    """What to do about it, which is seldom a command."""
    return f": {item.fix}" if item.fix else ""


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
