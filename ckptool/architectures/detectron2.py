"""The heads of Detectron2's models, told of a user's own callable; nothing of it is imported.

Class counts are of foreground classes; the background is the last row of the scores, and has
neither a box nor a mask.

Source: facebookresearch/detectron2 at 05bea69 (`modeling/roi_heads/fast_rcnn.py`, `mask_head.py`,
`modeling/meta_arch/retinanet.py`: layout, initialisation).
"""

from __future__ import annotations

import math

from ckptool.architectures.live import Facts, Known, Module
from ckptool.architectures.spec import RowLayout

_PRIOR = -math.log((1 - 0.01) / 0.01)
_ZERO: tuple[str, tuple[float, ...]] = ("constant", (0.0,))


def _box(head: Module) -> Known:
    """R-CNN: a score for each class and the background, four box rows for each class."""
    box_rows = len(head.box2box_transform.weights)
    return Known(
        {
            "cls_score.weight": RowLayout(background="last", init=("normal", (0.01,))),
            "cls_score.bias": RowLayout(background="last", init=_ZERO),
            "bbox_pred.weight": RowLayout(per_class=box_rows, init=("normal", (0.001,))),
            "bbox_pred.bias": RowLayout(per_class=box_rows, init=_ZERO),
        }
    )


def _mask(head: Module) -> Known:
    """Mask R-CNN: one mask for each class."""
    return Known(
        {
            "predictor.weight": RowLayout(init=("normal", (0.001,))),
            "predictor.bias": RowLayout(init=_ZERO),
        }
    )


def _retinanet(head: Module) -> Known:
    """RetinaNet: one row for each anchor and class, anchor-major."""
    anchors = head.bbox_pred.out_channels // 4
    return Known(
        {
            "cls_score.weight": RowLayout(groups=anchors, init=("normal", (0.01,))),
            "cls_score.bias": RowLayout(groups=anchors, init=("constant", (_PRIOR,))),
        }
    )


FACTS: Facts = {
    "detectron2.modeling.roi_heads.fast_rcnn.FastRCNNOutputLayers": _box,
    "detectron2.modeling.roi_heads.mask_head.MaskRCNNConvUpsampleHead": _mask,
    "detectron2.modeling.meta_arch.retinanet.RetinaNetHead": _retinanet,
}
