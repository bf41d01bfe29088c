"""What `identify` shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.errors import printable
from ckptool.render.words import table

if TYPE_CHECKING:
    from ckptool.identification import Identified


def identified_json(found: Identified) -> dict[str, Any]:
    """The JSON of `identify`."""
    return {
        "file": found.file,
        "format": found.format,
        "weights": found.weights,
        "candidates": [asdict(candidate) for candidate in found.candidates],
    }


def identified_text(found: Identified) -> str:
    """What `identify` shows."""
    if not found.candidates:
        return f"{printable(found.file)}: nothing that ckptool knows"
    rows = [["", "architecture", "classes", "dtype", "prefix", "differences"]]
    for item in found.candidates:
        wrong = [
            f"{count:,} {word}"
            for count, word in (
                (item.missing, "missing"),
                (item.unexpected, "unexpected"),
                (item.shape, "of another shape"),
            )
            if count
        ]
        classes = "" if item.num_classes is None else str(item.num_classes)
        mark = "fits" if item.fits else "near"
        rows.append(
            [mark, item.arch, classes, item.dtype, printable(item.prefix), ", ".join(wrong) or "-"]
        )
    lines = [f"{printable(found.file)}", "", *table(rows)]
    if len(found.fitting) > 1:
        lines += ["", f"{len(found.fitting)} fit alike: keys and shapes cannot tell them apart"]
    return "\n".join(lines)
