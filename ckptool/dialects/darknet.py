"""Darknet's layer index in the keys: Tianxiaomo's `Darknet`, which is the canonical spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptool.architectures.spec import Architecture
from ckptool.dialects.spec import Dialect
from ckptool.dialects.yolo import FAMILIES, convolutions, find, rules, same_network, tables
from ckptool.rules import Rule

if TYPE_CHECKING:
    from ckptool.architectures.darknet_layers import Network

# Pairs of cfgs of one graph: the output convolutions stand between the others, or all at the end.
TWINS = (
    ("yolov4-csp", "yolov4-csp-swish"),
    ("yolov4x-mish", "yolov4-csp-x-mish"),
)
TWINNED = tuple(name for pair in TWINS for name in pair)


def layer_indices(architecture: Architecture) -> tuple[str, ...]:
    """The layer index of each convolution."""
    return tuple(map(str, convolutions(architecture)))


def twin_indices(architecture: Architecture) -> tuple[str, ...]:
    """The layer index that each convolution has in the other cfg of the same graph."""
    name = same_network(architecture)
    pair = next(pair for pair in TWINS if name in pair)
    there = _by_part(find(pair[pair.index(name) ^ 1]))
    here = _by_part(find(architecture.name))
    partner = {
        index: str(other)
        for own, theirs in zip(here, there, strict=True)
        for index, other in zip(own, theirs, strict=True)
    }
    return tuple(partner[index] for index in convolutions(architecture))


def _by_part(network: Network) -> tuple[list[int], list[int]]:
    """The layer indices of the convolutions, then those of the two that end in each head."""
    inner: list[int] = []
    outer: list[int] = []
    for index, layer in enumerate(network.layers):
        if layer.kind == "convolutional":
            ends = network.head_after(index) or network.head_after(index + 1)
            (outer if ends else inner).append(index)
    return inner, outer


def _numbered(architecture: Architecture) -> tuple[str, ...]:
    """The twin's layer index and number of the convolution, `4.conv3`."""
    return _with_numbers(architecture, "conv")


def _numbered_norms(architecture: Architecture) -> tuple[str, ...]:
    return _with_numbers(architecture, "bn")


def _with_numbers(architecture: Architecture, letter: str) -> tuple[str, ...]:
    indices = twin_indices(architecture)
    numbers = {index: number for number, index in enumerate(sorted(indices, key=int), 1)}
    return tuple(f"{index}.{letter}{numbers[index]}" for index in indices)


_SOURCE = (
    "Tianxiaomo/pytorch-YOLOv4 `tool/darknet2pytorch.py`, run beside ckptool's own network; layer "
    "order: AlexeyAB/darknet `cfg/`"
)

DIALECTS = (
    Dialect(
        "darknet",
        FAMILIES,
        ("*",),
        marks=("models.0.conv1.weight", "models.0.bn1.weight"),
        rules=(Rule("models.{*}", "models.{*}"),),
        aliases=("tianxiaomo-darknet",),
        source=_SOURCE,
    ),
    Dialect(
        "darknet-reordered",
        FAMILIES,
        TWINNED,
        marks=("models.0.conv1.weight", "models.0.bn1.weight"),
        rules=rules("models.{conv}", "models.{norm}"),
        tables=tables(_numbered, _numbered_norms),
        source=_SOURCE,
    ),
)
