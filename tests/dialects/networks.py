"""YOLO networks of implementations that are not installed.

Where one computes what darknet does, it is ckptool's own network with the keys that a key list
says; what it computes otherwise is said here, from its sources.

Source: WongKinYiu/ScaledYOLOv4 yolov4-large `models/common.py` (u5), WongKinYiu/PyTorch_YOLOv4
`models/models.py`, `cfg/yolov4-tiny.cfg`; argusswift/YOLOv4-pytorch `model/`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from key_lists import key_list
from torch import Tensor, nn
from torch.nn import functional

from ckptool.architectures.darknet_keys import Prefixes
from ckptool.architectures.darknet_net import DarknetNet
from ckptool.architectures.yolov4 import find_network


def darknet_like(
    name: str,
    *,
    eps: float = 1e-5,
    reversed_routes: tuple[int, ...] = (),
    group: int | None = None,
    activation: str | None = None,
) -> DarknetNet:
    """ckptool's own network `DIALECT@ARCH` with the keys of that dialect.

    The maps of `reversed_routes` are joined in the reverse order, routes of one half go on with the
    half `group`, and what is activated by swish is by `activation`.
    """
    dialect, _, arch = name.partition("@")
    net = find_network(arch)
    layers = list(net.layers)
    for index, layer in enumerate(layers):
        if layer.groups == 2 and group is not None:
            layers[index] = replace(layer, group_id=group)
        if layer.activation == "swish" and activation:
            layers[index] = replace(layer, activation=activation)
    for index in reversed_routes:
        assert layers[index].kind == "route"
        layers[index] = replace(layers[index], inputs=layers[index].inputs[::-1])
    spelling = spelled_by(name)
    if dialect.startswith("wongkinyiu"):
        spelling = {
            index: Prefixes(f"module_list.{index}.Conv2d", f"module_list.{index}.BatchNorm2d")
            for index, layer in enumerate(layers)
            if layer.kind == "convolutional"
        }
    model = DarknetNet(replace(net, layers=tuple(layers)), spelling)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


def raw(model: DarknetNet) -> DarknetNet:
    """The network without the logistic function that some have before their heads."""
    plain = [
        replace(layer, activation="linear") if layer.activation == "logistic" else layer
        for layer in model.network.layers
    ]
    model.network = replace(model.network, layers=tuple(plain))
    return model


def spelled_by(name: str) -> dict[int, Prefixes]:
    """The modules of each layer, as the map of a key list says."""
    convs, norms = {}, {}
    for key, canonical in key_list(name).canonical.items():
        module, _, parameter = key.rpartition(".")
        layer = int(canonical[0].split(".")[1])
        if parameter == "running_mean":
            norms[layer] = module
        elif parameter == "weight" and ".conv" in canonical[0]:
            convs[layer] = module
    return {layer: Prefixes(convs[layer], norms.get(layer, "")) for layer in sorted(convs)}


class U5Conv(nn.Module):
    def __init__(self, inside: int, outside: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.mish(self.bn(self.conv(x)))


class U5Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.cv1 = U5Conv(width, inner)
        self.cv2 = U5Conv(inner, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class U5BottleneckCSP(nn.Module):
    """One norm over both branches, main first."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        half = width // 2
        self.cv1 = U5Conv(width, half)
        self.cv2 = nn.Conv2d(width, half, 1, bias=False)
        self.cv3 = nn.Conv2d(half, half, 1, bias=False)
        self.cv4 = U5Conv(width, width)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)
        self.m = nn.Sequential(*(U5Bottleneck(half, half) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        main, bypass = self.cv3(self.m(self.cv1(x))), self.cv2(x)
        return self.cv4(functional.mish(self.bn(torch.cat((main, bypass), 1))))


class U5Backbone(nn.Module):
    """The first eleven modules of yolov4-csp.yaml."""

    def __init__(self, depths: tuple[int, ...] = (1, 2, 8, 8, 4), width: int = 32) -> None:
        super().__init__()
        modules: list[nn.Module] = [U5Conv(3, width, 3)]
        for stage, depth in enumerate(depths):
            modules.append(U5Conv(width, 2 * width, 3, 2))
            width *= 2
            first = stage == 0 and depth == 1
            modules.append(
                U5Bottleneck(width, width // 2) if first else U5BottleneckCSP(width, depth)
            )
        self.model = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def randomise(model: nn.Module, side: int = 64, seed: int = 0) -> nn.Module:
    """The model with random weights and random statistics of its norms, in evaluation mode.

    The statistics are near those of an image, so that no map grows or dies on the way.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("weight") and value.dim() > 1:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(noise * (1.5 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                shift = 1 if key.endswith("weight") else 0
                value.copy_(shift + torch.randn(value.shape, generator=generator) / 4)
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.rand(2, 3, side, side, generator=generator))
        for norm in norms:
            factor = 0.5 + torch.rand(norm.running_var.shape, generator=generator)
            norm.running_var.mul_(factor).add_(0.01)
            norm.running_mean.add_(torch.randn(norm.running_mean.shape, generator=generator) / 8)
            norm.num_batches_tracked.fill_(int(torch.randint(1, 9_000, (), generator=generator)))
    return model.eval()
