"""The live module, layer by layer, against loops written from darknet's C sources."""

from __future__ import annotations

import math
import weakref
from itertools import product

import numpy as np
import pytest
import torch
from cfgs_made import NET, detector
from torch.nn import functional

from ckptool.architectures.darknet_cfg import read_sections
from ckptool.architectures.darknet_keys import darknet_spelling
from ckptool.architectures.darknet_layers import ACTIVATIONS, network
from ckptool.architectures.darknet_net import DarknetNet, detections


def module(text: bytes) -> DarknetNet:
    torch.manual_seed(0)
    net = network(read_sections(text))
    return DarknetNet(net, darknet_spelling(net.layers)).eval()


def through(layers: str, x: torch.Tensor) -> torch.Tensor:
    """What comes out of `layers`: the 1×1 behind them passes their first 7 channels on."""
    built = module(detector(layers, net=_net_for(x)))
    *_, (kernel, weight), (_, bias) = built.named_parameters()
    assert kernel.endswith("weight")
    with torch.no_grad():
        weight.copy_(torch.eye(7, weight.shape[1])[..., None, None])
        bias.zero_()
        (found,) = built(x)
    return found


def image(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "stride"), [(2, 2), (2, 1), (3, 2), (3, 1), (5, 1), (13, 1), (2, 3), (1, 2)]
)
@pytest.mark.parametrize("side", [8, 9, 13])
@pytest.mark.parametrize("kind", ["maxpool", "local_avgpool"])
def test_pools_pad_as_darknet_does(kind: str, side: int, size: int, stride: int) -> None:
    """`size - 1` cells of padding in all, the smaller half in front; outside cells do not count."""
    x = image(3, side, side)
    found = through(f"[{kind}]\nsize={size}\nstride={stride}\n", x)[:, :3]
    sides = (side - 1) // stride + 1
    assert found.shape == (2, 3, sides, sides)
    start = (size - 1) // 2
    wanted = torch.empty_like(found)
    for row, column in product(range(sides), repeat=2):
        top, left = row * stride - start, column * stride - start
        window = x[:, :, max(0, top) : top + size, max(0, left) : left + size].flatten(2)
        values = window.amax(2) if kind == "maxpool" else window.mean(2)
        wanted[:, :, row, column] = values
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_route_puts_maps_behind_each_other_or_cuts_them() -> None:
    x = image(4, 4, 4)
    twice = through("[dropout]\n[route]\nlayers=-1,0\n", x)
    assert torch.equal(twice, torch.cat((x, x), 1)[:, :7])
    halves = through("[dropout]\n[dropout]\n[route]\nlayers=-1,-2\ngroups=2\ngroup_id=1\n", x)
    assert torch.equal(halves[:, :4], torch.cat((x[:, 2:], x[:, 2:]), 1))


def test_shortcut_adds_channels_as_far_as_they_go() -> None:
    """Darknet adds the first channels of a wider map, and stops at the end of a narrower one."""
    x = image(4, 4, 4)
    wide = "[dropout]\n[route]\nlayers=-1,-1\n"
    more = through(wide + "[shortcut]\nfrom=0\nactivation=relu\n", x)
    assert torch.equal(more, torch.cat((2 * x, x), 1)[:, :7].relu())
    less = through(wide + "[route]\nlayers=0\n[shortcut]\nfrom=-2,-3\nactivation=linear\n", x)
    assert torch.equal(less[:, :4], 3 * x)


def test_gates_multiply() -> None:
    x = image(4, 4, 4)
    assert torch.equal(through("[dropout]\n[dropout]\n[sam]\nfrom=-2\n", x)[:, :4], x * x)
    mean = through("[dropout]\n[avgpool]\n[scale_channels]\nfrom=-2\n", x)[:, :4]
    torch.testing.assert_close(mean, x * x.mean((2, 3), keepdim=True))
    cells = "[convolutional]\nfilters=1\nactivation=linear\n[scale_channels]\nfrom=-2\nscale_wh=1\n"
    ratio = through("[dropout]\n" + cells, x)[:, :4] / x
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


def test_upsample_repeats_cells() -> None:
    x = image(4, 3, 5)
    found = through("[upsample]\nstride=3\n", x)[:, :4]
    assert torch.equal(found, x.repeat_interleave(3, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize(("kind", "stride"), [("reorg", 2), ("reorg3d", 2), ("reorg", 3)])
def test_reorg_moves_cells_as_the_c_loop_does(kind: str, stride: int) -> None:
    """`reorg3d` goes over the output's shape, the older `reorg` over the input's."""
    channels, height, width = 9 * stride**2, 2 * stride, 3 * stride
    x = image(channels, height, width)
    old = (channels, height, width)
    new = (channels * stride**2, height // stride, width // stride)
    cells = torch.tensor(_reorg_cpu(x[0].flatten(), *(old if kind == "reorg" else new), stride))
    found = through(f"[{kind}]\nstride={stride}\n", x)
    assert torch.equal(found[0], cells.reshape(new)[:7])
    tail = f"[route]\nlayers=-1\ngroups={stride**2}\ngroup_id={stride**2 - 1}\n"
    found = through(f"[{kind}]\nstride={stride}\n{tail}", x)
    assert torch.equal(found[0], cells.reshape(new)[-channels:][:7])


def _reorg_cpu(x: torch.Tensor, c: int, h: int, w: int, stride: int) -> list[float]:
    """Darknet's `reorg_cpu` with `forward=0`, for one image."""
    out = [math.nan] * len(x)
    narrow = c // stride**2
    for k, j, i in product(range(c), range(h), range(w)):
        offset, channel = divmod(k, narrow)
        row, column = j * stride + offset // stride, i * stride + offset % stride
        source = column + w * stride * (row + h * stride * channel)
        out[i + w * (j + h * k)] = float(x[source])
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_functions_of_darknet(activation: str) -> None:
    """On what a grouped 1×1 of weight 1 lets through."""
    x = image(7, 4, 4) * 4
    text = detector(
        f"[convolutional]\nfilters=7\ngroups=7\nactivation={activation}\n", net=_net_for(x)
    )
    built = module(text)
    with torch.no_grad():
        for key, value in built.named_parameters():
            value.fill_(0.0 if key.endswith("bias") else 1.0)
        built.get_parameter("models.1.conv2.weight").copy_(torch.eye(7).reshape(7, 7, 1, 1))
        (found,) = built(x)
    wanted = np.vectorize(_SCALAR[activation])(x.double().numpy())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


# Source: AlexeyAB/darknet `src/activations.h`, `src/activations.c` (mish, swish).
_SCALAR = {
    "linear": lambda x: x,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "tanh": math.tanh,
    "elu": lambda x: x if x >= 0 else math.expm1(x),
}


def test_convolution_normalises_with_stored_statistics() -> None:
    """Grouped, strided, padded; batch norm with darknet's eps of 1e-5 before the activation."""
    x = image(4, 9, 9)
    text = detector(
        "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\ngroups=2\nbatch_normalize=1\n"
        "activation=leaky\n",
        net=_net_for(x),
    )
    built = module(text)
    weights = {key: torch.randn_like(value.float()) for key, value in built.state_dict().items()}
    weights["models.0.bn1.running_var"].abs_().mul_(1e-4)
    built.load_state_dict(weights)
    with torch.no_grad():
        (found,) = built(x)
    y = functional.conv2d(x, weights["models.0.conv1.weight"], None, 2, 1, groups=2)
    mean, var, scale, shift = (
        weights[f"models.0.bn1.{name}"][:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    y = functional.leaky_relu((y - mean) / (var + 1e-5).sqrt() * scale + shift, 0.1)
    y = functional.conv2d(y, weights["models.1.conv2.weight"], weights["models.1.conv2.bias"])
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)


def test_maps_are_let_go_when_the_last_reader_is_done() -> None:
    """A chain of large maps needs the memory of a few, not of all."""
    built = module(detector("[upsample]\nstride=2\n[maxpool]\nstride=2\n" * 40))
    alive: list[int] = []
    with torch.no_grad(), _Counting(alive):
        built(image(3, 32, 32))
    assert max(alive) < 8


class _Counting(torch.overrides.TorchFunctionMode):
    """Notes, at every call, how many of the results so far are still alive."""

    def __init__(self, alive: list[int]) -> None:
        super().__init__()
        self.alive = alive
        self.results: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.results.append(weakref.ref(result))
        self.alive.append(sum(ref() is not None for ref in self.results))  # type: ignore[operator]
        return result


@pytest.mark.parametrize(
    ("scale", "new"), [(1.2, False), (2.0, True), (1.0, False)], ids=["yolov4", "csp", "yolov3"]
)
def test_detections_are_the_boxes_of_darknet(scale: float, new: bool) -> None:
    """Two heads; every box and score worked out by itself, as `get_yolo_box` does."""
    head = (
        "[convolutional]\nfilters=14\nactivation=linear\n[yolo]\nmask=2,0\nclasses=2\n"
        f"anchors=5,6, 10,14, 23,27\nscale_x_y={scale}\nnew_coords={int(new)}\n"
    )
    text = f"{NET}[maxpool]\nstride=4\n{head}[route]\nlayers=0\n[maxpool]\nstride=2\n{head}"
    net = network(read_sections(text.encode()))
    maps = [torch.rand(2, 14, 6, 4), torch.rand(2, 14, 3, 2)]
    boxes, scores = detections(net, maps, (48, 32))
    assert (boxes.shape, scores.shape) == ((2, 60, 4), (2, 60, 2))
    at = 0
    for found in maps:
        rows, columns = found.shape[2:]
        for (first, anchor), row, column in product(
            ((0, (23, 27)), (7, (5, 6))), range(rows), range(columns)
        ):
            values = found[1, first : first + 7, row, column].tolist()
            x, y, w, h, objectness, *classes = values
            if not new:
                x, y, objectness, *classes = (1 / (1 + math.exp(-v)) for v in (x, y, *values[4:]))
            x, y = (value * scale - 0.5 * (scale - 1) for value in (x, y))
            w, h = (value**2 * 4 if new else math.exp(value) for value in (w, h))
            # Darknet's box is relative to the image: centre, width and height.
            box = (column + x) / columns, (row + y) / rows, w * anchor[0] / 32, h * anchor[1] / 48
            assert _relative(boxes[1, at], 48, 32) == pytest.approx(box, rel=1e-5, abs=1e-6)
            wanted = [objectness * value for value in classes]
            assert scores[1, at].tolist() == pytest.approx(wanted, rel=1e-5)
            at += 1


def test_detections_of_yolov2_use_a_softmax_and_anchors_in_cells() -> None:
    """As `get_region_box`: the side of a box is exp(value) · anchor cells."""
    text = (
        NET + "[convolutional]\nfilters=8\nsize=8\nstride=8\n[region]\nnum=1\nclasses=3\n"
        "anchors=1,2\nsoftmax=1\n"
    )
    net = network(read_sections(text.encode()))
    found = torch.zeros(1, 8, 4, 4)
    found[0, 5:, 1, 2] = torch.tensor([0.0, math.log(2), math.log(5)])
    boxes, scores = detections(net, [found])
    # Cell (1, 2) of 8 pixels: the centre at (20, 12), the anchor is 8 wide and 16 high.
    assert boxes[0, 6].tolist() == pytest.approx([16, 4, 24, 20])
    assert scores[0, 6].tolist() == pytest.approx([0.5 / 8, 1 / 8, 2.5 / 8])


def _relative(box: torch.Tensor, height: int, width: int) -> list[float]:
    left, top, right, bottom = box.tolist()
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return [*centre, (right - left) / width, (bottom - top) / height]


def _net_for(x: torch.Tensor) -> str:
    _, channels, height, width = x.shape
    return f"[net]\nwidth={width}\nheight={height}\nchannels={channels}\n"
