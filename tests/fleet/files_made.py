"""A fleet of checkpoints, some of them broken in several ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

EVERY = 20  # one in so many is broken


def _small(number: int) -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(10, 10))
    return {**model.state_dict(), "number": torch.tensor(number)}


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["2.weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    path.write_bytes(data)


def _too_large(path: Path) -> None:
    """A finite value that float16 cannot hold."""
    torch.save({"w": torch.tensor([1e30])}, path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "not-a-checkpoint.html": lambda path: path.write_text("<!DOCTYPE html><title>Log in</title>"),
    "not-a-checkpoint.empty": lambda path: path.write_bytes(b""),
    "not-a-checkpoint.git-lfs": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
    ),
    "format.truncated": _cut,
    "zip.crc": _flipped,
    "loss.overflow": _too_large,
    "weights.none": lambda path: torch.save({"epoch": 3}, path),
}


def fleet(folder: Path, count: int) -> dict[str, str]:
    """So many checkpoints in two folders; the broken ones and the code of what is wrong."""
    broken = {}
    kinds = list(BROKEN)
    for number in range(count):
        path = folder / f"run-{number % 2}" / f"{number:05d}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_small(number), path)
        if number % EVERY == EVERY // 2:
            kind = kinds[number // EVERY % len(kinds)]
            BROKEN[kind](path)
            broken[str(path)] = kind
    return broken
