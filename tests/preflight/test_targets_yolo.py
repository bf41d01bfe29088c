"""Targets of YOLO: what is found, and that a loss built on the network's maps suffers from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors_made import YOLO_SIZE, yolo, yolo_batch, yolo_loss
from proofs import Fault, assert_found, assert_proved, cell

from ckptool import check


def put(change: Any) -> Any:
    return lambda images, rows: (images, change(rows.clone()))


def column(at: int, change: Any) -> Any:
    def changed(rows: torch.Tensor) -> torch.Tensor:
        rows[:, at] = change(rows[:, at])
        return rows

    return put(changed)


def from_corners(rows: torch.Tensor) -> torch.Tensor:
    """Boxes as x1, y1, x2, y2 in shares of the image."""
    half = rows[:, 4:] / 2
    return torch.cat((rows[:, :2], rows[:, 2:4] - half, rows[:, 2:4] + half), 1)


def dropped(box: int) -> Any:
    return put(lambda rows: rows[torch.arange(len(rows)) != box])


FAULTS = [
    Fault(
        "a class above the last",
        put(cell((1, 1), 20)),
        "error label-range: found labels from 4 to 20, wanted 0 … 19: 1 of 6 labels have "
        "no row in the head; labels - 1: here classes count from 0",
        "targets[1]",
        1,
        "IndexError",
    ),
    Fault(
        "classes that count from 1",
        column(1, lambda c: c + 20 - c.max()),
        "error label-range: found labels from 5 to 20, wanted 0 … 19: 2 of 6 labels have "
        "no row in the head; labels - 1: here classes count from 0",
        "targets[1]",
        2,
        "IndexError",
    ),
    Fault(
        "a class below 0",
        put(cell((1, 1), -1)),
        "error label-range: found labels from -1 to 19, wanted 0 … 19: 1 of 6 labels "
        "have no row in the head; map the class ids to 0 … 19, or build the head for "
        "more classes",
        "targets[1]",
        1,
        "IndexError",
    ),
    Fault(
        "an image that is not in the batch",
        put(cell((1, 0), 2)),
        "error target-image: 1 of 6 targets name an image such as 2, wanted 0 … 1; "
        "column 0 is the image's number in the batch",
        "targets[1]",
        1,
        "IndexError",
    ),
    Fault(
        "rows without the image",
        put(lambda r: r[:, 1:]),
        "error target-shape: found targets of shape 6×5, wanted n×6: image, class, "
        "centre x, centre y, width, height",
        "targets",
        1,
        "not enough values to unpack",
    ),
    Fault(
        "a dict",
        lambda x, y: (x, {"boxes": y}),
        "error target-type: found `dict`, wanted a tensor n×6 (image, class, centre x, "
        "centre y, width, height), or a list of n×5 without the image",
        "targets",
        1,
        "AttributeError",
    ),
    Fault(
        "whole numbers",
        put(lambda r: r.long()),
        "error target-dtype: found targets in int64, wanted float32: shares of the image "
        "are cut to 0 or 1; targets.float() before they are divided by the image's size",
        "targets",
        1,
        "not finite",
    ),
    Fault(
        "pixels where shares are wanted",
        put(lambda r: torch.cat((r[:, :2], r[:, 2:] * YOLO_SIZE), 1)),
        "error box-pixels: found 6 of 6 boxes with values above 1, up to 52.8382, wanted "
        "shares of width and height from 0 to 1; divide x and width by the image's "
        "width, y and height by its height",
        "targets[0]",
        6,
        "IndexError",
    ),
    Fault(
        "corners where centres are wanted",
        put(from_corners),
        "error box-order: found 6 of 6 boxes that do not fit into their image as centre "
        "x, centre y, width, height, and all do as x1, y1, x2, y2; wanted centre x, "
        "centre y, width, height in shares of the image; (x1 + x2) / 2, (y1 + y2) / 2, "
        "x2 - x1, y2 - y1",
        "targets[0]",
        6,
        "another loss",
    ),
    Fault(
        "a box of no width",
        put(cell((0, 4), 0)),
        "error box-empty: found 1 of 6 boxes of no width or no height, wanted an area: "
        "the first is 0.604735, 0.825596, 0, 0.306804, read as centre x, centre y, "
        "width, height; drop them",
        "targets[0]",
        1,
        "not finite",
    ),
    Fault(
        "a box of negative width",
        put(cell((0, 4), -0.2)),
        "error box-negative: found 1 of 6 boxes of negative width or height, wanted "
        "positive sides: the first is 0.604735, 0.825596, -0.2, 0.306804, read as centre "
        "x, centre y, width, height; drop them",
        "targets[0]",
        1,
        "not finite",
    ),
    Fault(
        "a centre outside the image",
        put(cell((0, 2), 1.2)),
        "error box-outside: found 1 of 6 boxes with a centre outside the image, wanted "
        "them inside: the first is 1.2, 0.825596, 0.341021, 0.306804, read as centre x, "
        "centre y, width, height; drop them after cropping",
        "targets[0]",
        1,
        "IndexError",
    ),
    Fault(
        "a box that is NaN",
        put(cell((0, 4), float("nan"))),
        "error box-not-finite: found 1 of 6 boxes with NaN or infinite values, wanted "
        "finite ones: the first is 0.604735, 0.825596, nan, 0.306804, read as centre x, "
        "centre y, width, height; look for a division by 0",
        "targets[0]",
        1,
        "not finite",
    ),
    Fault(
        "targets on another device",
        put(lambda r: r.to("meta")),
        "error target-device: found targets on `meta`, wanted `cpu`, where the model is; "
        "move the targets with the images: .to('cpu')",
        "targets",
        1,
        "NotImplementedError",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_is_one(fault: Fault) -> None:
    batch = yolo_batch()
    assert_found(check(yolo(), *fault.breaks(*batch)), fault)
    assert_proved(fault, yolo_loss, yolo(), batch)


def listed(rows: torch.Tensor) -> list[torch.Tensor]:
    """A tensor n×5 for each image, as darknet's label files have them."""
    return [rows[rows[:, 0] == image][:, 1:] for image in range(2)]


def test_a_list_with_a_tensor_for_each_image_is_read_too() -> None:
    images, rows = yolo_batch()
    assert check(yolo(), images, listed(rows)).findings == ()
    wrong = listed(rows)
    wrong[1][2, 0] = 20
    (finding,) = check(yolo(), images, wrong).findings
    assert (finding.code, finding.where) == ("label-range", "targets[1][2]")
    (finding,) = check(yolo(), images, wrong[:1]).findings
    assert str(finding) == ("error target-count: found targets for 1 image, wanted 2")


def test_an_image_without_boxes_is_no_fault() -> None:
    images, rows = yolo_batch()
    assert check(yolo(), images, rows[rows[:, 0] == 1]).findings == ()
    assert check(yolo(), images, rows[:0]).findings == ()


def test_a_box_over_the_edge_is_a_warning() -> None:
    images, rows = put(cell((0, slice(2, 6)), (0.1, 0.5, 0.4, 0.4)))(*yolo_batch())
    (finding,) = check(yolo(), images, rows).findings
    assert str(finding) == (
        "warning box-edge: found 1 of 6 boxes that reach over the edge of their image, wanted "
        "them inside: the first is 0.1, 0.5, 0.4, 0.4, read as centre x, centre y, width, "
        "height; clip them"
    )
