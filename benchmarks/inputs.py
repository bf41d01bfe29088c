"""The inputs of the benchmarks, made once and kept in the user's cache."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptool.files import MemoryFile
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload
from ckptool.formats.torch_zip_writer import write
from ckptool.records import Record
from ckptool.tensors import LazyTensor, TensorSpec, View

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckptool" / "bench"
MIB = 1 << 20
BLOCK = 4 * MIB


def model_file(arch: str, suffix: str) -> Path:
    """A checkpoint of a real architecture with random weights, as torch or safetensors saves it."""
    path = CACHE / f"{arch}{suffix}"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from safetensors.torch import save_file

            from ckptool.architectures import build

            state = build(arch).state_dict()
        CACHE.mkdir(parents=True, exist_ok=True)
        save_file(dict(state), path) if suffix == ".safetensors" else torch.save(state, path)
    return path


def dense_file(megabytes: int, tensors: int = 64) -> Path:
    """A `.pth` file of float32 values of ordinary size, none of them twice in a row of blocks."""
    path = CACHE / f"dense-{megabytes}-{tensors}.pth"
    if not path.exists():
        import numpy

        values = numpy.random.default_rng(megabytes).standard_normal(BLOCK // 4, dtype="float32")
        noise = (values * 0.02).tobytes() * 2
        spec = TensorSpec("float32", (megabytes * MIB // (4 * 1024 * tensors), 1024))
        state = {
            f"layers.{number}.weight": LazyTensor(spec, Noise(noise, number))
            for number in range(tensors)
        }
        written(path, state, Output)
    return path


@dataclass(frozen=True)
class Noise:
    """A tensor's data cut from a block of noise, always from another place."""

    noise: bytes
    number: int

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """Blocks of the noise."""
        for at in range(0, spec.nbytes, BLOCK):
            start = (at // BLOCK * 7919 + self.number * 104_729) * 4 % BLOCK
            size = min(BLOCK, spec.nbytes - at)
            yield memoryview(self.noise)[start : start + size]

    def extent(self, spec: TensorSpec) -> None:
        """None: the data is in memory."""


class Holes(Output):
    """Leaves holes where data would be copied."""

    def copy_at(self, at: int, source: object, offset: int, length: int) -> None:
        """Nothing is written."""


def written(path: Path, state: dict[str, LazyTensor], output: type[Output]) -> None:
    """Write a `.pth` file of any size in little memory."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("wb") as file:
        write(output(file.fileno(), str(path)), Payload(state))
    path.with_suffix(".part").rename(path)


def many_tensors(count: int, suffix: str) -> Path:
    """A checkpoint of many small tensors."""
    path = CACHE / f"many-{count}{suffix}"
    if not path.exists():
        import torch

        CACHE.mkdir(parents=True, exist_ok=True)
        values = torch.randn(count, 16)
        state = {
            f"blocks.{n // 100}.layers.{n % 100}.weight": values[n].clone() for n in range(count)
        }
        if suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, path)
        else:
            torch.save(state, path)
    return path


def sparse_file(megabytes: int, tensors: int = 2000) -> Path:
    """A `.safetensors` file with holes: nothing but its header takes space on the disk."""
    path = CACHE / f"sparse-{megabytes}.safetensors"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        size = megabytes * MIB // tensors // 4 * 4
        header = {
            f"blocks.{n}.weight": {
                "dtype": "F32",
                "shape": [size // 4],
                "data_offsets": [n * size, (n + 1) * size],
            }
            for n in range(tensors)
        }
        data = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(data)) + data)
            file.truncate(8 + len(data) + size * tensors)
    return path


def sparse_zip(megabytes: int, tensors: int = 2000) -> Path:
    """A `.pth` file with holes, whose records have the CRC-32 of as many zeros."""
    path = CACHE / f"sparse-{megabytes}.pth"
    if not path.exists():
        size = megabytes * MIB // tensors // 4 * 4
        crc = 0
        for at in range(0, size, MIB):
            crc = zlib.crc32(bytes(min(MIB, size - at)), crc)
        zeros = Record(MemoryFile(b"", "zeros"), 0, size, size, crc=crc)
        spec = TensorSpec("float32", (size // 4,))
        state = {
            f"blocks.{n}.weight": LazyTensor(spec, View(zeros._replace(offset=n), 0, (1,)))
            for n in range(tensors)
        }
        written(path, state, Holes)
    return path
