"""Networks of implementations that are not installed, as far as they compute otherwise.

Typed anew from what their sources say; where an implementation computes what darknet does, its
network is ckptool's own with its keys.

Source: WongKinYiu/ScaledYOLOv4 yolov4-large `models/common.py`; zylo117's `efficientdet/model.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class SeparableConv(nn.Module):
    """zylo117's, without a norm of its own; its convolutions are wrapped once more."""

    def __init__(self, width: int, outside: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Module()
        self.depthwise_conv.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise_conv = nn.Module()
        self.pointwise_conv.conv = nn.Conv2d(width, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv.conv(self.depthwise_conv.conv(x))


class ZyloHead(nn.Module):
    """zylo117's head: the norms of a level, one per repeat, are a list; the convs are shared."""

    def __init__(self, width: int, outside: int, levels: int, repeats: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(SeparableConv(width, width) for _ in range(repeats))
        self.bn_list = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for _ in range(repeats))
            for _ in range(levels)
        )
        self.header = SeparableConv(width, outside)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for x, norms in zip(maps, self.bn_list, strict=True):
            for conv, norm in zip(self.conv_list, norms, strict=True):
                x = functional.silu(norm(conv(x)))
            found.append(self.header(x))
        return found


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights and random BatchNorm statistics, in evaluation mode.

    The variances stay away from zero, the weights are small enough that no map grows or dies.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                value.fill_(int(torch.randint(1, 9_000, (), generator=generator)))
            elif key.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.dim() > 1:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
            elif "edge_weights" in key or (key.endswith("weight") and value.dim() == 1):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            else:
                value.copy_(torch.randn(value.shape, generator=generator) / 4)
    return model.eval()


def image(side: int = 64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(9))


def difference(found: list[Tensor] | tuple[Tensor, ...], wanted: list[Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest output."""
    with torch.no_grad():
        worst = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
        scale = max(float(b.abs().max()) for b in wanted)
    assert scale > 1e-3, "the outputs say nothing"
    return worst / scale
