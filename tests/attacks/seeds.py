"""Small honest checkpoints, made by the libraries that write such files, to be damaged.

Each holds a few tensors of a few bytes. `checked` tells those whose format stores a checksum of
everything that is read.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy
import safetensors.torch
import torch

from .headers import INDEX, SHARD
from .streams import tar_cases
from .zips import Archive, Item


@dataclass(frozen=True, slots=True)
class Seed:
    """A file, and what stands beside it."""

    name: str
    file: str
    data: bytes
    checked: bool = False
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _state() -> OrderedDict[str, torch.Tensor]:
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return OrderedDict(
        {
            "a.weight": weight,
            "a.bias": weight[0].half(),
            "a.steps": torch.tensor(7),
            "b": weight.t(),
        }
    )


def _zipped_again(data: bytes, **fields: object) -> bytes:
    """The same records in an archive without alignment, as other zip programs write it."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    names = [name for name in reader.get_all_records() if not name.startswith(".")]
    items = [Item(f"x/{name}".encode(), reader.get_record(name)) for name in names]
    for item in items:
        item.method = 8 if len(item.data) > 16 else 0
        for key, value in fields.items():
            setattr(item, key, value)
    return Archive(items).build()


def _scripted() -> bytes:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", torch.arange(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Small()), buffer)
    return _zipped_again(buffer.getvalue())


def seeds() -> Iterator[Seed]:
    """All seeds."""
    state = _state()
    arrays = {"a": numpy.arange(6, dtype="<f4").reshape(2, 3), "b": numpy.arange(3, dtype=">i2")}
    plain = _saved(state)
    yield Seed("zip", "seed.pth", plain, checked=True)
    yield Seed("zip-protocol-4", "seed.pth", _saved(state, pickle_protocol=4), checked=True)
    wrapped = {"state_dict": dict(state), "epoch": 3, "args": {"lr": 0.1}}
    yield Seed("zip-wrapped", "seed.ckpt", _saved(wrapped), checked=True)
    yield Seed("zip-deflated", "seed.pth", _zipped_again(plain), checked=True)
    yield Seed("zip-deferred", "seed.pth", _zipped_again(plain, flags=8, method=0), checked=True)
    yield Seed("torchscript", "seed.pt", _scripted(), checked=True)
    yield Seed("zip-module", "seed.pt", _saved(torch.nn.Linear(2, 1)), checked=True)
    old = {"_use_new_zipfile_serialization": False}
    yield Seed("legacy", "seed.pth", _saved(state, **old))
    yield Seed("legacy-protocol-4", "seed.pth", _saved(state, pickle_protocol=4, **old))
    yield Seed("pickle-numpy", "seed.pkl", pickle.dumps({"model": arrays}, 2))
    yield Seed("pickle-numpy-protocol-5", "seed.pkl", pickle.dumps({"model": arrays}, 5))
    yield Seed("pickle-numpy-protocol-0", "seed.pkl", pickle.dumps({"model": arrays}, 0))
    yield Seed("pickle-tensor", "seed.pkl", pickle.dumps({"b": state["b"]}, 4))
    tensors = {key: value.contiguous() for key, value in state.items()}
    flat = safetensors.torch.save(tensors, {"format": "pt"})
    yield Seed("safetensors", "seed.safetensors", flat)
    index = json.dumps(
        {"metadata": {"total_size": len(flat)}, "weight_map": dict.fromkeys(tensors, SHARD)}
    )
    sizes = sum(value.nbytes for value in tensors.values())
    index = index.replace(str(len(flat)), str(sizes))
    yield Seed("index", INDEX, index.encode(), beside={SHARD: flat})
    yield Seed("tar", "seed.tar", next(tar_cases()).data[:-1024])
    weights = struct.pack("<3iq", 0, 2, 5, 640) + struct.pack("<100f", *range(100))
    yield Seed("darknet", "seed.weights", weights)
