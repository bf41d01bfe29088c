"""The EfficientDet project of mmdet 3."""

from __future__ import annotations

from collections import Counter

from ckptool.architectures.spec import Architecture
from ckptool.dialects.efficientdet import FAMILIES, edges, every, expanding, nodes, plain, resampled
from ckptool.dialects.spec import Dialect
from ckptool.rules import Rule

# effdet's stages to the layers that hold them: those of one stride are one layer.
_LAYERS = {"0": 1, "1": 2, "2": 3, "3": 4, "4": 4, "5": 5, "6": 5}


def _paths(architecture: Architecture) -> dict[str, str]:
    """effdet's stage and block to the layer and the block in it."""
    counts: Counter[int] = Counter()
    paths = {}
    for path in every(architecture).values():
        layer = _LAYERS[path.split(".")[0]]
        paths[path] = f"{layer}.{counts[layer]}"
        counts[layer] += 1
    return paths


def _plain(architecture: Architecture) -> dict[str, str]:
    paths = _paths(architecture)
    return {paths[path]: path for path in plain(architecture).values()}


def _expanding(architecture: Architecture) -> dict[str, str]:
    paths = _paths(architecture)
    return {paths[path]: path for path in expanding(architecture).values()}


def _every(architecture: Architecture) -> dict[str, str]:
    return {own: path for path, own in _paths(architecture).items()}


DIALECTS = (
    Dialect(
        "mmdet",
        FAMILIES,
        ("tf_efficientdet_d[0-5]*",),
        marks=(
            "neck.bifpn.0.conv6_up.depthwise_conv.weight",
            "bbox_head.cls_header.pointwise_conv.weight",
        ),
        rules=(
            Rule("backbone.layers.0.conv.weight", "backbone.conv_stem.weight"),
            Rule("backbone.layers.0.bn.{*}", "backbone.bn1.{*}"),
            Rule("backbone.layers.{plain}.{first}.{*}", "backbone.blocks.{plain}.{first}.{*}"),
            Rule("backbone.layers.{block}.{layer}.{*}", "backbone.blocks.{block}.{layer}.{*}"),
            Rule("backbone.layers.{every}.{squeeze}.{*}", "backbone.blocks.{every}.{squeeze}.{*}"),
            Rule("neck.bifpn.0.{resampled}.{unit}.{*}", "fpn.{resampled}.conv.{unit}.{*}"),
            Rule("neck.bifpn.{cell}.{edge}", "fpn.cell.{cell}.fnode.{edge}.combine.edge_weights"),
            Rule(
                "neck.bifpn.{cell}.conv{node}.{part}.{*}",
                "fpn.cell.{cell}.fnode.{node}.after_combine.conv.{part}.{*}",
            ),
            Rule("bbox_head.{net}_conv_list.{rep}.{part}.{*}", "{net}.conv_rep.{rep}.{part}.{*}"),
            Rule("bbox_head.{net}_bn_list.{rep}.{level}.{*}", "{net}.bn_rep.{rep}.{level}.bn.{*}"),
            Rule("bbox_head.{net}_header.{part}.{*}", "{net}.predict.{part}.{*}"),
        ),
        tables={
            "plain": _plain,
            "block": _expanding,
            "every": _every,
            "first": {
                "depthwise_conv.conv": "conv_dw",
                "depthwise_conv.bn": "bn1",
                "linear_conv.conv": "conv_pw",
                "linear_conv.bn": "bn2",
            },
            "layer": {
                "expand_conv.conv": "conv_pw",
                "expand_conv.bn": "bn1",
                "depthwise_conv.conv": "conv_dw",
                "depthwise_conv.bn": "bn2",
                "linear_conv.conv": "conv_pwl",
                "linear_conv.bn": "bn3",
            },
            "squeeze": {"se.conv1.conv": "se.conv_reduce", "se.conv2.conv": "se.conv_expand"},
            "resampled": resampled(
                "p5_to_p6.0",
                "p5_down_channel",
                "p4_down_channel",
                "p3_down_channel",
                "p4_level_connection",
                "p5_level_connection",
            ),
            "unit": {"down_conv": "conv", "bn": "bn"},
            "edge": edges,
            "node": nodes,
            "part": {"depthwise_conv": "conv_dw", "pointwise_conv": "conv_pw", "bn": "bn"},
            "net": {"reg": "box_net", "cls": "class_net"},
        },
        notes=(
            "mmdet's project pads its max-pools with zeros as zylo117 does, effdet with -inf; its "
            "forward pass was read, not run",
        ),
        aliases=("mmdet-efficientdet",),
        source="open-mmlab/mmdetection 3.3 `projects/EfficientDet` (names read, backbone run)",
    ),
)
