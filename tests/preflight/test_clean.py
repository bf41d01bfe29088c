"""`check` on correct batches: nothing is found, and every one of them runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectors_made import (
    FASTER,
    SSD,
    TORCHVISION,
    bench,
    bench_of_losses,
    copied,
    effdet_batch,
    losses,
    normalised,
    pictures,
    torchvision_batch,
    torchvision_model,
    yolo,
    yolo_batch,
    yolo_loss,
)
from torch import nn

import ckptool
from ckptool.errors import ArchitectureError

Count = Callable[[str, int], None]


def assert_runs(found: dict[str, float]) -> None:
    assert found
    assert all(map(math.isfinite, found.values())), found


def test_nothing_is_found_in_correct_batches_for_effdet(count: Count) -> None:
    """Of the shared bench the outputs are computed once; the labeler and the loss run each time."""
    for seed in range(12):
        images, targets = effdet_batch(seed, boxes=1 + seed % 7)
        assert ckptool.check(bench(), images, targets).findings == ()
        assert_runs(losses(bench_of_losses(), images, targets))
    assert_runs(losses(bench(), images, targets))
    count("correct batches without a finding", 12)


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_nothing_is_found_in_correct_batches_for_torchvision(name: str, count: Count) -> None:
    for seed in range(5):
        sizes = ((64 + 8 * seed, 80), (96, 64 + 4 * seed))
        images, targets = torchvision_batch(seed, sizes=sizes, boxes=1 + seed)
        assert ckptool.check(torchvision_model(name), images, targets).findings == ()
        if seed < 2:
            assert_runs(losses(torchvision_model(name), images, targets))
    count("correct batches without a finding", 5)


def test_nothing_is_found_in_correct_batches_for_yolo(count: Count) -> None:
    for seed in range(24):
        images, rows = yolo_batch(
            seed, count=1 + seed % 3, boxes=1 + seed % 5, height=64, width=64 + 32 * (seed % 2)
        )
        assert ckptool.check(yolo(), images, rows).findings == ()
        assert_runs(yolo_loss(yolo(), images, rows))
    count("correct batches without a finding", 24)


def test_a_dark_and_a_bright_picture_are_no_fault() -> None:
    dark, bright = pictures(2, 128, 128) * 0.1, 0.8 + pictures(2, 128, 128) * 0.2
    for images in (dark, bright):
        assert ckptool.check(bench(), normalised(images)).findings == ()
        assert ckptool.check(yolo(), images).findings == ()


class Lightning(nn.Module):
    """What people put around a detector."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.detector = model
        self.metric = nn.Linear(1, 1)

    def forward(self, images: Any) -> Any:
        return self.detector(images)


@pytest.mark.parametrize(
    "wrapped",
    [nn.DataParallel, Lightning],
    ids=["DataParallel", "inside another"],
)
def test_a_detector_is_recognised_inside_others(wrapped: Any) -> None:
    report = ckptool.check(wrapped(copied(yolo())), *yolo_batch())
    assert (report.num_classes, report.findings) == (20, ())
    report = ckptool.check(wrapped(copied(bench()).model), torch.rand(2, 3, 64, 64) * 4 - 2)
    assert report.arch == "tf_efficientdet_d0"
    assert [finding.code for finding in report.findings] == ["image-size"]


def test_a_model_of_an_unknown_class_is_known_by_its_keys() -> None:
    """The same tensors under another class, as a fork of the code has them."""

    class Fork(nn.Module):
        def __init__(self, of: nn.Module) -> None:
            super().__init__()
            for name, child in of.named_children():
                self.add_module(name, child)

        def forward(self, images: torch.Tensor) -> Any:
            raise NotImplementedError

    from ckptool.architectures import build

    fork = Fork(build("yolov4-tiny", 20))
    report = ckptool.check(fork, torch.rand(2, 3, 72, 72))
    assert (report.arch, report.num_classes) == ("yolov4-tiny", 20)
    assert [finding.code for finding in report.findings] == ["image-size"]
    assert ckptool.check(fork, *yolo_batch()).findings == ()


def test_arch_says_what_a_model_is_that_nobody_knows() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 75, 1))
    images, rows = yolo_batch(height=72, width=72)
    assert ckptool.check(model, images, rows).findings == ()
    report = ckptool.check(model, images, rows, arch="yolov4-tiny")
    assert report.arch == "yolov4-tiny"
    assert "image-size" in [finding.code for finding in report.findings]
    with pytest.raises(ArchitectureError, match="no architecture is called `yolov5-tiny`"):
        ckptool.check(model, images, rows, arch="yolov5-tiny")


def test_a_report_reads_as_text_and_counts() -> None:
    report = ckptool.check(nn.Conv2d(3, 8, 3), torch.ones(2, 8, 8, 3).int())
    assert [finding.code for finding in report.findings] == ["image-nhwc", "image-dtype"]
    assert (report.errors, report.warnings) == (2, 0)
    assert str(report).splitlines()[0].startswith("error image-nhwc: found images of shape 8×8×3")
    assert str(ckptool.check(nn.Conv2d(3, 8, 3), pictures(2, 8, 8))) == "no findings"


def test_errors_come_first() -> None:
    model = copied(yolo()).half()
    report = ckptool.check(model, pictures(2, 64, 64))
    assert [finding.severity for finding in report.findings] == ["error", "warning"]


@pytest.mark.parametrize("name", [FASTER, SSD])
def test_evaluation_without_targets(name: str) -> None:
    images, _ = torchvision_batch()
    model = torchvision_model(name)
    model.eval()
    try:
        assert ckptool.check(model, images, run=True).findings == ()
    finally:
        model.train()


def test_effdet_predicts_with_its_bench() -> None:
    from effdet import DetBenchPredict

    model = DetBenchPredict(copied(bench()).model).eval()
    images, _ = effdet_batch(count=1)
    assert ckptool.check(model, images, run=True).findings == ()
