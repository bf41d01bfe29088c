"""`identify` names exactly what a file cannot be told from, and guesses nothing."""

from __future__ import annotations

import itertools
import json
import random
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints_made import Held, State, cast, effdet, held, prefixed, tensors, versions, write
from effdet import DetBenchPredict, EfficientDet, get_efficientdet_config
from effdet.anchors import Anchors
from effdet.config.model_config import efficientdet_model_param_dict

import ckptool
from ckptool.architectures import frozen
from ckptool.cli import main

NAMES = tuple(efficientdet_model_param_dict)
COUNTS = (1, 2, 20, 80, 90)
WRAPPINGS = ("bare", "module.", "bench", "_orig_mod.", "lightning")
DTYPES = (torch.float32, torch.float16)
ALL = tuple(itertools.product(NAMES, COUNTS, WRAPPINGS, DTYPES))
SAMPLE = (
    *random.Random(3).sample(ALL, 30),
    *itertools.product(
        ("tf_efficientdet_d6", "tf_efficientdet_d7"), (20,), ("bench", "lightning"), DTYPES
    ),
)


def model(name: str, num_classes: int) -> State:
    """What the real class holds; a class count changes nothing but the rows of the class head."""
    state = held(effdet(name))
    for key, (dtype, shape) in state.items():
        if key.startswith("class_net.predict.conv") and shape[0] == 810:
            state[key] = Held(dtype, (9 * num_classes, *shape[1:]))
    return state


@cache
def frozen_manifest(name: str) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    architecture = frozen.find(name)
    assert architecture
    return frozenset((k, spec.dtype, spec.shape) for k, spec in architecture.specs.items())


@cache
def manifest(name: str) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    state = held(effdet(name))
    return frozenset(
        (key, str(dtype).removeprefix("torch."), shape) for key, (dtype, shape) in state.items()
    )


@cache
def first_box(name: str) -> tuple[float, ...]:
    """The first of the anchors that effdet itself makes for its config."""
    config = get_efficientdet_config(name)
    config.image_size = (128, 128)
    return tuple(Anchors.from_config(config).boxes[0].tolist())


def anchors(name: str) -> torch.Tensor:
    """A buffer as the bench has it, but all rows are the first one."""
    side = get_efficientdet_config(name).image_size[0]
    count = sum(9 * (-(-side // 2**level)) ** 2 for level in range(3, 8))
    return torch.tensor(first_box(name)).expand(count, 4)


def checkpoint(name: str, num_classes: int, wrapping: str, dtype: torch.dtype) -> State:
    state = cast(model(name, num_classes), dtype)
    if wrapping == "bare":
        return state
    if wrapping == "bench":
        return {**prefixed(state, "model."), "anchors.boxes": anchors(name).to(dtype)}
    if wrapping == "lightning":
        return {**prefixed(state, "model.model."), "model.anchors.boxes": anchors(name).to(dtype)}
    return prefixed(state, wrapping)


def check(case: tuple[str, int, str, torch.dtype], others: dict, folder: Path) -> None:
    """Identify one checkpoint; `others` are the manifests of all configs."""
    name, num_classes, wrapping, dtype = case
    path = write(checkpoint(*case), folder / "weights.pth")
    alike = {other for other in NAMES if others[other] == manifest(name)}
    if wrapping in ("bench", "lightning"):
        alike = {other for other in alike if first_box(other) == first_box(name)}
    found = ckptool.identify(path)
    assert {candidate.arch for candidate in found.fitting} == alike, case
    for candidate in found.fitting:
        assert candidate.num_classes == num_classes
        assert candidate.dtype == str(dtype).removeprefix("torch.")
        assert (candidate.missing, candidate.unexpected, candidate.shape) == (0, 0, 0)
        assert candidate.matched == len(manifest(name))
    path.unlink()


def test_a_sample_of_effdet_checkpoints(tmp_path, count):
    others = {name: frozen_manifest(name) for name in NAMES}
    for case in SAMPLE:
        check(case, others, tmp_path)
    count("identified checkpoints", len(SAMPLE))


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_every_effdet_checkpoint(name, tmp_path, count):
    others = {name: manifest(name) for name in NAMES}
    cases = [case for case in ALL if case[0] == name]
    for case in cases:
        check(case, others, tmp_path)
    count("identified checkpoints", len(cases))


def test_the_bench_s_keys_are_those_that_the_tests_make():
    config = get_efficientdet_config("tf_efficientdet_d0")
    bench = DetBenchPredict(EfficientDet(config, pretrained_backbone=False))
    made = checkpoint("tf_efficientdet_d0", 90, "bench", torch.float32)
    assert set(bench.state_dict()) == set(made)
    real = bench.state_dict()["anchors.boxes"]
    assert real.shape == made["anchors.boxes"].shape
    assert torch.equal(real[0], made["anchors.boxes"][0])


OTHERS = tuple(name for name in frozen.index() if name not in NAMES)


@pytest.mark.parametrize("name", OTHERS)
def test_yolov4_and_torchvision(name, tmp_path):
    architecture = frozen.find(name)
    assert architecture
    for num_classes, prefix in ((2, ""), (20, "module."), (90, "_orig_mod.")):
        specs = architecture.manifest(num_classes)
        state = {k: Held(getattr(torch, spec.dtype), spec.shape) for k, spec in specs.items()}
        path = write(prefixed(state, prefix), tmp_path / "weights.pth")
        alike = {
            other
            for other in OTHERS
            if (found := frozen.find(other)) and found.manifest(num_classes) == specs
        }
        if name == "yolov4_new":
            alike.add("yolov4")  # the Darknet class spells it the same, see its dialects
        identified = ckptool.identify(path)
        assert {candidate.arch for candidate in identified.fitting} == alike
        assert {candidate.num_classes for candidate in identified.fitting} == {num_classes}


@pytest.mark.parametrize(
    "inserted",
    [
        "backbone._orig_mod.",  # only the backbone was compiled
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.model._orig_mod.",
    ],
)
def test_stacks_of_wrappers(inserted, tmp_path):
    state = model("tf_efficientdet_d0", 90)
    if inserted.startswith("backbone."):
        wrapped = {key.replace("backbone.", inserted, 1): value for key, value in state.items()}
    else:
        wrapped = prefixed(state, inserted)
    found = ckptool.identify(write(wrapped, tmp_path / "weights.pth"))
    names = [candidate.arch for candidate in found.fitting]
    assert names == ["tf_efficientdet_d0", "tf_efficientdet_d0_ap"]


def test_metadata_under_a_wrapper_is_that_of_the_network(tmp_path):
    """Without counters it fits if torch starts them, which the wrapped `_metadata` tells."""
    state = model("tf_efficientdet_d0", 90)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    metadata = {
        f"module.{path}": local for path, local in versions(effdet("tf_efficientdet_d0")).items()
    }
    wrapped = prefixed(state, "module.")
    assert ckptool.identify(write(wrapped, tmp_path / "old.pth")).fitting
    assert not ckptool.identify(write(wrapped, tmp_path / "new.pth", metadata)).fitting


def test_what_a_profiler_left_is_no_difference(tmp_path):
    state = model("tf_efficientdet_d0", 90)
    modules = {key.rpartition(".")[0] for key in state}
    state |= {f"{module}.total_ops": Held(torch.float64, (1,)) for module in modules}
    state |= {"total_params": Held(torch.float64, (1,))}
    assert ckptool.identify(write(state, tmp_path / "weights.pth")).fitting


def test_anchors_of_no_architecture_rule_none_out(tmp_path):
    """Somebody's own anchor scale says nothing about which of the look-alikes it is."""
    state = model("tf_efficientdet_d7", 90)
    state["anchors.boxes"] = torch.tensor([-3.0, -3.0, 11.0, 11.0]).expand(100, 4)
    found = ckptool.identify(write(state, tmp_path / "weights.pth"))
    names = [candidate.arch for candidate in found.fitting]
    assert names == ["tf_efficientdet_d6", "tf_efficientdet_d7"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_anchors_in_another_precision_tell_as_much(dtype, tmp_path):
    state = model("tf_efficientdet_d7", 90)
    state["anchors.boxes"] = anchors("tf_efficientdet_d7").to(dtype)
    found = ckptool.identify(write(state, tmp_path / "weights.pth"))
    assert [candidate.arch for candidate in found.fitting] == ["tf_efficientdet_d7"]


def llm_like() -> State:
    half = torch.float16
    state = {"model.embed_tokens.weight": Held(half, (32000, 512))}
    for layer in range(8):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            state[key] = Held(half, (512, 512))
    return {**state, "lm_head.weight": Held(half, (32000, 512))}


def random_like() -> State:
    rng = random.Random(1)
    parts = ("backbone", "head", "conv1", "bn1", "layers", "0", "1", "fpn", "model")
    return {
        ".".join([*rng.choices(parts, k=rng.randint(1, 4)), "weight"]): Held(
            torch.float32, tuple(rng.choices((1, 3, 9, 64, 810), k=rng.randint(1, 4)))
        )
        for _ in range(200)
    }


def classifier() -> State:
    import torchvision

    with torch.device("meta"):
        return held(torchvision.models.resnet50())


def timm_backbone() -> State:
    import timm

    with torch.device("meta"):
        return held(timm.create_model("tf_efficientnet_b0"))


def one_tensor() -> State:
    return {"weight": Held(torch.float32, (3,))}


@pytest.mark.parametrize("made", [llm_like, random_like, classifier, timm_backbone, one_tensor])
def test_nothing_is_guessed(made, tmp_path, capsys):
    """No candidate, not even a near one, for what no detector of ours is."""
    path = write(made(), tmp_path / "weights.pth")
    assert ckptool.identify(path).candidates == ()
    assert main(["identify", str(path)]) == 1
    shown = capsys.readouterr().out
    assert shown.endswith("\nno architecture that ckptool knows: `ckptool archs` lists them\n")


def test_a_network_without_heads_is_near_but_fits_nothing(tmp_path):
    state = model("tf_efficientdet_d0", 90)
    rest = {key: value for key, value in state.items() if "_net." not in key}
    metadata = versions(effdet("tf_efficientdet_d0"))
    found = ckptool.identify(write(rest, tmp_path / "weights.pth", metadata))
    assert not found.fitting
    near = {candidate.arch: candidate for candidate in found.candidates}["tf_efficientdet_d0"]
    assert (near.matched, near.missing) == (len(rest), len(state) - len(rest))
    assert near.unexpected == near.shape == 0


def test_a_damaged_file_is_near_its_architecture_first(tmp_path):
    state = model("tf_efficientdet_d2", 20)
    for key in [key for key in state if key.endswith("conv_dw.weight")][:10]:
        del state[key]
    found = ckptool.identify(write(state, tmp_path / "weights.safetensors"))
    assert not found.fitting
    best = found.candidates[0]
    assert (best.arch, best.num_classes, best.missing) == ("tf_efficientdet_d2", 20, 10)


def test_the_json_of_identify(tmp_path, capsys):
    state = {"epoch": 3, "state_dict": tensors(prefixed(model("efficientdet_d1", 20), "module."))}
    torch.save(OrderedDict(state), tmp_path / "weights.pth")
    assert main(["identify", str(tmp_path / "weights.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "weights.pth"),
        "format": "torch-zip",
        "weights": "state_dict",
        "candidates": [
            {
                "arch": "efficientdet_d1",
                "fits": True,
                "dialect": "effdet",
                "num_classes": 20,
                "prefix": "module.",
                "dtype": "float32",
                "matched": 960,
                "missing": 0,
                "unexpected": 0,
                "shape": 0,
            },
            {
                "arch": "tf_efficientdet_d1",
                "fits": False,
                "dialect": "effdet",
                "num_classes": 20,
                "prefix": "module.",
                "dtype": "float32",
                "matched": 960,
                "missing": 44,
                "unexpected": 0,
                "shape": 0,
            },
            {
                "arch": "tf_efficientdet_d1_ap",
                "fits": False,
                "dialect": "effdet",
                "num_classes": 20,
                "prefix": "module.",
                "dtype": "float32",
                "matched": 960,
                "missing": 44,
                "unexpected": 0,
                "shape": 0,
            },
        ],
        "guesses": [],
    }


def test_weights_chooses_what_is_identified(tmp_path, capsys):
    small, large = (
        tensors(model(name, 90)) for name in ("tf_efficientdet_d0", "tf_efficientdet_d1")
    )
    torch.save({"ema": small, "net": large}, tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    assert main(["identify", path]) == 2
    assert "--weights ema or --weights net" in capsys.readouterr().err
    assert main(["identify", path, "--weights", "net", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"][0]["arch"] == "tf_efficientdet_d1"
