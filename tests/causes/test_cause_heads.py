"""What was chosen for the model: the class count, the input channels, the anchors."""

from __future__ import annotations

import pytest
import small_models
import torch
from checkpoints_made import Held, effdet, held, write
from diffs_made import Bench, codes, only
from torch import nn

from ckptool import architectures

D0 = "tf_efficientdet_d0"
SSD = "torchvision:ssdlite320_mobilenet_v3_large"
TINY = "yolov4-tiny"
HEADS = ("class_net.predict.conv_pw.weight", "class_net.predict.conv_pw.bias")
CANNOT = "are wanted): with other aspect ratios or scales its heads cannot be converted"


def built(arch: str, num_classes: int | None = None) -> nn.Module:
    with torch.device("meta"):
        return architectures.build(arch, num_classes)


@pytest.mark.parametrize(
    ("found", "wanted", "summary"),
    [
        (20, None, "the file has 20 classes, the architecture is asked for 90"),
        (90, 1, "the file has 90 classes, the architecture is asked for 1"),
        (1, 90, "the file has 1 class, the architecture is asked for 90"),
    ],
)
def test_another_class_count(bench: Bench, found: int, wanted: int | None, summary: str):
    shown = bench.diff(held(effdet(D0, found)), arch=D0, num_classes=wanted)
    cause = only(shown, "class-count")
    assert cause.summary == (
        f"{summary} (`{HEADS[0]}` has {9 * found} rows, 9·C wants {9 * (wanted or 90)})"
    )
    assert cause.keys == HEADS
    assert cause.fix == f"--num-classes {wanted or 90}"
    assert not cause.exact
    assert shown.fix == f"ckptool convert {bench.path} --arch {D0} {cause.fix}"
    bench.fixes(shown, cause, effdet(D0, wanted or 90))


def test_another_class_count_than_a_checkpoint_has(bench: Bench):
    """The other checkpoint tells which architecture it is of, and so which rows are classes."""
    other = write(held(effdet(D0)), bench.folder / "other.pth")
    found = bench.diff(held(effdet(D0, 20)), like=other)
    cause = only(found, "class-count")
    assert cause.fix == "--num-classes 90"
    assert found.fix == f"ckptool convert {bench.path} --like {other} --num-classes 90"
    bench.solves(found, effdet(D0))


def test_another_class_count_of_a_yolo(bench: Bench):
    found = bench.diff(held(built(TINY, 20)), arch=TINY)
    cause = only(found, "class-count")
    assert cause.summary == (
        "the file has 20 classes, the architecture is asked for 80 (`models.29.conv18.bias` has 75 "
        "rows, 3·C+15 wants 255)"
    )
    assert sorted(cause.keys) == sorted(
        f"models.{layer}.{name}.{part}"
        for layer, name in ((29, "conv18"), (36, "conv21"))
        for part in ("weight", "bias")
    )
    bench.fixes(found, cause, built(TINY))


def test_a_class_count_without_the_background(bench: Bench):
    """torchvision counts the background as a class, which most people do not."""
    found = bench.diff(held(built(SSD, 90)), arch=SSD)
    cause = only(found, "class-count")
    assert cause.summary == (
        "the file has 90 classes, the architecture is asked for 91 "
        "(`head.classification_head.module_list.0.1.weight` has 540 rows, 6·C wants 546), which "
        "may be only the background: the architecture counts it as a class"
    )
    assert len(cause.keys) == 12
    bench.fixes(found, cause, built(SSD))


def test_a_head_whose_rows_stand_in_no_known_order(bench: Bench):
    state = held(small_models.Detector(20))
    found = bench.diff(state, arch="small_models:Detector")
    cause = only(found, "class-count")
    assert cause.summary == (
        "the file has 20 classes, the architecture is asked for 80 (`cls.weight` has 75 rows, "
        "3·C+15 wants 255); in what order the rows of its heads stand is not known, so none can be "
        "kept"
    )
    assert cause.keys == ("cls.weight", "cls.bias")
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused("--arch small_models:Detector --num-classes 80")


@pytest.mark.parametrize(("channels", "words"), [(1, "1 channel"), (4, "4 channels")])
def test_other_input_channels(bench: Bench, channels: int, words: str):
    stem = "backbone.conv_stem.weight"
    state = {**held(effdet(D0)), stem: Held(torch.float32, (32, channels, 3, 3))}
    found = bench.diff(state, arch=D0)
    cause = only(found, "input-channels")
    assert cause.summary == (
        f"the first convolution `{stem}` takes {words} in the file, the architecture is asked for 3"
    )
    assert cause.keys == (stem,)
    assert cause.fix == "--in-chans 3"
    assert not cause.exact
    bench.solves(found, effdet(D0))


@pytest.mark.parametrize("num_classes", [90, 20])
@pytest.mark.parametrize(("ratios", "count"), [((1.0,), 3), ((1.0, 2.0, 0.5, 3.0), 12)])
def test_another_number_of_anchors(
    bench: Bench, ratios: tuple[float, ...], count: int, num_classes: int
):
    """It changes the rows of both heads, those of the classes too."""
    found = bench.diff(held(effdet(D0, num_classes, aspect_ratios=ratios)), arch=D0)
    cause = only(found, "anchor-count")
    assert cause.summary == (
        f"the file has {count} anchors per location, the architecture 9 "
        f"(`box_net.predict.conv_pw.weight` has {4 * count} rows, 36 {CANNOT}"
    )
    assert sorted(cause.keys) == sorted(
        f"{net}.predict.conv_pw.{part}"
        for net in ("class_net", "box_net")
        for part in ("weight", "bias")
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_another_number_of_anchors_of_a_yolo(bench: Bench):
    """Its heads have no boxes of their own: only a whole number of anchors explains the rows."""
    state = {
        key: Held(value.dtype, (2 * 85, *value.shape[1:])) if 255 in value.shape[:1] else value
        for key, value in held(built(TINY)).items()
    }
    found = bench.diff(state, arch=TINY)
    cause = only(found, "anchor-count")
    assert cause.summary == (
        "the file has 2 anchors per location, the architecture 3 (`models.29.conv18.bias` has 170 "
        f"rows, 255 {CANNOT}"
    )
    assert len(cause.keys) == 4
    assert (cause.fix, found.fix) == (None, None)


def test_a_wider_head_has_no_other_anchors(bench: Bench):
    """Four rows more for each channel are not four for each anchor."""
    found = bench.diff(held(effdet(D0, fpn_channels=80)), arch=D0)
    assert codes(found) == ["other-size"]
