"""The heads of torchvision's detectors: axes, row layouts and initialisation, against its code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckptool import architectures
from ckptool.architectures import frozen
from ckptool.architectures.live import quiet
from ckptool.architectures.spec import RowLayout
from ckptool.errors import ArchitectureError
from ckptool.tensors import TensorSpec

with quiet():
    from torchvision.models import detection, get_model

NAMES = tuple(name for name, entry in frozen.index().items() if entry["family"] == "torchvision")
# One of each kind of head, the smallest backbone that has it.
KINDS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
ROWS = {  # groups and rows per class, in the order of the state dict
    "fasterrcnn_mobilenet_v3_large_320_fpn": [(1, 1)] * 2 + [(1, 4)] * 2,
    "maskrcnn_resnet50_fpn": [(1, 1)] * 2 + [(1, 4)] * 2 + [(1, 1)] * 2,
    "retinanet_resnet50_fpn": [(9, 1)] * 2,
    "fcos_resnet50_fpn": [(1, 1)] * 2,
    "ssd300_vgg16": [(a, 1) for a in (4, 6, 6, 6, 4, 4) for _ in range(2)],
    "ssdlite320_mobilenet_v3_large": [(6, 1)] * 12,
}


@pytest.mark.parametrize("name", NAMES)
def test_manifest_at_any_class_count_is_what_torchvision_builds(name: str) -> None:
    found = architectures.find(name)
    for classes in (1, 2, 21, 200):
        with torch.device("meta"):
            model = get_model(
                name.removeprefix("torchvision:"),
                weights=None,
                weights_backbone=None,
                num_classes=classes,
            )
        real = {
            key: TensorSpec(str(tensor.dtype)[6:], tuple(tensor.shape))
            for key, tensor in model.state_dict().items()
        }
        assert list(found.manifest(classes).items()) == list(real.items())


@pytest.mark.parametrize("name", KINDS)
def test_every_class_row_has_a_layout_with_the_background_first(name: str) -> None:
    found = architectures.find(f"torchvision:{name}")

    layouts = list(found.layouts.values())
    assert list(found.layouts) == list(found.axes)
    assert [(layout.groups, layout.per_class) for layout in layouts] == ROWS[name]
    for layout, axis in zip(layouts, found.axes.values(), strict=True):
        assert (layout.background, layout.counted, layout.kept) == ("first", True, 0)
        assert (axis.scale, axis.offset) == (layout.groups * layout.per_class, 0)


@pytest.mark.parametrize("name", KINDS)
def test_new_rows_start_as_torchvision_starts_them(name: str) -> None:
    """At a class count that is not the default, since two of the distributions depend on it."""
    torch.manual_seed(3)
    found = architectures.find(f"torchvision:{name}")
    model = architectures.build(f"torchvision:{name}", 301)
    for key, layout in found.layouts.items():
        values = model.state_dict()[key].double()
        kind, numbers = layout.init_for(tuple(values.shape))
        if kind in ("zeros", "constant"):
            wanted = numbers[0] if numbers else 0.0
            assert set(values.flatten().tolist()) == {torch.tensor(wanted).item()}
            continue
        moment = {"normal": 3.0, "uniform": 1.8}[kind]
        spread = numbers[0] / 3**0.5 if kind == "uniform" else numbers[0]
        loose = 6 / values.numel() ** 0.5
        assert values.std().item() == pytest.approx(spread, rel=loose)
        assert (values / spread).pow(4).mean().item() == pytest.approx(moment, rel=4 * loose)
        if kind == "uniform":
            assert numbers[0] * (1 - loose) < values.abs().max().item() <= numbers[0]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(lambda: detection.retinanet.RetinaNetClassificationHead(8, 9, 5), id="retina"),
        pytest.param(lambda: detection.fcos.FCOSClassificationHead(32, 2, 5), id="fcos"),
        pytest.param(lambda: detection.ssd.SSDClassificationHead([8], [4], 5), id="ssd"),
    ],
)
def test_rows_of_one_stage_heads_are_anchor_major(head: Any) -> None:
    """The bias holds the number of its row; the head's own reshaping gives (anchor, class)."""
    made = head()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.zero_()
            if parameter.shape[0] % 5 == 0 and key.endswith("bias"):
                parameter.copy_(torch.arange(len(parameter)))
    channels = next(iter(made.parameters())).shape[1]

    out = made([torch.zeros(1, channels, 1, 2)])

    anchors = out.shape[1] // 2
    rows = torch.arange(anchors * 5, dtype=torch.float32).view(anchors, 5)
    assert torch.equal(out[0, :anchors], rows)
    assert torch.equal(out[0, anchors:], rows)


def test_box_rows_are_class_major_and_row_0_is_the_background() -> None:
    """torchvision's own decoding of a predictor whose rows say which row they are."""
    model = architectures.build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", 4).eval()
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0]))
        # Class 3 alone moves its box, by a whole width: dx is divided by the coder's weight 10.
        predictor.bbox_pred.bias.view(4, 4)[3, 0] = 10.0
        scores, boxes = predictor(torch.zeros(1, 1024))
        proposal = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
        found, _, labels = model.roi_heads.postprocess_detections(
            scores, boxes, [proposal], [(100, 100)]
        )

    assert labels[0].tolist() == [3]
    assert found[0].tolist() == [[30.0, 10.0, 50.0, 30.0]]


def test_card_says_what_the_transform_does() -> None:
    ssd = architectures.find("torchvision:ssd300_vgg16").card
    small, large = (
        architectures.find(f"torchvision:fasterrcnn_mobilenet_v3_large_{size}fpn")
        for size in ("320_", "")
    )

    assert (ssd["image_size"], ssd["mean"]) == ([300, 300], [0.48235, 0.45882, 0.40784])
    assert architectures.lookalikes(small) == (large.name,)
    assert {key for key in small.card if small.card[key] != large.card[key]} == {
        "min_size",
        "max_size",
    }


def test_a_classifier_is_measured_live() -> None:
    found = architectures.find("torchvision:resnet18")

    assert found.num_classes == 1000
    assert found.parameters == 11_689_512
    assert found.layouts == {
        key: RowLayout(init=("uniform", (512**-0.5,))) for key in ("fc.weight", "fc.bias")
    }


def test_an_unknown_model_comes_with_the_closest() -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find("torchvision:fasterrcnn_resnet51_fpn")

    assert caught.value.message == (
        "no architecture is called `torchvision:fasterrcnn_resnet51_fpn`"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("the closest are `torchvision:fasterrcnn_resnet50_fpn`, ")
