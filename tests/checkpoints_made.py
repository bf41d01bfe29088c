"""Checkpoints of real models that cost next to no disk and time.

A state dict is described by what it holds, key to `Held` or to a value that is no tensor. Written,
all tensors of one dtype are views of a single element (`.pth`) or a hole in the file
(`.safetensors`); loaded into the real class, they are on the meta device.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from effdet import EfficientDet, get_efficientdet_config
from torch import nn


class Held(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]


State = dict[str, Any]
Versions = Mapping[str, Mapping[str, int]]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@cache
def effdet(name: str, num_classes: int = 90, **overrides: Any) -> EfficientDet:
    """The real class on the meta device; not to be changed."""
    config = get_efficientdet_config(name)
    config.num_classes = num_classes
    config.update(overrides)
    with torch.device("meta"):
        return EfficientDet(config, pretrained_backbone=False)


def held(module: nn.Module) -> State:
    """What the module's state dict holds."""
    return {
        key: Held(value.dtype, tuple(value.shape)) for key, value in module.state_dict().items()
    }


def versions(module: nn.Module) -> dict[str, dict[str, int]]:
    """The `_metadata` of the module's state dict."""
    return {path: dict(local) for path, local in module.state_dict()._metadata.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def cast(state: State, dtype: torch.dtype) -> State:
    """The floating tensors in another dtype."""
    return {
        key: Held(dtype, value.shape) if value.dtype.is_floating_point else value
        for key, value in state.items()
    }


@cache
def _element(dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((), dtype=dtype)


def tensors(state: State) -> OrderedDict[str, Any]:
    """The state dict, all tensors of one dtype views of a single element."""
    return OrderedDict(
        (key, _element(value.dtype).expand(value.shape) if isinstance(value, Held) else value)
        for key, value in state.items()
    )


def numbered(state: State) -> OrderedDict[str, Any]:
    """The state dict, all elements of the n-th tensor n, so that each can be told again."""
    return OrderedDict(
        (key, torch.tensor(number).to(value.dtype).expand(value.shape))
        if isinstance(value, Held)
        else (key, value)
        for number, (key, value) in enumerate(state.items(), 1)
    )


def write(
    state: State,
    path: Path,
    metadata: Versions | None = None,
    made: OrderedDict[str, Any] | None = None,
) -> Path:
    """A file with the state dict, in the format of its suffix; safetensors hold tensors only."""
    if path.suffix == ".safetensors":
        return _write_sparse(state, path)
    made = tensors(state) if made is None else made
    if metadata is not None:
        made._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    torch.save(made, path)
    return path


def _write_sparse(state: State, path: Path) -> Path:
    header = {}
    at = 0
    for key, value in state.items():
        end = at + torch.Size(value.shape).numel() * value.dtype.itemsize
        header[key] = {
            "dtype": _CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path


def loads(module: nn.Module, state: State, metadata: Versions | None = None) -> bool:
    """Whether `load_state_dict(strict=True)` of a module on the meta device takes the state."""
    made = OrderedDict(
        (
            key,
            torch.empty(value.shape, dtype=value.dtype, device="meta")
            if isinstance(value, Held)
            else value,
        )
        for key, value in state.items()
    )
    if metadata is not None:
        made._metadata = OrderedDict(  # type: ignore[attr-defined]
            (path, dict(local)) for path, local in metadata.items()
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to copy to the meta device does nothing
        try:
            module.load_state_dict(made, strict=True)
        except (RuntimeError, IndexError):
            return False
    return True
