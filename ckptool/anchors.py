"""The anchors that effdet stores: what tells apart architectures that keys and shapes do not."""

from __future__ import annotations

from struct import calcsize, unpack

from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import WeightSet
from ckptool.derived import DERIVED, is_named
from ckptool.tensors import LazyTensor


def anchor_side(weights: WeightSet) -> float | None:
    """The side of the first box of effdet's `anchors.boxes`, None if the file has none."""
    boxes = next((t for key, t in weights.tensors.items() if is_named(key, DERIVED[:1])), None)
    return None if boxes is None else _first_side(boxes)


def agrees(architecture: Architecture, side: float) -> bool:
    """Whether the first anchor of an architecture has that side: anchor_scale · 2 ** first level.

    Source: effdet 0.4.1 `anchors.py`.
    """
    scale, levels = architecture.card.get("anchor_scale"), architecture.card.get("levels")
    if not isinstance(scale, float) or not isinstance(levels, (list, tuple)):
        return True
    return bool(abs(scale * 2 ** levels[0] - side) < 0.01 * side)


def _first_side(boxes: LazyTensor) -> float | None:
    """The height of the first box of an (n, 4) tensor."""
    codes = {"float64": "<4d", "float32": "<4f", "float16": "<4e", "bfloat16": "<4H"}
    code = codes.get(boxes.dtype)
    if code is None or len(boxes.shape) != 2 or boxes.shape[1] != 4 or not boxes.shape[0]:
        return None
    size = calcsize(code)
    first = next(boxes.chunks(size), memoryview(b""))[:size]
    if len(first) < size:
        return None  # a live model's buffer, whose values are not looked at
    if boxes.dtype == "bfloat16":  # the upper half of a float32
        first = memoryview(b"".join(bytes(2) + first[at : at + 2] for at in range(0, size, 2)))
        code = "<4f"
    top, _, bottom, _ = unpack(code, first)
    return float(bottom - top)
