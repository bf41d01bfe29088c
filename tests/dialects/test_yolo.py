"""YOLOv4 from one implementation to another: the raw outputs stay what they were.

With random weights and random statistics of the norms; each file is loaded strictly into a network
that computes what its implementation does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from nets import furthest, image, outputs
from networks import U5Backbone, darknet_like, randomise, raw
from safetensors.torch import load_file
from torch import Tensor, nn

import ckptool
from ckptool.architectures import darknet_net
from ckptool.architectures.darknet_layers import Head
from ckptool.architectures.yolov4 import build, find_network

FOLDED = 1e-5  # what eps folds and permutations may change in float32
# argusswift joins bypass and main in the stages 1 to 4, and the pyramid from small to large.
CSP, SPP = (22, 53, 84, 103), (113,)
YOLOV4 = {
    "bubbliiiing": ({}, 0.0),
    "darknet": ({}, 0.0),
    "argusswift": ({"reversed_routes": CSP + SPP}, FOLDED),
    "tianxiaomo-neek": ({}, 0.0),
    "wongkinyiu": ({"eps": 1e-4}, FOLDED),
}


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def loaded(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def yolov4(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """A checkpoint of ckptool's own yolov4, and what that computes."""
    model = randomise(build("yolov4"))
    return saved(model, tmp_path_factory.mktemp("yolov4") / "own.pth"), outputs(model, image(64))


def test_yolov4_through_every_implementation(
    yolov4: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    """Each file is made of the one before; the last one is back where it began."""
    path, wanted = yolov4
    for name, (config, bound) in YOLOV4.items():
        output = tmp_path / f"{name}.safetensors"
        result = ckptool.convert(path, output, arch="yolov4", to_dialect=name)
        assert result.fits_strict
        found = outputs(
            loaded(darknet_like(f"{name}@yolov4", **config), load_file(output)), image(64)
        )
        assert furthest(found, wanted) <= bound, name
        path = output
    result = ckptool.convert(path, tmp_path / "own.safetensors", arch="yolov4")
    assert [step.edit for step in result.plan.steps] == ["dialect", "eps"]
    found = outputs(loaded(build("yolov4"), load_file(result.output)), image(64))
    assert furthest(found, wanted) <= FOLDED


@pytest.mark.parametrize(
    ("pyramid", "halves"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_argusswift_needs_both_rearrangements(
    pyramid: bool, halves: bool, yolov4: tuple[Path, list[Tensor]]
) -> None:
    path, wanted = yolov4
    own, model = build("yolov4"), darknet_like("argusswift@yolov4", reversed_routes=CSP + SPP)
    names = {
        there: here
        for layer, prefixes in model.spelling.items()
        for there, here in (
            (prefixes.conv, own.spelling[layer].conv),
            (prefixes.bn, own.spelling[layer].bn),
        )
    }
    weights = torch.load(path, mmap=True)
    state = {}
    for key in model.state_dict():
        module, _, parameter = key.rpartition(".")
        state[key] = weights[f"{names[module]}.{parameter}"]
    for layer in (*(SPP if pyramid else ()), *(CSP if halves else ())):
        key = f"{model.spelling[layer + 1].conv}.weight"
        blocks = state[key].chunk(4 if layer in SPP else 2, 1)
        state[key] = torch.cat(blocks[::-1], 1)
    difference = furthest(outputs(loaded(model, state), image(64)), wanted)
    assert (difference <= FOLDED) is (pyramid and halves)
    assert difference <= FOLDED or difference > 0.1


def test_the_slope_of_argusswifts_neck_is_no_matter_of_weights(
    yolov4: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = yolov4
    model = loaded(build("yolov4"), torch.load(path, mmap=True))
    monkeypatch.setitem(darknet_net._ACTIVATE, "leaky", nn.LeakyReLU(0.01))
    assert furthest(outputs(model, image(64)), wanted) == pytest.approx(0.4, abs=0.1)


TINY = {
    "bubbliiiing-tiny": ({}, 0.0),
    "wongkinyiu": ({"eps": 1e-4}, FOLDED),
    "wongkinyiu-first-half": ({"eps": 1e-4, "group": 0}, FOLDED),
}


def test_yolov4_tiny_through_every_implementation(tmp_path: Path) -> None:
    model = randomise(build("yolov4-tiny"))
    path, wanted = saved(model, tmp_path / "own.pth"), outputs(model, image(64))
    came = None
    for name, (config, bound) in TINY.items():
        output = tmp_path / f"{name}.safetensors"
        result = ckptool.convert(
            path, output, arch="yolov4-tiny", to_dialect=name, from_dialect=came
        )
        assert result.fits_strict
        like = darknet_like(f"{name}@yolov4-tiny", **config)
        found = outputs(loaded(like, load_file(output)), image(64))
        assert furthest(found, wanted) <= bound, name
        path, came = output, name if name.startswith("wongkinyiu") else None
    back = ckptool.convert(path, tmp_path / "o.pth", arch="yolov4-tiny", from_dialect=came)
    found = outputs(loaded(build("yolov4-tiny"), torch.load(back.output)), image(64))
    assert furthest(found, wanted) <= FOLDED


def test_yolov4_tiny_copied_plainly_is_another_network(tmp_path: Path) -> None:
    """Neither the first nor the second half may be taken for granted, so somebody must say it."""
    model = randomise(build("yolov4-tiny"))
    path, wanted = saved(model, tmp_path / "own.pth"), outputs(model, image(64))
    plain = tmp_path / "plain.safetensors"
    ckptool.convert(path, plain, arch="yolov4-tiny", to_dialect="wongkinyiu")
    like = darknet_like("wongkinyiu-first-half@yolov4-tiny", eps=1e-4, group=0)
    found = outputs(loaded(like, load_file(plain)), image(64))
    assert furthest(found, wanted) > 0.1
    with pytest.raises(ckptool.CkptError, match=r"whether it is `wongkinyiu` \(the cfg is") as e:
        ckptool.convert(plain, tmp_path / "no.pth", arch="yolov4-tiny")
    assert "`wongkinyiu-first-half` (the cfg has `route_lhalf`, as in PyTorch_YOLOv4)" in str(
        e.value
    )
    assert e.value.hint == "--from-dialect wongkinyiu-first-half"
    # To leave the tensors as they are would be to guess that they are as they should be.
    half = "wongkinyiu-first-half"
    with pytest.raises(ckptool.CkptError, match="cannot tell whether the file is") as e:
        ckptool.convert(plain, tmp_path / "no.pth", to_dialect=half)
    assert e.value.hint == "--from-dialect wongkinyiu"
    path = tmp_path / "half.pth"
    ckptool.convert(plain, path, to_dialect=half, from_dialect="wongkinyiu")
    assert furthest(outputs(loaded(like, torch.load(path)), image(64)), wanted) <= FOLDED
    ckptool.convert(path, tmp_path / "same.pth", to_dialect=half, from_dialect=half)
    same = torch.load(tmp_path / "same.pth")
    assert all(torch.equal(value, same[key]) for key, value in torch.load(path).items())


CSP_TO = {
    "wongkinyiu": ({"eps": 1e-4}, FOLDED),
    "wongkinyiu-reordered": ({"eps": 1e-4, "activation": "mish"}, FOLDED),
}


@pytest.mark.parametrize("name", CSP_TO)
def test_yolov4_csp_by_either_layer_order(name: str, tmp_path: Path) -> None:
    """Its 175 layers, or the 176 of which those behind the heads are at the end."""
    config, bound = CSP_TO[name]
    model = randomise(raw(build("yolov4-csp")))
    path, wanted = saved(model, tmp_path / "own.pth"), outputs(model, image(64))
    output = tmp_path / "other.safetensors"
    ckptool.convert(path, output, arch="yolov4-csp", to_dialect=name)
    twin = "yolov4-csp-swish" if name.endswith("reordered") else "yolov4-csp"
    like = raw(darknet_like(f"wongkinyiu@{twin}", **config))
    found = outputs(loaded(like, load_file(output)), image(64))
    assert furthest(sorted(found, key=len), sorted(wanted, key=len)) <= bound


def maps_of(model: nn.Module, layers: tuple[int, ...]) -> list[Tensor]:
    """The maps of some of a darknet network's convolutions, all with Mish."""
    found = []
    for layer in layers:
        norm = model.get_submodule(model.spelling[layer].bn)
        norm.register_forward_hook(lambda module, inputs, output: found.append(output))
    outputs(model, image(64))
    return [nn.functional.mish(x) for x in found]


def test_the_backbone_of_yolov4_csp_is_that_of_u5(tmp_path: Path) -> None:
    """Two norms become one; the rest of u5 is another network."""
    model = randomise(build("yolov4-csp"))
    path, wanted = saved(model, tmp_path / "own.pth"), maps_of(model, (98,))
    result = ckptool.convert(path, tmp_path / "u5.pth", arch="yolov4-csp", to_dialect="u5")
    found = outputs(loaded(U5Backbone(), torch.load(result.output)), image(64))
    assert furthest(found, wanted) <= FOLDED


def test_the_backbone_of_yolov4_is_timms_cspdarknet53_with_mish(
    yolov4: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    path, _ = yolov4
    model = loaded(build("yolov4"), torch.load(path, mmap=True))
    wanted = maps_of(model, (23, 54, 85, 104))
    result = ckptool.convert(
        path, tmp_path / "timm.safetensors", arch="yolov4", to_dialect="timm-features"
    )
    theirs = timm.create_model("cspdarknet53", features_only=True)
    state = load_file(result.output)
    leaky = outputs(loaded(theirs, state), image(64))[-4:]
    assert furthest(leaky, wanted) == pytest.approx(0.6, abs=0.1)
    for module in list(theirs.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.Mish())
    assert furthest(outputs(theirs, image(64))[-4:], wanted) <= FOLDED


def centres_apart(
    name: str, decoded: list[Head], maps: list[Tensor], theirs: list[Tensor]
) -> float:
    """How far the centres of boxes are apart, in pixels, if the heads are decoded otherwise."""
    net = find_network(name)
    heads = iter(decoded)
    layers = [replace(layer, head=next(heads)) if layer.head else layer for layer in net.layers]
    own, _ = darknet_net.detections(net, maps)
    other, _ = darknet_net.detections(replace(net, layers=tuple(layers)), theirs)
    middles = [(boxes[..., :2] + boxes[..., 2:]) / 2 for boxes in (own, other)]
    return float((middles[0] - middles[1]).abs().max())


def test_the_sizes_of_what_the_notes_say_about_boxes() -> None:
    """Centres run from one end of a cell to the other."""
    net = find_network("yolov4")
    maps = [torch.zeros(1, 3, 85, 608 // head.stride, 608 // head.stride) for head in net.heads]
    for grid in maps:
        grid[:, :, :2] = 40  # x and y at the end of the cell
    maps = [grid.flatten(1, 2) for grid in maps]
    plain = [replace(head, scale_x_y=1.0) for head in net.heads]
    assert centres_apart("yolov4", plain, maps, maps) == pytest.approx(0.8, abs=1e-3)
    scaled = [replace(head, scale_x_y=2.0, new_coords=True) for head in net.heads]
    theirs = [x.sigmoid() for x in maps]
    assert centres_apart("yolov4", scaled, maps, theirs) == pytest.approx(15.2, abs=0.1)
    theirs_anchors = [10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326]
    own_anchors = [side for head in net.heads for anchor in head.anchors for side in anchor]
    shares = [a / b for a, b in zip(theirs_anchors, own_anchors, strict=True)]
    assert (round(1 - max(shares), 2), round(1 - min(shares), 2)) == (0.16, 0.19)
