"""bubbliiiing's yolov4-pytorch and yolov4-tiny-pytorch.

Its modules are defined in darknet's order, but not run in it.
"""

from __future__ import annotations

from ckptool.dialects.spec import Dialect
from ckptool.dialects.yolo import FAMILIES, rules, tables

# The backbone of both this and argusswift's repository: the residual blocks of a stage, then the
# convolution behind them. `@` is the repository's name for the first convolution.
BACKBONE = """
    backbone.@
    backbone.stages.0.{downsample_conv,split_conv{0,1},blocks_conv.{0.block.{0,1},1},concat_conv}
    backbone.stages.1.{downsample_conv,split_conv{0,1},blocks_conv.{{0..1}.block.{0,1},2},concat_conv}
    backbone.stages.{2,3}.{downsample_conv,split_conv{0,1},blocks_conv.{{0..7}.block.{0,1},8},concat_conv}
    backbone.stages.4.{downsample_conv,split_conv{0,1},blocks_conv.{{0..3}.block.{0,1},4},concat_conv}
"""
_YOLOV4 = """
    conv1.{0..2} conv2.{0..2}
    upsample1.upsample.0 conv_for_P4 make_five_conv1.{0..4}
    upsample2.upsample.0 conv_for_P3 make_five_conv2.{0..4} yolo_head3.{0,1}
    down_sample1 make_five_conv3.{0..4} yolo_head2.{0,1}
    down_sample2 make_five_conv4.{0..4} yolo_head1.{0,1}
"""
_TINY = """
    backbone.{conv{1,2},resblock_body{1..3}.conv{1..4},conv3}
    conv_for_P5 yolo_headP5.{0,1} upsample.upsample.0 yolo_headP4.{0,1}
"""
_RULES = rules("{conv}.conv", "{norm}.bn", "{head}")
_SOURCE = "bubbliiiing/{} `nets/yolo.py`, `nets/CSPdarknet*.py`, run beside ckptool's own network"

DIALECTS = (
    Dialect(
        "bubbliiiing",
        FAMILIES,
        ("yolov4",),
        marks=("backbone.stages.0.downsample_conv.conv.weight", "yolo_head3.1.weight"),
        rules=_RULES,
        tables=tables(BACKBONE.replace("@", "conv1") + _YOLOV4),
        aliases=("bubbliiiing-yolov4",),
        source=_SOURCE.format("yolov4-pytorch"),
    ),
    Dialect(
        "bubbliiiing-tiny",
        FAMILIES,
        ("yolov4-tiny",),
        marks=("backbone.resblock_body1.conv1.conv.weight", "yolo_headP5.1.weight"),
        rules=_RULES,
        tables=tables(_TINY),
        aliases=("bubbliiiing", "bubbliiiing-yolov4-tiny"),
        source=_SOURCE.format("yolov4-tiny-pytorch"),
    ),
)
