"""Detectron2: the models of its configs, and the heads of any that is spelled like them.

Class counts are of foreground classes; the background is the last row of the scores, and has
neither a box nor a mask.

The built-in models are frozen as they were measured once: the package is on no index that a test
could install it from. Where it is installed, `measure` and `build` instantiate it.

Source: facebookresearch/detectron2 at 05bea69 (`modeling/roi_heads/fast_rcnn.py`, `mask_head.py`,
`modeling/meta_arch/retinanet.py`: layout, initialisation) and at 02b5c4e (manifests, `configs/`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from ckptool.architectures.live import Facts, Known, Module, measure_model, require, unknown
from ckptool.architectures.spec import Architecture, ClassAxis, RowLayout
from ckptool.tensors import TensorSpec

FAMILY = "detectron2"
PREFIX = "detectron2:"
NEEDS = ("detectron2", "torch")
# The folder of each config in the package's `configs/`.
CONFIGS = {
    "faster_rcnn_R_50_FPN_3x": "COCO-Detection",
    "mask_rcnn_R_50_FPN_3x": "COCO-InstanceSegmentation",
    "retinanet_R_50_FPN_3x": "COCO-Detection",
}
# Of all these configs: pixels are 0 to 255, blue first.
CARD: Mapping[str, object] = {
    "min_size": 800,
    "max_size": 1333,
    "channels": "BGR",
    "mean": [103.53, 116.28, 123.675],
    "std": [1.0, 1.0, 1.0],
}
NAMES = tuple(PREFIX + name for name in CONFIGS)

_SCORES = re.compile(r"((?:.*\.)?)roi_heads\.box_predictor\.(?:\d+\.)?cls_score\.weight")
_DENSE = re.compile(r"((?:.*\.)?)head\.cls_score\.weight")
_MASK = "roi_heads.mask_head."
_BOX_ROWS = 4
_PRIOR = -math.log((1 - 0.01) / 0.01)
_ZERO: tuple[str, tuple[float, ...]] = ("constant", (0.0,))

Layouts = dict[str, RowLayout]


def _scores_and_boxes(box_rows: int) -> Layouts:
    """R-CNN: a score for each class and the background, box rows for each class."""
    return {
        "cls_score.weight": RowLayout(background="last", init=("normal", (0.01,))),
        "cls_score.bias": RowLayout(background="last", init=_ZERO),
        "bbox_pred.weight": RowLayout(per_class=box_rows, init=("normal", (0.001,))),
        "bbox_pred.bias": RowLayout(per_class=box_rows, init=_ZERO),
    }


def _masks() -> Layouts:
    """Mask R-CNN: one mask for each class."""
    return {
        "predictor.weight": RowLayout(init=("normal", (0.001,))),
        "predictor.bias": RowLayout(init=_ZERO),
    }


def _dense_scores(anchors: int) -> Layouts:
    """RetinaNet: one row for each anchor and class, anchor-major."""
    return {
        "cls_score.weight": RowLayout(groups=anchors, init=("normal", (0.01,))),
        "cls_score.bias": RowLayout(groups=anchors, init=("constant", (_PRIOR,))),
    }


def measure(name: str) -> Architecture:
    """The architecture of a config, instantiated.

    Raises: ArchitectureError if detectron2 is not installed or has no such config.
    """
    found = measure_model(
        name, FAMILY, partial(build, name), facts=FACTS, needs=NEEDS, sources=(FAMILY,)
    )
    return replace(found, card={**found.card, **CARD})


def build(name: str, num_classes: int | None = None) -> Module:
    """A live model on the CPU with random weights; nothing is downloaded.

    Raises: ArchitectureError if detectron2 is not installed or has no such config.
    """
    config = name.removeprefix(PREFIX)
    if config not in CONFIGS:
        raise unknown(name, NAMES, "`ckptool archs` lists all")
    model_zoo = require("detectron2.model_zoo", name)
    modeling = require("detectron2.modeling", name)
    options = model_zoo.get_config(f"{CONFIGS[config]}/{config}.yaml")
    options.MODEL.DEVICE = "cpu"
    if num_classes is not None:
        options.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        options.MODEL.RETINANET.NUM_CLASSES = num_classes
    return modeling.build_model(options)


def head_of(specs: Mapping[str, TensorSpec]) -> Architecture | None:
    """The specs as an architecture whose class-dependent tensors their keys tell; None if none.

    So the class count of any of Detectron2's box, mask and RetinaNet heads is known, whatever the
    backbone is. A head of another kind, or one that does not agree with the others, is none.
    """
    layouts = dict(_layouts(specs))
    axes = {key: _axis(layout) for key, layout in layouts.items()}
    counts = {axis.classes(specs[key].shape[0]) for key, axis in axes.items()}
    count = counts.pop() if len(counts) == 1 else None
    if not count:
        return None
    return Architecture(FAMILY, FAMILY, count, specs, axes, layouts, needs=NEEDS)


def _layouts(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, RowLayout]]:
    """The class-dependent keys with their row layouts; a single box or mask is for all classes."""
    for key in specs:
        scores, dense = _SCORES.fullmatch(key), _DENSE.fullmatch(key)
        if scores or dense:
            head = key.removesuffix("cls_score.weight")
            boxes = _rows(specs, f"{head}bbox_pred.weight")
            if dense and boxes >= _BOX_ROWS:
                yield from _named(specs, head, _dense_scores(boxes // _BOX_ROWS))
            elif scores and boxes:
                agnostic = boxes == _BOX_ROWS and _rows(specs, key) != 2
                found = _scores_and_boxes(_BOX_ROWS)
                yield from _named(
                    specs, head, {k: v for k, v in found.items() if "cls" in k or not agnostic}
                )
        if scores and (
            _rows(specs, f"{scores[1]}{_MASK}predictor.weight") > 1 or _rows(specs, key) == 2
        ):
            yield from _named(specs, f"{scores[1]}{_MASK}", _masks())


def _named(
    specs: Mapping[str, TensorSpec], head: str, layouts: Layouts
) -> Iterator[tuple[str, RowLayout]]:
    """The layouts by full key, of those that are there."""
    return ((head + key, each) for key, each in layouts.items() if _rows(specs, head + key))


def _rows(specs: Mapping[str, TensorSpec], key: str) -> int:
    """The first length of a tensor, 0 if there is none."""
    return specs[key].shape[0] if key in specs and specs[key].shape else 0


def _axis(layout: RowLayout) -> ClassAxis:
    each = layout.groups * layout.per_class
    return ClassAxis(0, each, each if layout.background and not layout.counted else 0)


FACTS: Facts = {
    "detectron2.modeling.roi_heads.fast_rcnn.FastRCNNOutputLayers": lambda head: Known(
        _scores_and_boxes(len(head.box2box_transform.weights))
    ),
    "detectron2.modeling.roi_heads.mask_head.MaskRCNNConvUpsampleHead": lambda _: Known(_masks()),
    "detectron2.modeling.meta_arch.retinanet.RetinaNetHead": lambda head: Known(
        _dense_scores(head.bbox_pred.out_channels // _BOX_ROWS)
    ),
}
