"""The key lists in `fixtures/dialects`: what each implementation's own state dict holds."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from ckptool.tensors import TensorSpec

FOLDER = Path(__file__).parents[2] / "fixtures" / "dialects"


@dataclass(frozen=True)
class KeyList:
    """The keys of a dialect for an architecture, and the canonical ones that each holds.

    `canonical` has a key only where a map is known; an empty tuple for what is left out.
    """

    dialect: str
    arch: str
    specs: dict[str, TensorSpec]
    canonical: dict[str, tuple[str, ...]]


def key_list(name: str) -> KeyList:
    dialect, _, arch = name.partition("@")
    specs, canonical = {}, {}
    for line in gzip.decompress((FOLDER / f"{name}.keys.gz").read_bytes()).decode().splitlines():
        key, dtype, lengths, *own = line.split(" ")
        shape = () if lengths == "-" else tuple(map(int, lengths.split(",")))
        specs[key] = TensorSpec(dtype, shape)
        if own:
            canonical[key] = () if own == ["-"] else tuple(own[0].split(","))
    return KeyList(dialect, arch, specs, canonical)


NAMES = sorted(path.name.removesuffix(".keys.gz") for path in FOLDER.glob("*.keys.gz"))
