"""Real networks with random weights and random BatchNorm statistics, small enough to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from effdet import EfficientDet, get_efficientdet_config
from torch import nn

torch.set_num_threads(1)  # at this size further threads only wait for each other


def effdet(name: str, num_classes: int = 90, *, size: int = 128, **config: Any) -> EfficientDet:
    """An effdet network in evaluation mode; `config` overrides its configuration."""
    wanted = get_efficientdet_config(name)
    wanted.update({"num_classes": num_classes, "image_size": (size, size), **config})
    return randomised(EfficientDet(wanted, pretrained_backbone=False))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with biases and statistics unlike those that it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("num_batches_tracked"):
                tensor.fill_(100_000)
            elif tensor.is_floating_point() and tensor.dim() <= 1:
                tensor.add_(torch.empty_like(tensor).normal_(0, 0.2, generator=generator))
    return model.eval()


def outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """All tensors that the model gives for an image, in order."""
    with torch.no_grad():
        return list(_flat(model(image)))


def image(
    size: int = 128, *, channels: int = 3, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The same random image each time."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(1, channels, size, size, generator=generator, dtype=dtype)


def furthest(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference between two lists of tensors, relative to the largest value."""
    assert [x.shape for x in found] == [x.shape for x in wanted]
    scale = max(float(x.abs().max()) for x in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / scale


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _flat(item)
