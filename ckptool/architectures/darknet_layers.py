"""A darknet network as a layer table, with every shape known.

Options that only matter in training are passed over; options that change what a layer computes and
are not known here are refused.

Source: AlexeyAB/darknet `src/parser.c` and the layers' `make_*` functions (defaults, output sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckptool.architectures.darknet_cfg import Section, invalid
from ckptool.errors import ArchitectureError, quoted

Shape = tuple[int, int, int]

ACTIVATIONS = ("linear", "leaky", "mish", "swish", "logistic", "relu", "relu6", "tanh", "elu")
IMAGE = -1
BOX_AND_OBJECTNESS = 5

_MOST_LAYERS = 2_000
_MOST_CHANNELS = 1 << 16
_MOST_PIXELS = 1 << 14
_MOST_WEIGHTS = 1 << 30
_LARGEST = 255


@dataclass(frozen=True, slots=True)
class Head:
    """What a detection layer adds to the map it reads.

    `anchors` are (width, height) in pixels of the network's input, those of `mask` in its order;
    `stride` is how many of these pixels one cell spans.
    """

    kind: str
    classes: int
    mask: tuple[int, ...]
    anchors: tuple[tuple[float, float], ...]
    stride: int
    scale_x_y: float = 1.0
    new_coords: bool = False
    softmax: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: what it reads (indices of layers, `IMAGE` for the image) and what it gives.

    `shape` is (channels, height, width) for an image of the cfg's size. `padding` is per side for
    a convolution, the sum of both sides for a pool.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    in_channels: int
    line: int = 0
    size: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    group_id: int = 0
    activation: str = "linear"
    normalized: bool = False
    head: Head | None = None

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """The shape of a convolution's weight: out, in per group, height, width."""
        return self.shape[0], self.in_channels // self.groups, self.size, self.size


@dataclass(frozen=True, slots=True)
class Network:
    """A layer table; `shape` is the (channels, height, width) of the image, `sections` its cfg."""

    shape: Shape
    layers: tuple[Layer, ...]
    sections: tuple[Section, ...] = field(repr=False)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The detection layers, in order."""
        return tuple(layer.head for layer in self.layers if layer.head)

    def head_after(self, index: int) -> Head | None:
        """The detection layer that reads a layer, if one does."""
        return self.layers[index + 1].head if index + 1 < len(self.layers) else None

    @property
    def num_classes(self) -> int:
        """The class count, the same in every head."""
        return self.heads[0].classes

    def with_classes(self, num_classes: int) -> Network:
        """The same network for another class count: the heads and the convolutions before them.

        Raises: ArchitectureError for a count below 1, or that makes a layer too wide.
        """
        most = _MOST_CHANNELS // max(len(head.mask) for head in self.heads) - BOX_AND_OBJECTNESS
        if not 1 <= num_classes <= most:
            raise ArchitectureError(
                f"found {num_classes:,} classes, wanted 1 to {most:,}", code="architecture.classes"
            )
        sections = list(self.sections)
        for at, layer in enumerate(self.layers):
            if layer.head:
                # `[net]` is section 0, so the section of layer `at` is `at + 1`.
                filters = len(layer.head.mask) * (BOX_AND_OBJECTNESS + num_classes)
                sections[at] = sections[at].with_option("filters", filters)
                sections[at + 1] = sections[at + 1].with_option("classes", num_classes)
        return network(sections)


def network(sections: Sequence[Section]) -> Network:
    """The layer table of sections, `[net]` first.

    Raises: ArchitectureError that names the line and the layer.
    """
    if len(sections) - 1 > _MOST_LAYERS:
        raise invalid(f"{len(sections) - 1:,} layers are too many: at most {_MOST_LAYERS:,}")
    net = sections[0]
    height, width = (net.whole(side, None, 1, _MOST_PIXELS) for side in ("height", "width"))
    image = (net.whole("channels", None, 1, _MOST_CHANNELS), height, width)
    layers: list[Layer] = []
    weights = 0
    for section in sections[1:]:
        layer = _layer(_Place(section, layers, image))
        if layer.kind == "convolutional":
            weights += math.prod(layer.kernel)
        if weights > _MOST_WEIGHTS:
            raise section.refused(f"brings the network to {weights:,} weights: too many")
        layers.append(layer)
    counts = [layer.head.classes for layer in layers if layer.head]
    if not counts:
        raise invalid("found no `[yolo]` or `[region]`: this is not a detection network")
    if len(set(counts)) > 1:
        raise invalid(
            "the detection layers disagree about the class count: "
            + ", ".join(f"{count:,}" for count in counts),
            hint="give each the same `classes=`",
        )
    return Network(image, tuple(layers), tuple(sections))


@dataclass(frozen=True, slots=True)
class _Place:
    """A section that is being read, and what stands before it."""

    section: Section
    done: Sequence[Layer]
    image: Shape

    @property
    def index(self) -> int:
        """The index of the layer that is being made."""
        return self.section.layer

    @property
    def input(self) -> Shape:
        """What the layer before this one gives; the image for the first."""
        return self.shape(self.index - 1)

    def shape(self, layer: int) -> Shape:
        """What a layer before this one gives."""
        if layer == IMAGE:
            return self.image
        # Only the head's own convolution then depends on the class count.
        if any(later.head for later in self.done[layer : layer + 2]):
            raise self.section.refused(f"reads layer {layer:,}, where a detection ends")
        return self.done[layer].shape

    def named(self, option: str) -> tuple[int, ...]:
        """The indices of the layers that an option names; negative ones count back from here."""
        numbers = self.section.wholes(option)
        if not numbers:
            raise self.section.refused(f"has no `{option}`")
        found = tuple(number + self.index if number < 0 else number for number in numbers)
        for number, layer in zip(numbers, found, strict=True):
            if not 0 <= layer < self.index:
                raise self.section.refused(f"reads layer {number:,}: there is none before it")
        return found

    def activation(self, default: str) -> str:
        """The name of the activation."""
        name = self.section.text("activation", default)
        if name not in ACTIVATIONS:
            raise self.section.refused(
                f"has an unknown activation, {quoted(name, 40)}",
                hint="known are " + ", ".join(f"`{known}`" for known in ACTIVATIONS),
            )
        return name

    def layer(self, shape: Shape, **rest: Any) -> Layer:
        """A layer that reads the one before it, unless `inputs` says otherwise."""
        kind, line = self.section.kind, self.section.line
        return replace(Layer(kind, (self.index - 1,), shape, self.input[0], line), **rest)


def _layer(place: _Place) -> Layer:
    section = place.section
    reader = _READERS.get(section.kind)
    if reader is None:
        raise ArchitectureError(
            f"line {section.line:,}: layer {section.layer} is {quoted(f'[{section.kind}]', 40)}, "
            "which ckptool does not know",
            hint="it knows " + ", ".join(f"`{kind}`" for kind in _READERS),
            code="cfg.layer",
        )
    layer = reader(place)
    if min(layer.shape) < 1:
        raise section.refused(f"gives a map of {_map(layer.shape)}")
    if max(layer.shape) > _MOST_CHANNELS:
        raise section.refused(f"gives a map of {_map(layer.shape)}: too large")
    return layer


def _convolutional(place: _Place) -> Layer:
    section = place.section
    section.reject("antialiasing", "binary", "bin_output", "coordconv", "flipped", "rotate")
    section.reject("stretch", "stretch_sway", "stride_x", "stride_y", "sway", "xnor")
    filters = section.whole("filters", 1, 1, _MOST_CHANNELS)
    size = section.whole("size", 1, 1, _LARGEST)
    stride = section.whole("stride", 1, 1, _LARGEST)
    groups = section.whole("groups", 1, 1, _MOST_CHANNELS)
    section.whole("dilation", 1, 1, 1 if size > 1 else _LARGEST)
    padding = section.whole("padding", 0, 0, _LARGEST)
    if section.whole("pad", 0, 0, _LARGEST):
        padding = size // 2
    normalized = section.whole("batch_normalize", 0, 0, 2) or section.whole("cbn", 0, 0, 1)
    if "share_index" in section.options:
        raise section.refused("has `share_index`, which ckptool does not support")
    for channels in (place.input[0], filters):
        if channels % groups:
            raise section.refused(f"cannot cut {channels:,} channels into {groups:,} groups")
    return place.layer(
        (filters, *_cut(place.input, 2 * padding, size, stride)),
        size=size,
        stride=stride,
        padding=padding,
        groups=groups,
        activation=place.activation("logistic"),
        normalized=bool(normalized),
    )


def _pool(place: _Place) -> Layer:
    section = place.section
    section.reject("antialiasing", "maxpool_depth", "maxpool_zero_nonmax", "stride_x", "stride_y")
    stride = section.whole("stride", 1, 1, _LARGEST)
    size = section.whole("size", stride, 1, _LARGEST)
    padding = section.whole("padding", size - 1, 0, size - 1)
    shape = (place.input[0], *_cut(place.input, padding, size, stride))
    return place.layer(shape, size=size, stride=stride, padding=padding)


def _upsample(place: _Place) -> Layer:
    if place.section.decimal("scale", 1.0) != 1.0:
        raise place.section.refused("has `scale`, which ckptool does not support")
    stride = place.section.whole("stride", 2, 1, _LARGEST)
    channels, height, width = place.input
    return place.layer((channels, height * stride, width * stride), stride=stride)


def _reorg(place: _Place) -> Layer:
    place.section.reject("reverse")
    stride = place.section.whole("stride", 1, 1, _LARGEST)
    channels, height, width = place.input
    if height % stride or width % stride or channels % stride**2:
        raise place.section.refused(f"cannot cut a map of {_map(place.input)} by {stride}")
    return place.layer((channels * stride**2, height // stride, width // stride), stride=stride)


def _route(place: _Place) -> Layer:
    inputs = place.named("layers")
    groups = place.section.whole("groups", 1, 1, _MOST_CHANNELS)
    group_id = place.section.whole("group_id", 0, 0, groups - 1)
    shapes = [place.shape(index) for index in inputs]
    for shape in shapes:
        if shape[1:] != shapes[0][1:]:
            raise place.section.refused(f"joins maps of {_map(shapes[0])} and {_map(shape)}")
        if shape[0] % groups:
            raise place.section.refused(f"cannot cut {shape[0]:,} channels into {groups:,} groups")
    channels = sum(shape[0] for shape in shapes)
    shape = (channels // groups, *shapes[0][1:])
    return Layer(
        *("route", inputs, shape, channels, place.section.line), groups=groups, group_id=group_id
    )


def _shortcut(place: _Place) -> Layer:
    place.section.reject("weights_type")
    inputs = (place.index - 1, *place.named("from"))
    for shape in map(place.shape, inputs):
        if shape[1:] != place.input[1:]:
            raise place.section.refused(f"adds maps of {_map(place.input)} and {_map(shape)}")
    return place.layer(place.input, inputs=inputs, activation=place.activation("linear"))


def _gate(place: _Place) -> Layer:
    """`sam` and `scale_channels`: the map of another layer, times the map before."""
    other = place.named("from")[0]
    shape = place.shape(other)
    wanted = shape
    if place.section.kind == "scale_channels":
        by_cell = place.section.whole("scale_wh", 0, 0, 1)
        wanted = (1, *shape[1:]) if by_cell else (shape[0], 1, 1)
    if place.input != wanted:
        raise place.section.refused(
            f"multiplies a map of {_map(shape)} by one of {_map(place.input)}, "
            f"wanted {_map(wanted)}"
        )
    inputs = (place.index - 1, other)
    return place.layer(shape, inputs=inputs, activation=place.activation("linear"))


def _yolo(place: _Place) -> Layer:
    section = place.section
    mask = section.wholes("mask") or list(range(section.whole("num", 1, 1, _MOST_CHANNELS)))
    head = Head(
        *("yolo", section.whole("classes", 20, 1, _MOST_CHANNELS), tuple(mask)),
        anchors=_anchors(section, mask, 1),
        stride=max(1, place.image[2] // place.input[2]),
        scale_x_y=section.decimal("scale_x_y", 1.0),
        new_coords=bool(section.whole("new_coords", 0, 0, 1)),
    )
    return _detection(place, head)


def _region(place: _Place) -> Layer:
    """YOLOv2's head, whose anchors are in cells, not in pixels."""
    section = place.section
    section.reject("tree")
    section.whole("coords", 4, 4, 4)
    stride = max(1, place.image[2] // place.input[2])
    mask = range(section.whole("num", 1, 1, _MOST_CHANNELS))
    head = Head(
        *("region", section.whole("classes", 20, 1, _MOST_CHANNELS), tuple(mask)),
        anchors=_anchors(section, mask, stride),
        stride=stride,
        softmax=bool(section.whole("softmax", 0, 0, 1)),
    )
    return _detection(place, head)


def _anchors(section: Section, mask: Sequence[int], unit: int) -> tuple[tuple[float, float], ...]:
    numbers = [unit * number for number in section.decimals("anchors")]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    for number in mask:
        if not 0 <= number < len(pairs):
            raise section.refused(f"wants anchor {number:,}; `anchors` has {len(pairs):,}")
    return tuple(pairs[number] for number in mask)


def _detection(place: _Place, head: Head) -> Layer:
    if place.index < 1 or place.done[place.index - 1].kind != "convolutional":
        raise place.section.refused("does not follow a `[convolutional]`")
    wanted = len(head.mask) * (BOX_AND_OBJECTNESS + head.classes)
    if place.input[0] != wanted:
        raise place.section.refused(
            f"wants {len(head.mask)} · ({BOX_AND_OBJECTNESS} + {head.classes:,}) = {wanted:,} "
            f"channels; layer {place.index - 1} gives {place.input[0]:,}",
            hint=f"set `filters={wanted}` in the `[convolutional]` before it",
        )
    return place.layer(place.input, head=head)


def _cut(shape: Shape, padding: int, size: int, stride: int) -> tuple[int, int]:
    """The sides of a map after a window of `size` went over it; `padding` is of both sides."""
    return (shape[1] + padding - size) // stride + 1, (shape[2] + padding - size) // stride + 1


def _map(shape: Shape) -> str:
    return " × ".join(f"{length:,}" for length in shape)


_READERS: Mapping[str, Callable[[_Place], Layer]] = {
    "convolutional": _convolutional,
    "maxpool": _pool,
    "avgpool": lambda place: place.layer((place.input[0], 1, 1)),
    "local_avgpool": _pool,
    "upsample": _upsample,
    "reorg": _reorg,
    "reorg3d": _reorg,
    "dropout": lambda place: place.layer(place.input),
    "route": _route,
    "shortcut": _shortcut,
    "sam": _gate,
    "scale_channels": _gate,
    "yolo": _yolo,
    "region": _region,
}
