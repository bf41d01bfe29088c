"""Boxes of a data set against the anchors of an architecture, in the pixels of its input.

How far a box is from an anchor is measured as the family itself does: in effdet at the places where
the anchors stand, in darknet by shape alone, as if both had one centre. torchvision's places follow
from feature maps that no card tells, so its shapes are compared too.

Source: effdet 0.4.1 `anchors.py`, `data/transforms.py` (`ResizePad`); torchvision 0.29
`models/detection/anchor_utils.py`, `transform.py`; AlexeyAB/darknet `src/yolo_layer.c` (picks by
shape), `src/data.c` (images are stretched to the network's size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.architectures.spec import Architecture
from ckptool.errors import counted
from ckptool.preflight.findings import Finding, warning
from ckptool.preflight.summary import SizeBin, Summary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

IOU = 0.5
_FAR = 0.5
_CHUNK = 1 << 16
_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, math.inf)


@dataclass(frozen=True, slots=True)
class Matching:
    """How images are scaled and what the boxes are compared with, in words and as functions.

    `scales` takes sides (n, 2: width, height) and gives the factor of each; `best` takes boxes in
    pixels of the input (n, 4: x, y, width, height) and gives the largest IoU of each, None where
    no anchors are known.
    """

    input: str
    anchors: str
    scales: Callable[[Array], Array]
    best: Callable[[Array], Array] | None = None


def matching_of(architecture: Architecture) -> Matching | None:
    """What is known of an architecture's input and anchors, None if that is nothing."""
    card = dict(architecture.card)
    if architecture.family == "effdet":
        return _effdet(card)
    if card.get("anchor_masks") and card.get("image_size"):
        return _darknet(card)
    if architecture.family == "torchvision" and card.get("min_size"):
        return _torchvision(card, any("bbox_ctrness" in key for key in architecture.specs))
    return None


def histogram(boxes: Array, sides: Array, matching: Matching | None) -> tuple[SizeBin, ...]:
    """Boxes (n, 4: x, y, width, height in pixels of their image) by size; sides (n, 2)."""
    import numpy as np

    edges = np.array(_EDGES[1:-1], float)
    totals = np.zeros(len(_EDGES) - 1, int)
    missed = np.zeros(len(_EDGES) - 1, int)
    best = matching.best if matching else None
    for start in range(0, len(boxes), _CHUNK):
        part = boxes[start : start + _CHUNK]
        if matching:
            scales = matching.scales(sides[start : start + _CHUNK])
            part = part * np.concatenate((scales, scales), 1)
        bins = np.digitize(np.sqrt(part[:, 2] * part[:, 3]), edges)
        totals += np.bincount(bins, minlength=len(totals))
        if best is not None:
            missed += np.bincount(bins[best(part) < IOU], minlength=len(totals))
    used = np.flatnonzero(totals)
    return tuple(
        SizeBin(
            _EDGES[at],
            _EDGES[at + 1],
            int(totals[at]),
            None if best is None else int(missed[at]),
        )
        for at in (range(used[0], used[-1] + 1) if len(used) else ())
    )


def check_sizes(summary: Summary) -> Iterator[Finding]:
    """A finding where the anchors are made for boxes of other sizes."""
    if summary.unmatched is not None and summary.unmatched > _FAR * summary.boxes:
        first = next(each for each in summary.sizes if each.unmatched)
        yield warning(
            "anchors-far",
            f"found {summary.unmatched:,} of {counted(summary.boxes, 'box', 'boxes')} that no "
            f"anchor overlaps at an IoU of {IOU}, wanted less than half of them: images are "
            f"{summary.input}",
            where=f"boxes with sides from {first.low:g} to {first.high:g} pixels of the input",
            count=summary.unmatched,
            fix="a larger input, tiles of the images, or anchors of these sizes",
        )


def _effdet(card: dict[str, Any]) -> Matching:
    import numpy as np

    height, width = card["image_size"]
    first, last = card["levels"]
    anchors: list[tuple[float, float, float, float]] = []
    rows, columns = height, width
    for level in range(last + 1):
        if level >= first:
            stride = (width / columns, height / rows)
            for octave in range(card["num_scales"]):
                side = card["anchor_scale"] * 2 ** (octave / card["num_scales"])
                for ratio in card["aspect_ratios"]:
                    x, y = ratio if isinstance(ratio, list) else (ratio**0.5, ratio**-0.5)
                    anchors.append((*stride, side * stride[0] * x, side * stride[1] * y))
        rows, columns = (rows - 1) // 2 + 1, (columns - 1) // 2 + 1

    def scales(sides: Array) -> Array:
        factor = np.minimum(width / sides[:, 0], height / sides[:, 1])
        return np.stack((factor, factor), 1)

    def best(boxes: Array) -> Array:
        found = np.zeros(len(boxes))
        size = np.array([width, height])
        centres, halves = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:] / 2
        area = boxes[:, 2] * boxes[:, 3]
        for stride_x, stride_y, *shape in anchors:
            stride, half = np.array([stride_x, stride_y]), np.array(shape) / 2
            # The cell whose centre is the nearest: no other anchor of this shape overlaps more.
            cells = np.clip(np.floor(centres / stride), 0, np.ceil(size / stride) - 1)
            away = np.abs(centres - (cells + 0.5) * stride)
            common = np.minimum(halves + half - away, 2 * np.minimum(halves, half))
            both = np.clip(common, 0, None).prod(1)
            np.maximum(found, both / (area + shape[0] * shape[1] - both), out=found)
        return found

    text = f"{height}×{width}, scaled and padded"
    return Matching(text, f"{len(anchors)} anchors in each place", scales, best)


def _darknet(card: dict[str, Any]) -> Matching:
    import numpy as np

    height, width = card["image_size"]
    shapes = sorted({tuple(pair) for head in card["anchors"] for pair in head})
    return Matching(
        f"{height}×{width}, stretched",
        f"{len(shapes)} anchors, by shape",
        lambda sides: np.array([width, height]) / sides,
        _by_shape(shapes),
    )


def _torchvision(card: dict[str, Any], without_anchors: bool) -> Matching:
    import numpy as np

    short, long, fixed = card["min_size"][-1], card["max_size"], card.get("image_size")

    def scales(sides: Array) -> Array:
        if fixed:
            return np.array([fixed[1], fixed[0]]) / sides
        factor = np.minimum(short / sides.min(1), long / sides.max(1))
        return np.stack((factor, factor), 1)

    text = f"{fixed[0]}×{fixed[1]}, stretched" if fixed else f"sides of {short} to {long}"
    shapes: list[tuple[float, float]] = []
    if card.get("anchor_sizes") and not without_anchors:
        for sizes, ratios in zip(card["anchor_sizes"], card["aspect_ratios"], strict=True):
            # Its halves are rounded to whole pixels.
            shapes += [
                (2.0 * round(size / r**0.5 / 2), 2.0 * round(size * r**0.5 / 2))
                for size in sizes
                for r in ratios
            ]
    elif card.get("anchor_scales") and fixed:
        shapes = [(min(w, 1) * fixed[1], min(h, 1) * fixed[0]) for w, h in _default_boxes(card)]
    if not shapes:
        return Matching(text, "", scales)
    shapes = sorted(set(shapes))
    return Matching(text, f"{len(shapes)} anchors, by shape", scales, _by_shape(shapes))


def _default_boxes(card: dict[str, Any]) -> list[tuple[float, float]]:
    """SSD's shapes, in shares of the input."""
    scales, shapes = card["anchor_scales"], []
    for scale, following, ratios in zip(scales, scales[1:], card["aspect_ratios"], strict=False):
        between = math.sqrt(scale * following)
        shapes += [(scale, scale), (between, between)]
        for ratio in ratios:
            wide, high = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(wide, high), (high, wide)]
    return shapes


def _by_shape(shapes: Sequence[tuple[float, ...]]) -> Callable[[Array], Array]:
    import numpy as np

    def best(boxes: Array) -> Array:
        found = np.zeros(len(boxes))
        area = boxes[:, 2] * boxes[:, 3]
        for width, height in shapes:
            both = np.minimum(boxes[:, 2], width) * np.minimum(boxes[:, 3], height)
            np.maximum(found, both / (area + width * height - both), out=found)
        return found

    return best
