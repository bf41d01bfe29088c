"""An edit of another package: installed as packages are, and run from a stored plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.cli import main

SETUP = """
[metadata]
name = ckptool-transpose
version = 1.0

[options]
py_modules = ckptool_transpose

[options.entry_points]
ckptool.plugins =
    transpose = ckptool_transpose
    broken = ckptool_transpose:no_such_name
    empty = ckptool_transpose:NAME
    odd = ckptool_transpose:odd
"""

EDIT = '''
"""Swap the two axes of matrices."""

from dataclasses import replace
from types import SimpleNamespace

from ckptool.plugins import EXACT, Applied
from ckptool.tensors import LazyTensor, TensorSpec

NAME = "transpose"


class Swapped:
    def __init__(self, tensor):
        self.inputs = (tensor,)

    def chunks(self, spec, step):
        (tensor,) = self.inputs
        yield memoryview(tensor.numpy().T.copy().reshape(-1).view("u1").data)

    def extent(self, spec):
        return None

    def check(self, spec, written):
        (tensor,) = self.inputs
        assert (written.numpy() == tensor.numpy().T).all()
        return {"swapped": 1}


def apply(weights, options):
    tensors = dict(weights.tensors)
    for key in options["keys"]:
        old = tensors[key]
        tensors[key] = LazyTensor(TensorSpec(old.dtype, old.shape[::-1]), Swapped(old))
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(options["keys"]))


odd = SimpleNamespace(apply=lambda weights, options: weights)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip installed a package with edits."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "setup.cfg").write_text(SETUP)
    (folder / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    (folder / "ckptool_transpose.py").write_text(EDIT)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("ckptool_transpose", None)


def stored(tmp_path, edit, options):
    """A file and a stored plan for it, with one step."""
    torch.save({"fc.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / "in.pth")
    plan = ckptool.plan(tmp_path / "in.pth").to_json()
    plan["steps"] = [{"edit": edit, "options": options, "keys": 0, "class": "exact"}]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return [
        "convert",
        str(tmp_path / "in.pth"),
        "--plan",
        str(tmp_path / "plan.json"),
        "-o",
        str(tmp_path / "out.pth"),
    ]


def test_an_edit_of_another_package_runs_from_a_stored_plan(installed, tmp_path, capsys):
    """It is proven, counted and shown as the built-in ones are."""
    command = stored(tmp_path, "transpose", {"keys": ["fc.weight"]})
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["steps"][0]["keys"] == 1
    assert found["measured"] == {"fc.weight": {"swapped": 1}}
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert state["fc.weight"].equal(torch.arange(6.0).reshape(2, 3).T)
    assert main([*command, "--dry-run"]) == 0
    assert '{"keys": ["fc.weight"]}' in capsys.readouterr().out


def test_without_the_package_the_plan_is_refused(tmp_path, capsys):
    command = stored(tmp_path, "transpose", {"keys": ["fc.weight"]})
    assert main(command) == 2
    assert "no edit is called `transpose`; there are `rename`" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        ("broken", {}, "the edit `broken` of `ckptool_transpose:no_such_name` does not load"),
        ("empty", {}, "the edit `empty` of `ckptool_transpose:NAME` has no `apply`"),
        ("odd", {}, "the edit `odd` gave no result of its kind"),
        ("transpose", {"keys": ["gone"]}, "the edit `transpose` cannot be carried out with its"),
        ("transpose", {}, "the edit `transpose` cannot be carried out with its options: KeyError"),
    ],
)
def test_an_edit_that_fails_is_one_sentence(installed, tmp_path, capsys, edit, options, message):
    assert main(stored(tmp_path, edit, options)) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "in.pth", tmp_path / "plan.json"]
