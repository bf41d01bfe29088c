"""`ckptool verify`: a strict load into the real class, and one forward pass."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ckptool
from ckptool.cli import main
from ckptool.errors import ArchitectureError, VerificationError


class Small(nn.Module):
    """A network of a user; its outputs are nested."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, num_classes)

    def forward(self, x: Tensor) -> dict[str, object]:
        features = self.bn(self.conv(x))
        return {"boxes": [features, (features.mean(),)], "classes": self.fc(features.mean((2, 3)))}


def for_lists(num_classes: int = 3) -> nn.Module:
    """A network that takes no batch."""
    model = Small(num_classes)
    model.forward = lambda images: images["none"]  # type: ignore[method-assign]
    return model


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("networks_made")
    made.Small, made.for_lists = Small, for_lists  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "networks_made", made)


ARCH = "networks_made:Small"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Small().state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(["verify", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def changed(path: Path, **changes: Tensor | None) -> Path:
    state = torch.load(path, weights_only=True)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(state, path)
    return path


def test_what_loads_strictly_is_verified(path: Path) -> None:
    found = ckptool.verify(path, arch=ARCH)
    assert (found.strict_load, found.passed, found.forward) == (True, True, None)
    assert (found.missing, found.unexpected, found.shape) == ((), (), ())


def test_what_does_not_load_is_listed(path: Path, run: Run) -> None:
    changed(path, fc__bias=None, extra=torch.ones(1), conv__weight=torch.ones(2, 4, 3, 3))
    code, out, err = run(str(path), "--arch", ARCH, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        "file": str(path),
        "arch": ARCH,
        "strict_load": False,
        "missing": ["fc.bias"],
        "unexpected": ["extra"],
        "shape": ["conv.weight"],
        "forward": None,
        "num_classes": None,
    }
    code, out, _ = run(str(path), "--arch", ARCH)
    assert code == 1
    assert out.splitlines() == [
        f"{path}: does NOT load strictly into {ARCH}",
        "  1 missing, 1 unexpected, 1 of another shape; this says why:",
        f"  ckptool diff {path} --arch {ARCH}",
    ]


def test_the_class_count_is_the_architectures_unless_it_is_given(path: Path, run: Run) -> None:
    torch.save(Small(7).state_dict(), path)
    code, out, _ = run(str(path), "--arch", ARCH)
    assert code == 1
    assert "0 missing, 0 unexpected, 2 of another shape" in out
    code, out, _ = run(str(path), "--arch", ARCH, "--num-classes", "7")
    assert (code, out) == (0, f"{path}: loads strictly into {ARCH} with 7 classes\n")
    assert run(str(path), "--arch", ARCH, "--num-classes", "8")[1].endswith("--num-classes 8\n")


def test_a_missing_counter_is_judged_as_torch_judges_it(path: Path) -> None:
    """Without the versions in `_metadata` torch does not miss it."""
    state = torch.load(path, weights_only=True)
    del state["bn.num_batches_tracked"]
    torch.save(state, path)
    assert ckptool.verify(path, arch=ARCH).missing == ("bn.num_batches_tracked",)
    torch.save(dict(state), path)
    assert ckptool.verify(path, arch=ARCH).strict_load


def test_forward_tells_the_shapes_and_that_all_is_finite(path: Path, run: Run) -> None:
    code, out, _ = run(str(path), "--arch", ARCH, "--forward", "--json")
    assert code == 0
    assert json.loads(out)["forward"] == {
        "input": [1, 3, 256, 256],
        "outputs": [[1, 2, 254, 254], [], [1, 3]],
        "finite": True,
    }
    _, out, _ = run(str(path), "--arch", ARCH, "--forward")
    wanted = "forward: 1×3×256×256 gives 1×2×254×254, a number, 1×3; all values are finite"
    assert out.splitlines()[1] == wanted


def test_the_image_has_the_size_of_the_architecture(tmp_path: Path) -> None:
    from ckptool import architectures

    torch.save(architectures.build("yolov4-tiny", 2).state_dict(), tmp_path / "w.pth")
    found = ckptool.verify(tmp_path / "w.pth", arch="yolov4-tiny", num_classes=2, forward=True)
    assert found.forward == {
        "input": [1, 3, 416, 416],
        "outputs": [[1, 21, 13, 13], [1, 21, 26, 26]],
        "finite": True,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_verified(path: Path, run: Run, value: float) -> None:
    changed(path, bn__running_mean=torch.tensor([0.0, value]))
    assert run(str(path), "--arch", ARCH)[0] == 0
    code, out, _ = run(str(path), "--arch", ARCH, "--forward")
    assert code == 1
    assert out.rstrip().endswith("NOT all values are finite")


def test_a_network_that_does_not_run_is_one_sentence(path: Path, run: Run) -> None:
    code, out, err = run(str(path), "--arch", "networks_made:for_lists", "--forward")
    assert (code, out) == (2, "")
    assert "`networks_made:for_lists` does not run on an image of 1×3×256×256: " in err
    with pytest.raises(VerificationError):
        ckptool.verify(path, arch="networks_made:for_lists", forward=True)


def test_what_does_not_load_is_not_run(path: Path) -> None:
    changed(path, fc__bias=None)
    assert ckptool.verify(path, arch=ARCH, forward=True).forward is None


def test_an_unknown_architecture_is_refused(path: Path, run: Run) -> None:
    code, out, err = run(str(path), "--arch", "tf_efficientdet_d9")
    assert (code, out) == (2, "")
    assert err.startswith("error: no architecture is called `tf_efficientdet_d9`\n\nhint: the clo")
    with pytest.raises(ArchitectureError):
        ckptool.verify(path, arch="networks_made:missing")


def test_a_weight_set_is_chosen_by_its_name(tmp_path: Path) -> None:
    torch.save({"model": Small().state_dict(), "ema": Small(5).state_dict()}, tmp_path / "both.pth")
    path = tmp_path / "both.pth"
    assert ckptool.verify(path, arch=ARCH, weights="model").strict_load
    assert ckptool.verify(path, arch=ARCH, weights="ema", num_classes=5).strict_load
    assert not ckptool.verify(path, arch=ARCH, weights="ema").strict_load
