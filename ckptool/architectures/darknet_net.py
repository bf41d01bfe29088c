"""A layer table as a torch module that computes what darknet computes.

One module for every network: the table says what is computed, a spelling says what the keys are
called. This module imports torch; import it only where a live model is wanted.

Source: AlexeyAB/darknet: `src/activations.h`, `src/maxpool_layer.c`, `src/blas.c` (`reorg_cpu`,
`shortcut_multilayer_cpu`), `src/reorg_old_layer.c`, `src/yolo_layer.c` (`get_yolo_box`),
`src/region_layer.c` (`get_region_box`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptool.architectures.darknet_keys import Spelling
from ckptool.architectures.darknet_layers import BOX_AND_OBJECTNESS, IMAGE, Head, Layer, Network

BN_EPS = 1e-5


class DarknetNet(nn.Module):  # type: ignore[misc]
    """A darknet network whose state dict is spelled as asked."""

    def __init__(self, network: Network, spelling: Spelling) -> None:
        super().__init__()
        self.network = network
        self.spelling = spelling
        for index, prefixes in spelling.items():
            layer = network.layers[index]
            _attach(self, prefixes.conv, _convolution(layer))
            if layer.normalized:
                _attach(self, prefixes.bn, nn.BatchNorm2d(layer.shape[0], eps=BN_EPS))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps that the detection layers read, in their order.

        Shapes: image (N, channels, height, width), values from 0 to 1 -> one
        (N, anchors · (5 + classes), rows, columns) per head.
        """
        layers = self.network.layers
        readers = {source: index for index, layer in enumerate(layers) for source in layer.inputs}
        maps = {IMAGE: image}
        found = []
        for index, layer in enumerate(layers):
            inputs = [maps[source] for source in layer.inputs]
            if layer.head:
                found.append(inputs[0])
            elif layer.kind == "convolutional":
                maps[index] = self._convolve(index, layer, inputs[0])
            else:
                maps[index] = _COMPUTE[layer.kind](layer, inputs)
            # A map is let go with its last reader: large networks keep hundreds of them otherwise.
            for source in set(layer.inputs):
                if readers[source] == index:
                    del maps[source]
        return tuple(found)

    def _convolve(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        prefixes = self.spelling[index]
        x = self.get_submodule(prefixes.conv)(x)
        if layer.normalized:
            x = self.get_submodule(prefixes.bn)(x)
        return _ACTIVATE[layer.activation](x)


def detections(
    network: Network, maps: Sequence[Tensor], image_size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes and scores from the maps that a network gives, before any threshold or suppression.

    `image_size` is the (height, width) of the image the maps come from, the cfg's if None.

    Shapes: boxes (N, boxes, 4) as left, top, right, bottom; scores (N, boxes, classes).
    Units: pixels of the network's input; scores are objectness · class probability.
    """
    size = image_size or network.shape[1:]
    decoded = [_decoded(head, found, size) for head, found in zip(network.heads, maps, strict=True)]
    boxes, scores = zip(*decoded, strict=True)
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def _decoded(head: Head, found: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    batch, _, rows, columns = found.shape
    anchors = found.new_tensor(head.anchors)
    rows_of = (batch, len(head.anchors), BOX_AND_OBJECTNESS + head.classes, rows, columns)
    # To (batch, anchor, row, column, value).
    x = found.reshape(rows_of).permute(0, 1, 3, 4, 2)
    centre, side, objectness, classes = x.split((2, 2, 1, head.classes), -1)
    if head.new_coords:
        # The convolution before such a head ends in a logistic already.
        side = (2 * side) ** 2
    else:
        centre, objectness = centre.sigmoid(), objectness.sigmoid()
        side = side.exp()
        classes = classes.softmax(-1) if head.softmax else classes.sigmoid()
    centre = centre * head.scale_x_y - (head.scale_x_y - 1) / 2
    y, x_ = torch.meshgrid(
        torch.arange(rows, device=found.device),
        torch.arange(columns, device=found.device),
        indexing="ij",
    )
    cell = found.new_tensor((size[1] / columns, size[0] / rows))
    centre = (centre + torch.stack((x_, y), -1)) * cell
    half = side * anchors[:, None, None] / 2
    boxes = torch.cat((centre - half, centre + half), -1)
    return boxes.flatten(1, 3), (objectness * classes).flatten(1, 3)


def _convolution(layer: Layer) -> nn.Module:
    return nn.Conv2d(
        layer.in_channels,
        layer.shape[0],
        layer.size,
        layer.stride,
        layer.padding,
        groups=layer.groups,
        bias=not layer.normalized,
    )


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, with plain modules on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        children = root._modules
        if parent not in children:
            root.add_module(parent, nn.Module())
        root = children[parent]
    root.add_module(name, module)


def _maxpool(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = functional.pad(inputs[0], _around(layer), value=-torch.inf)
    return functional.max_pool2d(x, layer.size, layer.stride)


def _local_average(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """Means over the cells inside the map only."""
    (x,) = inputs
    inside = functional.pad(torch.ones_like(x[:1, :1]), _around(layer))
    sums = functional.avg_pool2d(functional.pad(x, _around(layer)), layer.size, layer.stride)
    return sums / functional.avg_pool2d(inside, layer.size, layer.stride)


def _around(layer: Layer) -> tuple[int, int, int, int]:
    """Darknet pads an odd cell more behind than in front."""
    front = layer.padding // 2
    return (front, layer.padding - front) * 2


def _route(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.chunk(layer.groups, 1)[layer.group_id] for x in inputs], 1)


def _shortcut(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """The first map, plus the others as far as their channels go."""
    total, *others = inputs
    for other in others:
        missing = total.shape[1] - other.shape[1]
        # A negative pad cuts.
        total = total + functional.pad(other, (0, 0, 0, 0, 0, missing))
    return _ACTIVATE[layer.activation](total)


def _gate(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    return _ACTIVATE[layer.activation](inputs[0] * inputs[1])


def _reorg3d(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """Blocks of stride × stride cells become channels, block-major."""
    (x,) = inputs
    batch, channels, height, width = x.shape
    by = layer.stride
    x = x.reshape(batch, channels, height // by, by, width // by, by)
    x = x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * by**2, height // by, width // by)


def _reorg(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """Darknet's older layer: it reads the map's memory as if it were a wider one."""
    (x,) = inputs
    batch, channels, height, width = x.shape
    by = layer.stride
    wide = x.reshape(batch, channels // by**2, height * by, width * by)
    return _reorg3d(layer, [wide]).reshape(batch, channels * by**2, height // by, width // by)


_ACTIVATE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "leaky": lambda x: functional.leaky_relu(x, 0.1),
    "mish": functional.mish,
    "swish": functional.silu,
    "logistic": torch.sigmoid,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "tanh": torch.tanh,
    "elu": functional.elu,
}

_COMPUTE: Mapping[str, Callable[[Layer, Sequence[Tensor]], Tensor]] = {
    "maxpool": _maxpool,
    "local_avgpool": _local_average,
    "avgpool": lambda layer, inputs: inputs[0].mean((2, 3), keepdim=True),
    "upsample": lambda layer, inputs: functional.interpolate(
        inputs[0], scale_factor=layer.stride, mode="nearest"
    ),
    "reorg": _reorg,
    "reorg3d": _reorg3d,
    "dropout": lambda layer, inputs: inputs[0],
    "route": _route,
    "shortcut": _shortcut,
    "sam": _gate,
    "scale_channels": _gate,
}
