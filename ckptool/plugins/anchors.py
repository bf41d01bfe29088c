"""Generate the anchor boxes that an effdet bench keeps as a buffer.

Options: `key` and what the boxes follow from: `image_size` (height, width), `levels` (first, last),
`num_scales`, `aspect_ratios` (pairs of width and height, or their quotients), `anchor_scale`.

Source: effdet 0.4.1 `anchors.py` (`Anchors`), whose values these are, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, VerificationError, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.plugins.fill import in_modules
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "anchors"

_LARGEST_SIDE = 1 << 14
_LAST_LEVEL = 12
_MOST_BOXES = 1 << 24


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with the boxes, in place of those that were there, if any.

    Raises: PlanError for what no boxes follow from.
    """
    key = options["key"]
    height, width = options["image_size"]
    first, last = options["levels"]
    source = Boxes(
        key,
        (height, width),
        (first, last),
        options["num_scales"],
        tuple(_pair(ratio) for ratio in options["aspect_ratios"]),
        options["anchor_scale"],
    )
    counts = (height, width, source.num_scales, last - first + 1, first + 1)
    whole = all(type(count) is int and count > 0 for count in counts)
    if not (whole and max(height, width) <= _LARGEST_SIDE and last <= _LAST_LEVEL):
        raise PlanError(f"no anchor boxes follow from {dict(options)}", code="plan.options")
    if type(source.anchor_scale) not in (int, float) or source.count() > _MOST_BOXES:
        raise PlanError(f"no anchor boxes follow from {dict(options)}", code="plan.options")
    made = LazyTensor(TensorSpec("float32", (source.count(), 4)), source)
    if key in weights.tensors:
        tensors = {**weights.tensors, key: made}
    else:
        tensors = in_modules(weights.tensors, {key: made})
    return Applied(replace(weights, tensors=tensors), EXACT, (key,))


def describe(options: Mapping[str, Any]) -> str:
    """`anchors.boxes for 512 × 512, anchor scale 4.0`."""
    height, width = options["image_size"]
    scale = options["anchor_scale"]
    return f"{quoted(options['key'])} for an image of {height}×{width}, anchor scale {scale}"


def _pair(ratio: Any) -> tuple[float, float]:
    """A ratio as the factors of width and height, as effdet reads it."""
    if isinstance(ratio, (list, tuple)):
        width, height = ratio
        return float(width), float(height)
    root = math.sqrt(ratio)
    return root, 1.0 / root


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes (top, left, bottom, right, in pixels) of all levels, one level after another."""

    key: str
    image_size: tuple[int, int]
    levels: tuple[int, int]
    num_scales: int
    aspect_ratios: tuple[tuple[float, float], ...]
    anchor_scale: float

    def count(self) -> int:
        """The number of boxes."""
        cells = sum(height * width for height, width in self._grids())
        return cells * self.num_scales * len(self.aspect_ratios)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The boxes as float32."""
        import numpy

        levels = [self._level(*grid) for grid in self._grids()]
        boxes = numpy.vstack(levels).astype(numpy.float32)
        yield memoryview(boxes.reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """Nothing; VerificationError unless the boxes lie centred on their grid, level by level."""
        import numpy

        boxes = written.numpy().astype(numpy.float64)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        size = numpy.array(self.image_size, numpy.float64)
        if not ((centres > 0) & (centres < size)).all() or not (boxes[:, 2:] > boxes[:, :2]).all():
            raise VerificationError(f"{quoted(self.key)}: the boxes do not lie on the image")
        return {}

    def _grids(self) -> list[tuple[int, int]]:
        """Height and width of each level's feature map: halved and rounded up, level by level."""
        height, width = self.image_size
        grids = []
        for level in range(self.levels[1] + 1):
            if level >= self.levels[0]:
                grids.append((height, width))
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        return grids

    def _level(self, height: int, width: int) -> Any:
        import numpy

        stride_y, stride_x = self.image_size[0] / float(height), self.image_size[1] / float(width)
        x = numpy.arange(stride_x / 2, self.image_size[1], stride_x)
        y = numpy.arange(stride_y / 2, self.image_size[0], stride_y)
        centre_x, centre_y = (grid.reshape(-1) for grid in numpy.meshgrid(x, y))
        boxes = []
        for octave in range(self.num_scales):
            scale = 2 ** (octave / float(self.num_scales))
            for ratio_x, ratio_y in self.aspect_ratios:
                half_x = self.anchor_scale * stride_x * scale * ratio_x / 2.0
                half_y = self.anchor_scale * stride_y * scale * ratio_y / 2.0
                corners = (
                    centre_y - half_y,
                    centre_x - half_x,
                    centre_y + half_y,
                    centre_x + half_x,
                )
                boxes.append(numpy.stack(corners, 1))
        return numpy.stack(boxes, 1).reshape(-1, 4)
