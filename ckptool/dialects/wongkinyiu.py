"""WongKinYiu's PyTorch_YOLOv4 and ScaledYOLOv4 (branch yolov4-csp): `module_list`, by layer."""

from __future__ import annotations

from dataclasses import replace

from ckptool.dialects.darknet import TWINNED, layer_indices, twin_indices
from ckptool.dialects.spec import Dialect, Reversed
from ckptool.dialects.yolo import FAMILIES, rules, tables

_HALVES_OUT = Reversed(0, 2)
_ANY_CFG = Dialect(
    "wongkinyiu",
    FAMILIES,
    ("*",),
    marks=("module_list.0.Conv2d.weight", "module_list.0.BatchNorm2d.weight"),
    rules=rules("module_list.{conv}.Conv2d", "module_list.{norm}.BatchNorm2d"),
    tables=tables(layer_indices),
    bn_eps=1e-4,
    when="the cfg is darknet's",
    notes=(
        "PyTorch_YOLOv4 decodes boxes with (2σ-0.5, (2σ)²) whatever the cfg says: raw outputs are "
        "equal, the boxes' centres differ by up to 15.2 pixels unless the cfg says the same "
        "(csp, x)",
    ),
    aliases=("wongkinyiu-darknet", "scaledyolov4-csp", "scaledyolov4"),
    source="WongKinYiu/PyTorch_YOLOv4 master and u3_preview, WongKinYiu/ScaledYOLOv4 yolov4-csp "
    "(`models/models.py`: eps 1e-4), run beside ckptool's own network",
)

DIALECTS = (
    _ANY_CFG,
    replace(
        _ANY_CFG,
        name="wongkinyiu-reordered",
        archs=TWINNED,
        when="the cfg has the layers before the heads at its end",
        tables=tables(twin_indices),
        aliases=(),
    ),
    # Its cfg of yolov4-tiny goes on with the first half of a map (`route_lhalf`), every other one
    # with the second (`group_id=1`): the same keys, a network with the halves swapped.
    replace(
        _ANY_CFG,
        name="wongkinyiu-first-half",
        archs=("yolov4-tiny",),
        when="the cfg has `route_lhalf`, as in PyTorch_YOLOv4",
        moves=(
            ("module_list.2.*", _HALVES_OUT),
            ("module_list.10.*", _HALVES_OUT),
            ("module_list.18.*", _HALVES_OUT),
            ("module_list.10.Conv2d.weight", Reversed(1, 2, within=64)),
            ("module_list.18.Conv2d.weight", Reversed(1, 2, within=128)),
            ("module_list.26.Conv2d.weight", Reversed(1, 2, within=256)),
        ),
        aliases=(),
    ),
)
