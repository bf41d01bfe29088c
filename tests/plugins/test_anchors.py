"""effdet's anchor boxes: its very own for every configuration, and only where they are wanted."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from effdet import DetBenchPredict, DetBenchTrain, get_efficientdet_config
from effdet.anchors import Anchors
from effdet.config.model_config import efficientdet_model_param_dict as CONFIGS
from nets import effdet

import ckptool
from ckptool.checkpoint import WeightSet
from ckptool.plugins import apply


def made(config, key="anchors.boxes"):
    """The boxes that the edit makes for a configuration."""
    options = {
        "key": key,
        "image_size": list(config.image_size),
        "levels": [config.min_level, config.max_level],
        "num_scales": config.num_scales,
        "aspect_ratios": [list(r) if hasattr(r, "__iter__") else r for r in config.aspect_ratios],
        "anchor_scale": config.anchor_scale,
    }
    return apply("anchors", options, WeightSet(".", {})).weights.tensors[key]


def test_boxes_are_effdets_own_bit_for_bit(count):
    """Of all 47 configurations, D7's 441,936 boxes among them."""
    seen = set()
    for name in CONFIGS:
        config = get_efficientdet_config(name)
        facts = str([config[key] for key in ("image_size", "min_level", "max_level", "num_scales")])
        facts += str([config.aspect_ratios, config.anchor_scale])
        if facts not in seen:
            assert made(config).torch().equal(Anchors.from_config(config).boxes), name
        seen.add(facts)
    assert len(seen) >= 8
    count("configurations whose anchors are effdet's", len(CONFIGS))


@pytest.mark.parametrize("size", [(256, 384), (640, 128), (511, 513)], ids=str)
def test_images_need_not_be_square(size):
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = size
    assert made(config).torch().equal(Anchors.from_config(config).boxes)


def test_a_bare_file_loads_into_a_bench(tmp_path):
    """`--like` a file of the bench: its anchors are made, and everything is renamed."""
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "bare.pth")
    config = get_efficientdet_config("tf_efficientdet_d0")
    from effdet import EfficientDet

    bench = DetBenchPredict(EfficientDet(config, pretrained_backbone=False))
    torch.save(bench.state_dict(), tmp_path / "bench.pth")
    result = ckptool.convert(
        tmp_path / "bare.pth", tmp_path / "out.pth", like=tmp_path / "bench.pth"
    )
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert state["anchors.boxes"].equal(bench.anchors.boxes)
    bench.load_state_dict(state, strict=True)
    steps = [(step.edit, step.grade) for step in result.plan.steps]
    assert steps == [("rename", "exact"), ("anchors", "exact")]


def test_a_bench_of_one_s_own_is_a_target(tmp_path, monkeypatch):
    """`--arch module:callable`: the size of its images is the callable's."""

    def bench(num_classes: int = 90):
        return DetBenchTrain(effdet("tf_efficientdet_d0", num_classes, size=256))

    module = types.ModuleType("own_bench")
    module.bench = bench
    monkeypatch.setitem(sys.modules, "own_bench", module)
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "bare.pth")
    ckptool.convert(
        tmp_path / "bare.pth", tmp_path / "out.pth", arch="own_bench:bench", num_classes=20
    )
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    target = bench(20)
    assert state["anchors.boxes"].equal(target.anchors.boxes)
    target.load_state_dict(state, strict=True)


def test_a_bench_loses_its_anchors_where_the_model_has_none(tmp_path):
    bench = DetBenchTrain(effdet("tf_efficientdet_d0", 3))
    torch.save(bench.state_dict(), tmp_path / "bench.pth")
    result = ckptool.convert(
        tmp_path / "bench.pth", tmp_path / "out.pth", arch="tf_efficientdet_d0"
    )
    assert result.dropped == ("anchors.boxes",)
    effdet("tf_efficientdet_d0", 3).load_state_dict(
        torch.load(tmp_path / "out.pth", weights_only=True), strict=True
    )


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [0, 512]},
        {"image_size": [1e9, 1e9]},
        {"image_size": "512"},
        {"levels": [7, 3]},
        {"levels": [3, 1e9]},
        {"num_scales": 0},
        {"anchor_scale": "4"},
    ],
    ids=str,
)
def test_options_that_make_no_boxes_are_refused(change):
    options = {
        "key": "anchors.boxes",
        "image_size": [512, 512],
        "levels": [3, 7],
        "num_scales": 3,
        "aspect_ratios": [[1.0, 1.0]],
        "anchor_scale": 4.0,
    }
    with pytest.raises(ckptool.PlanError):
        apply("anchors", {**options, **change}, WeightSet(".", {}))
