"""timm's cspdarknet53, which is the backbone of yolov4 and nothing else."""

from __future__ import annotations

from dataclasses import replace

from ckptool.dialects.spec import Aside, Dialect, Reversed
from ckptool.dialects.yolo import FAMILIES, rules, tables

# The two convolutions that open a stage, bypass and main, are one; `@` is a dot, or an underscore.
_BACKBONE = """
    stem@conv1
    stages@0.{conv_down,conv_exp[{0,1}/2],blocks.0.conv{1,2},conv_transition_b,conv_transition}
    stages@1.{conv_down,conv_exp[{0,1}/2],blocks.{0,1}.conv{1,2},conv_transition_b,conv_transition}
    stages@{2,3}.{conv_down,conv_exp[{0,1}/2],blocks.{0..7}.conv{1,2},conv_transition_b,conv_transition}
    stages@4.{conv_down,conv_exp[{0,1}/2],blocks.{0..3}.conv{1,2},conv_transition_b,conv_transition}
"""
_CLASSIFIER = Dialect(
    "timm",
    FAMILIES,
    ("yolov4",),
    marks=("stem.conv1.conv.weight", "stages.0.conv_exp.conv.weight"),
    rules=rules("{conv}.conv", "{norm}.bn"),
    tables=tables(_BACKBONE.replace("@", ".")),
    moves=(("stages?[0-4].conv_transition.conv.weight", Reversed(1, 2)),),
    drops=(Aside("head.fc.*", "the classifier"),),
    part="backbone",
    notes=(
        "timm's cspdarknet53 has LeakyReLU with the slope 0.01, darknet Mish: features differ by "
        "0.6 of the largest, measured with random weights, and by 1.6e-6 with that exchanged",
    ),
    aliases=("timm-cspdarknet53", "cspdarknet53"),
    source="timm 1.0.31 `models/cspnet.py`, run beside ckptool's own network",
)

DIALECTS = (
    _CLASSIFIER,
    replace(
        _CLASSIFIER,
        name="timm-features",
        marks=("stem_conv1.conv.weight", "stages_0.conv_exp.conv.weight"),
        tables=tables(_BACKBONE.replace("@", "_")),
        drops=(),
        aliases=("timm-cspdarknet53-features",),
    ),
)
