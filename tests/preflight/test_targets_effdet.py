"""Targets of an effdet bench: what is found, and that its labeler and its loss suffer from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors_made import SIZE, bench, bench_of_losses, copied, effdet_batch, losses
from proofs import Fault, assert_found, assert_proved, cell, put

from ckptool import check


def dropped(at: tuple[int, int]) -> Any:
    """The batch without one box, as it should have been."""
    return put(cls=cell(at, -1), bbox=cell(at, (-1.0,) * 4))


def one_each(images: Any, targets: dict[str, Any]) -> tuple[Any, Any]:
    """Torchvision's form: a dict for each image."""
    return images, [{key: value[at] for key, value in targets.items()} for at in range(2)]


FAULTS = [
    Fault(
        "labels up to 99 with 80 classes",
        put(cls=cell((0, 1), 99)),
        "error label-range: found labels from 6 to 99, wanted 1 … 80: 1 of 6 labels have "
        "no row in the head; map the class ids to 1 … 80, or build the head for more "
        "classes",
        "targets['cls'][0, 1]",
        1,
        "index 98 is out of bounds for dimension 4 with size 80",
    ),
    Fault(
        "a label 0",
        put(cls=cell((0, 0), 0)),
        "error label-background: 1 of 6 labels are 0, wanted 1 … 80: effdet trains these "
        "boxes as background; give every box a class",
        "targets['cls'][0, 0]",
        1,
        "another loss",
    ),
    Fault(
        "labels that count from 0",
        put(cls=lambda c: torch.where(c > 0, c - c[c > 0].min(), c)),
        "error label-background: 1 of 6 labels are 0, wanted 1 … 80: effdet trains these "
        "boxes as background; labels + 1: 0 is the background here",
        "targets['cls'][1, 0]",
        1,
        "another loss",
    ),
    Fault(
        "a label between two",
        put(cls=cell((1, 0), 3.5)),
        "error label-whole: 1 of 6 labels are not whole numbers, such as 3.5, wanted 1 … "
        "80; look at what is stacked into the labels: a score, or a box",
        "targets['cls'][1, 0]",
        1,
        "another loss",
        put(cls=cell((1, 0), 4)),
    ),
    Fault(
        "a label that is NaN",
        put(cls=cell((1, 0), float("nan"))),
        "error label-whole: 1 of 6 labels are not whole numbers, such as nan, wanted 1 … "
        "80; look at what is stacked into the labels: a score, or a box",
        "targets['cls'][1, 0]",
        1,
        "another loss",
    ),
    Fault(
        "torchvision's keys",
        lambda x, y: (x, {"boxes": y["bbox"], "labels": y["cls"]}),
        "error target-keys: found the keys `boxes`, `labels`, torchvision's form, wanted "
        "`bbox`, `cls` too; rename what is there under another name",
        "targets",
        1,
        "KeyError: 'bbox'",
    ),
    Fault(
        "no classes",
        lambda x, y: (x, {"bbox": y["bbox"]}),
        "error target-keys: found the keys `bbox`, wanted `cls` too",
        "targets",
        1,
        "KeyError: 'cls'",
    ),
    Fault(
        "a dict for each image",
        one_each,
        "error target-type: found `list`, wanted one dict with `bbox` and `cls` for the "
        "whole batch; stack them, filled up with boxes of class -1",
        "targets",
        1,
        "list indices must be integers",
    ),
    Fault(
        "a numpy array",
        put(bbox=lambda b: b.numpy()),
        "error target-type: found `ndarray`, wanted a tensor; torch.as_tensor",
        "targets['bbox']",
        1,
        "should be tf.float32",
    ),
    Fault(
        "one image too few",
        put(bbox=lambda b: b[:1], cls=lambda c: c[:1]),
        "error target-count: found targets for 1 and classes for 1, wanted 2 images; one "
        "entry of `bbox` and `cls` for each image",
        "targets",
        1,
        "must be the same as input size",
    ),
    Fault(
        "classes as a column",
        put(cls=lambda c: c[..., None]),
        "error target-shape: found classes of shape 5×1, wanted 5, one for each box of "
        "5×4; cls.squeeze(-1)",
        "targets['cls'][0]",
        1,
        "The shape of the mask",
    ),
    Fault(
        "boxes with a score",
        put(bbox=lambda b: torch.cat((b, b[..., :1]), -1)),
        "error target-shape: found boxes of shape 5×5, wanted n×4 for each image",
        "targets['bbox'][0]",
        1,
        "Invalid dimensions for box data",
    ),
    Fault(
        "boxes of float64",
        put(bbox=lambda b: b.double()),
        "error target-dtype: found boxes in float64, wanted float32: effdet takes no "
        "other; bbox.float()",
        "targets['bbox']",
        1,
        "should be tf.float32",
    ),
    Fault(
        "boxes of whole numbers",
        put(bbox=lambda b: b.long()),
        "error target-dtype: found boxes in int64, wanted float32: effdet takes no "
        "other; bbox.float()",
        "targets['bbox']",
        1,
        "should be tf.float32",
    ),
    Fault(
        "targets on another device",
        put(bbox=lambda b: b.to("meta"), cls=lambda c: c.to("meta")),
        "error target-device: found targets on `meta`, wanted `cpu`, where the model is; "
        "move the targets with the images: .to('cpu')",
        "targets['bbox']",
        2,
        "NotImplementedError",
    ),
    Fault(
        "a box that is NaN",
        put(bbox=cell((0, 0, 1), float("nan"))),
        "error box-not-finite: found 1 of 6 boxes with NaN or infinite values, wanted "
        "finite ones: the first is 92.1866, nan, 125.12, 97.1765, read as y1, x1, y2, "
        "x2; look for a division by 0",
        "targets['bbox'][0, 0]",
        1,
        "not finite",
    ),
    Fault(
        "a box of no height",
        put(bbox=cell((0, 0), (9.0, 9.0, 9.0, 40.0))),
        "error box-empty: found 1 of 6 boxes of no width or no height, wanted an area: "
        "the first is 9, 9, 9, 40, read as y1, x1, y2, x2; drop them",
        "targets['bbox'][0, 0]",
        1,
        "another loss",
        dropped((0, 0)),
    ),
    Fault(
        "a box of negative height",
        put(bbox=cell((0, 0), (40.0, 9.0, 9.0, 40.0))),
        "error box-negative: found 1 of 6 boxes of negative width or height, wanted "
        "positive sides: the first is 40, 9, 9, 40, read as y1, x1, y2, x2; drop them",
        "targets['bbox'][0, 0]",
        1,
        "not finite",
    ),
    Fault(
        "a box outside its image",
        put(bbox=cell((0, 0), (130.0, 9.0, 160.0, 40.0))),
        "error box-outside: found 1 of 6 boxes outside their image, wanted them inside: "
        "the first is 130, 9, 160, 40, read as y1, x1, y2, x2; drop them after cropping",
        "targets['bbox'][0, 0]",
        1,
        "another loss",
        dropped((0, 0)),
    ),
    Fault(
        "shares where pixels are wanted",
        put(bbox=lambda b: b / SIZE),
        "error box-relative: found all values of 6 boxes between 0.0275 and 0.977, "
        "wanted pixels; multiply x by the image's width, y by its height",
        "targets['bbox'][0, 0]",
        6,
        "another loss",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_is_one(fault: Fault) -> None:
    batch = effdet_batch()
    assert_found(check(bench(), *fault.breaks(*batch)), fault)
    assert_proved(fault, losses, bench_of_losses(), batch)


WIDE = {"img_size": torch.tensor([[128.0, 64.0]] * 2), "img_scale": torch.ones(2)}


def padded(order: list[int]) -> tuple[Any, dict[str, Any]]:
    """A batch of pictures of 128×64 (width × height) on a square, whose boxes are in an order."""
    images, targets = effdet_batch()
    boxes = targets["bbox"].clone()
    boxes[:, :3] *= torch.tensor([0.5, 1, 0.5, 1])
    return images, {**targets, **WIDE, "bbox": boxes[..., order]}


def test_xyxy_where_yxyx_is_wanted_is_said_when_the_picture_tells_it() -> None:
    """The boxes fit into the square both ways; into the picture that was padded only one way."""
    faulty, right = padded([1, 0, 3, 2]), padded([0, 1, 2, 3])
    assert check(bench(), *right).findings == ()
    (finding,) = check(bench(), *faulty).findings
    assert str(finding) == (
        "error box-order: found 6 of 6 boxes that do not fit into their image as y1, x1, "
        "y2, x2, and all do as x1, y1, x2, y2; wanted y1, x1, y2, x2; boxes[:, [1, 0, 3, "
        "2]]"
    )
    assert losses(bench_of_losses(), *faulty) != losses(bench_of_losses(), *right)


def test_nothing_is_said_about_an_order_without_evidence() -> None:
    images, targets = effdet_batch()
    swapped = {**targets, "bbox": targets["bbox"][..., [1, 0, 3, 2]]}
    assert check(bench(), images, swapped).findings == ()


def test_a_box_over_the_edge_is_a_warning() -> None:
    images, targets = put(bbox=cell((0, 0), (100.0, 9.0, 140.0, 40.0)))(*effdet_batch())
    (finding,) = check(bench(), images, targets).findings
    assert str(finding) == (
        "warning box-edge: found 1 of 6 boxes that reach over the edge of their image, "
        "wanted them inside: the first is 100, 9, 140, 40, read as y1, x1, y2, x2; clip "
        "them"
    )


def test_the_boxes_that_fill_up_are_not_looked_at() -> None:
    images, targets = effdet_batch()
    targets["bbox"][targets["cls"] == -1] = float("nan")
    assert check(bench(), images, targets).findings == ()


def test_evaluation_wants_the_scale_and_the_size_of_the_picture() -> None:
    images, targets = effdet_batch()
    made = bench_of_losses()
    made.eval()
    try:
        with pytest.raises(KeyError, match="img_scale"):
            made(images, {key: targets[key] for key in ("bbox", "cls")})
    finally:
        made.train()
    model = bench()
    model.eval()
    try:
        (finding,) = check(model, images, {key: targets[key] for key in ("bbox", "cls")}).findings
        assert check(model, images, targets).findings == ()
    finally:
        model.train()
    assert str(finding) == (
        "error target-keys: found the keys `bbox`, `cls`, wanted `img_scale`, `img_size` too"
    )


def test_a_bare_network_reads_no_targets() -> None:
    (finding,) = check(bench().model, *effdet_batch()).findings
    assert str(finding) == (
        "note target-unread: `EfficientDet` takes no targets, wanted a `DetBenchTrain`; "
        "effdet.DetBenchTrain(model)"
    )


def test_a_bench_without_a_labeler_wants_anchors_that_are_labelled() -> None:
    """effdet's loader labels them where it is asked to; boxes alone are not read then."""
    from effdet import DetBenchTrain

    model = DetBenchTrain(copied(bench()).model, create_labeler=False).train()
    images, targets = effdet_batch()
    (finding,) = check(model, images, targets).findings
    assert (finding.code, finding.severity, finding.where) == ("target-keys", "error", "targets")
    assert "wanted `label_num_positives`, `label_cls_0`" in finding.message
    with pytest.raises(AssertionError):
        losses(model, images, targets)
    labelled = bench().anchor_labeler.batch_label_anchors(targets["bbox"], targets["cls"])
    classes, boxes, positives = labelled
    ready = {"label_num_positives": positives}
    for level, (cls, box) in enumerate(zip(classes, boxes, strict=True)):
        ready |= {f"label_cls_{level}": cls, f"label_bbox_{level}": box}
    assert check(model, images, ready).findings == ()
    assert losses(model, images, ready)


@pytest.mark.parametrize("key", ["bbox", "cls"])
def test_one_number_is_no_target(key: str) -> None:
    images, targets = effdet_batch()
    targets[key] = torch.tensor(1.0)
    (finding,) = check(bench(), images, targets).findings
    assert (finding.code, finding.where) == ("target-shape", f"targets['{key}']")
    assert finding.message.startswith(f"found `{key}` of shape (), wanted batch×n")
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        losses(bench_of_losses(), images, targets)
