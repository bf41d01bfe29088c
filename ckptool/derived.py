"""Buffers that are known by their names: those that a model computes by itself, and strays."""

from __future__ import annotations

from functools import cache

# Buffers that a model computes from its configuration, and what `thop.profile` leaves on one.
# Source: effdet 0.4.1 (`anchors.py`), YOLOv5 v6 (`models/yolo.py`), Detectron2 before 0.6.
DERIVED = (
    "anchors.boxes",
    "anchor_grid",
    "cell_anchors",
    *(f"cell_anchors.{level}" for level in range(6)),
    "relative_position_index",
    "attn_mask",
    "pixel_mean",
    "pixel_std",
)
PROFILED = ("total_ops", "total_params")


def is_named(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of the names, or ends with one."""
    return key in names or key.endswith(_suffixes(names))


@cache
def _suffixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)
