"""Detectron2's configs as they are frozen, and how they are built where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import ckptool
from ckptool import architectures
from ckptool.architectures import detectron2, frozen
from ckptool.errors import ArchitectureError
from ckptool.tensors import TensorSpec

FASTER, MASK, RETINA = detectron2.NAMES


def frozen_one(name: str) -> architectures.Architecture:
    found = frozen.find(name)
    assert found is not None
    return found


def resnet_key(key: str) -> str:
    """What Detectron2 calls a tensor of torchvision's ResNet."""
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for number in (1, 2, 3):
        key = key.replace(f".bn{number}.", f".conv{number}.norm.")
    for number in (1, 2, 3, 4):
        key = key.replace(f"layer{number}.", f"res{number + 1}.")
    if not key.startswith("res"):
        key = f"stem.{key.replace('bn1.', 'conv1.norm.')}"
    return f"backbone.bottom_up.{key}"


@pytest.mark.parametrize("name", detectron2.NAMES)
def test_the_backbone_has_the_shapes_of_torchvisions_resnet(name: str) -> None:
    """But for the counters, which FrozenBatchNorm2d has none of, and the classifier."""
    with torch.device("meta"):
        resnet = torchvision.models.resnet50().state_dict()
    wanted = {
        resnet_key(key): TensorSpec("float32", tuple(value.shape))
        for key, value in resnet.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    assert len(wanted) == 265

    specs = frozen_one(name).specs

    assert {
        key: spec
        for key, spec in specs.items()
        if ".bottom_up." in key and "top" not in key.split(".")[2]
    } == wanted


@pytest.mark.parametrize(
    ("name", "classes", "rows"),
    [
        (FASTER, 20, {"cls_score": 21, "bbox_pred": 80}),
        (FASTER, 1, {"cls_score": 2, "bbox_pred": 4}),
        (MASK, 20, {"cls_score": 21, "bbox_pred": 80, "predictor": 20}),
        (RETINA, 20, {"cls_score": 180}),
    ],
)
def test_the_heads_at_another_class_count(name: str, classes: int, rows: dict[str, int]) -> None:
    """As measured: the background only in the scores, nine anchors in RetinaNet."""
    found = frozen_one(name)

    changed = {
        key: spec.shape[0]
        for key, spec in found.manifest(classes).items()
        if spec != found.specs[key]
    }

    assert changed == {
        key: rows[key.split(".")[-2]] for key in found.axes if key.split(".")[-2] in rows
    }
    assert found.num_classes == 80
    backgrounds = {key.split(".")[-2]: y.background for key, y in found.layouts.items()}
    assert backgrounds["cls_score"] == (None if name == RETINA else "last")


@pytest.mark.parametrize("name", detectron2.NAMES)
@pytest.mark.parametrize("classes", [1, 20, 80])
def test_the_heads_are_recognised_by_their_keys_alone(name: str, classes: int) -> None:
    known = frozen_one(name)

    found = detectron2.head_of(known.manifest(classes))

    assert found is not None
    assert found.num_classes == classes
    assert (found.axes, found.layouts) == (known.axes, known.layouts)


@pytest.mark.parametrize(
    "name", ["tf_efficientdet_d0", "yolov4", "torchvision:retinanet_resnet50_fpn"]
)
def test_other_heads_are_none_of_detectron2s(name: str) -> None:
    assert detectron2.head_of(frozen_one(name).specs) is None


def test_input_channels_are_those_of_the_stem(tmp_path: Path) -> None:
    """The neck comes before the backbone in the state dict."""
    state = {
        key: torch.zeros(()).expand(spec.shape) for key, spec in frozen_one(RETINA).specs.items()
    }
    torch.save({"model": state}, tmp_path / "a.pth")

    plan = ckptool.plan(tmp_path / "a.pth", arch=RETINA, in_chans=1)

    assert [step.options["key"] for step in plan.steps] == ["backbone.bottom_up.stem.conv1.weight"]


def test_without_the_package_it_cannot_be_built() -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.build(MASK)
    assert caught.value.message == f"`{MASK}` needs `detectron2`, which is not installed"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("pip install --no-build-isolation 'git+")


class FastRCNNOutputLayers(nn.Module):
    """Stands in for Detectron2's class of that name."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(4, classes + 1)
        self.bbox_pred = nn.Linear(4, 4 * classes)
        self.box2box_transform = SimpleNamespace(weights=(10, 10, 5, 5))


FastRCNNOutputLayers.__module__ = "detectron2.modeling.roi_heads.fast_rcnn"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A package that looks like Detectron2; the configs and devices that it was asked for."""
    asked: list[tuple[str, str]] = []

    def get_config(path: str) -> Any:
        heads = SimpleNamespace(NUM_CLASSES=80)
        retinanet = SimpleNamespace(NUM_CLASSES=80)
        options = SimpleNamespace(DEVICE="cuda", ROI_HEADS=heads, RETINANET=retinanet)
        return SimpleNamespace(MODEL=options, path=path)

    def build_model(options: Any) -> nn.Module:
        asked.append((options.path, options.MODEL.DEVICE))
        assert options.MODEL.ROI_HEADS.NUM_CLASSES == options.MODEL.RETINANET.NUM_CLASSES
        head = FastRCNNOutputLayers(options.MODEL.ROI_HEADS.NUM_CLASSES)
        return nn.ModuleDict({"roi_heads": nn.ModuleDict({"box_predictor": head})})

    for name, contents in {
        "detectron2": {},
        "detectron2.model_zoo": {"get_config": get_config},
        "detectron2.modeling": {"build_model": build_model},
    }.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("ckptool.architectures.live._version", lambda _: "0.6")
    return asked


def test_where_it_is_installed_the_config_is_measured(installed: list[tuple[str, str]]) -> None:
    found = architectures.find(FASTER, live=True)

    assert set(installed) == {("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "cpu")}
    known = frozen_one(FASTER)
    assert found.num_classes == 80
    assert (found.axes, found.layouts) == (known.axes, known.layouts)
    assert found.source == known.source
    assert detectron2.CARD.items() <= found.card.items()


def test_a_mask_rcnn_is_another_config(installed: list[tuple[str, str]]) -> None:
    architectures.build(MASK, 3)

    assert installed == [("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", "cpu")]


def test_no_other_config_is_known(installed: list[tuple[str, str]]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find("detectron2:faster_rcnn_R_101_FPN_3x")
    assert caught.value.message == (
        "no architecture is called `detectron2:faster_rcnn_R_101_FPN_3x`"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"the closest are `{FASTER}`")
