"""Tianxiaomo's `Yolov4`, as today's code and its published file call the neck."""

from __future__ import annotations

from dataclasses import replace

from ckptool.architectures.spec import Architecture
from ckptool.dialects.spec import Dialect
from ckptool.dialects.yolo import FAMILIES, layers, rules, tables


def _blocks(architecture: Architecture) -> tuple[str, ...]:
    from ckptool.architectures.darknet_keys import yolov4_spelling

    spelling = yolov4_spelling(layers(architecture))
    return tuple(prefixes.conv.removesuffix(".conv.0") for prefixes in spelling.values())


def _old_blocks(architecture: Architecture) -> tuple[str, ...]:
    return tuple(block.replace("neck.", "neek.", 1) for block in _blocks(architecture))


_YOLOV4 = Dialect(
    "tianxiaomo",
    FAMILIES,
    ("yolov4",),
    marks=("down1.conv1.conv.0.weight", "neck.conv1.conv.0.weight"),
    rules=rules("{conv}.conv.0", "{norm}.conv.1"),
    tables=tables(_blocks),
    notes=(
        "Tianxiaomo's `Yolov4` decodes boxes with scale_x_y 1, darknet with 1.2, 1.1 and 1.05: raw "
        "outputs are equal, the boxes' centres differ by up to 0.8 pixels",
    ),
    aliases=("tianxiaomo-yolov4",),
    source="Tianxiaomo/pytorch-YOLOv4 `models.py`, run beside ckptool's own network",
)

DIALECTS = (
    _YOLOV4,
    replace(
        _YOLOV4,
        name="tianxiaomo-neek",
        marks=("down1.conv1.conv.0.weight", "neek.conv1.conv.0.weight"),
        tables=tables(_old_blocks),
        aliases=("neek",),
        source="Tianxiaomo/pytorch-YOLOv4 `models.py` before 52e1ef2 (2021-06-29)",
    ),
)
