"""The page of `diff`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckptool.errors import counted, printable
from ckptool.render import diff as diff_text
from ckptool.render.values import change_words, values_verdict
from ckptool.render.words import fact, format_name, spec_text
from ckptool.report.page import (
    BAR,
    BYTES,
    NUMBER,
    SHARE,
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
    from ckptool.changes import Change
    from ckptool.diagnose import Diff

_DIFFERENCES = (
    Status("ok", "", "fits"),
    Status("missing", "−", "missing"),
    Status("unexpected", "+", "unexpected"),
    Status("shape", "≠", "shape"),
    Status("dtype", "≈", "dtype"),
)
_CHANGES = (
    Status("ok", "", "bit-equal"),
    *_DIFFERENCES[1:],
    Status("ok", "=", "equal values"),
    Status("dtype", "#", "counter changed"),
    Status("edited", "Δ", "changed"),
)


def diff_page(found: Diff) -> Page:
    """What differs and why; with the values, how far they are apart."""
    kinds = {entry.key: entry.kind for entry in found.entries}
    changes = {change.key: change for change in found.values.tensors} if found.values else {}
    numbers: dict[str, list[str]] = {}
    for number, cause in enumerate(found.causes, 1):
        for key in cause.keys:
            numbers.setdefault(key, []).append(str(number))
    columns = [
        Column("found", TEXT, "in the file"),
        Column("wanted", TEXT, "by the target"),
        Column("size", BYTES),
        Column("cause", TEXT, "the number of the cause"),
    ]
    if found.values:
        columns = [
            Column("changed", SHARE, "the share of elements whose values differ"),
            Column("relative L2", BAR, "length of the difference over length of the wanted"),
            Column("max |Δ|", NUMBER, "largest difference of two values"),
            Column("1 - cosine", NUMBER),
            *columns,
        ]
    rows = []
    for key in dict.fromkeys([*found.wanted, *found.found, *kinds]):
        have, want = found.found.get(key), found.wanted.get(key)
        spec, change = have or want, changes.get(key)
        nbytes = spec.nbytes if spec else 0
        cells: tuple[Cell, ...] = _changed(change) if found.values else ()
        cells += (spec_text(have), spec_text(want), nbytes, ", ".join(numbers.get(key, ())))
        rows.append(Row(printable(key), _difference(kinds.get(key), change), nbytes, cells))
    return Page(
        "diff",
        printable(found.file),
        f"against {printable(found.arch)}{class_words(found.num_classes)}",
        found.agrees,
        _verdict(found),
        printable(found.fix, 20_000) if found.fix else None,
        _counted_facts(found),
        "Causes",
        tuple(
            point("note" if c.harmless else "error", c.summary, c.fix, c.keys) for c in found.causes
        )
        + _unexplained(found.unexplained),
        _CHANGES if found.values else _DIFFERENCES,
        tuple(columns),
        tuple(rows),
        "relative L2" if found.values and not found.values.within else "",
        tuple(grid for grid in (_modules(found), _card(found), _also(found)) if grid.rows),
        found.notes,
    )


def _verdict(found: Diff) -> tuple[tuple[bool | None, str], ...]:
    """Whether it loads, and whether the values agree."""
    lines = diff_text.loads(found)
    loads = tuple((found.fits_strict, line.strip()) for line in lines[: 1 if found.fix else None])
    if found.values is None:
        return loads
    return (*loads, (found.values.within, values_verdict(found.values)))


def _unexplained(keys: Sequence[str]) -> tuple[Point, ...]:
    text = f"{counted(len(keys), 'key is', 'keys are')} not explained"
    return (point("error", text, None, keys),) if keys else ()


def _difference(kind: str | None, change: Change | None) -> int:
    """The number of a tensor's status."""
    if kind is not None and (kind != "dtype" or change is None):
        return [status.label for status in _DIFFERENCES].index(kind)
    if change is None or change.identical:
        return 0
    return 5 if not change.changed else 6 if change.counts else 7


def _changed(change: Change | None) -> tuple[Cell, ...]:
    if change is None:
        return (None, None, None, None)
    cosine = change.cosine
    apart = None if cosine is None else 1 - cosine
    return (change.share, change.relative_l2, change.max_abs, apart)


def _counted_facts(found: Diff) -> tuple[tuple[str, str], ...]:
    facts = [("format", format_name(found.format))]
    if found.weights != ".":
        facts.append(("weights", printable(found.weights)))
    labels = {"matched": "match", "shape": "other shape", "dtype": "other dtype"}
    facts += [(labels.get(name, name), f"{count:,}") for name, count in found.counts.items()]
    return tuple(facts)


def _modules(found: Diff) -> Grid:
    rows = []
    if found.values:
        for module in found.values.modules():
            touched = f"{module.changed:,} of {module.tensors:,}"
            rows.append((printable(module.total.key), touched, change_words(module.total)))
    return Grid("Values by module", ("module", "tensors changed", "how"), tuple(rows))


def _card(found: Diff) -> Grid:
    rows = tuple(
        (name.replace("_", " "), printable(fact(value), 300))
        for name, value in found.not_in_file.items()
    )
    note = "what the architecture has and no checkpoint stores: it must be set in the code"
    return Grid("Not stored in the file", ("what", "value"), rows, note)


def _also(found: Diff) -> Grid:
    rows = []
    for name in found.also_fits:
        facts = found.distinguished.get(name, {})
        words = (
            f"{what.replace('_', ' ')} {fact(theirs)} instead of {fact(own)}"
            for what, (own, theirs) in facts.items()
        )
        rows.append((name, printable(", ".join(words), 500) or "nothing that is known"))
    note = "keys and shapes cannot tell these apart"
    return Grid("Also fits", ("architecture", "what differs"), tuple(rows), note)
