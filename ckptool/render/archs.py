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
    """What `archs` shows, one table for each family."""
    if not found:
        return "no architecture matches"
    families: dict[tuple[str, tuple[str, ...]], list[Summary]] = {}
    for item in found:
        families.setdefault((item.family, item.needs), []).append(item)
    return "\n\n".join(
        "\n".join([_title(*family), *table(_rows(members))]) for family, members in families.items()
    )


def _title(family: str, needs: tuple[str, ...]) -> str:
    return f"{family} (to instantiate: {', '.join(needs)})" if needs else family


def _rows(found: Sequence[Summary]) -> list[list[str]]:
    rows = [["architecture", "keys", "parameters", "classes", "image"]]
    for item in found:
        classes = "" if item.num_classes is None else str(item.num_classes)
        image = "×".join(map(str, item.image_size)) if item.image_size else ""
        rows.append([item.name, f"{item.keys:,}", f"{item.parameters:,}", classes, image])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]
