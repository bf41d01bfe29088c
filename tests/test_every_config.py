"""Whatever network, class count, precision and wrapper: what `convert` writes loads strictly.

Every run samples the combinations, another sample each day; the sweep converts all of them. The
values are one tensor for each shape: a strict load looks at keys and shapes, and small files keep
the sweep affordable. What the values become is tested where the edits are.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from effdet import DetBenchTrain
from torch import nn

import ckptool
from ckptool import architectures

NAMES = [a.name for a in ckptool.archs() if a.family in ("effdet", "yolov4")]
CLASSES = (20, 1, 200)
ROUTES = (("fp16", "fp32"), ("bf16",))
WRAPPERS = ("bare", "DDP", "bench", "compile", "Lightning")
TORCH = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}
TRACKED = 100_000  # more than float16 holds


@lru_cache(4)
def network(name: str, num_classes: int | None = None) -> nn.Module:
    """The real class, without memory for its values."""
    with torch.device("meta"):
        return architectures.build(name, num_classes)


def wrapped(model: nn.Module, wrapper: str) -> dict[str, torch.Tensor]:
    """The state dict of a model as a training script wraps it."""
    if wrapper in ("DDP", "Lightning"):
        held = nn.ModuleDict({"module" if wrapper == "DDP" else "model": model})
        return held.state_dict()
    if wrapper == "bench":
        # effdet's benches are for its own networks; elsewhere a bench is what holds the model.
        bench = (
            DetBenchTrain if hasattr(model, "config") else lambda it: nn.ModuleDict({"model": it})
        )
        return bench(model).state_dict()
    return (torch.compile(model) if wrapper == "compile" else model).state_dict()


def checkpoint(name: str, wrapper: str, path: Path) -> None:
    """Write a training checkpoint of the network, with its default class count."""
    made: dict[Any, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict()
    for key, tensor in wrapped(network(name), wrapper).items():
        kind = (tensor.dtype, tensor.shape)
        if kind not in made and tensor.is_floating_point():
            made[kind] = torch.rand(tensor.shape, generator=generator)
        elif kind not in made:
            made[kind] = torch.full(tensor.shape, TRACKED, dtype=tensor.dtype)
        state[key] = made[kind]
    if wrapper == "Lightning":
        torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.1"}, path)
    else:
        torch.save(state, path)


def convert(name: str, source: Path, num_classes: int, route: tuple[str, ...]) -> None:
    """Convert a checkpoint in one go, or there and back; what comes out loads strictly."""
    options: dict[str, Any] = {"arch": name, "num_classes": num_classes}
    if num_classes == 20:
        options["class_map"] = f"coco{architectures.find(name).num_classes}:voc20"
    elif num_classes == 200:
        options["class_map"] = "first"
    for dtype in route:
        output = source.with_name(f"{dtype}.pth")
        result = ckptool.convert(source, output, dtype=dtype, force=True, **options)
        assert result.fits_strict, name
        source, options = output, {}
    state = torch.load(output, weights_only=True, mmap=True)
    network(name, num_classes).load_state_dict(state, strict=True, assign=True)
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            assert (tensor.dtype, tensor.item()) == (torch.int64, TRACKED), key
        else:
            assert tensor.dtype == TORCH[route[-1]], key


def sampled(number: int) -> tuple[str, str, int, tuple[str, ...]]:
    """A case of today's sample: every wrapper with every class count, each in another network."""
    names = random.Random(date.today().toordinal()).sample(NAMES, len(NAMES))
    wrapper, num_classes = list(itertools.product(WRAPPERS, CLASSES))[number]
    return names[number], wrapper, num_classes, ROUTES[number % 2]


@pytest.mark.parametrize("number", range(len(CLASSES) * len(WRAPPERS)))
def test_a_sample_loads_strictly(
    number: int, tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    name, wrapper, num_classes, route = sampled(number)
    checkpoint(name, wrapper, tmp_path / "in.pth")
    convert(name, tmp_path / "in.pth", num_classes, route)
    count("conversions that load strictly into the real class (a sample)", 1)


@pytest.mark.sweep
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_loads_strictly(
    name: str, wrapper: str, tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    checkpoint(name, wrapper, tmp_path / "in.pth")
    for num_classes, route in itertools.product(CLASSES, ROUTES):
        convert(name, tmp_path / "in.pth", num_classes, route)
        count("conversions that load strictly into the real class (all)", 1)
