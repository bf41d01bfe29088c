"""The u5 style of ScaledYOLOv4 (branch yolov4-large) and PyTorch_YOLOv4 (u5): `model.4.m.0.cv1`.

Its neck is another network than darknet's: BottleneckCSP2 and SPPCSP have a norm and an activation
on the main half, too. Only the backbone is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptool.architectures.spec import Architecture
from ckptool.dialects.spec import Aside, Dialect
from ckptool.dialects.yolo import FAMILIES, layers, tables
from ckptool.rules import Rule, expanded

if TYPE_CHECKING:
    from ckptool.architectures.darknet_layers import Layer


def _depths(table: tuple[Layer, ...]) -> list[int]:
    """The number of residual blocks behind each convolution with stride 2 of the backbone."""
    depths: list[int] = []
    for layer in table:
        if layer.kind == "convolutional" and layer.stride == 2:
            depths.append(0)
        elif layer.kind == "shortcut":
            depths[-1] += 1
    # The neck goes down again, without residual blocks.
    return [depth for depth in depths if depth]


def _modules(architecture: Architecture) -> tuple[tuple[str, str], ...]:
    """The modules of each convolution and of its norm: two halves of one norm join the branches."""
    table = layers(architecture)
    words = ["model.0 model.1"]
    for stage, depth in enumerate(_depths(table), 1):
        here = f"model.{2 * stage}"
        if stage == 1 and table[3].kind == "convolutional":
            words.append(f"{here}.cv{{1,2}}")  # a residual block that is not cut in two
        else:
            blocks = f"m.{{0..{depth - 1}}}.cv{{1,2}}"
            words.append(f"{here}.{{@cv2,cv1,{blocks},@cv3,cv4}}")
        words.append(f"model.{2 * stage + 1}")
    names = expanded(" ".join(words[:-1]))
    return tuple(_split(name) for name in names)


def _split(name: str) -> tuple[str, str]:
    stage, marked, last = name.partition("@")
    if not marked:
        return f"{name}.conv", f"{name}.bn"
    # The joint norm is over main, then bypass.
    return stage + last, f"{stage}bn[{0 if last == 'cv3' else 1}/2]"


def _convolutions(architecture: Architecture) -> tuple[str, ...]:
    return tuple(conv for conv, _ in _modules(architecture))


def _norms(architecture: Architecture) -> tuple[str, ...]:
    return tuple(norm for _, norm in _modules(architecture))


DIALECTS = (
    Dialect(
        "u5",
        FAMILIES,
        ("yolov4-csp", "yolov4x-mish", "yolov4-p5", "yolov4-p6"),
        marks=("model.0.conv.weight", "model.4.cv3.weight", "model.4.bn.weight"),
        rules=tuple(
            Rule(f"{{{hole}}}.{{*}}", f"models.{{{hole}}}.{{*}}") for hole in ("conv", "norm")
        ),
        tables=tables(_convolutions, _norms),
        drops=(Aside("model.*", "the neck and the heads, which are of another network"),),
        bn_eps=1e-3,
        part="backbone",
        notes=(
            "u5's neck has norms and activations that darknet's has not (outputs differ by 5% to "
            "9% with random weights): only the backbone is the same network",
        ),
        aliases=("scaledyolov4-large", "wongkinyiu-u5"),
        source="WongKinYiu/ScaledYOLOv4 yolov4-large `models/common.py`, `models/yolo.py` (eps "
        "1e-3); the backbone was run beside ckptool's own network",
    ),
)
