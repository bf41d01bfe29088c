"""argusswift's YOLOv4-pytorch, with `MODEL_TYPE` YOLOv4: the keys of its other models differ."""

from __future__ import annotations

from ckptool.dialects.bubbliiiing import BACKBONE
from ckptool.dialects.spec import Dialect, Reversed
from ckptool.dialects.yolo import FAMILIES, tables
from ckptool.rules import Rule, expanded

_ROOT = "_Build_Model__yolov4."
# Python mangles the attributes of the backbone's convolutions, not those of the neck's.
_MANGLED = {"conv": "._Convolutional__conv", "norm": "._Convolutional__norm"}
_PLAIN = {"conv": ".conv.0", "norm": ".conv.1"}
_NECK = """
    spp.head_conv.{0..2} panet.downstream_conv5.{0..2}
    panet.{resample5_4.upsample.0,feature_transform4,downstream_conv4.{0..4}}
    panet.{resample4_3.upsample.0,feature_transform3,downstream_conv3.{0..4}}
    predict_net.predict_conv.0.{0,1}
    panet.{resample3_4.downsample,upstream_conv4.{0..4}} predict_net.predict_conv.1.{0,1}
    panet.{resample4_5.downsample,upstream_conv5.{0..4}} predict_net.predict_conv.2.{0,1}
"""


def _names(kind: str) -> str:
    """The modules of all convolutions; the last of each head is a convolution and nothing else."""
    backbone = [name + _MANGLED[kind] for name in expanded(BACKBONE.replace("@", "stem_conv"))]
    neck = [
        name if name.startswith("predict_net") and name.endswith(".1") else name + _PLAIN[kind]
        for name in expanded(_NECK)
    ]
    return " ".join([*backbone, *neck])


DIALECTS = (
    Dialect(
        "argusswift",
        FAMILIES,
        ("yolov4",),
        marks=(f"{_ROOT}backbone.stem_conv._Convolutional__conv.weight",),
        rules=tuple(
            Rule(f"{_ROOT}{{{hole}}}.{{*}}", f"models.{{{hole}}}.{{*}}")
            for hole in ("conv", "norm", "head")
        ),
        tables=tables(_names("conv"), _names("norm")),
        moves=(
            # It joins the maps of a stage as bypass, main, but for the first stage, and those of
            # the pyramid from the smallest window to the largest: darknet has them the other way.
            (
                f"{_ROOT}backbone.stages.[1-4].concat_conv._Convolutional__conv.weight",
                Reversed(1, 2),
            ),
            (f"{_ROOT}panet.downstream_conv5.0.conv.0.weight", Reversed(1, 4)),
        ),
        notes=(
            "argusswift's neck has LeakyReLU with the slope 0.01, darknet 0.1: outputs then differ "
            "by 0.4 of the largest, measured with random weights; give its layers the slope of the "
            "other side",
            "argusswift's default anchors, YOLOv3's, make boxes 16% to 19% smaller; no file has "
            "anchors",
        ),
        source="argusswift/YOLOv4-pytorch `model/build_model.py`, `model/backbones/CSPDarknet53.py`"
        ", `model/YOLOv4.py`, run beside ckptool's own network",
    ),
)
