"""Boxes in any order of corners and any unit: which are broken, and which order they are in.

An order other than the wanted one is said only when the evidence is there: several boxes do not
fit as they should be read, and every one (of many, nearly every one) fits as it should not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted
from ckptool.preflight.findings import Finding, error, warning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# How far a box may reach over the edge of an image: a pixel, or what rounding makes of one.
_EDGE_PIXELS, _EDGE_RELATIVE = 1.0, 0.01
# How many boxes, and which share of them, must not fit before another order is considered.
_FEWEST, _SHARE = 2, 0.2
# Of many boxes a few may be broken in another way, and fit no order.
_ALL = 0.99

ORDERS: Mapping[str, Callable[[Any], tuple[Any, Any, Any, Any]]] = {
    "x1, y1, x2, y2": lambda b: (b[:, 0], b[:, 1], b[:, 2], b[:, 3]),
    "y1, x1, y2, x2": lambda b: (b[:, 1], b[:, 0], b[:, 3], b[:, 2]),
    "x, y, width, height": lambda b: (b[:, 0], b[:, 1], b[:, 0] + b[:, 2], b[:, 1] + b[:, 3]),
    "centre x, centre y, width, height": lambda b: (
        b[:, 0] - b[:, 2] / 2,
        b[:, 1] - b[:, 3] / 2,
        b[:, 0] + b[:, 2] / 2,
        b[:, 1] + b[:, 3] / 2,
    ),
}
XYXY, YXYX, XYWH, CXCYWH = ORDERS
# The findings that say that no box is read as it is meant.
MISREAD = frozenset({"box-relative", "box-pixels", "box-order"})


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes as they were given, and how they should be read.

    `values` (n, 4) are in pixels, or in shares of the image where `relative` is set; `limits`
    (n, 2) are the width and the height of each box's image, in pixels. `where` names a box by its
    row. `evidence` are limits that only tell orders apart: the part of a padded image that holds
    pixels of the picture.
    """

    values: Array
    limits: Array
    order: str
    where: Callable[[int], str]
    relative: bool = False
    evidence: Array | None = None


def corners(values: Array, order: str) -> Array:
    """The boxes as x1, y1, x2, y2."""
    import numpy as np

    return np.stack(ORDERS[order](values), 1)


def check_boxes(boxes: Boxes) -> Iterator[Finding]:
    """The findings about boxes: each box counts in one of them at most."""
    import numpy as np

    values = boxes.values
    if not len(values):
        return
    finite = np.asarray(np.isfinite(values).all(1))
    if not finite.all():
        what = "with NaN or infinite values, wanted finite ones"
        yield _finding(boxes, ~finite, "box-not-finite", what, "look for a division by 0")
    unit = _unit(boxes, finite)
    if unit is not None:
        yield unit
        return
    read = corners(np.where(finite[:, None], values, 0), boxes.order)
    limits = np.ones_like(boxes.limits) if boxes.relative else boxes.limits
    sides = read[:, 2:] - read[:, :2]
    negative = finite & (sides < 0).any(1)
    empty = finite & ~negative & (sides == 0).any(1)
    sound = finite & ~negative & ~empty
    centred = boxes.order == CXCYWH
    if centred:  # its centre tells the cell that learns a box
        away = ~((values[:, :2] >= 0) & (values[:, :2] < limits)).all(1)
    else:
        away = ((read[:, :2] >= limits) | (read[:, 2:] <= 0)).any(1)
    outside = sound & away
    edge = _EDGE_RELATIVE if boxes.relative else _EDGE_PIXELS
    over = sound & ~outside & ((read[:, :2] < -edge) | (read[:, 2:] > limits + edge)).any(1)
    other = _other_order(boxes, finite)
    if other is not None:
        yield other
        return
    what = "of negative width or height, wanted positive sides"
    yield from _if_any(boxes, negative, "box-negative", what)
    what = "of no width or no height, wanted an area"
    yield from _if_any(boxes, empty, "box-empty", what)
    what = "with a centre outside the image" if centred else "outside their image"
    what += ", wanted them inside"
    yield from _if_any(boxes, outside, "box-outside", what, "drop them after cropping")
    if over.any():
        what = "that reach over the edge of their image, wanted them inside"
        yield _finding(boxes, over, "box-edge", what, "clip them", made=warning)


def _unit(boxes: Boxes, finite: Array) -> Finding | None:
    """Shares of the image where pixels are wanted, or the other way round."""
    import numpy as np

    values = boxes.values[finite]
    if not len(values):
        return None
    if boxes.relative:
        # More than any padding or rounding makes of 1.
        beyond = (values > 2).any(1)
        if beyond.mean() <= 0.5:
            return None
        return error(
            "box-pixels",
            f"found {_share(int(beyond.sum()), len(boxes.values))} with values above 1, up to "
            f"{float(values.max()):g}, wanted shares of width and height from 0 to 1",
            where=boxes.where(int(np.flatnonzero(finite)[np.flatnonzero(beyond)[0]])),
            count=int(beyond.sum()),
            fix="divide x and width by the image's width, y and height by its height",
        )
    if (boxes.limits > 2).all() and values.max() <= 1 + _EDGE_RELATIVE and values.max() > 0:
        return error(
            "box-relative",
            f"found all values of {counted(len(values), 'box', 'boxes')} between "
            f"{float(values.min()):.3g} and {float(values.max()):.3g}, wanted pixels",
            where=boxes.where(0),
            count=len(values),
            fix="multiply x by the image's width, y by its height",
        )
    return None


def _other_order(boxes: Boxes, finite: Array) -> Finding | None:
    """The order that all boxes fit, if they do not fit the wanted one."""
    fits = _fits(boxes, boxes.order)
    wrong = finite & ~fits
    count = int(wrong.sum())
    if count < _FEWEST or count < _SHARE * len(fits) or not finite.all():
        return None
    for order in ORDERS:
        if order != boxes.order and _fits(boxes, order).mean() >= _ALL:
            unit = " in shares of the image" if boxes.relative else ""
            return error(
                "box-order",
                f"found {_share(count, len(fits))} that do not fit into their image as "
                f"{boxes.order}, and {_most(boxes, order)} do as {order}; wanted "
                f"{boxes.order}{unit}",
                where=boxes.where(int(wrong.nonzero()[0][0])),
                count=count,
                fix=_CONVERT.get((order, boxes.order), f"convert them to {boxes.order}"),
            )
    return None


def _most(boxes: Boxes, order: str) -> str:
    return "all" if _fits(boxes, order).all() else "nearly all"


def _fits(boxes: Boxes, order: str) -> Array:
    """Whether each box has an area and lies inside its image when read in an order."""
    import numpy as np

    limits = boxes.limits if boxes.evidence is None else boxes.evidence
    limits = np.ones_like(boxes.limits) if boxes.relative else limits
    edge = _EDGE_RELATIVE if boxes.relative else _EDGE_PIXELS
    read = corners(boxes.values, order)
    area = (read[:, 2:] > read[:, :2]).all(1)
    return np.asarray(area & (read[:, :2] >= -edge).all(1) & (read[:, 2:] <= limits + edge).all(1))


_CONVERT = {
    (XYXY, YXYX): "boxes[:, [1, 0, 3, 2]]",
    (YXYX, XYXY): "boxes[:, [1, 0, 3, 2]]",
    (XYWH, XYXY): "add x to the width and y to the height: x + width, y + height",
    (XYWH, YXYX): "y, x, y + height, x + width",
    (XYXY, XYWH): "x1, y1, x2 - x1, y2 - y1",
    (XYXY, CXCYWH): "(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1",
    (XYWH, CXCYWH): "x + width / 2, y + height / 2, width, height",
}


def _if_any(
    boxes: Boxes, mask: Array, code: str, what: str, fix: str = "drop them"
) -> Iterator[Finding]:
    if mask.any():
        yield _finding(boxes, mask, code, what, fix)


def _finding(
    boxes: Boxes,
    mask: Array,
    code: str,
    what: str,
    fix: str,
    made: Callable[..., Finding] = error,
) -> Finding:
    """A finding about some of the boxes, with the first of them."""
    rows = mask.nonzero()[0]
    first = ", ".join(f"{value:g}" for value in boxes.values[rows[0]])
    return made(
        code,
        f"found {_share(len(rows), len(mask))} {what}: the first is {first}, read as {boxes.order}",
        where=boxes.where(int(rows[0])),
        count=len(rows),
        fix=fix,
    )


def _share(count: int, of: int) -> str:
    return f"{count:,} of {counted(of, 'box', 'boxes')}"
