"""The variables of google/automl's EfficientDet, as TensorFlow 1 names them and lays them out."""

from __future__ import annotations

import re

from ckptool.architectures.spec import Architecture
from ckptool.dialects.efficientdet import (
    FAMILIES,
    every,
    expanding,
    levels,
    nodes,
    plain,
    resampled,
    weighs_edges,
)
from ckptool.dialects.spec import Aside, Dialect, Permuted
from ckptool.rules import Rule


def _backbone(architecture: Architecture) -> dict[str, str]:
    """`tf_efficientnet_b0` is called `efficientnet-b0`."""
    name = re.sub(r"(?:tf_)?efficientnet_", "efficientnet-", str(architecture.card["backbone"]))
    return {name: "backbone"}


def _combined(architecture: Architecture) -> dict[str, str]:
    """The nodes of a cell with the operation behind them, which is numbered by its result."""
    count = len(levels(architecture))
    numbers = nodes(architecture).values()
    return {f"fnode{n}/op_after_combine{int(n) + count}": n for n in numbers}


def _weighing(architecture: Architecture) -> dict[str, str]:
    numbers = nodes(architecture).values() if weighs_edges(architecture) else ()
    return {f"fnode{number}": number for number in numbers}


DIALECTS = (
    Dialect(
        "automl-tf",
        FAMILIES,
        ("tf_efficientdet_*",),
        marks=("class_net/class-predict/pointwise_kernel", "box_net/box-predict/bias"),
        rules=(
            Rule("{backbone}/stem/conv2d/kernel", "{backbone}.conv_stem.weight"),
            Rule("{backbone}/stem/tpu_batch_normalization/{norm}", "{backbone}.bn1.{norm}"),
            Rule("{backbone}/blocks_{plain}/{first}", "{backbone}.blocks.{plain}.{first}"),
            Rule(
                "{backbone}/blocks_{plain}/{firstnorm}/{norm}",
                "{backbone}.blocks.{plain}.{firstnorm}.{norm}",
            ),
            Rule("{backbone}/blocks_{block}/{layer}", "{backbone}.blocks.{block}.{layer}"),
            Rule(
                "{backbone}/blocks_{block}/{layernorm}/{norm}",
                "{backbone}.blocks.{block}.{layernorm}.{norm}",
            ),
            Rule("{backbone}/blocks_{every}/{squeeze}", "{backbone}.blocks.{every}.{squeeze}"),
            Rule("{resampled}/conv2d/{dense}", "fpn.{resampled}.conv.conv.{dense}"),
            Rule("{resampled}/bn/{norm}", "fpn.{resampled}.conv.bn.{norm}"),
            Rule(
                "fpn_cells/cell_{cell}/{weighing}/{edge}",
                "fpn.cell.{cell}.fnode.{weighing}.combine.{edge}",
            ),
            Rule(
                "fpn_cells/cell_{cell}/{combined}/conv/{part}",
                "fpn.cell.{cell}.fnode.{combined}.after_combine.conv.{part}",
            ),
            Rule(
                "fpn_cells/cell_{cell}/{combined}/bn/{norm}",
                "fpn.cell.{cell}.fnode.{combined}.after_combine.conv.bn.{norm}",
            ),
            Rule("{net}-predict/{part}", "{net}.predict.{part}"),
            Rule("{net}-{rep}/{part}", "{net}.conv_rep.{rep}.{part}"),
            Rule("{net}-{rep}-bn-{level}/{norm}", "{net}.bn_rep.{rep}.{level}.bn.{norm}"),
        ),
        tables={
            "backbone": _backbone,
            "plain": plain,
            "block": expanding,
            "every": every,
            "first": {
                "depthwise_conv2d/depthwise_kernel": "conv_dw.weight",
                "conv2d/kernel": "conv_pw.weight",
            },
            "firstnorm": {"tpu_batch_normalization": "bn1", "tpu_batch_normalization_1": "bn2"},
            "layer": {
                "conv2d/kernel": "conv_pw.weight",
                "depthwise_conv2d/depthwise_kernel": "conv_dw.weight",
                "conv2d_1/kernel": "conv_pwl.weight",
            },
            "layernorm": {
                "tpu_batch_normalization": "bn1",
                "tpu_batch_normalization_1": "bn2",
                "tpu_batch_normalization_2": "bn3",
            },
            "squeeze": {
                "se/conv2d/kernel": "se.conv_reduce.weight",
                "se/conv2d/bias": "se.conv_reduce.bias",
                "se/conv2d_1/kernel": "se.conv_expand.weight",
                "se/conv2d_1/bias": "se.conv_expand.bias",
            },
            "norm": {
                "gamma": "weight",
                "beta": "bias",
                "moving_mean": "running_mean",
                "moving_variance": "running_var",
            },
            "dense": {"kernel": "weight", "bias": "bias"},
            "resampled": resampled(
                "resample_p6",
                *(
                    f"fpn_cells/cell_0/fnode{{node}}/resample_0_{level}_{{input}}"
                    for level in (2, 1, 0, 1, 2)
                ),
            ),
            "weighing": _weighing,
            "edge": {
                "WSM": "edge_weights[0]",
                "WSM_1": "edge_weights[1]",
                "WSM_2": "edge_weights[2]",
            },
            "combined": _combined,
            "part": {
                "depthwise_kernel": "conv_dw.weight",
                "pointwise_kernel": "conv_pw.weight",
                "bias": "conv_pw.bias",
            },
            "net": {"box_net/box": "box_net", "class_net/class": "class_net"},
            "level": levels,
        },
        moves=(
            # [height, width, channel, multiplier] and [height, width, in, out]
            ("*/depthwise_kernel", Permuted((2, 3, 0, 1))),
            ("*/pointwise_kernel", Permuted((3, 2, 0, 1))),
            ("*/conv2d*/kernel", Permuted((3, 2, 0, 1))),
        ),
        drops=(
            Aside("global_step", "the number of training steps"),
            Aside("*/Momentum", "the optimizer's"),
        ),
        lacks=(Aside("*.num_batches_tracked", "TensorFlow keeps no such counter"),),
        notes=(
            "automl gives its anchors the aspects 1.414 and 0.707, effdet 1.4 and 0.7: their sides "
            "differ by 1%",
        ),
        aliases=("automl", "tf"),
        source="google/automl `efficientdet/efficientdet_arch.py`, `backbone/`; its TF1 graph was "
        "run with tensorflow-cpu 2.15.1 beside effdet 0.4.1 (7e-7 to 3e-6 of the largest output)",
    ),
)
