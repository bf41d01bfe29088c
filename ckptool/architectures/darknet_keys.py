"""The parameters of a layer table: how a state dict spells them, how a `.weights` file orders them.

A spelling is data: for every convolution the key prefixes of its kernel and of its batch norm.

Source: Tianxiaomo/pytorch-YOLOv4 `tool/darknet2pytorch.py` (`Darknet`) and `models.py` (`Yolov4`);
AlexeyAB/darknet `src/parser.c` (`load_convolutional_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptool.architectures.darknet_layers import Layer
from ckptool.tensors import TensorSpec

_IN_STATE_DICT = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_IN_WEIGHTS = ("bias", "weight", "running_mean", "running_var")
# Tianxiaomo's Yolov4: one stage after another, each with residual blocks in the middle but for the
# first; then neck and head, whose convolutions are numbered through.
_RESIDUALS = {"down2": 2, "down3": 8, "down4": 8, "down5": 4}
_NUMBERED = {"neck": 20, "head": 18}


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The key prefixes of a convolution: `conv` of kernel and bias, `bn` of the batch norm."""

    conv: str
    bn: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A run of floats in a `.weights` file.

    `parameter` is its part in the layer (`conv.weight`, `bn.running_var`), the same in every
    spelling; `key` is its key in a state dict.
    """

    layer: int
    parameter: str
    key: str
    shape: tuple[int, ...]


Spelling = Mapping[int, Prefixes]


def darknet_spelling(layers: Sequence[Layer]) -> Spelling:
    """By layer index and by the number of the convolution, from 1: `models.4.conv3`."""
    found: dict[int, Prefixes] = {}
    for index in _convolutions(layers):
        name, number = f"models.{index}", len(found) + 1
        found[index] = Prefixes(f"{name}.conv{number}", f"{name}.bn{number}")
    return found


def yolov4_spelling(layers: Sequence[Layer]) -> Spelling:
    """By block, for the layers of yolov4.cfg only: `down2.resblock.module_list.0.1.conv.0`."""
    pairs = zip(_convolutions(layers), _yolov4_blocks(), strict=True)
    return {index: Prefixes(f"{block}.conv.0", f"{block}.conv.1") for index, block in pairs}


def manifest(layers: Sequence[Layer], spelling: Spelling) -> dict[str, TensorSpec]:
    """The state dict's keys and specs, in its order."""
    specs = {}
    for index, prefixes in spelling.items():
        layer = layers[index]
        rows = (layer.shape[0],)
        specs[f"{prefixes.conv}.weight"] = TensorSpec("float32", layer.kernel)
        if not layer.normalized:
            specs[f"{prefixes.conv}.bias"] = TensorSpec("float32", rows)
            continue
        for name in _IN_STATE_DICT:
            counter = name == "num_batches_tracked"
            spec = TensorSpec("int64", ()) if counter else TensorSpec("float32", rows)
            specs[f"{prefixes.bn}.{name}"] = spec
    return specs


def slots(layers: Sequence[Layer], spelling: Spelling) -> tuple[Slot, ...]:
    """The parameters in the order of a `.weights` file: each is its shape's float32s, row-major."""
    found = []
    for index, prefixes in spelling.items():
        layer = layers[index]
        rows = (layer.shape[0],)
        if layer.normalized:
            found += [
                Slot(index, f"bn.{name}", f"{prefixes.bn}.{name}", rows) for name in _IN_WEIGHTS
            ]
        else:
            found.append(Slot(index, "conv.bias", f"{prefixes.conv}.bias", rows))
        found.append(Slot(index, "conv.weight", f"{prefixes.conv}.weight", layer.kernel))
    return tuple(found)


def _convolutions(layers: Sequence[Layer]) -> Iterator[int]:
    return (index for index, layer in enumerate(layers) if layer.kind == "convolutional")


def _yolov4_blocks() -> Iterator[str]:
    for number in range(1, 9):
        yield f"down1.conv{number}"
    for stage, depth in _RESIDUALS.items():
        for number in (1, 2, 3):
            yield f"{stage}.conv{number}"
        for block in range(depth):
            yield f"{stage}.resblock.module_list.{block}.0"
            yield f"{stage}.resblock.module_list.{block}.1"
        for number in (4, 5):
            yield f"{stage}.conv{number}"
    for part, count in _NUMBERED.items():
        for number in range(1, count + 1):
            yield f"{part}.conv{number}"
