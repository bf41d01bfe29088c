"""The networks that are known by name, against the layer tables of AlexeyAB's own cfg files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from cfgs_made import builtin

from ckptool.architectures import yolov4_cfgs
from ckptool.architectures.darknet_cfg import read_sections
from ckptool.architectures.darknet_keys import darknet_spelling, slots
from ckptool.architectures.darknet_layers import Layer, Network, network

ROWS = Path("fixtures/darknet/layers.txt").read_text().splitlines()
TABLES = {words[0]: words[1:] for words in map(str.split, ROWS)}

# Of the reference: floats in a `.weights` file = fixed + per class · classes.
FLOATS = {
    "yolov4": (63_998_605, 5_385),
    "yolov4_new": (63_998_605, 5_385),
    "yolov4-tiny": (5_878_014, 2_310),
    "yolov4-csp": (52_555_405, 5_385),
    "yolov4-csp-swish": (52_555_405, 5_385),
    "yolov4x-mish": (99_308_717, 6_729),
    "yolov4-csp-x-mish": (99_308_717, 6_729),
    "yolov4-p5": (70_343_068, 7_180),
    "yolov4-p6": (126_814_640, 11_280),
}


def test_every_network_has_a_reference_table() -> None:
    assert sorted(TABLES) == sorted(yolov4_cfgs.NAMES)


@pytest.mark.parametrize("name", yolov4_cfgs.NAMES)
def test_layers_are_those_of_the_cfg_file(name: str) -> None:
    """Every layer: channels, kernel, stride, groups, norm, activation, routes, anchors."""
    side, floats, *words = TABLES[name]
    net = network(yolov4_cfgs.sections(name))
    assert [_word(layer) for layer in net.layers] == words
    assert net.shape == (3, int(side), int(side))
    assert _floats(net) == int(floats)


@pytest.mark.parametrize("name", yolov4_cfgs.NAMES)
def test_a_cfg_text_gives_the_same_layers(name: str) -> None:
    """Written out as text and read again, but for the lines, it is the same network."""
    net = network(yolov4_cfgs.sections(name))
    read = network(read_sections(builtin(name)))
    assert [_word(layer) for layer in read.layers] == [_word(layer) for layer in net.layers]
    assert [(x.inputs, x.shape) for x in read.layers] == [(x.inputs, x.shape) for x in net.layers]


@pytest.mark.parametrize("classes", [1, 20, 80, 200])
@pytest.mark.parametrize("name", FLOATS)
def test_floats_of_a_weights_file_follow_the_class_count(name: str, classes: int) -> None:
    fixed, per_class = FLOATS[name]
    net = network(yolov4_cfgs.sections(name)).with_classes(classes)
    assert _floats(net) == fixed + per_class * classes


def test_strides_follow_from_the_maps() -> None:
    strides = {
        name: [head.stride for head in network(yolov4_cfgs.sections(name)).heads]
        for name in ("yolov4", "yolov4-tiny", "yolov4-tiny-3l", "yolov4-p6")
    }
    assert strides == {
        "yolov4": [8, 16, 32],
        "yolov4-tiny": [32, 16],
        "yolov4-tiny-3l": [32, 16, 8],
        "yolov4-p6": [8, 16, 32, 64],
    }


def test_backbone_ends_where_yolov4_conv_137_ends() -> None:
    """`yolov4.conv.137` holds layers 0 to 136; its published size is 170,038,676 bytes."""
    layers = network(yolov4_cfgs.sections("yolov4")).layers[:137]
    floats = sum(math.prod(slot.shape) for slot in slots(layers, darknet_spelling(layers)))
    assert 20 + 4 * floats == 170_038_676


def _floats(net: Network) -> int:
    return sum(math.prod(slot.shape) for slot in slots(net.layers, darknet_spelling(net.layers)))


def _word(layer: Layer) -> str:
    """A layer as `fixtures/darknet/make.py` spells it."""
    if layer.kind == "convolutional":
        assert layer.padding == layer.size // 2
        numbers = (layer.in_channels, layer.shape[0], layer.size, layer.stride, layer.groups)
        return f"conv:{':'.join(map(str, numbers))}:{int(layer.normalized)}:{layer.activation}"
    if layer.kind == "route":
        part = f":{layer.group_id}/{layer.groups}" if layer.groups > 1 else ""
        return "route:" + ",".join(map(str, layer.inputs)) + part
    if layer.kind == "shortcut":
        return "add:" + ",".join(map(str, layer.inputs[1:]))
    if layer.kind == "maxpool":
        return f"max:{layer.size}:{layer.stride}"
    if layer.kind == "upsample":
        return f"up:{layer.stride}"
    head = layer.head
    assert head is not None
    pairs = ",".join(f"{width:g}x{height:g}" for width, height in head.anchors)
    return f"yolo:{pairs}:{head.classes}:{head.scale_x_y}:{int(head.new_coords)}"
