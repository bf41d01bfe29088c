"""zylo117's EfficientDet, which bubbliiiing's spells key for key."""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.architectures.spec import Architecture
from ckptool.dialects.efficientdet import (
    EDGES,
    FAMILIES,
    edges,
    every,
    expanding,
    nodes,
    plain,
    resampled,
    weighs_edges,
)
from ckptool.dialects.spec import Aside, Dialect
from ckptool.rules import Rule
from ckptool.tensors import TensorSpec


def _dead(architecture: Architecture) -> Mapping[str, TensorSpec]:
    """The weights that it has, and never reads, where the inputs are added up."""
    if weighs_edges(architecture):
        return {}
    count = architecture.card["fpn_cell_repeats"]
    assert isinstance(count, int)
    return {
        f"bifpn.{cell}.{name}": TensorSpec("float32", (inputs,))
        for cell in range(count)
        for name, (_, inputs) in EDGES.items()
    }


DIALECTS = (
    Dialect(
        "zylo117",
        FAMILIES,
        ("tf_efficientdet_d*",),
        marks=(
            "bifpn.0.conv6_up.depthwise_conv.conv.weight",
            "classifier.header.pointwise_conv.conv.weight",
        ),
        rules=(
            Rule("backbone_net.model._conv_stem.conv.weight", "backbone.conv_stem.weight"),
            Rule("backbone_net.model._bn0.{*}", "backbone.bn1.{*}"),
            Rule(
                "backbone_net.model._blocks.{plain}.{first}.{*}",
                "backbone.blocks.{plain}.{first}.{*}",
            ),
            Rule(
                "backbone_net.model._blocks.{block}.{layer}.{*}",
                "backbone.blocks.{block}.{layer}.{*}",
            ),
            Rule(
                "backbone_net.model._blocks.{every}.{squeeze}.{*}",
                "backbone.blocks.{every}.{squeeze}.{*}",
            ),
            Rule("bifpn.0.{resampled}.{unit}.{*}", "fpn.{resampled}.conv.{unit}.{*}"),
            Rule("bifpn.{cell}.{edge}", "fpn.cell.{cell}.fnode.{edge}.combine.edge_weights"),
            Rule(
                "bifpn.{cell}.conv{node}.{part}.{*}",
                "fpn.cell.{cell}.fnode.{node}.after_combine.conv.{part}.{*}",
            ),
            Rule("{net}.conv_list.{rep}.{part}.{*}", "{net}.conv_rep.{rep}.{part}.{*}"),
            Rule("{net}.bn_list.{level}.{rep}.{*}", "{net}.bn_rep.{rep}.{level}.bn.{*}"),
            Rule("{net}.header.{part}.{*}", "{net}.predict.{part}.{*}"),
        ),
        tables={
            "plain": plain,
            "block": expanding,
            "every": every,
            "first": {
                "_depthwise_conv.conv": "conv_dw",
                "_bn1": "bn1",
                "_project_conv.conv": "conv_pw",
                "_bn2": "bn2",
            },
            "layer": {
                "_expand_conv.conv": "conv_pw",
                "_bn0": "bn1",
                "_depthwise_conv.conv": "conv_dw",
                "_bn1": "bn2",
                "_project_conv.conv": "conv_pwl",
                "_bn2": "bn3",
            },
            "squeeze": {"_se_reduce.conv": "se.conv_reduce", "_se_expand.conv": "se.conv_expand"},
            "resampled": resampled(
                "p5_to_p6",
                "p5_down_channel",
                "p4_down_channel",
                "p3_down_channel",
                "p4_down_channel_2",
                "p5_down_channel_2",
            ),
            "unit": {"0.conv": "conv", "1": "bn"},
            "edge": edges,
            "node": nodes,
            "part": {
                "depthwise_conv.conv": "conv_dw",
                "pointwise_conv.conv": "conv_pw",
                "bn": "bn",
            },
            "net": {"regressor": "box_net", "classifier": "class_net"},
        },
        drops=(Aside("bifpn.*.p?_w?", "dead weights: from D6 on the inputs are added up"),),
        makes=_dead,
        notes=(
            "zylo117 pads its max-pools with zeros, effdet with -inf: class probabilities then "
            "differ by up to 0.004 (D0 to D5) or 0.4 (D6 and larger), measured with random weights",
        ),
        aliases=("bubbliiiing-efficientdet", "bubbliiiing", "zylo"),
        source="zylo117/Yet-Another-EfficientDet-Pytorch `backbone.py`, `efficientdet/model.py`; "
        "bubbliiiing/efficientdet-pytorch; both run beside effdet 0.4.1",
    ),
)
