"""What `archs` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.dialects import named
from ckptool.render.words import table, wrapped

if TYPE_CHECKING:
    from ckptool.architectures.spec import Summary


WIDTH = 100


def archs_json(found: Sequence[Summary]) -> dict[str, Any]:
    """The JSON of `archs`."""
    return {"archs": [{**asdict(item), "dialects": _dialects([item])} for item in found]}


def archs_text(found: Sequence[Summary]) -> str:
    """What `archs` shows, one table for each family."""
    if not found:
        return "no architecture matches"
    families: dict[tuple[str, tuple[str, ...]], list[Summary]] = {}
    for item in found:
        families.setdefault((item.family, item.needs), []).append(item)
    return "\n\n".join(
        "\n".join([_title(*family), *table(_rows(members)), *_spelled(members)])
        for family, members in families.items()
    )


def _title(family: str, needs: tuple[str, ...]) -> str:
    return f"{family} (to instantiate: {', '.join(needs)})" if needs else family


def _spelled(found: Sequence[Summary]) -> list[str]:
    """The names that `--to-dialect` takes for some of a family, if there are any."""
    names = ", ".join(_dialects(found))
    each = ", not each for all" if any(_dialects([i]) != _dialects(found) for i in found) else ""
    return wrapped(f"dialects{each}: {names}", WIDTH, "  ", "    ") if names else []


def _dialects(found: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(d for item in found for d in named(item.family, item.name)))


def _rows(found: Sequence[Summary]) -> list[list[str]]:
    rows = [["architecture", "keys", "parameters", "classes", "image"]]
    for item in found:
        classes = "" if item.num_classes is None else str(item.num_classes)
        image = "×".join(map(str, item.image_size)) if item.image_size else ""
        rows.append([item.name, f"{item.keys:,}", f"{item.parameters:,}", classes, image])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]
