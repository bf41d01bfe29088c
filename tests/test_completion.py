"""What Tab offers, asked for as the shells ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

RUN = "import sys; from ckptool.cli import main; sys.exit(main())"


def offered(*words: str) -> list[str]:
    """What bash is told for the last of some words."""
    line = " ".join(["ckptool", *words])
    asked = {"_CKPTOOL_COMPLETE": "bash_complete", "COMP_WORDS": line}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, **asked, "COMP_CWORD": str(len(words))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split("\n") if line]


@pytest.fixture
def file(tmp_path: Path) -> str:
    keys = ("backbone.0.conv.weight", "backbone.0.conv.bias", "backbone.1.bias", "head.weight")
    hostile = ("$(touch x).weight", "a;b", "back\nbone.weight", "`id`", "-rf")
    path = tmp_path / "a.safetensors"
    save_file({key: numpy.ones(2, "f4") for key in (*keys, *hostile)}, path)
    return str(path)


def test_architectures_complete(file: str) -> None:
    assert offered("diff", file, "--arch", "yolov4-t")[0] == "yolov4-tiny"
    assert "tf_efficientdet_d7" in offered("archs", "tf_eff")
    assert "tf_efficientdet_d7" in offered("verify", file, "--arch", "tf_eff")


def test_keys_complete_a_level_at_a_time_and_none_that_a_shell_would_run(file: str) -> None:
    assert sorted(offered("convert", file, "--drop", "")) == ["backbone.*", "head.*"]
    found = offered("convert", file, "--keep", "backbone.")
    assert sorted(found) == ["backbone.0.*", "backbone.1.*"]
    found = offered("convert", file, "--dtype", "fp16", "--keep-fp32", "backbone.0.conv.")
    assert sorted(found) == ["backbone.0.conv.bias", "backbone.0.conv.weight"]


def test_weight_sets_dialects_and_dtypes_complete(tmp_path: Path, file: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "training.pth"
    state = {"a.weight": torch.ones(4), "a.bias": torch.ones(4)}
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    assert offered("inspect", str(path), "--weights", "") == ["state_dict", "state_dict_ema"]
    assert "state_dict" in offered("diff", file, "--like", str(path), "--like-weights", "")
    assert offered("convert", file, "--dtype", "fp") == ["fp32", "fp16", "fp64"]
    assert "zylo117" in offered("convert", file, "--arch", "tf_efficientdet_d0", "--to-dialect", "")


def test_without_a_file_nothing_is_offered(tmp_path: Path) -> None:
    assert offered("convert", str(tmp_path / "none.pth"), "--drop", "") == []
    assert offered("convert", "--drop", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, "_CKPTOOL_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ckptool" in done.stdout
    assert f"_CKPTOOL_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_itself_completes(tmp_path: Path) -> None:
    """The script that bash is given, in a bash, with the command on its path."""
    command = tmp_path / "ckptool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{RUN}" "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_CKPTOOL_COMPLETE=bash_source ckptool)"; COMP_WORDS=(ckptool archs yolov4-tiny-);'
        ' COMP_CWORD=2; _ckptool_completion ckptool; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "yolov4-tiny-3l\n"
