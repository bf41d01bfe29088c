"""The share of boxes that no anchor matches, against the anchors of the real libraries."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torchvision.ops import box_iou

from ckptool import architectures
from ckptool.preflight.matching import histogram, matching_of


def random_boxes(count: int, width: int, height: int, seed: int = 0) -> Any:
    """Boxes (x, y, width, height) of all sizes inside an image."""
    random = numpy.random.default_rng(seed)
    size = numpy.minimum(4 * 120 ** random.random((count, 2)), (width, height))
    return numpy.concatenate((random.random((count, 2)) * ((width, height) - size), size), 1)


def corners(boxes: Any) -> torch.Tensor:
    return torch.tensor(numpy.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1))


@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "efficientdet_d2", "tf_efficientdet_d7x"])
def test_effdet_has_an_anchor_for_the_same_boxes(name: str) -> None:
    """The best IoU with effdet's own `Anchors`, at the places where they stand."""
    from effdet.anchors import Anchors
    from effdet.config import get_efficientdet_config

    anchors = Anchors.from_config(get_efficientdet_config(name)).boxes[:, [1, 0, 3, 2]].double()
    architecture = architectures.find(name)
    height, width = architecture.card["image_size"]  # type: ignore[misc]
    matching = matching_of(architecture)
    assert matching is not None and matching.best is not None
    boxes = random_boxes(20, width, height)
    judged = box_iou(corners(boxes), anchors).max(1).values.numpy()
    assert numpy.allclose(matching.best(boxes), judged, atol=1e-4)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvisions_anchors_have_the_same_shapes(name: str) -> None:
    from torchvision.models import get_model

    options = {"weights": None, "weights_backbone": None}
    model: Any = get_model(name, **options)
    if name.startswith("ssd"):
        shapes = torch.cat(model.anchor_generator._wh_pairs).clamp(0, 1) * 320
    else:
        cells = torch.cat(model.rpn.anchor_generator.cell_anchors)
        shapes = cells[:, 2:] - cells[:, :2]
    matching = matching_of(architectures.find(f"torchvision:{name}"))
    assert matching is not None and matching.best is not None
    boxes = numpy.concatenate((numpy.zeros((40, 2)), random_boxes(40, 600, 600)[:, 2:]), 1)
    judged = box_iou(corners(boxes), torch.cat((torch.zeros_like(shapes), shapes), 1).double())
    assert numpy.allclose(matching.best(boxes), judged.max(1).values.numpy(), atol=1e-4)


def test_yolo_compares_shapes_as_darknet_does() -> None:
    matching = matching_of(architectures.find("yolov4-tiny"))
    assert matching is not None and matching.best is not None
    exact = numpy.array([[3.0, 5.0, 81.0, 82.0], [300.0, 9.0, 23.0, 27.0], [0.0, 0.0, 8.0, 8.0]])
    assert numpy.allclose(matching.best(exact)[:2], 1)
    assert matching.best(exact)[2] < 0.2


def test_images_are_scaled_as_each_family_does_it() -> None:
    sides = numpy.array([[640.0, 480.0], [100.0, 200.0]])
    for name, wanted in {
        "tf_efficientdet_d0": [[0.8, 0.8], [2.56, 2.56]],
        "yolov4-tiny": [[416 / 640, 416 / 480], [4.16, 2.08]],
        "torchvision:fasterrcnn_resnet50_fpn": [[800 / 480] * 2, [1333 / 200] * 2],
        "torchvision:ssdlite320_mobilenet_v3_large": [[0.5, 320 / 480], [3.2, 1.6]],
    }.items():
        matching = matching_of(architectures.find(name))
        assert matching is not None
        assert numpy.allclose(matching.scales(sides), wanted), name


@pytest.mark.parametrize("name", ["torchvision:fcos_resnet50_fpn", "timm:resnet18"])
def test_an_architecture_without_anchors_counts_sizes_only(name: str) -> None:
    boxes = random_boxes(100, 640, 480)
    bins = histogram(
        boxes, numpy.full((100, 2), (640.0, 480.0)), matching_of(architectures.find(name))
    )
    assert sum(each.boxes for each in bins) == 100
    assert {each.unmatched for each in bins} == {None}


def test_the_histogram_counts_every_box_once() -> None:
    boxes = numpy.array([[0, 0, 4, 4], [0, 0, 8, 8], [0, 0, 100, 100], [0, 0, 2000, 2000.0]])
    bins = histogram(boxes, numpy.full((4, 2), 2000.0), None)
    assert [(each.low, each.high, each.boxes) for each in bins if each.boxes] == [
        (0, 8, 1),
        (8, 16, 1),
        (64, 128, 1),
        (512, float("inf"), 1),
    ]
    assert histogram(boxes[:0], numpy.zeros((0, 2)), None) == ()
