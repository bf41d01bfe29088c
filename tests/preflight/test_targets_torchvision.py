"""Targets of torchvision's detectors: what is found, and that their losses suffer from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors_made import FASTER, FCOS, RETINA, SSD, losses, torchvision_batch, torchvision_model
from proofs import Fault, assert_found, assert_proved, cell

from ckptool import check


def put(at: int = 0, **values: Any) -> Any:
    """A change of one image's target by key; a function gets a copy of what is there."""

    def breaks(images: Any, targets: Any) -> tuple[Any, Any]:
        made = dict(targets[at])
        for key, value in values.items():
            made[key] = value(targets[at][key].clone()) if callable(value) else value
        return images, [made if i == at else target for i, target in enumerate(targets)]

    return breaks


def every(**values: Any) -> Any:
    """The same change of every image's target."""

    def breaks(images: Any, targets: Any) -> tuple[Any, Any]:
        for at in range(len(targets)):
            images, targets = put(at, **values)(images, targets)
        return images, targets

    return breaks


def dropped(box: int) -> Any:
    return put(
        boxes=lambda b: b[torch.arange(len(b)) != box],
        labels=lambda c: c[torch.arange(len(c)) != box],
    )


FAULTS = [
    Fault(
        "a label above the last",
        put(labels=cell((1,), 21)),
        "error label-range: found labels from 5 to 21, wanted 1 … 20: 1 of 6 labels have "
        "no row in the head; map the class ids to 1 … 20, or build the head for more "
        "classes",
        "targets[0]['labels'][1]",
        1,
        "Target 21 is out of bounds",
    ),
    Fault(
        "a label below 0",
        put(labels=cell((1,), -3)),
        "error label-range: found labels from -3 to 20, wanted 1 … 20: 1 of 6 labels "
        "have no row in the head; map the class ids to 1 … 20, or build the head for "
        "more classes",
        "targets[0]['labels'][1]",
        1,
        "another loss",
    ),
    Fault(
        "a label 0",
        put(labels=cell((1,), 0)),
        "error label-background: 1 of 6 labels are 0, wanted 1 … 20: the loss takes 0 "
        "for the background; give every box a class",
        "targets[0]['labels'][1]",
        1,
        "another loss",
    ),
    Fault(
        "labels that count from 0",
        every(labels=lambda c: c - c.min()),
        "error label-background: 2 of 6 labels are 0, wanted 1 … 20: the loss takes 0 "
        "for the background; labels + 1: 0 is the background here",
        "targets[0]['labels'][0]",
        2,
        "another loss",
    ),
    Fault(
        "labels of float32",
        put(labels=lambda c: c.float()),
        "error target-dtype: found labels in float32, wanted int64; labels.long()",
        "targets[0]['labels']",
        1,
        "target labels must of int64 type",
    ),
    Fault(
        "labels of int32",
        every(labels=lambda c: c.int()),
        "error target-dtype: found labels in int32, wanted int64; labels.long()",
        "targets[0]['labels']",
        2,
        "target labels must of int64 type",
    ),
    Fault(
        "labels as a column",
        put(labels=lambda c: c[:, None]),
        "error target-shape: found labels of shape 3×1, wanted 3, one for each box",
        "targets[0]['labels']",
        1,
        "must have same number of dimensions",
    ),
    Fault(
        "effdet's keys",
        lambda x, y: (x, [{"bbox": t["boxes"], "cls": t["labels"]} for t in y]),
        "error target-keys: found the keys `bbox`, `cls`, effdet's form, wanted `boxes`, "
        "`labels` too; rename what is there under another name",
        "targets[0]",
        2,
        "KeyError: 'boxes'",
    ),
    Fault(
        "one dict for the batch",
        lambda x, y: (x, y[0]),
        "error target-type: found `dict`, wanted a list with one dict for each image; "
        "[{'boxes': …, 'labels': …} for each image]",
        "targets",
        1,
        "string indices must be integers",
    ),
    Fault(
        "one target too few",
        lambda x, y: (x, y[:1]),
        "error target-count: found targets for 1 image, wanted 2",
        "targets",
        1,
        "list index out of range",
    ),
    Fault(
        "a list of boxes",
        put(boxes=lambda b: b.tolist()),
        "error target-type: found `list`, wanted a tensor; torch.as_tensor",
        "targets[0]['boxes']",
        1,
        "Expected target boxes to be of type Tensor",
    ),
    Fault(
        "no boxes, without a shape",
        put(boxes=torch.zeros(0), labels=torch.zeros(0).long()),
        "error target-shape: found boxes of shape 0, wanted n×4; an image without boxes "
        "has torch.zeros(0, 4)",
        "targets[0]['boxes']",
        1,
        "Expected target boxes to be a tensor of shape [N, 4]",
    ),
    Fault(
        "targets on another device",
        put(boxes=lambda b: b.to("meta")),
        "error target-device: found targets on `meta`, wanted `cpu`, where the model is; "
        "move the targets with the images: .to('cpu')",
        "targets[0]['boxes']",
        1,
        "cannot be called on meta tensors",
    ),
    Fault(
        "x, y, width, height",
        every(boxes=lambda b: torch.cat((b[:, :2], b[:, 2:] - b[:, :2]), 1)),
        "error box-order: found 5 of 6 boxes that do not fit into their image as x1, y1, "
        "x2, y2, and all do as x, y, width, height; wanted x1, y1, x2, y2; add x to the "
        "width and y to the height: x + width, y + height",
        "targets[0]['boxes'][0]",
        5,
        "positive height and width",
    ),
    Fault(
        "a box of no width",
        put(boxes=cell((0,), (9.0, 9.0, 9.0, 40.0))),
        "error box-empty: found 1 of 6 boxes of no width or no height, wanted an area: "
        "the first is 9, 9, 9, 40, read as x1, y1, x2, y2; drop them",
        "targets[0]['boxes'][0]",
        1,
        "positive height and width",
    ),
    Fault(
        "a box of negative width",
        put(boxes=cell((0,), (40.0, 9.0, 9.0, 40.0))),
        "error box-negative: found 1 of 6 boxes of negative width or height, wanted "
        "positive sides: the first is 40, 9, 9, 40, read as x1, y1, x2, y2; drop them",
        "targets[0]['boxes'][0]",
        1,
        "positive height and width",
    ),
    Fault(
        "a box that is NaN",
        put(boxes=cell((0, 2), float("nan"))),
        "error box-not-finite: found 1 of 6 boxes with NaN or infinite values, wanted "
        "finite ones: the first is 35.7305, 67.6035, nan, 93.8878, read as x1, y1, x2, "
        "y2; look for a division by 0",
        "targets[0]['boxes'][0]",
        1,
        "not finite",
    ),
    Fault(
        "a box outside its image",
        put(boxes=cell((0,), (9.0, 100.0, 40.0, 130.0))),
        "error box-outside: found 1 of 6 boxes outside their image, wanted them inside: "
        "the first is 9, 100, 40, 130, read as x1, y1, x2, y2; drop them after cropping",
        "targets[0]['boxes'][0]",
        1,
        "another loss",
        dropped(0),
    ),
    Fault(
        "shares where pixels are wanted",
        every(boxes=lambda b: b / 96),
        "error box-relative: found all values of 6 boxes between 0.0268 and 0.978, "
        "wanted pixels; multiply x by the image's width, y by its height",
        "targets[0]['boxes'][0]",
        6,
        "another loss",
    ),
]
OTHERS = [
    (
        RETINA,
        Fault(
            "a label above the last",
            put(labels=cell((1,), 21)),
            "error label-range: found labels from 5 to 21, wanted 1 … 20: 1 of 6 labels have "
            "no row in the head; map the class ids to 1 … 20, or build the head for more "
            "classes",
            "targets[0]['labels'][1]",
            1,
            "index 21 is out of bounds",
        ),
    ),
    (
        RETINA,
        Fault(
            "labels of float32",
            put(labels=lambda c: c.float()),
            "error target-dtype: found labels in float32, wanted int64; labels.long()",
            "targets[0]['labels']",
            1,
            "tensors used as indices must be",
        ),
    ),
    (
        FCOS,
        Fault(
            "a label above the last",
            put(labels=cell((1,), 21)),
            "error label-range: found labels from 5 to 21, wanted 1 … 20: 1 of 6 labels have "
            "no row in the head; map the class ids to 1 … 20, or build the head for more "
            "classes",
            "targets[0]['labels'][1]",
            1,
            "index 21 is out of bounds",
        ),
    ),
    (
        FCOS,
        Fault(
            "boxes of float64",
            every(boxes=lambda b: b.double()),
            "error target-dtype: found boxes in float64, wanted float32; boxes.float()",
            "targets[0]['boxes']",
            2,
            "requires the source and destination dtypes match",
        ),
    ),
    (
        SSD,
        Fault(
            "a label above the last",
            put(labels=cell((1,), 21)),
            "error label-range: found labels from 5 to 21, wanted 1 … 20: 1 of 6 labels have "
            "no row in the head; map the class ids to 1 … 20, or build the head for more "
            "classes",
            "targets[0]['labels'][1]",
            1,
            "Target 21 is out of bounds",
        ),
    ),
    (
        SSD,
        Fault(
            "labels of int32",
            every(labels=lambda c: c.int()),
            "error target-dtype: found labels in int32, wanted int64; labels.long()",
            "targets[0]['labels']",
            2,
            "expected target dtype to be Long or Byte",
        ),
    ),
    (
        SSD,
        Fault(
            "a label 0",
            put(labels=cell((1,), 0)),
            "error label-background: 1 of 6 labels are 0, wanted 1 … 20: the loss takes 0 "
            "for the background; give every box a class",
            "targets[0]['labels'][1]",
            1,
            "another loss",
        ),
    ),
]
CASES = [(FASTER, fault) for fault in FAULTS] + OTHERS


@pytest.mark.parametrize(
    ("name", "fault"), CASES, ids=[f"{name.split('_')[0]}: {fault.name}" for name, fault in CASES]
)
def test_a_fault_is_found_and_is_one(name: str, fault: Fault) -> None:
    model, batch = torchvision_model(name), torchvision_batch()
    assert_found(check(model, *fault.breaks(*batch)), fault)
    assert_proved(fault, losses, model, batch)


@pytest.mark.parametrize("name", [RETINA, FCOS])
def test_a_row_for_the_background_can_be_trained_where_no_softmax_is(name: str) -> None:
    images, targets = put(labels=cell((1,), 0))(*torchvision_batch())
    (finding,) = check(torchvision_model(name), images, targets).findings
    assert str(finding) == (
        "warning label-background: 1 of 6 labels are 0, wanted 1 … 20: published weights leave "
        "row 0 to the background; labels + 1, and one class more in the head"
    )


def test_an_image_without_boxes_is_no_fault() -> None:
    images, targets = put(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long())(
        *torchvision_batch()
    )
    model = torchvision_model()
    assert check(model, images, targets).findings == ()
    assert losses(model, images, targets)


def test_evaluation_reads_no_targets() -> None:
    model = torchvision_model()
    model.eval()
    try:
        (finding,) = check(model, *torchvision_batch()).findings
    finally:
        model.train()
    assert str(finding) == (
        "note target-unread: the model is in evaluation mode, and reads no targets then; "
        "model.train()"
    )


def test_a_mask_head_wants_masks() -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21).train()
    images, targets = torchvision_batch()
    (finding,) = check(model, images, targets).findings
    assert str(finding) == (
        "error target-keys: found the keys `boxes`, `labels`, wanted `masks` too"
    )
    with pytest.raises(ValueError, match="should have a masks key"):
        losses(model, images, targets)
