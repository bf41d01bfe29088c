"""The main job, whole: inspect, diff, convert, and a strict load into the real class."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from effdet import EfficientDet, get_efficientdet_config

import ckptool
from ckptool.cli import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "d0.pth"


def d0(num_classes: int) -> EfficientDet:
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.num_classes, config.image_size = num_classes, (128, 128)
    return EfficientDet(config, pretrained_backbone=False).eval()


def test_the_fixture_is_converted_and_loads_strictly(tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(FIXTURE.read_bytes())
    assert main(["inspect", str(weights), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "state_dict"
    assert main(["diff", str(weights), "--arch", "tf_efficientdet_d0", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [cause["code"] for cause in found["causes"]] == ["wrapper-prefix", "dtype"]
    assert main(["convert", str(weights), "--dtype", "fp32", "--num-classes", "20"]) == 0
    output = tmp_path / "weights.fp32.c20.safetensors"
    model = d0(20)
    assert ckptool.load_into(model, output).plan.steps == ()
    verified = ckptool.verify(output, arch="tf_efficientdet_d0", num_classes=20)
    assert verified.strict_load


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_kept_classes_and_boxes_are_computed_as_before(tmp_path, suffix):
    """The class logits of the 20 kept classes are exactly the old ones at their old places."""
    torch.manual_seed(0)
    before = d0(90)
    weights = tmp_path / "coco.pth"
    torch.save({"state_dict": OrderedDict(before.state_dict())}, weights)
    output = tmp_path / f"voc{suffix}"
    result = ckptool.convert(
        weights, output, arch="tf_efficientdet_d0", num_classes=20, class_map="coco90:voc20"
    )
    assert result.fits_strict
    after = d0(20)
    ckptool.load_into(after, output)
    rows = next(step.options["map"] for step in result.plan.steps if step.edit == "heads")
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        old, new = before(image), after(image)
    for classes, kept in zip(old[0], new[0], strict=True):
        wanted = classes.unflatten(1, (9, 90))[:, :, rows]
        assert torch.equal(kept.unflatten(1, (9, 20)), wanted)
    assert all(torch.equal(a, b) for a, b in zip(old[1], new[1], strict=True))
