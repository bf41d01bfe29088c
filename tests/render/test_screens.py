"""What a person sees, whole: each file in `screens` is a command, what it shows, and its exit code.

`python tests/render/test_screens.py` writes them anew; look at the difference before committing.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from checkpoints_made import Held, State, cast, effdet, held, prefixed, write

from ckptool.cli import main

SCREENS = Path(__file__).with_name("screens")
D0 = "tf_efficientdet_d0"
_ONE_LINE = ("error:", "hint: ")


def damaged() -> State:
    """Without a node of the BiFPN, with a tensor of somebody's own."""
    gone = "fpn.cell.0.fnode.3.after_combine."
    state = {key: value for key, value in held(effdet(D0)).items() if not key.startswith(gone)}
    return {**state, "fpn.cell.0.gate.weight": Held(torch.float32, (64,))}


FILES = {
    "d0.pth": lambda: held(effdet(D0)),
    "d2.pth": lambda: held(effdet("tf_efficientdet_d2")),
    "d6.pth": lambda: held(effdet("tf_efficientdet_d6")),
    "d7_level_first.pth": lambda: held(effdet("tf_efficientdet_d7", head_bn_level_first=True)),
    "voc_ddp_fp16.pth": lambda: cast(prefixed(held(effdet(D0, 20)), "module."), torch.float16),
    "backbone.pth": lambda: {k: v for k, v in held(effdet(D0)).items() if k[:4] == "back"},
    "damaged.pth": damaged,
    "random.pth": lambda: {f"layers.{n}.weight": Held(torch.float32, (n, 3)) for n in range(9)},
}


def screen(command: str) -> str:
    """The command, all that it writes, and its exit code."""
    words = shlex.split(command)[1:]
    for name in words:
        if name in FILES and not Path(name).exists():
            write(FILES[name](), Path(name))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = main(words)
    return f"$ {command}\n{shown.getvalue()}exit {code}\n"


def command_of(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("$ ")


@pytest.mark.parametrize("name", sorted(path.stem for path in SCREENS.glob("*.txt")))
def test_a_screen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = SCREENS / f"{name}.txt"
    monkeypatch.chdir(tmp_path)
    assert screen(command_of(path)) == path.read_text()


def test_no_line_is_wider_than_a_hundred_columns():
    """Errors and hints are one line each, whatever they have to say."""
    for path in SCREENS.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line[:6] not in _ONE_LINE]
        assert max(map(len, lines)) <= 100, path.name


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for file in SCREENS.glob("*.txt"):
            file.write_text(screen(command_of(file)))
