"""The YOLOv4 family, and any detection network that a darknet cfg describes.

`yolov4` is spelled as Tianxiaomo/pytorch-YOLOv4's `Yolov4`, everything else as its `Darknet`. The
manifest follows from the layer table: torch is only needed to build.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckptool.architectures import yolov4_cfgs
from ckptool.architectures.darknet_cfg import MOST_BYTES, read_sections
from ckptool.architectures.darknet_keys import (
    Slot,
    Spelling,
    darknet_spelling,
    manifest,
    slots,
    yolov4_spelling,
)
from ckptool.architectures.darknet_layers import (
    BOX_AND_OBJECTNESS,
    Layer,
    Network,
    network,
)
from ckptool.architectures.live import require
from ckptool.architectures.spec import Architecture, ClassAxis, RowLayout
from ckptool.errors import ArchitectureError, quoted
from ckptool.files import ByteFile

if TYPE_CHECKING:
    from torch import nn

NAMES = yolov4_cfgs.NAMES
FAMILY = "yolov4"
NEEDS = ("torch",)
PREFIX = "darknet:"


def measure(name: str) -> Architecture:
    """The architecture of a name in `NAMES`, or of `darknet:FILE.cfg`; without torch.

    Raises: ArchitectureError for a bad cfg; CkptError for a file that cannot be read.
    """
    net = find_network(name)
    spelling = _spelling(name, net)
    specs = manifest(net.layers, spelling)
    axes, layouts = {}, {}
    for slot in slots(net.layers, spelling):
        head = net.head_after(slot.layer)
        if head:
            anchors = len(head.anchors)
            axes[slot.key] = ClassAxis(0, anchors, anchors * BOX_AND_OBJECTNESS)
            init = _init(slot.parameter, net.layers[slot.layer])
            layouts[slot.key] = RowLayout(anchors, BOX_AND_OBJECTNESS, init=init)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return Architecture(
        name,
        "darknet" if name.startswith(PREFIX) else FAMILY,
        net.num_classes,
        specs,
        axes,
        layouts,
        parameters=sum(spec.numel for key, spec in specs.items() if not key.endswith(buffers)),
        card=card(net),
        needs=NEEDS,
    )


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """A live module: image (N, 3, height, width) to the raw map of every head; imports torch.

    Raises: ArchitectureError for a bad cfg, a class count that cannot be, or without torch.
    """
    require("torch", name)
    from ckptool.architectures.darknet_net import DarknetNet

    net = _sized(name, num_classes)
    return DarknetNet(net, _spelling(name, net))


def find_slots(name: str, num_classes: int | None = None) -> tuple[Slot, ...]:
    """The parameters in the order of the network's `.weights` file, under this name's keys."""
    net = _sized(name, num_classes)
    return slots(net.layers, _spelling(name, net))


def find_network(name: str) -> Network:
    """The layer table of a name in `NAMES`, or of `darknet:FILE.cfg`.

    Raises: ArchitectureError for a bad cfg; CkptError for a file that cannot be read.
    """
    if not name.startswith(PREFIX):
        return network(yolov4_cfgs.sections(name))
    path = name.removeprefix(PREFIX)
    file = ByteFile(path)
    try:
        return network(read_sections(file.read(0, min(file.size, MOST_BYTES + 1))))
    except ArchitectureError as error:
        raise error.located(quoted(path)) from None


def _sized(name: str, num_classes: int | None) -> Network:
    net = find_network(name)
    if num_classes is None or num_classes == net.num_classes:
        return net
    try:
        return net.with_classes(num_classes)
    except ArchitectureError as error:
        raise error.located(quoted(name)) from None


def _spelling(name: str, net: Network) -> Spelling:
    return yolov4_spelling(net.layers) if name == "yolov4" else darknet_spelling(net.layers)


def _init(parameter: str, layer: Layer) -> tuple[str, tuple[float, ...]]:
    """How torch starts the rows of a new head.

    Source: torch 2.15 `torch/nn/modules/conv.py` and `batchnorm.py` (`reset_parameters`).
    """
    if parameter.startswith("conv."):
        return "uniform", (1 / math.sqrt(math.prod(layer.kernel[1:])),)
    return "constant", (1.0 if parameter in ("bn.weight", "bn.running_var") else 0.0,)


def card(net: Network) -> dict[str, object]:
    """What the weights do not say; one entry per head where the heads may differ.

    Source: AlexeyAB/darknet `src/blas.c` (eps), `src/batchnorm_layer.c` (momentum),
    `src/image.c` (pixels are divided by 255).
    """
    heads = net.heads
    return {
        "image_size": list(net.shape[1:]),
        "mean": [0.0] * net.shape[0],
        "std": [1.0] * net.shape[0],
        "activation": sorted({layer.activation for layer in net.layers} - {"linear"}),
        "bn_eps": 1e-5,
        "bn_momentum": 0.1,
        "strides": [head.stride for head in heads],
        "anchors": [[list(pair) for pair in head.anchors] for head in heads],
        "anchor_masks": [list(head.mask) for head in heads],
        "scale_x_y": [head.scale_x_y for head in heads],
        "new_coords": [head.new_coords for head in heads],
    }
