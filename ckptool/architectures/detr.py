"""DETR's class head, told of a user's own callable; nothing of DETR is imported.

Class counts are those of `num_classes=`, which DETR sets to the highest class id + 1; the last row
is that of no object.

Source: facebookresearch/detr at 0217b40 (`models/detr.py`).
"""

from __future__ import annotations

from dataclasses import replace

from ckptool.architectures.live import Facts, Known, Module, torch_default


def _detr(model: Module) -> Known:
    layout = replace(torch_default(tuple(model.class_embed.weight.shape)), background="last")
    return Known({"class_embed.weight": layout, "class_embed.bias": layout})


FACTS: Facts = {"models.detr.DETR": _detr}
