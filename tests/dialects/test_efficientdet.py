"""EfficientDet from one implementation to another: the raw outputs stay what they were.

With random weights and random statistics of the norms, against effdet's own networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from efficientdets import Zylo
from key_lists import key_list
from nets import effdet, furthest, image, outputs
from networks import randomise
from safetensors.torch import load_file
from torch import Tensor

import ckptool

D0 = "tf_efficientdet_d0"
EXACT = 1e-6  # what the same sums in another order may differ by in float32


@pytest.fixture(scope="module")
def d0(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """A checkpoint of effdet's D0, and what that computes."""
    model = randomise(effdet(D0), 128)
    path = tmp_path_factory.mktemp("d0") / "own.pth"
    torch.save(model.state_dict(), path)
    return path, outputs(model, image())


def test_zylo117s_network_computes_the_same(d0: tuple[Path, list[Tensor]], tmp_path: Path) -> None:
    """But for the zeros around its max-pools, which are no matter of weights."""
    path, wanted = d0
    result = ckptool.convert(path, tmp_path / "zylo.pth", arch=D0, to_dialect="zylo117")
    assert result.fits_strict
    state, names = torch.load(result.output), key_list(f"zylo117@{D0}")
    assert furthest(outputs(Zylo(effdet(D0)).load(state, names), image()), wanted) <= EXACT
    zeros = Zylo(effdet(D0), outside=0.0).load(state, names)
    assert furthest(outputs(zeros, image()), wanted) > 1e-3


def test_zylo117s_d6_has_the_norms_of_its_heads_the_other_way_round(tmp_path: Path) -> None:
    """With five levels and five repeats no shape shows it; its 64 dead weights come out as ones."""
    name = "tf_efficientdet_d6"
    model = randomise(effdet(name), 128)
    path, wanted = tmp_path / "own.pth", outputs(model, image())
    torch.save(model.state_dict(), path)
    result = ckptool.convert(path, tmp_path / "zylo.pth", arch=name, to_dialect="zylo117")
    assert result.fits_strict
    state, names = torch.load(result.output), key_list("zylo117@tf_efficientdet_d7")
    dead = [key for key, own in names.canonical.items() if not own]
    assert len(dead) == 64
    assert all((state[key] == 1).all() for key in dead)
    like = Zylo(model)
    assert furthest(outputs(like.load(state, names), image()), wanted) <= EXACT
    for net in ("regressor", "classifier"):
        for level in range(5):
            for repeat in range(level):
                for kind in ("weight", "bias", "running_mean", "running_var"):
                    one, other = (
                        f"{net}.bn_list.{a}.{b}.{kind}"
                        for a, b in ((level, repeat), (repeat, level))
                    )
                    state[one], state[other] = state[other], state[one]
    assert furthest(outputs(like.load(state, names), image()), wanted) > 0.05


def test_the_heads_of_effdet_level_first(d0: tuple[Path, list[Tensor]], tmp_path: Path) -> None:
    path, wanted = d0
    for name, level_first in (("effdet-level-first", True), ("effdet", False)):
        result = ckptool.convert(path, tmp_path / f"{name}.pth", arch=D0, to_dialect=name)
        model = effdet(D0, head_bn_level_first=level_first)
        model.load_state_dict(torch.load(result.output), strict=True)
        assert furthest(outputs(model, image()), wanted) == 0
        path = Path(result.output)


def test_mmdets_keys_hold_what_effdets_do(d0: tuple[Path, list[Tensor]], tmp_path: Path) -> None:
    """A checkpoint of mmdet's, with its keys in its order, becomes effdet's."""
    path, wanted = d0
    own = torch.load(path)
    names = key_list(f"mmdet@{D0}").canonical
    state = {key: own[canonical] for key, (canonical,) in names.items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "mmdet.pth")
    result = ckptool.convert(tmp_path / "mmdet.pth", tmp_path / "own.pth", arch=D0)
    model = effdet(D0)
    model.load_state_dict(torch.load(result.output), strict=True)
    assert furthest(outputs(model, image()), wanted) == 0
    again = ckptool.convert(
        result.output, tmp_path / "back.safetensors", arch=D0, to_dialect="mmdet"
    )
    back = load_file(again.output)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert back.keys() == state.keys()


def tf_separable(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """TensorFlow's separable convolution, by its definition: a map is (N, height, width, C)."""
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 1).unfold(2, 3, 1)
    deep = torch.einsum("nhwcij,ijcm->nhwcm", patches, weights[f"{name}/depthwise_kernel"])
    kernel = weights[f"{name}/pointwise_kernel"][0, 0]
    return torch.einsum("nhwc,co->nhwo", deep[..., 0], kernel) + weights[f"{name}/bias"]


def tf_class_head(weights: dict[str, Tensor], maps: list[Tensor]) -> list[Tensor]:
    """automl's class head on channels-first maps of the levels 3 to 7."""
    found = []
    for level, x in enumerate(maps, 3):
        x = x.permute(0, 2, 3, 1)
        for repeat in range(3):
            x = tf_separable(x, weights, f"class_net/class-{repeat}")
            gamma, beta, mean, variance = (
                weights[f"class_net/class-{repeat}-bn-{level}/{name}"]
                for name in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            x = torch.nn.functional.silu((x - mean) / (variance + 1e-3).sqrt() * gamma + beta)
        x = tf_separable(x, weights, "class_net/class-predict")
        found.append(x.permute(0, 3, 1, 2))
    return found


def test_tensorflows_arrays_there_and_back(d0: tuple[Path, list[Tensor]], tmp_path: Path) -> None:
    path, wanted = d0
    there = ckptool.convert(path, tmp_path / "tf.safetensors", arch=D0, to_dialect="automl-tf")
    arrays = load_file(there.output)
    model = effdet(D0)
    model.load_state_dict(torch.load(path), strict=True)
    maps = [torch.randn(1, 64, side, side) for side in (16, 8, 4, 2, 1)]
    with torch.no_grad():
        assert furthest(tf_class_head(arrays, maps), list(model.class_net(maps))) <= EXACT
    named = {name: tensor.numpy() for name, tensor in arrays.items()}
    numpy.savez(tmp_path / "tf.npz", global_step=numpy.int64(7), **named)
    back = ckptool.convert(tmp_path / "tf.npz", tmp_path / "own.pth", arch=D0)
    model = effdet(D0)
    model.load_state_dict(torch.load(back.output), strict=True)
    assert furthest(outputs(model, image()), wanted) == 0
