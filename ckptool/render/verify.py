"""What `verify` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, printable
from ckptool.render.words import wrapped

if TYPE_CHECKING:
    from ckptool.verification import Verified


def verified_json(found: Verified) -> dict[str, Any]:
    """The JSON of `verify`."""
    return asdict(found)


def verified_text(found: Verified, width: int = 100) -> str:
    """What `verify` shows."""
    name, count = printable(found.arch), found.num_classes
    classes = "" if count is None else f" with {counted(count, 'class', 'classes')}"
    if found.strict_load:
        lines = [f"{printable(found.file)}: loads strictly into {name}{classes}"]
    else:
        option = "" if count is None else f" --num-classes {count}"
        lines = [
            f"{printable(found.file)}: does NOT load strictly into {name}{classes}",
            f"  {len(found.missing):,} missing, {len(found.unexpected):,} unexpected, "
            f"{len(found.shape):,} of another shape; this says why:",
            f"  ckptool diff {quote(printable(found.file))} --arch {quote(name)}{option}",
        ]
    if found.forward:
        finite = "all values are finite" if found.forward["finite"] else "NOT all values are finite"
        shapes = ", ".join(_shape(shape) for shape in found.forward["outputs"])
        text = f"forward: {_shape(found.forward['input'])} gives {shapes}; {finite}"
        lines += wrapped(text, width, "", "  ")
    return "\n".join(lines)


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "a number"
