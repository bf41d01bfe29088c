"""The YOLOv4 family: manifests, live modules, and that both spellings compute one function."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cfgs_made import builtin
from torch import Tensor, nn
from torch.nn import functional

from ckptool.architectures.spec import Architecture
from ckptool.architectures.yolov4 import NAMES, build, find_slots, measure
from ckptool.errors import ArchitectureError, CkptError
from ckptool.tensors import TensorSpec

FIXTURES = Path("fixtures/darknet")
HEADS = {"yolov4-tiny": 2, "yolov4-p6": 4}
ANCHORS = {"yolov4-p5": 4, "yolov4-p6": 4}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of yolov4.cfg."""
    path = tmp_path_factory.mktemp("cfg") / "yolov4.cfg"
    path.write_bytes(builtin("yolov4"))
    return str(path)


@dataclass(frozen=True)
class Random:
    """A yolov4 of 3 classes with random weights and statistics: what it gives for an image."""

    weights: Mapping[str, Tensor]
    image: Tensor
    maps: tuple[Tensor, ...]


@pytest.fixture(scope="module")
def random_yolov4() -> Random:
    net = _on_meta("yolov4", 3).eval()
    weights = _randomised(net)
    net.load_state_dict(weights, assign=True)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return Random(weights, image, net(image))


def test_yolov4_is_spelled_as_tianxiaomos_class() -> None:
    """648 keys with dtype and shape, in order."""
    assert _lines(measure("yolov4")) == _reference("yolov4.keys.gz")


def test_cfgs_are_spelled_as_tianxiaomos_darknet(cfg: str) -> None:
    """The same layers under the layer's index and the convolution's number."""
    assert _lines(measure("yolov4-tiny")) == _reference("darknet-yolov4-tiny.keys.gz")
    assert _lines(measure(f"darknet:{cfg}")) == _reference("darknet-yolov4.keys.gz")
    assert _lines(measure("yolov4_new")) == _reference("darknet-yolov4.keys.gz")


@pytest.mark.parametrize("classes", [1, 20, 80, 200])
@pytest.mark.parametrize("name", NAMES)
def test_manifest_is_the_state_dict_of_the_live_module(name: str, classes: int) -> None:
    """Keys, order, shapes and dtypes, for every class count; and what is trained."""
    architecture = measure(name)
    live = _on_meta(name, classes)
    assert list(architecture.manifest(classes).items()) == list(_specs(live).items())
    if classes == 80:
        assert architecture.num_classes == 80
        assert architecture.parameters == sum(value.numel() for value in live.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_class_axes_are_what_two_live_modules_differ_in(name: str) -> None:
    """Weight and bias of every head, and no other tensor; five rows of each anchor stay."""
    architecture = measure(name)
    few, many = (_specs(_on_meta(name, classes)) for classes in (3, 4))
    assert set(architecture.axes) == {key for key in few if few[key] != many[key]}
    assert len(architecture.axes) == 2 * HEADS.get(name, 3)
    for key, axis in architecture.axes.items():
        anchors = ANCHORS.get(name, 3)
        assert (axis.axis, axis.scale, axis.offset) == (0, anchors, 5 * anchors)
        layout = architecture.layouts[key]
        assert (layout.groups, layout.kept, layout.per_class) == (anchors, 5, 1)
        assert (layout.background, layout.counted) == (None, False)


def test_new_rows_start_as_torch_starts_a_convolution() -> None:
    """Uniform within one over the root of the fan, for weight and bias."""
    torch.manual_seed(0)
    architecture, live = measure("yolov4-tiny"), build("yolov4-tiny", 500).state_dict()
    for key, layout in architecture.layouts.items():
        kind, (limit,) = layout.init_for(tuple(live[key].shape))
        assert kind == "uniform"
        assert 0.99 * limit < live[key].abs().max().item() <= limit


def test_rows_of_a_normalised_head_start_as_torch_starts_a_batch_norm(tmp_path: Path) -> None:
    text = builtin("yolov4-tiny").replace(b"filters=255", b"filters=255\nbatch_normalize=1")
    (tmp_path / "odd.cfg").write_bytes(text)
    name = f"darknet:{tmp_path}/odd.cfg"
    architecture, live = measure(name), build(name, 20).state_dict()
    assert list(architecture.manifest(20)) == list(live)
    norms = [key for key in architecture.axes if ".bn" in key]
    assert len(norms) == 8
    for key in norms:
        _, (value,) = architecture.layouts[key].init_for(tuple(live[key].shape))
        assert torch.equal(live[key], torch.full_like(live[key], value))


@pytest.mark.parametrize("name", NAMES)
def test_every_network_runs_forward(name: str) -> None:
    """One map per head, of anchors · (5 + classes) channels and the size its stride gives."""
    net = _on_meta(name, 2).to_empty(device="cpu").eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, 64, 128))
    anchors = ANCHORS.get(name, 3)
    assert [tuple(found.shape) for found in maps] == [
        (1, anchors * 7, 64 // stride, 128 // stride)
        for stride in measure(name).card["strides"]  # type: ignore[attr-defined]
    ]


def test_both_spellings_of_yolov4_compute_the_same(random_yolov4: Random, cfg: str) -> None:
    """Weights copied in order, random weights and random statistics: not a bit differs."""
    theirs = _on_meta(f"darknet:{cfg}", 3).eval()
    copied = dict(zip(theirs.state_dict(), random_yolov4.weights.values(), strict=True))
    theirs.load_state_dict(copied, assign=True)
    with torch.no_grad():
        maps = theirs(random_yolov4.image)
    assert len(maps) == 3
    for a, b in zip(random_yolov4.maps, maps, strict=True):
        assert torch.equal(a, b)


def test_yolov4_computes_what_its_blocks_say(random_yolov4: Random) -> None:
    """Against the network written out by hand, block by block, with keys as Tianxiaomo's."""
    with torch.no_grad():
        wanted = _yolov4_by_hand(random_yolov4.weights, random_yolov4.image)
    for a, b in zip(random_yolov4.maps, wanted, strict=True):
        assert a.std() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("down3.resblock.module_list.2.0.conv.0", "down3.resblock.module_list.3.0.conv.0"),
        ("down2.conv2.conv.0", "down2.conv3.conv.0"),
        ("neck.conv16.conv.0", "neck.conv18.conv.0"),
    ],
)
def test_a_swap_of_two_like_convolutions_shows(random_yolov4: Random, one: str, other: str) -> None:
    """The two tests above see where a weight stands: exchanged, every map differs."""
    weights = random_yolov4.weights
    a, b = f"{one}.weight", f"{other}.weight"
    net = _on_meta("yolov4", 3).eval()
    net.load_state_dict({**weights, a: weights[b], b: weights[a]}, assign=True)
    with torch.no_grad():
        maps = net(random_yolov4.image)
    assert not any(
        torch.allclose(p, q, 1e-3) for p, q in zip(maps, random_yolov4.maps, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_cfg_file_is_the_network_it_describes(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_bytes(builtin(name))
    read, known = measure(f"darknet:{tmp_path}/net.cfg"), measure(name)
    assert list(read.specs.values()) == list(known.specs.values())
    assert (read.card, read.parameters) == (known.card, known.parameters)
    assert (read.family, known.family) == ("darknet", "yolov4")


def test_card_says_what_no_file_stores() -> None:
    card = measure("yolov4").card
    assert card == {
        "image_size": [608, 608],
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "activation": ["leaky", "mish"],
        "bn_eps": 1e-5,
        "bn_momentum": 0.1,
        "strides": [8, 16, 32],
        "anchors": [
            [[12.0, 16.0], [19.0, 36.0], [40.0, 28.0]],
            [[36.0, 75.0], [76.0, 55.0], [72.0, 146.0]],
            [[142.0, 110.0], [192.0, 243.0], [459.0, 401.0]],
        ],
        "anchor_masks": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        "scale_x_y": [1.2, 1.1, 1.05],
        "new_coords": [False, False, False],
    }
    assert measure("yolov4_new").card["new_coords"] == [True, True, True]
    assert measure("yolov4-csp-swish").card["activation"] == ["logistic", "swish"]


def test_slots_are_in_the_order_of_a_weights_file() -> None:
    """Per convolution bias, scale, mean, variance, kernel; without a norm bias, kernel."""
    slots = find_slots("yolov4-tiny", 20)
    assert [(slot.parameter, slot.key, slot.shape) for slot in slots[:5]] == [
        ("bn.bias", "models.0.bn1.bias", (32,)),
        ("bn.weight", "models.0.bn1.weight", (32,)),
        ("bn.running_mean", "models.0.bn1.running_mean", (32,)),
        ("bn.running_var", "models.0.bn1.running_var", (32,)),
        ("conv.weight", "models.0.conv1.weight", (32, 3, 3, 3)),
    ]
    assert [(slot.layer, slot.key, slot.shape) for slot in slots[-2:]] == [
        (36, "models.36.conv21.bias", (75,)),
        (36, "models.36.conv21.weight", (75, 256, 1, 1)),
    ]
    specs = measure("yolov4-tiny").manifest(20)
    counters = {key for key in specs if key.endswith("num_batches_tracked")}
    assert {slot.key for slot in slots} == set(specs) - counters
    assert all(specs[slot.key].shape == slot.shape for slot in slots)


def test_slots_of_both_spellings_are_the_same_floats(cfg: str) -> None:
    ours, theirs = find_slots("yolov4"), find_slots(f"darknet:{cfg}")
    assert [(s.layer, s.parameter, s.shape) for s in ours] == [
        (s.layer, s.parameter, s.shape) for s in theirs
    ]


def test_errors_name_the_cfg_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.cfg"
    path.write_text("[net]\nwidth=32\nheight=32\nchannels=3\n\n[lstm]\n")
    with pytest.raises(ArchitectureError) as caught:
        measure(f"darknet:{path}")
    assert caught.value.message == (
        f"`{path}`: line 6: layer 0 is `[lstm]`, which ckptool does not know"
    )
    assert (caught.value.hint or "").startswith("it knows `convolutional`, ")
    assert caught.value.code == "cfg.layer"


def test_missing_cfg_and_a_weights_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        measure(f"darknet:{tmp_path}/none.cfg")
    assert caught.value.message == f"`{tmp_path}/none.cfg`: no such file"
    (tmp_path / "y.weights").write_bytes(b"\0\0\0\0\2\0\0\0\5\0\0\0" + bytes(9 << 20))
    with pytest.raises(ArchitectureError) as error:
        build(f"darknet:{tmp_path}/y.weights")
    assert error.value.message == (
        f"`{tmp_path}/y.weights`: 1,048,577 bytes are too many for a cfg: at most 1,048,576"
    )


def test_class_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArchitectureError) as caught:
        build("yolov4", 0)
    assert caught.value.message == "`yolov4`: found 0 classes, wanted 1 to 21,840"
    with pytest.raises(ArchitectureError):
        build("yolov4-p5", 16_380)


def test_building_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArchitectureError) as caught:
        build("yolov4")
    assert caught.value.message.startswith("`yolov4` needs `torch`, which ")
    assert caught.value.hint == "pip install 'ckptool[live]'"


def test_a_manifest_needs_no_torch() -> None:
    """Neither a name nor a cfg imports torch or numpy; building does."""
    code = (
        "import sys; from ckptool.architectures.yolov4 import NAMES, measure, build;"
        "[measure(name) for name in NAMES];"
        "assert not {'torch', 'numpy'} & set(sys.modules); build('yolov4-tiny', 1);"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _yolov4_by_hand(weights: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """YOLOv4 from its parts: CSP stages, pyramid pooling, the two paths of the neck, the heads."""

    def conv(key: str, x: Tensor, stride: int = 1, activate=functional.mish) -> Tensor:  # type: ignore[no-untyped-def]
        kernel = weights[f"{key}.conv.0.weight"]
        y = functional.conv2d(x, kernel, None, stride, kernel.shape[2] // 2)
        mean, var, scale, shift = (
            weights[f"{key}.conv.1.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return activate(functional.batch_norm(y, mean, var, scale, shift, eps=1e-5))

    def leaky(part: str, numbers: Iterator[int], x: Tensor, stride: int = 1) -> Tensor:
        return conv(f"{part}.conv{next(numbers)}", x, stride, _leaky)

    def block(part: str, numbers: Iterator[int], x: Tensor, count: int = 5) -> Tensor:
        for _ in range(count):
            x = leaky(part, numbers, x)
        return x

    def output(numbers: Iterator[int], x: Tensor) -> Tensor:
        x = leaky("head", numbers, x)
        key = f"head.conv{next(numbers)}.conv.0"
        return functional.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    x = conv("down1.conv1", x)
    x = conv("down1.conv2", x, 2)
    bypass, x = conv("down1.conv3", x), conv("down1.conv4", x)
    x = x + conv("down1.conv6", conv("down1.conv5", x))
    x = conv("down1.conv8", torch.cat((conv("down1.conv7", x), bypass), 1))
    stages = []
    for stage, depth in (("down2", 2), ("down3", 8), ("down4", 8), ("down5", 4)):
        x = conv(f"{stage}.conv1", x, 2)
        bypass, x = conv(f"{stage}.conv2", x), conv(f"{stage}.conv3", x)
        for number in range(depth):
            inner = f"{stage}.resblock.module_list.{number}"
            x = x + conv(f"{inner}.1", conv(f"{inner}.0", x))
        x = conv(f"{stage}.conv5", torch.cat((conv(f"{stage}.conv4", x), bypass), 1))
        stages.append(x)

    neck = iter(range(1, 21))
    x = block("neck", neck, x, 3)
    pools = [functional.max_pool2d(x, size, 1, size // 2) for size in (13, 9, 5)]
    top = x = block("neck", neck, torch.cat((*pools, x), 1), 3)
    paths = []
    for side in (stages[2], stages[1]):
        doubled = functional.interpolate(leaky("neck", neck, x), scale_factor=2)
        x = block("neck", neck, torch.cat((leaky("neck", neck, side), doubled), 1))
        paths.append(x)

    head = iter(range(1, 19))
    maps = [output(head, x)]
    for side in (paths[0], top):
        x = torch.cat((leaky("head", head, x, 2), side), 1)
        x = block("head", head, x)
        maps.append(output(head, x))
    return maps


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.1)


def _randomised(net: nn.Module) -> dict[str, Tensor]:
    """Weights that keep the signal alive, and batch norm statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for key, value in net.state_dict().items():
        if value.ndim == 4:
            value = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        elif key.endswith(("running_var", "1.weight")):
            value = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim:
            value = torch.randn(value.shape, generator=generator) * 0.3
        else:
            value = torch.tensor(1)
        found[key] = value
    return found


def _on_meta(name: str, classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes)


def _specs(net: nn.Module) -> dict[str, TensorSpec]:
    return {
        key: TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for key, value in net.state_dict().items()
    }


def _lines(architecture: Architecture) -> list[str]:
    return [
        f"{key} {spec.dtype} {','.join(map(str, spec.shape))}"
        for key, spec in architecture.specs.items()
    ]


def _reference(name: str) -> list[str]:
    return gzip.decompress((FIXTURES / name).read_bytes()).decode().splitlines()
