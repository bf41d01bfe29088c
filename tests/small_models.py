"""Small modules with every kind of key, as a user's own `package.module:callable`."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


class Block(nn.Module):
    """A convolution, a norm and a scale without axes."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=bias)
        self.bn = nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.ones(()))
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.scale * self.gain


class Mixed(nn.Module):
    """Norms of all kinds, buffers persistent and not, members that are None."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.tracked = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.group = nn.GroupNorm(2, 4)
        self.plain = nn.BatchNorm2d(4, track_running_stats=False)
        self.layers = nn.ParameterList(
            [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))]
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("cache", torch.zeros(9), persistent=False)
        self.register_parameter("absent", None)
        self.head = nn.Linear(4, num_classes)


def conv_norm() -> nn.Module:
    """Three keys at the root's own children, and norms."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Block(4))


def old_weight_norm() -> nn.Module:
    """`weight_g` and `weight_v`, as torch before 2.0 writes them."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still met in files
        for layer in model:
            weight_norm(layer)
    return model


def new_weight_norm() -> nn.Module:
    """`parametrizations.weight.original0` and `1`."""
    return nn.Sequential(*(parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(2)))


def old_spectral_norm() -> nn.Module:
    """`weight_orig`, `weight_u`, `weight_v`."""
    return nn.Sequential(*(spectral_norm(nn.Linear(3, 3)) for _ in range(2)))


def new_spectral_norm() -> nn.Module:
    """`parametrizations.weight.original`, `.0._u` and `.0._v`."""
    return nn.Sequential(*(parametrizations.spectral_norm(nn.Linear(3, 3)) for _ in range(2)))


class Detector(nn.Module):
    """Heads whose rows depend on the class count, three anchors with five more rows each."""

    def __init__(self, num_classes: int = 80) -> None:
        super().__init__()
        self.stem = Block(4)
        self.cls = nn.Conv2d(4, 3 * (5 + num_classes), 1)


def raising(num_classes: int = 1) -> nn.Module:
    """A callable of a user that does not work."""
    raise ValueError("no weights for you")


def frozen_norm() -> nn.Module:
    """A norm of torchvision's that takes no counter."""
    from torchvision.ops.misc import FrozenBatchNorm2d

    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), FrozenBatchNorm2d(4))
