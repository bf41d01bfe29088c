"""The models of torchvision: names, live models without weights, and the heads of its detectors.

Class counts include the background, which is row 0 everywhere: in RetinaNet, FCOS and SSD the row
is there and means nothing.

Source: torchvision 0.29 (`models/detection/*.py`: heads, initialisation; `transform.py`;
`_load_from_state_dict` of these and of `ops/*.py`, `models/vision_transformer.py`: old keys).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ckptool.architectures.live import (
    Facts,
    Known,
    Module,
    measure_model,
    require,
    unknown,
)
from ckptool.architectures.spec import Architecture, RowLayout

FAMILY = "torchvision"
PREFIX = "torchvision:"
NEEDS = ("torchvision", "torch")

_PRIOR = -math.log((1 - 0.01) / 0.01)
_DETECTION = "torchvision.models.detection"
_Init = tuple[str, tuple[float, ...]]


def names() -> tuple[str, ...]:
    """The names of the detectors in the installed torchvision."""
    models = require("torchvision.models", FAMILY)
    return tuple(PREFIX + name for name in models.list_models(module=models.detection))


def measure(name: str) -> Architecture:
    """The architecture of a detector or classifier, instantiated on the meta device.

    Raises: ArchitectureError if torchvision is not installed or has no such model.
    """
    return measure_model(
        name, FAMILY, partial(build, name), facts=FACTS, needs=NEEDS, sources=("torchvision",)
    )


def build(name: str, num_classes: int | None = None) -> Module:
    """A live model with random weights; nothing is downloaded.

    Raises: ArchitectureError if torchvision is not installed or has no such model.
    """
    models = require("torchvision.models", name)
    short = name.removeprefix(PREFIX)
    known = models.list_models()
    if short not in known:
        raise unknown(name, (PREFIX + each for each in known))
    builder = models.get_model_builder(short)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if num_classes is not None:
        options["num_classes"] = num_classes
    return builder(**options)


def _rows(init: _Init, groups: int = 1, per_class: int = 1) -> RowLayout:
    return RowLayout(groups, 0, per_class, background="first", counted=True, init=init)


def _plain(layer: Module) -> _Init:
    """How torch starts a Linear or Conv2d, weight and bias alike, from the incoming fan."""
    return "uniform", (layer.weight[0].numel() ** -0.5,)


def _renamed(names: Mapping[str, str]) -> Known:
    """The old names of convolutions, each with its new one."""
    parts = ("weight", "bias")
    return Known(
        legacy=tuple((f"{old}.{p}", f"{new}.{p}") for old, new in names.items() for p in parts)
    )


def _tower(_: Module) -> Known:
    """RetinaNet's heads: their convolutions stood in a list with the activations between them."""
    return _renamed({f"conv.{2 * number}": f"conv.{number}.0" for number in range(4)})


def _pyramid(module: Module) -> Known:
    lists, count = ("inner_blocks", "layer_blocks"), len(module.inner_blocks)
    return _renamed({f"{name}.{n}": f"{name}.{n}.0" for name in lists for n in range(count)})


def _mask_tower(module: Module) -> Known:
    return _renamed({f"mask_fcn{number + 1}": f"{number}.0" for number in range(len(module))})


def _retinanet(head: Module) -> Known:
    return replace(_focal(head), legacy=_tower(head).legacy)


def _focal(head: Module) -> Known:
    """RetinaNet and FCOS: one row for each anchor and class, anchor-major."""
    return Known(
        {
            "cls_logits.weight": _rows(("normal", (0.01,)), head.num_anchors),
            "cls_logits.bias": _rows(("constant", (_PRIOR,)), head.num_anchors),
        }
    )


def _ssd(head: Module, init: _Init) -> Known:
    """SSD: on each level a convolution whose rows are anchor-major; in SSDlite the last of two."""
    layouts = {}
    for key, tensor in head.named_parameters():
        rows, rest = divmod(tensor.shape[0], head.num_columns)
        if not rest:
            start = ("zeros", ()) if key.endswith("bias") else init
            layouts[key] = _rows(start, rows)
    return Known(layouts)


def _box(head: Module) -> Known:
    """Faster R-CNN: a row for each class, and four box rows for each class, class-major."""
    layouts: dict[str, RowLayout] = {}
    for name, per_class in (("cls_score", 1), ("bbox_pred", 4)):
        layout = _rows(_plain(getattr(head, name)), per_class=per_class)
        layouts |= {f"{name}.weight": layout, f"{name}.bias": layout}
    return Known(layouts)


def _mask(head: Module) -> Known:
    """Mask R-CNN: one mask for each class."""
    bias = _rows(_plain(head.mask_fcn_logits))
    weight = _rows(("kaiming_normal", ()))
    return Known({"mask_fcn_logits.weight": weight, "mask_fcn_logits.bias": bias})


def _transform(transform: Module) -> Known:
    """What is done to an image before the network."""
    fixed = transform.fixed_size
    return Known(
        card={
            "image_size": list(reversed(fixed)) if fixed else None,
            "min_size": list(transform.min_size),
            "max_size": transform.max_size,
            "size_divisible": transform.size_divisible,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
        }
    )


def _anchors(generator: Module) -> Known:
    return Known(
        card={
            "anchor_sizes": [list(sizes) for sizes in generator.sizes],
            "aspect_ratios": [list(ratios) for ratios in generator.aspect_ratios],
        }
    )


def _default_boxes(generator: Module) -> Known:
    return Known(
        card={
            "anchor_scales": list(generator.scales),
            "aspect_ratios": [list(ratios) for ratios in generator.aspect_ratios],
            "anchor_steps": generator.steps,
        }
    )


FACTS: Facts = {
    f"{_DETECTION}.retinanet.RetinaNetClassificationHead": _retinanet,
    f"{_DETECTION}.retinanet.RetinaNetRegressionHead": _tower,
    f"{_DETECTION}.rpn.RPNHead": lambda _: _renamed({"conv": "conv.0.0"}),
    f"{_DETECTION}.mask_rcnn.MaskRCNNHeads": _mask_tower,
    f"{_DETECTION}.fcos.FCOSClassificationHead": _focal,
    f"{_DETECTION}.ssd.SSDClassificationHead": partial(_ssd, init=("xavier_uniform", ())),
    f"{_DETECTION}.ssdlite.SSDLiteClassificationHead": partial(_ssd, init=("normal", (0.03,))),
    f"{_DETECTION}.faster_rcnn.FastRCNNPredictor": _box,
    f"{_DETECTION}.mask_rcnn.MaskRCNNPredictor": _mask,
    "torchvision.ops.feature_pyramid_network.FeaturePyramidNetwork": _pyramid,
    "torchvision.ops.misc.FrozenBatchNorm2d": lambda _: Known(
        legacy=(("num_batches_tracked", None),)
    ),
    "torchvision.models.vision_transformer.MLPBlock": lambda _: _renamed(
        {"linear_1": "0", "linear_2": "3"}
    ),
    f"{_DETECTION}.transform.GeneralizedRCNNTransform": _transform,
    f"{_DETECTION}.anchor_utils.AnchorGenerator": _anchors,
    f"{_DETECTION}.anchor_utils.DefaultBoxGenerator": _default_boxes,
}
