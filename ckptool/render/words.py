"""The words, numbers and tables that all commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptool.errors import CkptError, printable

if TYPE_CHECKING:
    from ckptool.tensors import TensorSpec


def error_json(error: CkptError) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def spec_json(spec: TensorSpec) -> dict[str, Any]:
    """The JSON of a spec."""
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def number(value: float | None) -> float | str | None:
    """A number as JSON can hold it: the non-finite ones as text."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def size(nbytes: int) -> str:
    """A size for people."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines with their columns aligned; cells that look like numbers to the right.

    Aligned here and not by `tabulate`, whose import costs more than `diff` takes.
    """
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell.lstrip("-")[:1].isdigit() and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def fitted(rows: Sequence[Sequence[str]], width: int, indent: str = "  ") -> list[str]:
    """A table of at most that width: the keys in its first column give way, numbers stay right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][1:]
    room = max(width - sum(widths) - 2 * len(widths) - len(indent), 20)
    return table(
        [
            [
                shortened(printable(row[0], 500), room),
                *(cell.rjust(wide) for cell, wide in zip(row[1:], widths, strict=True)),
            ]
            for row in rows
        ],
        indent,
    )


def spec_text(spec: TensorSpec | None) -> str:
    """A spec for people: `float32 810×64×1×1`."""
    if spec is None:
        return ""
    return f"{spec.dtype} {'×'.join(map(str, spec.shape)) or 'scalar'}"


def fact(value: object) -> str:
    """A fact of a card for people: `512×512`."""
    if isinstance(value, (list, tuple)):
        if all(type(item) is int for item in value):
            return "×".join(map(str, value))
        if all(isinstance(item, str) for item in value):
            return "/".join(value)
        return f"[{', '.join(map(fact, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: non-finite numbers as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return number(value) if isinstance(value, float) else value


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """The text as lines of at most that width, cut at blanks only."""
    if len(first) + len(text) <= width and text.isprintable() and text.strip() == text != "":
        return [first + text]  # without an import that takes longer than all the rest
    from textwrap import wrap

    return wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shortened(text: str, longest: int) -> str:
    """The text, cut in its middle if it is too long."""
    if len(text) <= longest:
        return text
    half = max(longest - 1, 2) // 2
    return f"{text[: max(longest, 3) - 1 - half]}…{text[-half:]}"


def terminal_width() -> int:
    """The columns of the terminal that stdout is, 100 where it is none."""
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = 0
    return max(columns, 60) if columns else 100


def format_name(name: str) -> str:
    """A format's name for people."""
    return {
        "torch-zip": "torch zip",
        "torch-legacy": "torch before 1.6",
        "torch-tar": "torch before 0.1.10",
        "torchscript": "TorchScript archive",
    }.get(name, name)


def diff_words(file: str, weights: str) -> list[str]:
    """The command that compares the same weights, without its target."""
    chosen = [] if weights == "." else ["--weights", weights]
    return ["ckptool", "diff", file, *chosen]
