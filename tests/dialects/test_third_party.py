"""A dialect of another package: installed as packages are, found by its entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool import dialects
from ckptool.architectures import find
from ckptool.architectures.yolov4 import build
from ckptool.cli import main

SETUP = """
[metadata]
name = ckptool-mine
version = 1.0

[options]
py_modules = ckptool_mine

[options.entry_points]
ckptool.dialects =
    mine = ckptool_mine
"""

DIALECT = '''
"""Somebody's yolov4-tiny, whose blocks are numbered through."""

from ckptool.dialects.spec import Dialect
from ckptool.dialects.yolo import FAMILIES, rules, tables

DIALECTS = (
    Dialect(
        "mine",
        FAMILIES,
        ("yolov4-tiny",),
        marks=("net.1.c.weight", "net.1.b.weight"),
        rules=rules("{conv}.c", "{norm}.b", "{head}.out"),
        tables=tables("net.{1..21}"),
        notes=("mine has no anchors",),
    ),
)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a package with a dialect."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "setup.cfg").write_text(SETUP)
    (folder / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    (folder / "ckptool_mine.py").write_text(DIALECT)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    dialects.added.cache_clear()
    yield
    dialects.added.cache_clear()
    sys.modules.pop("ckptool_mine", None)


def test_it_is_spoken_recognised_and_explained(
    installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mine, back = (tmp_path / name for name in ("own.pth", "mine.pth", "back.pth"))
    torch.save(build("yolov4-tiny").state_dict(), own)
    convert = ["convert", str(own), "--arch", "yolov4-tiny", "--to-dialect", "MINE"]
    assert main([*convert, "-o", str(mine)]) == 0
    assert "mine has no anchors" in capsys.readouterr().out
    state = torch.load(mine)
    assert list(state)[:2] == ["net.1.c.weight", "net.1.b.weight"]
    assert "net.21.out.bias" in state
    assert main(["archs", "yolov4-tiny"]) == 0
    assert "bubbliiiing-tiny, mine" in capsys.readouterr().out
    assert main(["archs", "yolov4-tiny", "--json"]) == 0
    listed = {a["name"]: a["dialects"] for a in json.loads(capsys.readouterr().out)["archs"]}
    assert listed["yolov4-tiny"][-1] == "mine"
    assert listed["yolov4-tiny-3l"] == ["darknet", "wongkinyiu"]
    assert main(["identify", str(mine), "--json"]) == 0
    (found,) = (c for c in json.loads(capsys.readouterr().out)["candidates"] if c["fits"])
    assert (found["arch"], found["dialect"]) == ("yolov4-tiny", "mine")
    (cause,) = ckptool.diff(mine, arch="yolov4-tiny").causes
    assert cause.summary == (
        "the file has the network in the dialect `mine`, the architecture is spelled in `darknet`"
    )
    ckptool.convert(mine, back, arch="yolov4-tiny")
    wanted = torch.load(own)
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in torch.load(back).items())
    assert list(torch.load(back)) == list(wanted)


def test_without_the_package_its_name_is_refused() -> None:
    with pytest.raises(ckptool.CkptError, match="not spelled in a dialect `mine`"):
        dialects.find("mine", find("yolov4-tiny"))


def test_one_that_does_not_load_is_one_sentence(
    installed: None, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ckptool_mine", object())
    with pytest.raises(ckptool.CkptError, match="dialect `mine` does not load: AttributeError"):
        dialects.find("nobody's", find("yolov4-tiny"))
