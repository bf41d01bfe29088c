"""What `check` shows: what the data set holds, and what is wrong, the worst last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, printable
from ckptool.preflight.coco import id_text
from ckptool.render.words import plain, shortened, wrapped

if TYPE_CHECKING:
    from ckptool.preflight import Finding, Report, Summary
    from ckptool.preflight.summary import Category, SizeBin

WIDTH = 100
# So many classes are shown one by one; of more, those with the most and with the fewest boxes.
_MOST, _EACH_END = 100, 20
_LONGEST_NAME, _BESIDE_NAME = 24, 50
_LEAST_BAR = 8


def report_json(report: Report) -> dict[str, Any]:
    """The JSON of `check`."""
    found: dict[str, Any] = {
        "arch": report.arch,
        "num_classes": report.num_classes,
        "findings": [asdict(finding) for finding in report.findings],
        "errors": report.errors,
        "warnings": report.warnings,
    }
    if report.summary is not None:
        found["summary"] = plain(asdict(report.summary) | {"unmatched": report.summary.unmatched})
    return found


def report_text(report: Report, width: int = WIDTH) -> str:
    """What `check` shows on a screen of a width."""
    lines: list[str] = []
    if report.summary is not None:
        lines += _summary(report, report.summary, width)
    for finding in reversed(report.findings):
        lines += [*_finding(finding, width), ""]
    return "\n".join([*lines, verdict(report)])


def _summary(report: Report, summary: Summary, width: int) -> Iterator[str]:
    classes = counted(report.num_classes, "class", "classes") if report.num_classes else ""
    yield shortened(printable(summary.file, 1000), width)
    counts = (
        f"{counted(summary.images, 'image')}, {counted(summary.boxes, 'box', 'boxes')}, "
        f"{counted(len(summary.categories), 'category', 'categories')}"
    )
    crowds = f", {counted(summary.crowds, 'crowd')} left aside" if summary.crowds else ""
    yield from wrapped(counts + crowds, width)
    yield f"against {printable(report.arch or '')}" + (f" with {classes}" if classes else "")
    yield ""
    if summary.categories:
        yield from _categories(summary.categories, summary.rows, width)
        yield ""
    if summary.sizes:
        yield from _sizes(summary, width)
        yield ""


def _categories(categories: Sequence[Category], rows: int | None, width: int) -> Iterator[str]:
    """One line for each category: id, label, row of the head, name, boxes."""
    shown = list(categories)
    left = len(shown) - 2 * _EACH_END if len(shown) > _MOST else 0
    if left:
        shown.sort(key=lambda category: -category.boxes)
        del shown[_EACH_END : _EACH_END + left]
    of = f" of {rows:,}" if rows else ""
    longest = min(_LONGEST_NAME, width - _BESIDE_NAME)
    names = [printable(category.name, longest) for category in shown]
    cells = [("id", "label", f"row{of}", "class", "boxes")]
    cells += [
        (printable(id_text(c.id), 12), _number(c.label), _number(c.row), name, f"{c.boxes:,}")
        for c, name in zip(shown, names, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = width - sum(widths) - 2 * len(widths) - 2
    most = max((category.boxes for category in shown), default=0)
    for at, (id_, label, row, name, boxes) in enumerate(cells):
        bar = _bar(shown[at - 1].boxes, most, room) if at else ""
        line = (
            f"  {id_:>{widths[0]}}  {label:>{widths[1]}}  {row:>{widths[2]}}  "
            f"{name:<{widths[3]}}  {boxes:>{widths[4]}}  {bar}"
        )
        yield line.rstrip()
        if left and at == _EACH_END:
            yield f"  … {left:,} more, all of them with --json"


def _sizes(summary: Summary, width: int) -> Iterator[str]:
    """The histogram of sizes, and the share of each that no anchor matches."""
    known = summary.unmatched is not None
    cells = [("side", "boxes", "no anchor" if known else "")]
    cells += [(_span(each), f"{each.boxes:,}", _missed(each)) for each in summary.sizes]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    most = max(each.boxes for each in summary.sizes)
    room = width - sum(widths) - 2 * len(widths) - 2
    for at, (span, boxes, missed) in enumerate(cells):
        bar = _bar(summary.sizes[at - 1].boxes, most, room) if at else ""
        line = f"  {span:>{widths[0]}}  {boxes:>{widths[1]}}  {missed:>{widths[2]}}"
        yield f"{line}  {bar}".rstrip()
    pixels = f" at {summary.input}" if summary.input else " of the image"
    yield from wrapped(f"side: of the square of equal area, in pixels{pixels}", width, "  ", "    ")
    if summary.unmatched is not None and summary.boxes:
        share = 100 * summary.unmatched / summary.boxes
        yield from wrapped(
            f"{share:.1f} % of the boxes overlap no anchor ({summary.anchors}) at an IoU of 0.5",
            width,
            "  ",
            "  ",
        )


def _finding(finding: Finding, width: int) -> Iterator[str]:
    yield from wrapped(
        f"{finding.severity} {finding.code}: {printable(finding.message, 1000)}", width, "", "  "
    )
    if finding.where:
        yield f"  at: {shortened(printable(finding.where), width - 6)}"
    if finding.fix:
        yield from wrapped(f"fix: {printable(finding.fix, 1000)}", width, "  ", "       ")


def verdict(report: Report) -> str:
    """How much was found of what weight."""
    notes = report.counted("note")
    if not report.findings:
        return "no findings"
    parts = [
        counted(number, word)
        for number, word in (
            (report.errors, "error"),
            (report.warnings, "warning"),
            (notes, "note"),
        )
        if number
    ]
    return ", ".join(parts)


def _bar(count: int, most: int, room: int) -> str:
    """A bar in eighths of a column, as long as the share of the largest count."""
    if room < _LEAST_BAR or not count:
        return ""
    eighths = max(1, round(8 * room * count / most))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _span(each: SizeBin) -> str:
    if each.high == float("inf"):
        return f"{each.low:g} and more"
    return f"below {each.high:g}" if not each.low else f"{each.low:g} to {each.high:g}"


def _missed(each: SizeBin) -> str:
    if each.unmatched is None or not each.boxes:
        return ""
    return f"{100 * each.unmatched / each.boxes:.0f} %"
