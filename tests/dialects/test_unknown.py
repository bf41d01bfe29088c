"""A file under names that no table knows: a guess by the order of shapes, acted on if asked to."""

from __future__ import annotations

import json
import random
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from nets import effdet, image, outputs
from networks import randomise
from torch import Tensor, nn

import ckptool
from ckptool.architectures import find
from ckptool.architectures.live import quiet
from ckptool.architectures.yolov4 import build
from ckptool.cli import main
from ckptool.pairing import Guess, guess
from ckptool.tensors import TensorSpec

D0 = "tf_efficientdet_d0"
# The names of parameters and buffers, which are torch's, whatever the modules are called.
TORCHS = ("weight", "bias", "running", "mean", "var", "num", "batches", "tracked")
Specs = dict[str, TensorSpec]


def renamed(keys: list[str], seed: int = 0, keep: tuple[str, ...] = TORCHS) -> list[str]:
    """The keys with each word exchanged for another one, but for some; numbers stay."""
    chance = random.Random(seed)
    words: dict[str, str] = {word: word for word in keep}

    def other(match: re.Match[str]) -> str:
        return words.setdefault(match[0], "".join(chance.choices("bcdfghjklmnpqrst", k=6)))

    return [re.sub("[A-Za-z]+", other, key) for key in keys]


def under_other_names(specs: Specs, keep: tuple[str, ...] = TORCHS) -> Specs:
    return dict(zip(renamed(list(specs), keep=keep), specs.values(), strict=True))


def exchanged(specs: Specs, one: str, other: str, own: list[str]) -> Specs:
    """The specs in the order that they have if the tensors below two modules change places.

    `own` are the keys before they were renamed.
    """
    first, second = ([i for i, key in enumerate(own) if key.startswith(p)] for p in (one, other))
    items = list(specs.items())
    order = list(range(len(items)))
    for i, j in zip(first, second, strict=True):
        assert items[i][1] == items[j][1]
        order[i], order[j] = j, i
    return dict(items[i] for i in order)


def judged(found: Specs, arch: str) -> Guess | None:
    architecture = find(arch)
    return guess(found, architecture.specs, architecture.axes)


def torchvisions() -> nn.Module:
    with quiet():
        from torchvision.models import detection

        return detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=5
        )


NETWORKS = {
    D0: lambda: randomise(effdet(D0, 7), 128),
    "yolov4": lambda: randomise(build("yolov4", 3)),
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": torchvisions,
}


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_guess_that_is_accepted_computes_the_same(arch: str, tmp_path: Path) -> None:
    """Whatever the class count; and nothing is done unasked."""
    model = NETWORKS[arch]().eval()
    own = model.state_dict()
    path, output = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save(OrderedDict(zip(renamed(list(own)), own.values(), strict=True)), path)
    with pytest.raises(ckptool.CkptError, match="A guess at the pairing") as refused:
        ckptool.convert(path, output, arch=arch)
    assert refused.value.hint == "--accept-guess"
    assert not output.exists()
    result = ckptool.convert(path, output, arch=arch, accept_guess=True)
    assert result.fits_strict
    assert result.plan.steps[0].options.keys() == {"guess"}
    found = torch.load(output)
    assert list(found) == list(own)
    assert all(torch.equal(found[key], tensor) for key, tensor in own.items())
    images = [image(64)[0]] if "torchvision" in arch else image(128)
    wanted = outputs(model, images)
    with torch.no_grad():
        for tensor in own.values():
            tensor.zero_()
    model.load_state_dict(found, strict=True)
    assert same(outputs(model, images), wanted)


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)) and bool(wanted)


def saved(specs: Specs, path: Path) -> Path:
    tensors = {key: torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for key, s in specs.items()}
    torch.save(tensors, path)
    return path


def test_identify_and_diff_say_so_with_the_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(under_other_names(dict(find(D0).specs), keep=()), tmp_path / "in.pth"))
    assert main(["identify", path]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "no name is known, but read in order the shapes are those of" in shown
    assert "tf_efficientdet_d0 (and `tf_efficientdet_d0_ap`), 90 classes" in shown
    assert "30 of 784 pairs (4%) have a shape of their own" in shown
    assert f"`ckptool convert FILE --arch {D0} --accept-guess` acts on it" in shown
    assert main(["identify", path, "--json"]) == 1
    (guessed,) = json.loads(capsys.readouterr().out)["guesses"]
    assert (guessed["arch"], guessed["num_classes"]) == (D0, 90)
    pairing = guessed["guess"]
    assert list(pairing["names"].values()) == list(find(D0).specs)
    left = sum(map(len, pairing["ambiguous"]))
    assert pairing["unique"] + pairing["named"] + left == 784
    assert main(["diff", path, "--arch", D0, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (cause,) = found["causes"]
    assert (cause["code"], cause["exact"]) == ("unknown-dialect", False)
    assert cause["ambiguous"] == pairing["ambiguous"]
    assert found["fix"] == f"ckptool convert {path} --arch {D0} --accept-guess"
    assert main(["diff", path, "--arch", D0]) == 1
    assert f"rest on their order alone\n{'':7}order alone: 4 tensors, " in capsys.readouterr().out


def test_with_the_option_no_architecture_need_be_named(tmp_path: Path) -> None:
    """The class count is the file's, and what cannot be told apart is listed."""
    path = saved(under_other_names(find(D0).manifest(20)), tmp_path / "in.pth")
    result = ckptool.convert(path, tmp_path / "out.pth", accept_guess=True)
    assert (result.plan.arch, result.plan.num_classes) == (D0, 20)
    assert result.also_fits == (f"{D0}_ap",)


def test_the_names_of_parameters_leave_nothing_open() -> None:
    """Where the numbers are in order; but of a square no number says what its rows are."""
    found = judged(under_other_names(dict(find(D0).specs)), D0)
    assert found is not None
    assert (found.unique, found.named, found.ambiguous) == (30, 754, ())
    assert {"weight", "bias", "running", "mean", "var"} == {*found.words}
    square = judged(under_other_names(dict(find("tf_efficientdet_d6").specs)), "tf_efficientdet_d6")
    assert square is not None
    left = {square.names[key] for group in square.ambiguous for key in group}
    assert left == {key for key in square.names.values() if ".bn_rep." in key}


@pytest.mark.parametrize("keep", [(), TORCHS])
def test_what_may_be_exchanged_is_stated(keep: tuple[str, ...]) -> None:
    """The towers of the two heads have the same shapes, and no name says which is which."""
    specs = dict(find(D0).specs)
    found = judged(
        exchanged(
            under_other_names(specs, keep), "class_net.conv_rep", "box_net.conv_rep", list(specs)
        ),
        D0,
    )
    assert found is not None
    assert found.against is None
    left = {key for group in found.ambiguous for key in group}
    wrong = [
        key
        for key, name in zip(under_other_names(specs, keep), specs, strict=True)
        if found.names[key] != name
    ]
    assert len(wrong) == 18
    assert left.issuperset(wrong)


@pytest.mark.parametrize(
    ("one", "other", "keep", "message"),
    [
        (
            *("class_net.conv_rep", "box_net.conv_rep", (*TORCHS, "class", "box")),
            r"`box_\w+\.\w+\.0\.\w+\.bias` would become "
            r"`class_net.conv_rep.0.conv_pw.bias`, and only one of the two is called `box`",
        ),
        (
            *("class_net.conv_rep.0", "class_net.conv_rep.1", TORCHS),
            r"`\w+\.\w+\.1\.\w+\.bias` would become `class_net.conv_rep.0.conv_pw.bias`, "
            "though the numbers are in another order",
        ),
        (
            *("backbone.bn1.running_mean", "backbone.bn1.running_var", TORCHS),
            "would become `backbone.bn1.running_mean`, and only one of the two is called `var`",
        ),
        (
            *("backbone.bn1.weight", "backbone.blocks.0.0.bn1.weight", ()),
            "one module against two",
        ),
    ],
)
def test_names_that_contradict_the_order_are_refused(
    one: str, other: str, keep: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    specs = dict(find(D0).specs)
    permuted = exchanged(under_other_names(specs, keep), one, other, list(specs))
    found = judged(permuted, D0)
    assert found is not None
    assert re.search(message, str(found.against))
    path = saved(permuted, tmp_path / "in.pth")
    (cause,) = ckptool.diff(path, arch=D0).causes
    assert "the names contradict that, so nothing is paired" in cause.summary
    for arch in (D0, None):
        with pytest.raises(ckptool.CkptError, match="names contradict"):
            ckptool.convert(path, tmp_path / "out.pth", arch=arch, accept_guess=True)


def test_a_tensor_more_is_named_and_left_out_if_asked_to(tmp_path: Path) -> None:
    specs = list(under_other_names(dict(find(D0).specs)).items())
    more = [*specs[:100], ("extra.weight", TensorSpec("float32", (7,))), *specs[100:]]
    path = saved(dict(more), tmp_path / "in.pth")
    found = ckptool.diff(path, arch=D0)
    assert "but for 1 tensor of the file, `extra.weight`." in found.causes[0].summary
    assert str(found.fix).endswith("--accept-guess --drop extra.weight")
    options = {"arch": D0, "accept_guess": True, "drop": "extra.weight"}
    assert ckptool.convert(path, tmp_path / "out.pth", **options).fits_strict


@pytest.mark.parametrize("number", [0, 3, 100, 783])
def test_a_tensor_less_is_named_and_not_invented(number: int, tmp_path: Path) -> None:
    """Also among others of its shape, where the names of parameters tell which it is."""
    own = list(find(D0).specs)
    specs = list(under_other_names(dict(find(D0).specs)).items())
    found = judged(dict(specs[:number] + specs[number + 1 :]), D0)
    assert found is not None
    assert (found.missing, found.against) == ((own[number],), None)
    path = saved(dict(specs[:number] + specs[number + 1 :]), tmp_path / "in.pth")
    if not own[number].endswith("num_batches_tracked"):
        with pytest.raises(ckptool.CkptError, match=re.escape(own[number])):
            ckptool.convert(path, tmp_path / "out.pth", arch=D0, accept_guess=True)


def test_which_of_some_alike_is_missing_may_be_open() -> None:
    """Without any name nobody knows which vector of a norm there is not."""
    specs = list(under_other_names(dict(find(D0).specs), keep=()).items())
    number = list(find(D0).specs).index("backbone.bn1.bias")
    found = judged(dict(specs[:number] + specs[number + 1 :]), D0)
    assert found is not None
    assert len(found.missing) == 1
    assert {key for key, _ in specs[number - 1 : number + 3]} - {specs[number][0]} <= {
        *found.ambiguous[-1]
    }


def test_counters_may_be_missing_altogether(tmp_path: Path) -> None:
    """As in files of torch before 0.4.1."""
    specs = under_other_names(dict(find(D0).specs))
    path = saved({k: s for k, s in specs.items() if s.shape}, tmp_path / "in.pth")
    assert ckptool.convert(path, tmp_path / "o.pth", arch=D0, accept_guess=True).fits_strict


@pytest.mark.parametrize("arch", ["yolov4", "tf_efficientdet_d1", "efficientdet_d0"])
def test_another_network_is_no_guess(arch: str, tmp_path: Path) -> None:
    found = under_other_names(dict(find(arch).specs))
    assert judged(found, D0) is None
    path = saved(found, tmp_path / "in.pth")
    assert {cause.code for cause in ckptool.diff(path, arch=D0).causes} == {"unrelated"}
    backwards = dict(reversed(found.items()))
    assert judged(backwards, arch) is None


def test_nothing_to_guess_is_said(tmp_path: Path) -> None:
    path = saved({"a.weight": TensorSpec("float32", (3, 4))}, tmp_path / "in.pth")
    with pytest.raises(ckptool.CkptError, match="there is no guess to accept"):
        ckptool.convert(path, tmp_path / "out.pth", accept_guess=True)


def test_modules_of_which_some_keys_stand_outside() -> None:
    """Keys without a dot are in no module, whatever stands beside them."""
    specs = dict(find(D0).specs)
    some = {key if n % 2 else f"wrap.{key}": spec for n, (key, spec) in enumerate(specs.items())}
    found = judged(some, D0)
    assert found is not None
    assert found.against is not None
    flat = {
        key.replace(".", "_") if n % 2 else key: spec for n, (key, spec) in enumerate(specs.items())
    }
    found = judged(flat, D0)
    assert found is not None
    assert found.against is None
