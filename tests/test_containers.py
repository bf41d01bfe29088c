"""Which weights are meant: what each framework's own loader would take, or a question."""

from __future__ import annotations

import argparse
import gc
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptool.checkpoint import LeftAside
from ckptool.containers import choose, find, left_aside
from ckptool.errors import CkptError, WeightsError
from ckptool.reading import open_file, read


def weights(seed: int = 0, prefix: str = "", layers: int = 3) -> OrderedDict[str, torch.Tensor]:
    """A small state dict; another seed, other values under the same keys."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(layers)))
    return OrderedDict((prefix + key, x) for key, x in model.state_dict().items())


def optimizer(parameters: int = 40) -> dict[str, Any]:
    """The state dict of Adam: far more tensors than the model has."""
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
        for number in range(parameters)
    }
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": [*range(parameters)]}]}


class Net(nn.Module):
    """A module to pickle whole."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 2, 1)


A, B = weights(1), weights(2)
ARGS = argparse.Namespace(lr=0.1, epochs=300)

# What the file holds; the sets and whether each is averaged; the chosen one, None if asked for.
CASES: dict[str, tuple[object, dict[str, bool | None], str | None]] = {
    "bare, as zylo117 and Tianxiaomo save": (A, {".": None}, "."),
    "timm": (
        {"epoch": 3, "arch": "d0", "state_dict": A, "optimizer": optimizer(), "args": ARGS},
        {"state_dict": None},
        "state_dict",
    ),
    "timm with EMA: timm takes one, effdet the other": (
        {"epoch": 3, "state_dict": A, "state_dict_ema": B, "optimizer": optimizer()},
        {"state_dict": False, "state_dict_ema": True},
        None,
    ),
    "mmengine": (
        {"meta": {"epoch": 3}, "state_dict": A, "message_hub": {"x": 1}, "optimizer": optimizer()},
        {"state_dict": None},
        "state_dict",
    ),
    "mmengine with EMA swaps the two": (
        {
            "meta": {},
            "state_dict": A,
            "ema_state_dict": weights(2, "module.") | {"steps": torch.tensor(9)},
            "optimizer": optimizer(),
        },
        {"state_dict": True, "ema_state_dict": False},
        "state_dict",
    ),
    "Lightning": (
        {
            "epoch": 3,
            "global_step": 9,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": weights(1, "model."),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"EMA": {"shadow": weights(5)}},
            "optimizer_states": [optimizer()],
            "hyper_parameters": {"lr": 0.1},
        },
        {"state_dict": None},
        "state_dict",
    ),
    "Lightning with WeightAveraging": (
        {
            "state_dict": A,
            "current_model_state": B,
            "averaging_state": {"n_averaged": torch.tensor(5)},
            "optimizer_states": [optimizer()],
        },
        {"state_dict": True, "current_model_state": False},
        "state_dict",
    ),
    "YOLOv5 in training": (
        {"epoch": 3, "model": Net(1), "ema": Net(2), "updates": 8, "optimizer": optimizer()},
        {"model": False, "ema": True},
        "ema",
    ),
    "YOLOv5 stripped": ({"epoch": -1, "model": Net(1), "ema": None}, {"model": None}, "model"),
    "Ultralytics": ({"epoch": 3, "model": None, "ema": Net(2)}, {"ema": None}, "ema"),
    "RT-DETR": (
        {"last_epoch": 3, "model": A, "ema": {"module": B, "updates": 9}, "optimizer": optimizer()},
        {"model": False, "ema.module": True},
        "ema.module",
    ),
    "Detectron2": (
        {"model": A, "optimizer": optimizer(), "scheduler": {"last_epoch": 3}, "iteration": 9},
        {"model": None},
        "model",
    ),
    "torchvision references": (
        {"model": A, "optimizer": optimizer(), "lr_scheduler": {}, "args": ARGS, "epoch": 3},
        {"model": None},
        "model",
    ),
    "torchvision references with model_ema": (
        {
            "model": A,
            "model_ema": weights(2, "module.") | {"n_averaged": torch.tensor(5)},
            "optimizer": optimizer(),
        },
        {"model": False, "model_ema": True},
        None,
    ),
    "pycls": (
        {"epoch": 3, "model_state": A, "optimizer_state": optimizer()},
        {"model_state": None},
        "model_state",
    ),
    "Kaggle": (
        {
            "model_state_dict": A,
            "optimizer_state_dict": optimizer(),
            "scheduler_state_dict": {"last_epoch": 3},
            "best_summary_loss": 0.3,
            "epoch": 3,
        },
        {"model_state_dict": None},
        "model_state_dict",
    ),
    "nested state dict": (
        {"state_dict": {"model": A}},
        {"state_dict.model": None},
        "state_dict.model",
    ),
    "model in model": (
        {"model": {"model": A, "optimizer": optimizer()}, "epoch": 1},
        {"model.model": None},
        "model.model",
    ),
    "net with EMA net": ({"net": A, "ema_net": B}, {"net": False, "ema_net": True}, None),
    "BasicSR": ({"params": A, "params_ema": B}, {"params": False, "params_ema": True}, None),
    "student and teacher": (
        {"student": A, "teacher": B},
        {"student": False, "teacher": True},
        None,
    ),
    "GAN": ({"generator": A, "discriminator": B}, {"generator": None, "discriminator": None}, None),
    "GAN with other names": ({"G_A": A, "D_A": B}, {"G_A": None, "D_A": None}, None),
    "a model in parts": (
        {"backbone": weights(1, layers=9), "neck": weights(2, layers=2), "head": weights(3)},
        {"backbone": None, "neck": None, "head": None},
        None,
    ),
    "an unknown wrapper": ({"my_net": A, "epoch": 1}, {"my_net": None}, "my_net"),
    "weights beside the statistics of a loss": (
        {"model": A, "criterion": {"weight": torch.ones(2)}, "mean": {"rgb": torch.ones(3)}},
        {"model": None},
        "model",
    ),
    "one dict under two names": (
        {"model": A, "best_model": A},
        {"model": None, "best_model": None},
        "model",
    ),
    "a shadow list, positions without names": (
        {"model": A, "ema": {"decay": 0.9, "shadow_params": [*B.values()]}},
        {"model": None},
        "model",
    ),
    "a key with dots": (
        {"v1.0": {"net.weights": A}, "x": 1},
        {"v1.0.net.weights": None},
        "v1.0.net.weights",
    ),
    "an optimizer called weights": (
        {"state_dict": A, "weights": optimizer()},
        {"state_dict": None},
        "state_dict",
    ),
    "LitEma, flat": (
        A | {"model_ema.decay": torch.tensor(0.9)} | weights(3, "model_ema."),
        {".": None},
        ".",
    ),
}


def opened(value: object, folder: Path) -> Any:
    torch.save(value, folder / "x.pth")
    return open_file(folder / "x.pth")


@pytest.mark.parametrize("name", CASES)
def test_the_sets_and_the_choice(name: str, tmp_path: Path) -> None:
    value, wanted, chosen = CASES[name]
    sets = opened(value, tmp_path).sets
    assert {found.name: found.averaged for found in sets} == wanted
    if chosen is not None:
        assert choose(sets).name == chosen
        return
    with pytest.raises(WeightsError) as caught:
        choose(sets)
    assert caught.value.code == "weights.ambiguous"
    assert caught.value.hint == " or ".join(f"--weights {each}" for each in wanted)
    for each in wanted:
        assert choose(sets, each).name == each


def test_the_question_names_the_sets_and_which_is_averaged(tmp_path: Path) -> None:
    torch.save({"state_dict": A, "state_dict_ema": B}, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / "x.pth")
    assert caught.value.message == (
        f"`{tmp_path / 'x.pth'}`: the file holds 2 weight sets: `state_dict` (as trained, "
        "6 tensors), `state_dict_ema` (averaged, 6 tensors)"
    )
    assert caught.value.hint == "--weights state_dict or --weights state_dict_ema"
    ckpt = read(tmp_path / "x.pth", weights="state_dict_ema")
    assert ckpt.weights.name == "state_dict_ema"
    assert torch.equal(ckpt["0.weight"].torch(), B["0.weight"])
    assert [found.name for found in ckpt.sets] == ["state_dict", "state_dict_ema"]


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    torch.save({"model": A}, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / "x.pth", weights="ema")
    assert caught.value.message == (
        f"`{tmp_path / 'x.pth'}`: no weight set `ema` in the file; it holds `model`"
    )
    assert (caught.value.hint, caught.value.code) == ("--weights model", "weights.unknown")


def test_a_name_that_a_shell_would_take_apart_is_quoted(tmp_path: Path) -> None:
    sets = opened({"net a": A, "net $b": B}, tmp_path).sets
    with pytest.raises(WeightsError) as caught:
        choose(sets)
    assert caught.value.hint == "--weights 'net a' or --weights 'net $b'"


@pytest.mark.parametrize(
    "value",
    [
        {"epoch": 3, "lr": 0.1},
        {},
        [],
        None,
        7,
        {"optimizer": optimizer()},
        optimizer(),
        {"state": optimizer(), "names": ["a"]},
        [torch.ones(2), torch.ones(3)],
        ARGS,
    ],
    ids=repr,
)
def test_a_file_without_weights(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / "x.pth")
    assert caught.value.message == (
        f"`{tmp_path / 'x.pth'}`: the file holds no tensors that look like weights"
    )
    assert (caught.value.hint, caught.value.code) == (None, "weights.none")


def test_weights_that_are_few_among_other_values_are_found(tmp_path: Path) -> None:
    mixed = {"weight": torch.ones(2), "a": 1, "b": 2, "c": 3, "d": 4}
    torch.save(mixed, tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth")) == ["weight"]


def test_what_is_left_aside_is_named_with_its_size(tmp_path: Path) -> None:
    file = opened(
        {
            "epoch": 3,
            "model": {"w": torch.ones(4), "note": "kept out"},
            "optimizer": {
                "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4)}},
                "param_groups": [],
            },
            "lr": 0.1,
            "best": None,
            "args": argparse.Namespace(lr=1),
            "anchors": torch.ones(3, 2, dtype=torch.float64),
        },
        tmp_path,
    )
    assert left_aside(file.contents.root, choose(file.sets)) == (
        LeftAside("epoch", "int 3", 0),
        LeftAside("optimizer", "dict, 2 entries", 20),
        LeftAside("lr", "float 0.1", 0),
        LeftAside("best", "None", 0),
        LeftAside("args", "argparse.Namespace, 1 entry", 0),
        LeftAside("anchors", "tensor float64 (3, 2)", 48),
        LeftAside("model.note", "str `kept out`", 0),
    )


def test_a_shared_storage_is_weighed_once(tmp_path: Path) -> None:
    whole = torch.ones(100)
    file = opened({"model": A, "cache": {"a": whole, "b": whole[5:], "c": whole[:2]}}, tmp_path)
    aside = left_aside(file.contents.root, choose(file.sets))
    assert aside == (LeftAside("cache", "dict, 3 entries", 400),)


def test_a_name_with_dots_is_left_aside_once(tmp_path: Path) -> None:
    file = opened({"v1.0": {"net.weights": A, "n": 1}, "v1": {"0": 5}, "x": 1}, tmp_path)
    chosen = choose(file.sets)
    assert chosen.name == "v1.0.net.weights"
    assert [item.name for item in left_aside(file.contents.root, chosen)] == ["v1", "x", "v1.0.n"]


def test_nothing_is_left_aside_of_a_bare_state_dict(tmp_path: Path) -> None:
    state = nn.BatchNorm2d(2).state_dict()  # with `_metadata`
    file = opened(state, tmp_path)
    assert left_aside(file.contents.root, choose(file.sets)) == ()
    assert choose(file.sets).versions == {"": 2}


def test_a_whole_module_leaves_nothing_aside_but_its_siblings(tmp_path: Path) -> None:
    file = opened({"model": Net(), "epoch": 2}, tmp_path)
    assert left_aside(file.contents.root, choose(file.sets)) == (LeftAside("epoch", "int 2", 0),)


def test_long_and_hostile_names_stay_on_one_line(tmp_path: Path) -> None:
    name = "line\nbreak\x1b[31m" + "x" * 700
    torch.save({name: A, "other": B}, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / "x.pth")
    assert len(caught.value.message) <= 1_000
    assert caught.value.message.isprintable()
    assert r"`line\x0abreak\x1b[31mxxx" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.isprintable()


def test_no_value_no_sets() -> None:
    assert find(None) == ()


def test_a_refused_file_is_closed_at_once(tmp_path: Path) -> None:
    """A walk that ends in an error leaves no cycle behind that would keep its file open."""
    path = tmp_path / "deep.pkl"
    path.write_bytes(b"\x80\x02N" + b"\x85" * 1_200 + b".")
    lowest = os.dup(0)
    os.close(lowest)
    gc.disable()
    try:
        with pytest.raises(CkptError, match="nested deeper than 1,000 levels"):
            open_file(path)
        free = os.dup(0)
    finally:
        gc.enable()
    os.close(free)
    assert free == lowest
