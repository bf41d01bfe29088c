"""What a person sees on a terminal: colours by meaning, trees cut to the width, the version."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from ckptool.cli import main
from ckptool.version import VERSION

CODES = re.compile(r"\x1b\[[0-9]+m")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    deep = "backbone." + ".".join(f"a_module_with_a_long_name_{n}" for n in range(4))
    save_file(
        {
            "head.weight": numpy.ones((100, 100), "f4"),
            "head.bias": numpy.ones(100, "f4"),
            f"{deep}.weight": numpy.ones((3, 100, 100), "f4"),
        },
        path,
    )
    return path


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    above, below = pty.openpty()
    done = subprocess.Popen(
        [
            "sh",
            "-c",
            'stty cols 80 rows 24; exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "ckptool",
            *words,
        ],
        stdin=below,
        stdout=below,
        stderr=below,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **environment},
    )
    os.close(below)
    said = b""
    while True:
        try:
            data = os.read(above, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not data:
            break
        said += data
    os.close(above)
    done.wait()
    return said.decode().replace("\r\n", "\n")


def test_colours_only_on_a_terminal(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.safetensors"
    save_file({"head.weight": numpy.ones((7, 100), "f4")}, other)
    words = ["diff", str(file), "--like", str(other)]
    plain = subprocess.run(
        [sys.executable, "-m", "ckptool", *words], capture_output=True, text=True, check=False
    ).stdout
    assert not CODES.search(plain)
    colourful = on_a_terminal(*words, TERM="xterm")
    assert "\x1b[33m  shape\x1b[0m" in colourful
    assert "\x1b[35m  unexpected\x1b[0m" in colourful
    assert "\x1b[31mit does not load" in colourful
    for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert on_a_terminal(*words, **{"TERM": "xterm", **setting}) == CODES.sub("", colourful)


def test_what_is_well_is_green_and_what_is_refused_red(file: Path) -> None:
    said = on_a_terminal("diff", str(file), "--like", str(file), TERM="xterm")
    assert "\x1b[32mit fits: load_state_dict(strict=True) succeeds\x1b[0m" in said
    said = on_a_terminal("inspect", "none.pth", TERM="xterm")
    assert said.startswith("\x1b[31merror:\x1b[0m `none.pth`: no such file")


def test_a_file_cannot_colour_the_terminal(tmp_path: Path) -> None:
    """The codes of a key are shown, not sent."""
    path = tmp_path / "a.safetensors"
    save_file({"\x1b[31mred": numpy.ones(2, "f4")}, path)
    said = on_a_terminal("inspect", str(path), "--keys", "--tree", TERM="xterm")
    assert "\\x1b[31mred" in said
    assert "\x1b[31mred" not in said


@pytest.mark.parametrize("command", ["diff", "inspect", "plan"])
def test_nothing_that_a_terminal_could_act_on_is_written(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in a table, not in a sentence, not in a command to copy."""
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    names = [
        f"{bad}.weight" for bad in ("\x1b[31mred", "bidi\u202ereversed", "bell\x07", "two\nlines")
    ]
    layers = {f"layer.{n}.weight": numpy.ones((n + 1, 4), "f4") for n in range(9)}
    save_file({**layers, **{name: numpy.ones(3, "f4") for name in names}}, theirs)
    save_file(layers, ours)
    words = {
        "diff": ["--like", str(ours), "--values", "--limit", "0"],
        "inspect": ["--keys", "--tree", "--stats"],
        "plan": ["--drop", "*[!r].weight", "--rename", f"{names[0]}=red"],
    }
    main([command, str(theirs), *words[command]])
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert "u202e" in said or command == "plan"


def test_a_tree_has_sizes_and_bars_and_fits_the_width(file: Path) -> None:
    said = on_a_terminal("inspect", str(file), "--tree", TERM="xterm", NO_COLOR="1")
    lines = said.splitlines()[5:]
    assert max(map(len, lines)) <= 80
    tree = {line.split()[0]: line for line in lines if "KiB" in line or " B " in line}
    assert re.fullmatch(r"head +39\.5 KiB +███", tree["head"])
    assert re.fullmatch(r"backbone +117\.2 KiB +█████████", tree["backbone"])
    assert re.search(r"400 B +▏ +float32 100$", tree["bias"])
    assert "…" in said


def test_the_width_is_known_without_a_terminal(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(file), "--tree"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100 + len(str(file))


@pytest.mark.parametrize("flags", [["--version"], ["-h"]], ids=["version", "help"])
def test_the_module_is_the_command(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *flags], capture_output=True, text=True, check=True
    )
    assert VERSION in done.stdout or "Usage: ckptool [OPTIONS] COMMAND" in done.stdout


def ended(words: str, file: Path) -> tuple[int, str]:
    """Exit code and stderr of a command line in a shell, `FILE` and all."""
    line = f"{sys.executable} -m ckptool {words.replace('FILE', str(file))}"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


def test_a_result_that_cannot_be_written_is_an_error(file: Path) -> None:
    message = "error: the result cannot be written to stdout: No space left on device\n"
    assert ended("inspect FILE >/dev/full", file) == (2, message)
    assert ended("inspect FILE --json >/dev/full", file) == (2, message)
    assert ended("inspect --help >/dev/full", file) == (2, message)


def test_an_error_that_cannot_be_written_to_stdout_goes_to_stderr(file: Path) -> None:
    code, shown = ended("inspect FILE.none --json >/dev/full", file)
    assert (code, shown) == (2, f"error: `{file}.none`: no such file\n")
    assert ended("inspect FILE.none >/dev/full 2>/dev/full", file)[0] == 2


def test_streams_that_are_closed_are_done_without(file: Path) -> None:
    assert ended("inspect FILE >&-", file) == (0, "")
    assert ended("inspect FILE.none 2>&-", file) == (2, "")
