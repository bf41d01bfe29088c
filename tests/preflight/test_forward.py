"""`run=True`: one forward pass; what the heads give, and exceptions that are translated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors_made import (
    CLASSES,
    FASTER,
    SSD,
    bench,
    copied,
    effdet_batch,
    losses,
    pictures,
    torchvision_batch,
    torchvision_model,
    yolo,
    yolo_batch,
)
from torch import nn

from ckptool import check
from ckptool.preflight import Report


def last(report: Report) -> str:
    """What the forward pass adds to the findings."""
    return next(str(f) for f in report.findings if f.code in ("forward-raises", "output-shape"))


def test_an_exception_names_the_finding_that_explains_it() -> None:
    model = bench().model
    report = check(model, torch.rand(2, 3, 200, 300) * 4 - 2, run=True)
    assert [finding.code for finding in report.findings] == ["image-size", "forward-raises"]
    assert last(report) == (
        "error forward-raises: the forward pass raises `RuntimeError: stack expects each "
        "tensor to be equal size, but got [2, 64, 4, 5] at entry 0 and [2, 64, 2, 2] at "
        "entry 1`; `image-size` explains it"
    )


@pytest.mark.parametrize(
    ("model", "images", "targets", "explanation"),
    [
        (lambda: nn.Conv2d(3, 8, 3), torch.rand(416), None, "image-rank"),
        (lambda: nn.Conv2d(3, 8, 3), torch.rand(2, 8, 8, 3), None, "image-nhwc"),
        (lambda: nn.Conv2d(3, 8, 3), torch.ones(2, 3, 8, 8).int(), None, "image-dtype"),
        (lambda: nn.Conv2d(3, 8, 3).half(), torch.ones(2, 3, 8, 8), None, "image-dtype"),
        (lambda: copied(yolo()).to("meta"), torch.rand(2, 3, 64, 64), None, "image-device"),
        (yolo, torch.rand(2, 3, 72, 72), None, "image-size"),
        (yolo, [torch.rand(3, 64, 64)], None, "image-type"),
        (torchvision_model, torchvision_batch()[0], torchvision_batch()[1][:1], "target-count"),
        (bench, effdet_batch()[0], {"bbox": effdet_batch()[1]["bbox"]}, "target-keys"),
    ],
)
def test_each_exception_is_explained(
    model: Any, images: Any, targets: Any, explanation: str
) -> None:
    report = check(model(), images, targets, run=True)
    assert f"`{explanation}` explains it" in last(report)


def test_an_exception_that_no_check_explains_is_said_to_be_one() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> None:
            raise ValueError("the seventh seal")

    report = check(Broken(), pictures(1, 8, 8), run=True)
    assert last(report) == (
        "error forward-raises: the forward pass raises `ValueError: the seventh seal`, "
        "which no check explains"
    )


def one_anchor() -> nn.Module:
    """An EfficientDet whose class head has rows for one anchor, read as nine."""
    made = copied(bench())
    predict: Any = made.model.class_net.predict
    predict.conv_pw = nn.Conv2d(64, CLASSES, 1)
    return made


def test_anchor_1_of_a_head_with_one_anchor_is_not_there() -> None:
    """The everyday `index 1 is out of bounds for dimension 1 with size 1`."""
    images, targets = effdet_batch()
    (finding,) = check(one_anchor(), images, targets).findings
    assert str(finding) == (
        "error head-rows: `model.class_net.predict.conv_pw.weight` gives 80 rows, wanted "
        "720: 9 anchors of 80 classes; it is a head of one anchor, and the anchors 1 … 8 "
        "are not there; a head of 9 anchors, or a configuration of 1"
    )
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        losses(one_anchor(), images, targets)


def test_a_reader_of_anchor_1_is_told_that_there_is_one() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 6, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.head(images)
            return maps.view(len(maps), 1, 6, *maps.shape[2:])[:, 1]

    report = check(Reader(), pictures(2, 8, 8), run=True)
    assert last(report) == (
        "error forward-raises: the forward pass raises `IndexError: index 1 is out of "
        "bounds for dimension 1 with size 1`: entry 1 of axis 1 is read, which has 1, as "
        "if anchor 1 were read of a head with one anchor"
    )


@pytest.mark.parametrize(
    ("key", "rows"),
    [("models.29.conv18", 50), ("models.36.conv21", 78)],
    ids=["two anchors", "21 classes"],
)
def test_a_head_of_yolo_with_other_rows_than_are_read(key: str, rows: int) -> None:
    model = copied(yolo())
    parent, _, name = key.rpartition(".")
    old = model.get_submodule(key)
    setattr(model.get_submodule(parent), name, nn.Conv2d(old.in_channels, rows, 1))
    (finding,) = check(model, *yolo_batch()).findings
    assert (finding.code, finding.severity) == ("head-rows", "error")
    assert f"gives {rows} rows, wanted 75" in finding.message
    with torch.no_grad(), pytest.raises(RuntimeError):
        for found in model(yolo_batch()[0]):
            found.view(2, 3, 25, *found.shape[2:])


def test_a_box_head_of_torchvision_for_another_class_count() -> None:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    model = copied(torchvision_model(FASTER))
    model.roi_heads.box_predictor.bbox_pred = FastRCNNPredictor(1024, 7).bbox_pred
    images, targets = torchvision_batch()
    (finding,) = check(model, images, targets).findings
    assert str(finding) == (
        "error head-rows: `roi_heads.box_predictor.bbox_pred.weight` gives 28 rows, "
        "wanted 84: 1 anchor of 21 classes, the background among them with 4 rows each; "
        "the head and what reads it from one configuration"
    )
    with pytest.raises(IndexError, match="out of bounds for dimension 1 with size 7"):
        losses(model, images, targets)


def test_outputs_that_are_not_finite() -> None:
    model = copied(yolo())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (finding,) = check(model, *yolo_batch(), run=True).findings
    assert str(finding) == (
        "error output-not-finite: 2 of 2 outputs have NaN or infinite values, the first "
        "is `output[0]`, wanted finite ones; look at the values of the weights: `ckptool "
        "inspect FILE --stats`"
    )


def test_outputs_of_another_number_of_maps() -> None:
    class Half(type(yolo())):  # type: ignore[misc]
        def forward(self, images: torch.Tensor) -> Any:
            return super().forward(images)[:1]

    model = copied(yolo())
    model.__class__ = Half
    (finding,) = check(model, *yolo_batch(), run=True).findings
    assert str(finding) == ("error output-shape: the head gives 1 map, wanted 2")


def test_outputs_of_another_shape() -> None:
    class Turned(type(yolo())):  # type: ignore[misc]
        def forward(self, images: torch.Tensor) -> Any:
            return tuple(found.transpose(1, 2) for found in super().forward(images))

    model = copied(yolo())
    model.__class__ = Turned
    (finding,) = check(model, *yolo_batch(), run=True).findings
    assert str(finding) == (
        "error output-shape: `output[0]` has the shape 2×2×75×2, wanted 2×75×2×2: 3 "
        "anchors of 5 + 20 classes; the head and what reads it from one configuration"
    )


def test_a_run_leaves_the_model_as_it_was() -> None:
    for model, batch in (
        (bench(), effdet_batch()),
        (yolo(), yolo_batch()),
        (torchvision_model(SSD), torchvision_batch()),
    ):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        random = torch.get_rng_state()
        assert check(model, *batch, run=True).findings == ()
        assert model.training
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_run_in_evaluation() -> None:
    """Without targets a torchvision detector is put to evaluation for the pass."""
    images, _ = torchvision_batch()
    model = torchvision_model(SSD)
    assert check(model, images, run=True).findings == ()
    assert model.training
