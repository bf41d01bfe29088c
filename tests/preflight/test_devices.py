"""Dtypes and devices: images against weights, and the weights among each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectors_made import (
    FASTER,
    FCOS,
    bench,
    copied,
    effdet_batch,
    losses,
    pictures,
    torchvision_batch,
    torchvision_model,
    yolo,
    yolo_batch,
    yolo_loss,
)
from torch import nn

from ckptool import check


def test_half_weights_do_not_take_float_images() -> None:
    model = copied(yolo()).half()
    images, rows = yolo_batch()
    error, warning = check(model, images, rows).findings
    assert str(error) == (
        "error image-dtype: found float32 images and float16 weights, wanted one dtype: "
        "no autocast is in force; images.to(torch.float16), or model.float()"
    )
    assert str(warning) == (
        "warning half-on-cpu: all weights are float16 and on the CPU, wanted float32: "
        "there float16 is many times slower and not more exact; model.float(); for a "
        "file `ckptool convert FILE --dtype fp32`"
    )
    with pytest.raises(RuntimeError, match="should be the same"):
        yolo_loss(model, images, rows)


def test_a_model_all_in_half_on_a_cpu_runs_and_is_a_warning() -> None:
    model = copied(yolo()).half().eval()
    images, rows = yolo_batch()
    (finding,) = check(model, images.half(), rows).findings
    assert (finding.code, finding.severity) == ("half-on-cpu", "warning")
    assert yolo_loss(model, images.half(), rows)


def test_float_weights_do_not_take_half_images() -> None:
    images, rows = yolo_batch()
    (finding,) = check(yolo(), images.half(), rows).findings
    assert str(finding) == (
        "error image-dtype: found float16 images and float32 weights, wanted one dtype: "
        "no autocast is in force; images.to(torch.float32)"
    )
    with pytest.raises(RuntimeError, match="expected scalar type Half but found Float"):
        yolo_loss(yolo(), images.half(), rows)


def test_int32_images_do_not_fit_float_weights() -> None:
    model = nn.Conv2d(3, 8, 3)
    images = torch.ones(1, 3, 8, 8, dtype=torch.int32)
    (finding,) = check(model, images).findings
    assert str(finding) == (
        "error image-dtype: found int32 images, wanted float32, the dtype of the "
        "weights; images.to(torch.float32)"
    )
    with pytest.raises(RuntimeError, match="should be the same"):
        model(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_casts_what_it_can(dtype: torch.dtype) -> None:
    images = pictures(2, 64, 64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert check(yolo(), images).findings == ()
        yolo()(images)


def test_autocast_does_not_cast_float64() -> None:
    images = pictures(2, 64, 64).double()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        (finding,) = check(yolo(), images).findings
        with pytest.raises(RuntimeError, match=r"should be the same|expected scalar type"):
            yolo()(images)
    assert str(finding) == (
        "error image-dtype: found float64 images, wanted float32: autocast to bfloat16 "
        "is in force, and leaves float64 as it is; images.float()"
    )


def test_weights_of_two_dtypes_are_named_and_grouped() -> None:
    model = copied(bench())
    model.model.backbone.half()
    images, targets = effdet_batch()
    (finding,) = check(model, images.half(), targets).findings
    assert str(finding) == (
        "error model-dtypes: the weights are of 2 dtypes, wanted one: float16 (80 "
        "tensors: `model.backbone.conv_stem.weight`, "
        "`model.backbone.blocks.{0..6}.{0..3}.*`), float32 (70 tensors: `model.fpn.*`, "
        "`model.class_net.*`, `model.box_net.*`); model.float(), or .half() on all of it"
    )
    with pytest.raises(RuntimeError, match=r"should be the same|expected scalar type"):
        losses(model, images.half(), targets)


def test_norms_of_another_dtype_than_the_convolutions() -> None:
    model = copied(yolo())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.double()
    (finding,) = check(model, *yolo_batch()).findings
    assert str(finding) == (
        "error model-dtypes: the norms are float64 (19 tensors: `models.{0,1,…,35}.*`) "
        "and the convolutions float32, wanted float32; model.float(), or .half() on all "
        "of it"
    )
    with pytest.raises(RuntimeError):
        yolo_loss(model, *yolo_batch())


def test_half_convolutions_with_norms_in_float32_run() -> None:
    """As `network_to_half` and apex leave a model."""
    model = copied(yolo()).half().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    images, rows = yolo_batch()
    assert [f.code for f in check(model, images.half(), rows).findings] == ["half-on-cpu"]
    assert yolo_loss(model, images.half(), rows)


def test_a_bench_in_half_loses_its_anchors() -> None:
    model = copied(bench()).half()
    images, targets = effdet_batch()
    error, warning = check(model, images.half(), targets).findings
    assert str(error) == (
        "error anchors-dtype: found `anchors.boxes` in float16, wanted float32: effdet's "
        "labeler takes no other, and the anchors lose pixels; bench.model.half() in "
        "place of bench.half(), or autocast"
    )
    assert warning.code == "half-on-cpu"
    with pytest.raises((RuntimeError, ValueError)):
        losses(model, images.half(), targets)


def test_no_kernel_of_torchvision_takes_bfloat16_on_a_cpu() -> None:
    model = copied(torchvision_model(FASTER)).bfloat16()
    images, targets = torchvision_batch()
    images = [image.bfloat16() for image in images]
    (finding,) = check(model, images, targets).findings
    assert str(finding) == (
        "error kernel-missing: the weights are bfloat16, and this torch has no bfloat16 "
        "kernel of `nms` for the CPU; model.float(), or move model and images to a GPU"
    )
    with pytest.raises(Exception, match="not implemented for"):
        losses(model, images, targets)


def test_images_on_another_device_than_the_model() -> None:
    """The meta device stands in for a GPU."""
    model = copied(yolo()).to("meta")
    images, rows = yolo_batch()
    image, target = check(model, images, rows).findings
    assert str(image) == (
        "error image-device: found images on `cpu`, wanted `meta`, where the model is; "
        "the model has no values yet: load_state_dict(…, assign=True)"
    )
    assert target.code == "target-device"
    with pytest.raises(RuntimeError, match="device"):
        yolo_loss(model, images, rows)


def test_a_model_on_two_devices() -> None:
    model = copied(bench())
    model.model.class_net.to("meta")
    images, targets = effdet_batch()
    (finding,) = check(model, images, targets).findings
    assert str(finding) == (
        "error model-devices: the model is on 2 devices, wanted one: cpu (698 tensors: "
        "`model.*`, `anchors.boxes`), meta (87 tensors: `model.class_net.conv_rep.*`, "
        "`model.class_net.bn_rep.*`, `model.class_net.predict.*`); model.to(device)"
    )
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses(model, images, targets)


def test_a_model_that_is_spread_on_purpose_is_a_note() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3).to("meta"))
    model.hf_device_map = {"0": "cpu", "1": "meta"}
    (finding,) = check(model, torch.rand(1, 3, 8, 8)).findings
    assert (finding.code, finding.severity) == ("model-devices", "note")


def test_boxes_in_half_make_the_loss_of_fcos_not_finite() -> None:
    model = torchvision_model(FCOS)
    images, targets = torchvision_batch()
    targets = [{**target, "boxes": target["boxes"].half()} for target in targets]
    (finding,) = check(model, images, targets).findings
    assert str(finding) == (
        "error target-dtype: found boxes in float16, wanted float32; boxes.float()"
    )
    assert not all(map(math.isfinite, losses(model, images, targets).values()))
