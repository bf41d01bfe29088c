"""What the tables of YOLO's dialects have in common: the convolutions in darknet's order.

The canonical spelling is by layer index and by the number of the convolution, from 1, in darknet's
order: `models.4.conv3.weight`, `models.4.bn3.running_mean`, as Tianxiaomo's `Darknet` has it.

A dialect names the modules of each convolution, in that order. The holes of its rules are `{conv}`
(the convolution, where a norm follows), `{norm}` and `{head}` (a convolution without a norm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.dialects.spec import Table
from ckptool.rules import Rule, expanded

if TYPE_CHECKING:
    from ckptool.architectures.darknet_layers import Layer, Network

FAMILIES = ("yolov4", "darknet")

Names = Callable[[Architecture], Sequence[str]]

_CFG = "darknet:"


def tables(convolutions: str | Names, norms: str | Names | None = None) -> dict[str, Table]:
    """The tables of the three holes, from the names of the convolutions in darknet's order.

    Words have braces as in a shell; they may end before the network does. `norms` are given where
    the norms have names of their own.
    """
    own, theirs = _names(convolutions), _names(norms or convolutions)
    return {
        "conv": lambda architecture: _table(architecture, own, "conv", normalized=True),
        "norm": lambda architecture: _table(architecture, theirs, "bn", normalized=True),
        "head": lambda architecture: _table(architecture, own, "conv", normalized=False),
    }


def rules(conv: str, norm: str, head: str | None = None) -> tuple[Rule, ...]:
    """The rules of a dialect whose keys are `conv`, `norm` and `head` and the parameter's name.

    Each of the three has the hole of its name; without `head` all convolutions are spelled alike.
    """
    own = head or conv.replace("{conv}", "{head}")
    return tuple(
        Rule(f"{pattern}.{{*}}", f"models.{{{hole}}}.{{*}}")
        for hole, pattern in (("conv", conv), ("norm", norm), ("head", own))
    )


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """The layer table of an architecture."""
    return find(architecture.name).layers


def find(name: str) -> Network:
    """The network of a name; a built-in one is only made once."""
    # Only where it is needed: most files are of no such network, and layer tables take a while.
    from ckptool.architectures.yolov4 import find_network

    return find_network(name) if name.startswith(_CFG) else _built_in(name)


def convolutions(architecture: Architecture) -> tuple[int, ...]:
    """The layer indices of the convolutions, in darknet's order."""
    table = enumerate(layers(architecture))
    return tuple(index for index, layer in table if layer.kind == "convolutional")


def same_network(architecture: Architecture) -> str:
    """The built-in network that a cfg describes, whatever its class count.

    The architecture's own name if there is none, or if it is built in itself.
    """
    if not architecture.name.startswith(_CFG):
        return architecture.name
    return _first_like(find(architecture.name), activations=True) or architecture.name


def same_layers(architecture: Architecture) -> str:
    """The first built-in network with the same layers, whatever they are activated by."""
    return _first_like(find(architecture.name), activations=False) or architecture.name


def _names(words: str | Names) -> Names:
    if not isinstance(words, str):
        return words
    names = expanded(words)
    return lambda architecture: names


def _table(
    architecture: Architecture, names: Names, letter: str, *, normalized: bool
) -> dict[str, str]:
    """The names of the convolutions with or without a norm, to `4.conv3` or `4.bn3`."""
    table = layers(architecture)
    numbered = enumerate(zip(convolutions(architecture), names(architecture), strict=False), 1)
    return {
        name: f"{index}.{letter}{number}"
        for number, (index, name) in numbered
        if table[index].normalized is normalized
    }


@cache
def _built_in(name: str) -> Network:
    from ckptool.architectures.yolov4 import find_network

    return find_network(name)


def _first_like(network: Network, *, activations: bool) -> str | None:
    own = _structure(network, activations)
    names = (name for name, entry in frozen.index().items() if entry["family"] in FAMILIES)
    found = (name for name in names if _structure(_built_in(name), activations) == own)
    return next(found, None)


def _structure(network: Network, activations: bool) -> list[object]:
    """What a layer table computes, but for class counts."""
    return [
        (
            *(layer.kind, layer.inputs, layer.size, layer.stride, layer.padding, layer.groups),
            *(layer.group_id, layer.normalized, layer.head and len(layer.head.mask)),
            layer.activation if activations else None,
            None if layer.head or network.head_after(index) else layer.shape[0],
        )
        for index, layer in enumerate(network.layers)
    ]
