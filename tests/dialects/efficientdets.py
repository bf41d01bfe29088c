"""The BiFPN and the heads of zylo117's EfficientDet, with its keys, behind effdet's own backbone.

Source: zylo117/Yet-Another-EfficientDet-Pytorch `efficientdet/model.py`, `utils.py`; the keys of
the backbone are those of the map in the key list.
"""

from __future__ import annotations

import effdet
import torch
from key_lists import KeyList
from torch import Tensor, nn
from torch.nn import functional

_UP = (6, 5, 4, 3)
_DOWN = (4, 5, 6, 7)


def wrapped(conv: nn.Conv2d) -> nn.Module:
    """A convolution below the name `conv`, as zylo117 has it."""
    module = nn.Module()
    module.conv = conv
    return module


class Separable(nn.Module):
    def __init__(self, inside: int, outside: int, *, norm: bool) -> None:
        super().__init__()
        depthwise = nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False)
        self.depthwise_conv = wrapped(depthwise)
        self.pointwise_conv = wrapped(nn.Conv2d(inside, outside, 1))
        if norm:
            self.bn = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv.conv(self.depthwise_conv.conv(x))
        return self.bn(x) if hasattr(self, "bn") else x


def halved(x: Tensor, outside: float) -> Tensor:
    """The maxima of 3 × 3 cells, every second one, with `outside` around the map."""
    pad = [int(side % 2 == 0) for side in x.shape[:1:-1]]
    odd = [1 - even for even in pad]
    padded = functional.pad(x, (odd[0], 1, odd[1], 1), value=outside)
    return functional.max_pool2d(padded, 3, 2)


class Cell(nn.Module):
    """One BiFPN cell; the first one brings the backbone's maps to its width."""

    def __init__(self, width: int, backbone: tuple[int, ...], weighs: bool, outside: float) -> None:
        super().__init__()
        self.weighs, self.outside, self.first = weighs, outside, bool(backbone)
        for level in _UP:
            setattr(self, f"conv{level}_up", Separable(width, width, norm=True))
            setattr(self, f"p{level}_w1", nn.Parameter(torch.ones(2)))
        for level in _DOWN:
            setattr(self, f"conv{level}_down", Separable(width, width, norm=True))
            setattr(self, f"p{level}_w2", nn.Parameter(torch.ones(2 if level == 7 else 3)))
        if backbone:
            three, four, five = backbone
            for name, inside in {
                "p3_down_channel": three,
                "p4_down_channel": four,
                "p5_down_channel": five,
                "p4_down_channel_2": four,
                "p5_down_channel_2": five,
                "p5_to_p6": five,
            }.items():
                norm = nn.BatchNorm2d(width, eps=1e-3)
                setattr(self, name, nn.Sequential(wrapped(nn.Conv2d(inside, width, 1)), norm))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        inputs = dict(zip(range(3, 8), maps, strict=False))
        again = dict(inputs)
        if self.first:
            p3, p4, p5 = maps
            p6 = halved(self.widened("p5_to_p6", p5), self.outside)
            inputs = {
                3: self.widened("p3_down_channel", p3),
                4: self.widened("p4_down_channel", p4),
                5: self.widened("p5_down_channel", p5),
                6: p6,
                7: halved(p6, self.outside),
            }
            again = {
                **inputs,
                4: self.widened("p4_down_channel_2", p4),
                5: self.widened("p5_down_channel_2", p5),
            }
        up = {7: inputs[7]}
        for level in _UP:
            larger = functional.interpolate(up[level + 1], scale_factor=2, mode="nearest")
            up[level] = self.joined(level, "up", "w1", [inputs[level], larger])
        down = {3: up[3]}
        for level in _DOWN:
            smaller = halved(down[level - 1], self.outside)
            middle = [] if level == 7 else [up[level]]
            down[level] = self.joined(level, "down", "w2", [again[level], *middle, smaller])
        return list(down.values())

    def widened(self, name: str, x: Tensor) -> Tensor:
        conv, norm = getattr(self, name)
        return norm(conv.conv(x))

    def joined(self, level: int, way: str, letter: str, maps: list[Tensor]) -> Tensor:
        total = sum(maps)
        if self.weighs:
            weights = getattr(self, f"p{level}_{letter}").relu()
            shares = weights / (weights.sum() + 1e-4)
            total = sum(share * x for share, x in zip(shares, maps, strict=True))
        return getattr(self, f"conv{level}_{way}")(functional.silu(total))


class Head(nn.Module):
    """The convolutions are shared; the norms are by level, then by repeat."""

    def __init__(self, width: int, outside: int, repeats: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(Separable(width, width, norm=False) for _ in range(repeats))
        self.bn_list = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for _ in range(repeats)) for _ in range(5)
        )
        self.header = Separable(width, outside, norm=False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for x, norms in zip(maps, self.bn_list, strict=True):
            for conv, norm in zip(self.conv_list, norms, strict=True):
                x = functional.silu(norm(conv(x)))
            found.append(self.header(x))
        return found


class Zylo(nn.Module):
    """zylo117's network around the backbone of an effdet network.

    `outside` is what the max-pools see around the map: zylo117's is 0, effdet's -inf.
    """

    def __init__(self, model: effdet.EfficientDet, *, outside: float = -torch.inf) -> None:
        super().__init__()
        config = model.config
        width, repeats = config.fpn_channels, config.box_class_repeats
        channels = tuple(info["num_chs"] for info in model.backbone.feature_info)[-3:]
        weighs = config.fpn_name is None
        self.bifpn = nn.Sequential(
            *(
                Cell(width, () if cell else channels, weighs, outside)
                for cell in range(config.fpn_cell_repeats)
            )
        )
        self.regressor = Head(width, 9 * 4, repeats)
        self.classifier = Head(width, 9 * config.num_classes, repeats)
        self.around = [model.backbone]  # in a list: its keys are not effdet's

    def load(self, state: dict[str, Tensor], names: KeyList) -> Zylo:
        """The network with a whole zylo117 state dict, strictly."""
        parts: list[dict[str, Tensor]] = [{}, {}]
        for key, value in state.items():
            inside = key.startswith("backbone_net.")
            own = names.canonical[key][0].removeprefix("backbone.") if inside else key
            parts[inside][own] = value
        self.load_state_dict(parts[False], strict=True)
        self.around[0].load_state_dict(parts[True], strict=True)
        return self.eval()

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = self.bifpn(self.around[0](x)[-3:])
        return self.classifier(maps), self.regressor(maps)
