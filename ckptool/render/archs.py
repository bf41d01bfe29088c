"""What `archs` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.render.words import table

if TYPE_CHECKING:
    from ckptool.architectures.spec import Summary


def archs_json(found: Sequence[Summary]) -> dict[str, Any]:
    """The JSON of `archs`."""
    return {"archs": [asdict(item) for item in found]}


def archs_text(found: Sequence[Summary]) -> str:
    """What `archs` shows."""
    rows = [["architecture", "family", "keys", "parameters", "classes", "image", "live needs"]]
    for item in found:
        classes = "" if item.num_classes is None else str(item.num_classes)
        image = "×".join(map(str, item.image_size)) if item.image_size else ""
        rows.append(
            [
                item.name,
                item.family,
                f"{item.keys:,}",
                f"{item.parameters:,}",
                classes,
                image,
                ", ".join(item.needs),
            ]
        )
    return "\n".join(table(rows, "")) if found else "no architecture matches"
