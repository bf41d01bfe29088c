"""The EfficientDet configs of effdet: names, live models, and what no file of theirs stores.

Source: effdet 0.4.1 (`config/model_config.py`, `efficientdet.py`, `data/input_config.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from ckptool.architectures.live import (
    Facts,
    Known,
    Module,
    measure_model,
    numerics,
    padding,
    require,
)
from ckptool.architectures.spec import Architecture, RowLayout

FAMILY = "effdet"
NEEDS = ("effdet", "timm", "torch")

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FPN = "bifpn_fa"
_PRIOR = -math.log((1 - 0.01) / 0.01)


def names() -> tuple[str, ...]:
    """The names of all configs of the installed effdet, in its order."""
    package = require("effdet.config.model_config", FAMILY)
    return tuple(package.efficientdet_model_param_dict)


def measure(name: str) -> Architecture:
    """The architecture of a config, instantiated on the meta device.

    Raises: ArchitectureError if effdet is not installed.
    """
    config = require("effdet", name).get_efficientdet_config(name)
    return measure_model(
        name,
        FAMILY,
        partial(build, name),
        facts=FACTS,
        needs=NEEDS,
        sources=("effdet", "timm"),
        num_classes=config.num_classes,
    )


def build(name: str, num_classes: int | None = None) -> Module:
    """A live model with random weights; nothing is downloaded.

    Raises: ArchitectureError if effdet is not installed.
    """
    effdet = require("effdet", name)
    return effdet.create_model(
        name, num_classes=num_classes, pretrained=False, pretrained_backbone=False
    )


def _model(model: Module) -> Known:
    """What an EfficientDet knows."""
    config = model.config
    predict = model.class_net.predict
    layouts = {
        f"class_net.predict.{key}": _rows(config, key, parameter)
        for key, parameter in predict.named_parameters()
    }
    return Known(layouts=layouts, card=_card(model, config))


def _rows(config: Any, key: str, parameter: Any) -> RowLayout:
    """The rows of the class head, anchor-major without a background, and how they start.

    Source: effdet 0.4.1 `_init_weight` (SeparableConv2d: normal, variance 1 / incoming fan;
    ConvBnAct2d: normal, 0.01; bias: the logit of a prior of 0.01).
    """
    anchors = len(config.aspect_ratios) * config.num_scales
    if key.endswith("bias"):
        return RowLayout(groups=anchors, init=("constant", (_PRIOR,)))
    std = parameter[0].numel() ** -0.5 if config.separable_conv else 0.01
    return RowLayout(groups=anchors, init=("normal", (std,)))


def _card(model: Module, config: Any) -> dict[str, object]:
    """The configuration as JSON values; padding is `same` (TensorFlow's) or `symmetric`."""
    backbone = list(model.backbone.modules())
    rest = _but(model.modules(), backbone)
    own = numerics(rest)
    return {
        "image_size": list(config.image_size),
        "mean": list(config.get("mean", _IMAGENET_MEAN)),
        "std": list(config.get("std", _IMAGENET_STD)),
        "levels": [config.min_level, config.max_level],
        "anchor_scale": config.anchor_scale,
        "aspect_ratios": [_pair(ratio) for ratio in config.aspect_ratios],
        "num_scales": config.num_scales,
        "backbone": config.backbone_name,
        "backbone_padding": padding(backbone),
        **{f"backbone_{name}": value for name, value in numerics(backbone).items()},
        "padding": "same" if config.pad_type == "same" else "symmetric",
        "bn_eps": own["bn_eps"],
        "bn_momentum": own["bn_momentum"],
        "activation": config.act_type,
        "head_activation": config.head_act_type or config.act_type,
        "fpn_name": config.fpn_name or _FPN,
        "fpn_channels": config.fpn_channels,
        "fpn_cell_repeats": config.fpn_cell_repeats,
        "box_class_repeats": config.box_class_repeats,
        "separable_conv": config.separable_conv,
        "redundant_bias": config.redundant_bias,
        "head_bn_level_first": config.head_bn_level_first,
        "resample_bn": config.apply_resample_bn,
        "conv_bn_relu": config.conv_bn_relu_pattern,
        "downsample": config.downsample_type,
        "upsample": config.upsample_type,
    }


def _but(modules: Iterable[Module], others: list[Module]) -> list[Module]:
    known = {id(module) for module in others}
    return [module for module in modules if id(module) not in known]


def _pair(ratio: Any) -> object:
    """A (width, height) pair as a list, a single ratio as it is."""
    return list(ratio) if hasattr(ratio, "__iter__") else ratio


FACTS: Facts = {
    "effdet.efficientdet.EfficientDet": _model,
    # The bench's own buffer: it follows from the image size, the levels and the anchor scale.
    "effdet.anchors.Anchors": lambda module: Known(derived=("boxes",)),
}
