"""What `verify` shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.errors import printable

if TYPE_CHECKING:
    from ckptool.verification import Verified


def verified_json(found: Verified) -> dict[str, Any]:
    """The JSON of `verify`."""
    return asdict(found)


def verified_text(found: Verified) -> str:
    """What `verify` shows."""
    lines = []
    if found.strict_load:
        lines.append(f"{printable(found.file)}: loads strictly into {printable(found.arch)}")
    else:
        counts = f"{len(found.missing):,} missing, {len(found.unexpected):,} unexpected"
        lines.append(
            f"{printable(found.file)}: does not load strictly into {printable(found.arch)}: "
            f"{counts}, {len(found.shape):,} of another shape; `ckptool diff` says why"
        )
    if found.forward:
        finite = "all finite" if found.forward["finite"] else "NOT all finite"
        shapes = ", ".join("×".join(map(str, shape)) for shape in found.forward["outputs"])
        size_ = "×".join(map(str, found.forward["input"]))
        lines.append(f"forward: {size_} gives {shapes}; {finite}")
    return "\n".join(lines)
