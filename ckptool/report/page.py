"""What a page holds, whatever command it is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptool.errors import counted, printable
from ckptool.grouping import group_within

TEXT, BYTES, NUMBER, COUNT, SHARE, BAR, MAGNITUDES = (
    "text",
    "bytes",
    "number",
    "count",
    "share",
    "bar",
    "magnitudes",
)

_MOST_PATTERNS = 12

# The text, number or histogram of a place in the table; a histogram is the first octave and counts.
Cell = str | float | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Status:
    """What may be with a tensor: its looks by `style`, a sign that needs no colour, its words."""

    style: str
    sign: str
    label: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of tensors; `kind` says how its cells are shown and sorted.

    A `bar` is a number on a logarithmic scale, drawn; `help` says what the numbers are.
    """

    name: str
    kind: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor: its key, its status by number, its size, and a cell for each column."""

    key: str
    status: int
    nbytes: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A cause or finding: how grave (`error`, `warning` or `note`), a sentence, what to type.

    `keys` are those of the tensors that it is about, `patterns` the same in few words.
    """

    severity: str
    text: str
    command: str | None = None
    keys: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A small table under a title."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """All that a page shows.

    `good` says how the result is meant, None for neither; each line of the `verdict` is good, bad
    or neither by itself. `fix` is the command that helps.
    `chart` is the name of the column of numbers that is drawn over all tensors.
    """

    command: str
    title: str
    about: str = ""
    good: bool | None = None
    verdict: tuple[tuple[bool | None, str], ...] = ()
    fix: str | None = None
    facts: tuple[tuple[str, str], ...] = ()
    heading: str = ""
    points: tuple[Point, ...] = ()
    statuses: tuple[Status, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    chart: str = ""
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()


def point(severity: str, text: str, command: str | None = None, keys: Sequence[str] = ()) -> Point:
    """A cause or finding, its texts safe to show."""
    groups = group_within([(key, None) for key in keys], _MOST_PATTERNS)
    patterns = [f"{p} ({n:,})" if n > 1 else p for p, _, n in groups[:_MOST_PATTERNS]]
    if len(groups) > _MOST_PATTERNS:
        patterns.append(f"and {len(groups) - _MOST_PATTERNS:,} more")
    return Point(
        severity,
        printable(text, 2000),
        None if command is None else printable(command, 20_000),
        tuple(printable(key) for key in keys),
        tuple(printable(pattern, 300) for pattern in patterns),
    )


def dtype_words(names: Iterable[str]) -> str:
    """`float32 ×1,565, int64 ×253`."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} ×{count:,}" for name, count in counts.items())


def class_words(count: int | None) -> str:
    """` with 20 classes`, nothing where the count is not known."""
    return "" if count is None else f" with {counted(count, 'class', 'classes')}"
