"""Model classes of the kinds people pickle whole; the tests import them under another name.

The reading process has no module of that name, so that nothing here can be called back to life.
"""

from __future__ import annotations

import enum
import functools
import pathlib
import types
from collections import OrderedDict, namedtuple
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional


class Plain(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).mean((2, 3)))


class Nested(nn.Module):
    """Containers in containers, an attribute order that is not the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.zulu = nn.Sequential(
            OrderedDict(stem=nn.Conv2d(3, 4, 1, bias=False), norm=nn.GroupNorm(2, 4))
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.alpha = nn.ModuleList([Plain(2), nn.Identity(), nn.Sequential()])
        self.heads = nn.ModuleDict({"z": nn.Linear(2, 2), "a": nn.Linear(2, 3, bias=False)})
        self.register_buffer("step", torch.tensor(7))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.decode = nn.Linear(3, 5)
        self.decode.weight = self.embed.weight


class Shared(nn.Module):
    """One module under two names, and one inside two others."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Linear(2, 2)
        self.first, self.second = block, block
        self.left, self.right = nn.Sequential(block), nn.Sequential(nn.ReLU(), block)


class Buffers(nn.Module):
    """Buffers of many types, one of them not persistent; parameters and modules that are None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.arange(6.0), persistent=False)
        self.register_buffer("seen", torch.tensor(3, dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("rotary", torch.tensor([1 + 2j, 3 - 1j]))
        self.register_buffer("nothing", torch.empty(0, 4))
        self.register_buffer("absent", None)
        self.register_parameter("bias", None)
        self.weight = nn.Parameter(torch.randn(2, 2))
        self.downsample = None
        self.register_module("neck", None)
        self.cached = torch.zeros(9)  # an attribute, no part of the state dict
        self.history = [torch.ones(2)]


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(3))])
        self.named = nn.ParameterDict(
            {"z": nn.Parameter(torch.randn(1)), "a": nn.Parameter(torch.randn(2))}
        )


class Colour(enum.Enum):
    RED = 1


@dataclass
class Settings:
    width: int = 3
    anchors: list[float] = field(default_factory=lambda: [1.0, 2.0])


Point = namedtuple("Point", "x y")


class Luggage(nn.Module):
    """Attributes of all the kinds that a training script leaves on a model."""

    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(functional.leaky_relu, negative_slope=0.1)
        self.norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
        self.strides = numpy.array([8, 16, 32])
        self.best = numpy.float64(0.5)
        self.settings = Settings()
        self.names = {0: "person", 1: "bicycle"}
        self.args = types.SimpleNamespace(lr=0.1)
        self.where = pathlib.PurePosixPath("/data/coco")
        self.colour = Colour.RED
        self.point = Point(1, 2)
        self.kinds = {int, str}
        self.slice = slice(1, None)
        self.call = functional.relu
        self.method = torch.Tensor.sum
        self.dtype = torch.float16
        self.device = torch.device("cpu")
        self.size = torch.Size([1, 2])
        self.big = 1 << 200
        self.blob = bytes(range(256)) * 40
        self.text = "naïve \ud83d\ude00 text"
        self.fc = nn.Linear(3, 3)


class OwnState(nn.Module):
    """A class that decides itself what is pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.lock = object()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Slotted(nn.Module):
    """State as the pair of `__dict__` and slots."""

    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__()
        self.extra = 3
        self.fc = nn.Linear(2, 2)


class Hooked(nn.Module):
    """A state dict hook that adds a key: salvage cannot know it, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self._register_state_dict_hook(add_nothing)


def add_nothing(module: nn.Module, state: Any, prefix: str, local: Any) -> None:
    """What the hook would have done."""


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def get_extra_state(self) -> Any:
        return {"note": "made by code"}

    def set_extra_state(self, state: Any) -> None:
        pass


class ModelEMA:
    """An averaged copy held by an object that is no module, as YOLOv5 and timm v1 do."""

    def __init__(self, model: nn.Module) -> None:
        self.ema = deepcopy(model).eval()
        self.updates = 10
        self.decay = 0.9999


class LightningLike(nn.Module):
    """A training wrapper: the network is under `model`, with metrics and a loss beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(2))
        self.hparams_ = {"lr": 0.1, "backbone": "resnet18"}
        self.trainer = None


class DetectLike(nn.Module):
    """Ultralytics-like: module list with a stride tensor and a cfg kept beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
        self.stride = torch.tensor([8.0, 16.0])
        self.names = {0: "person"}
        self.yaml = {"nc": 1, "backbone": [[-1, 1, "Conv", [64, 3, 2]]]}
        self.register_buffer("dfl", torch.arange(4, dtype=torch.float16))
