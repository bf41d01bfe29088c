"""A user's own callable as an architecture: good ones, and bad ones with the sentence they get."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool import architectures
from ckptool.architectures.spec import ClassAxis, RowLayout
from ckptool.errors import ArchitectureError, CkptError, UnsupportedError
from ckptool.tensors import TensorSpec

MODELS = '''
import sys, warnings
import torch
from torch import nn

class Net(nn.Module):
    """A detector of its own kind: two anchors with five box rows, and a plain classifier."""
    def __init__(self, num_classes=6):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)
        self.act = nn.LeakyReLU(0.1)
        self.boxes = nn.Conv2d(8, 2 * (5 + num_classes), 1)
        self.label = nn.Linear(8, num_classes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

def wants_a_count(num_classes):
    return Net(num_classes)

def fixed():
    return Net()

def keywords(**options):
    return Net(**options)

def noisy(num_classes=3):
    print("building")
    warnings.warn("old")
    return Net(num_classes)

def looks_at_values(num_classes=3):
    """Cannot be built on the meta device."""
    widths = [int(x) for x in torch.linspace(4, 8, 3)]
    assert widths == [4, 6, 8]
    return Net(num_classes)

class Tied(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.embed = nn.Embedding(num_classes, 4)
        self.decode = nn.Linear(4, num_classes, bias=False)
        self.decode.weight = self.embed.weight

class PerClass(nn.Module):
    """Its keys depend on the class count: no axis does."""
    def __init__(self, num_classes=2):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(num_classes))

class Square(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.confusion = nn.Parameter(torch.zeros(num_classes, num_classes))

class Rounded(nn.Module):
    """Rows in blocks of eight: not linear in the class count."""
    def __init__(self, num_classes=8):
        super().__init__()
        self.head = nn.Linear(4, -(-num_classes // 8) * 8)

class Zoo:
    @staticmethod
    def small(num_classes=4):
        return Net(num_classes)

class Stateful(nn.Module):
    def get_extra_state(self):
        return {"a": 1}
    def set_extra_state(self, state):
        pass

class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.zeros(1, dtype=torch.bits8))

def lazy():
    return nn.LazyLinear(3)

def raises(num_classes=3):
    raise ValueError("width must be divisible by 32,\\nfound 100")

def leaves():
    sys.exit(3)

def no_module():
    return {"weight": torch.zeros(1)}

def two_arguments(config, num_classes=3):
    return Net(num_classes)

number = 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of models in it that is not on the path."""
    (tmp_path / "own_models.py").write_text(MODELS)
    (tmp_path / "broken_models.py").write_text("import no_such_dependency\n")
    (tmp_path / "failing_models.py").write_text("raise RuntimeError('no GPU')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_models", "broken_models", "failing_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_module_class_is_measured() -> None:
    found = architectures.find("own_models:Net")

    assert (found.family, found.num_classes, found.needs) == ("custom", 6, ("torch",))
    assert found.specs["stem.weight"] == TensorSpec("float32", (8, 3, 3, 3))
    assert found.specs["steps"] == TensorSpec("int32", ())
    assert found.axes == {
        "boxes.weight": ClassAxis(0, 2, 10),
        "boxes.bias": ClassAxis(0, 2, 10),
        "label.weight": ClassAxis(0, 1, 0),
        "label.bias": ClassAxis(0, 1, 0),
    }
    assert found.manifest(20)["boxes.weight"] == TensorSpec("float32", (50, 8, 1, 1))
    assert found.parameters == 216 + 16 + 22 * 9 + 6 * 9
    assert found.source == {"torch": version("torch")}
    assert dict(found.card) == {
        "padding": "symmetric",
        "bn_eps": 1e-3,
        "bn_momentum": 0.03,
        "activation": "leakyrelu(0.1)",
    }


def test_rows_of_which_the_order_is_a_guess_get_no_layout() -> None:
    """A row for each class is a row for each class; many rows for each could be in any order."""
    layouts = architectures.find("own_models:Net").layouts

    plain = RowLayout(init=("uniform", (8**-0.5,)))
    assert layouts == {"label.weight": plain, "label.bias": plain}


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("own_models:noisy", 3),
        ("own_models:looks_at_values", 3),
        ("own_models:Zoo.small", 4),
        ("own_models:Net", 6),
    ],
)
def test_the_default_class_count_is_found(name: str, default: int) -> None:
    found = architectures.find(name)

    assert found.num_classes == default
    assert found.axes["boxes.weight"] == ClassAxis(0, 2, 10)


def test_a_callable_without_a_default_count_wants_one() -> None:
    found = architectures.find("own_models:wants_a_count")

    assert found.num_classes is None
    assert found.manifest(7)["label.weight"] == TensorSpec("float32", (7, 8))
    with pytest.raises(ArchitectureError) as caught:
        found.manifest()
    assert caught.value.message == "`own_models:wants_a_count` has no default class count"
    assert caught.value.hint == "--num-classes N"


@pytest.mark.parametrize("name", ["own_models:fixed", "own_models:keywords"])
def test_a_callable_that_names_no_class_count_has_only_its_own(name: str) -> None:
    found = architectures.find(name)

    assert (found.num_classes, found.axes, found.layouts) == (None, {}, {})
    assert found.manifest()["label.weight"] == TensorSpec("float32", (6, 8))
    with pytest.raises(ArchitectureError) as caught:
        found.manifest(20)
    assert caught.value.message == (
        f"`{name}` cannot have 20 classes: nothing was found in it that depends on a class count"
    )
    with pytest.raises(ArchitectureError) as caught:
        architectures.build(name, 20)
    assert caught.value.message == (
        f"`{name}` takes no `num_classes`: it cannot be built for 20 classes"
    )


@pytest.mark.parametrize("name", ["PerClass", "Square", "Rounded"])
def test_a_dependence_that_no_axis_describes_is_not_claimed(name: str) -> None:
    found = architectures.find(f"own_models:{name}")

    assert found.axes == {}
    assert found.specs == found.manifest()


def test_tied_tensors_are_aliases() -> None:
    found = architectures.find("own_models:Tied")

    assert found.aliases == (("embed.weight", "decode.weight"),)
    assert found.parameters == 20


def test_build_gives_the_live_module() -> None:
    model = architectures.build("own_models:wants_a_count", 9)

    assert model.label.weight.device.type == "cpu"
    assert model.label.weight.shape == (9, 8)


def test_what_a_callable_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    architectures.find("own_models:noisy")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert set(captured.err.splitlines()) == {"building"}


def test_measuring_leaves_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    architectures.find("own_models:looks_at_values")

    assert torch.equal(torch.rand(3), wanted)


def test_the_search_path_is_as_it_was(folder: Path) -> None:
    before = list(sys.path)
    architectures.find("own_models:Net")

    assert sys.path == before
    assert str(folder) not in sys.path


def test_a_module_in_the_current_folder_hides_no_installed_one(folder: Path) -> None:
    """A `timm.py` beside a downloaded checkpoint is not run."""
    (folder / "timm.py").write_text("raise SystemExit('run')\n")
    script = folder / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from ckptool import architectures\n"
        "architectures.find('own_models:Net')\n"
        "architectures.find('timm:resnet10t')\n"
    )
    # As the console script: the path starts with its own folder, not with the current one.
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(ckptool.__file__).parents[1])},
    )

    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-500:]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "own_models:raises",
            "`own_models:raises` cannot be built: ValueError: width must be divisible by "
            "32,\\x0afound 100",
            None,
        ),
        ("own_models:leaves", "`own_models:leaves` cannot be built: SystemExit: 3", None),
        (
            "own_models:no_module",
            "`own_models:no_module` returned `dict`, wanted a torch.nn.Module",
            None,
        ),
        (
            "own_models:two_arguments",
            "`own_models:two_arguments` cannot be built: TypeError: two_arguments() missing 1 "
            "required positional argument: 'config'",
            None,
        ),
        (
            "own_models:number",
            "`own_models:number` is `int`, wanted a callable that returns a torch.nn.Module",
            None,
        ),
        (
            "own_models:Nett",
            "module `own_models` has no `Nett`",
            "the closest are `Net`",
        ),
        (
            "own_models:Zoo.smal",
            "module `own_models` has no `Zoo.smal`",
            "the closest are `small`",
        ),
        ("own_models:", "module `own_models` has no ``", None),
        ("no_models:Net", "there is no module `no_models`", "ckptool archs"),
        ("own_models.sub:Net", "there is no module `own_models.sub`", "ckptool archs"),
        (
            "broken_models:Net",
            "module `broken_models` does not import: ModuleNotFoundError: No module named "
            "'no_such_dependency'",
            None,
        ),
        (
            "failing_models:Net",
            "module `failing_models` does not import: RuntimeError: no GPU",
            None,
        ),
        (
            "./own_models.py:Net",
            "`./own_models.py` is not the name of a module, which is like `package.module`",
            None,
        ),
        (
            "own_models:lazy",
            "`own_models:lazy`: `weight` has no shape before the first forward pass",
            None,
        ),
    ],
)
def test_a_callable_that_does_not_work_is_one_sentence(
    name: str, message: str, hint: str | None
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find(name)

    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "own_models:Stateful",
            "`own_models:Stateful`: `_extra_state` of its state dict is not a tensor",
        ),
        (
            "own_models:Packed",
            "`own_models:Packed`: `scale` has dtype `bits8`, which is not handled",
        ),
    ],
)
def test_a_state_that_no_manifest_describes_is_refused(name: str, message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        architectures.find(name)

    assert caught.value.message == message
    assert isinstance(caught.value, CkptError)
