"""Checkpoints of any size that take no space: torch and safetensors files of nothing but holes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch

SAFETENSORS = {torch.float32: "F32", torch.int64: "I64"}
Spec = tuple[torch.dtype, tuple[int, ...]]


def write_torch(path: Path, specs: Mapping[str, Spec]) -> None:
    """What torch.save writes of such a state dict, but for the bytes of the storages."""
    # Memory that is never touched is never there.
    state = {key: torch.empty(shape, dtype=dtype) for key, (dtype, shape) in specs.items()}
    with torch.serialization.skip_data():
        torch.save(state, path)


def write_safetensors(path: Path, specs: Mapping[str, Spec]) -> None:
    """The header that safetensors gives such a state dict, and a hole behind it."""
    header = {}
    end = 0
    for key, (dtype, shape) in specs.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[key] = {
            "dtype": SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)
