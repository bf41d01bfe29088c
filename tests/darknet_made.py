"""Darknet files made and read for tests, from the description of the format alone.

A file is `int32 major, minor, revision`, then `seen` (64 bits from version 0.2 on, 32 before), then
for each layer that has weights, in the order of the cfg: a convolution's biases; with
`batch_normalize` its scales, means and variances; its kernel, output channel first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float32]


@dataclass(frozen=True)
class Convolution:
    """What a file holds of one convolution, as the cfg alone says."""

    layer: int
    shape: tuple[int, int, int, int]
    normalized: bool

    @property
    def runs(self) -> list[tuple[str, tuple[int, ...]]]:
        """The runs of floats in their order, by what torch calls them."""
        rows = (self.shape[0],)
        names = ("bn.bias", "bn.weight", "bn.running_mean", "bn.running_var")
        first = [(name, rows) for name in names] if self.normalized else [("conv.bias", rows)]
        return [*first, ("conv.weight", self.shape)]


def convolutions(cfg: str) -> list[Convolution]:
    """The convolutions of a cfg text, from the channels that each layer gives."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in filter(None, (line.split("#")[0].strip() for line in cfg.splitlines())):
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        else:
            name, _, value = line.partition("=")
            sections[-1][1][name.strip()] = value.strip()
    channels: list[int] = []
    found = []
    before = int(sections[0][1]["channels"])
    for index, (kind, options) in enumerate(sections[1:]):
        if kind == "convolutional":
            filters, groups = int(options["filters"]), int(options.get("groups", 1))
            size = int(options.get("size", 1))
            normalized = options.get("batch_normalize", "0") == "1"
            shape = (filters, before // groups, size, size)
            found.append(Convolution(index, shape, normalized))
            before = filters
        elif kind == "route":
            layers = [int(n) for n in options["layers"].split(",")]
            joined = sum(channels[n if n >= 0 else index + n] for n in layers)
            before = joined // int(options.get("groups", 1))
        channels.append(before)
    return found


def read_file(path: Path, cfg: str) -> tuple[tuple[int, ...], list[dict[str, Floats]]]:
    """The header's four numbers and the tensors of each convolution; all floats must be used."""
    data = path.read_bytes()
    major, minor, revision = struct.unpack_from("<3i", data)
    wide = major * 10 + minor >= 2
    (seen,) = struct.unpack_from("<Q" if wide else "<I", data, 12)
    floats = numpy.frombuffer(data, "<f4", offset=20 if wide else 16)
    found, at = [], 0
    for convolution in convolutions(cfg):
        tensors = {}
        for name, shape in convolution.runs:
            count = int(numpy.prod(shape))
            tensors[name] = floats[at : at + count].reshape(shape)
            at += count
        found.append(tensors)
    assert at == len(floats)
    return (major, minor, revision, seen), found


def by_convolution(state: Mapping[str, Floats]) -> list[dict[str, Floats]]:
    """A state dict in darknet's order as one mapping for each convolution."""
    found: list[dict[str, Floats]] = []
    for key, value in state.items():
        name = key.rpartition(".")[2]
        if value.ndim == 4:
            found.append({"conv.weight": value})
        elif name != "num_batches_tracked":
            part = "conv" if len(found[-1]) == 1 and name == "bias" else "bn"
            found[-1][f"{part}.{name}"] = value
    return found


def floats_in(cfg: str) -> int:
    """The number of floats in a file of a cfg."""
    return sum(int(numpy.prod(s)) for c in convolutions(cfg) for _, s in c.runs)


def write_file(
    path: Path,
    count: int,
    *,
    version: Sequence[int] = (0, 2, 5),
    seen: int = 32_013_312,
    sparse: bool = False,
) -> Path:
    """A file of that many floats: all different where there are few; zeros if it is `sparse`."""
    wide = version[0] * 10 + version[1] >= 2
    header = struct.pack("<3i", *version) + struct.pack("<Q" if wide else "<I", seen)
    with path.open("wb") as file:
        file.write(header)
        if sparse:
            file.truncate(len(header) + 4 * count)
        else:
            some = numpy.random.default_rng(count).uniform(0.5, 1.5, min(count, 1 << 20))
            file.write(numpy.resize(some.astype("<f4"), count).tobytes())
    return path
