"""Ctrl-C, also twice and at any moment: one word, exit code 130, and no traceback."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptool.cli import main


def run(script: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script."""
    script = "import os, signal, sys, time\nfrom ckptool.interrupts import *\n" + script
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.returncode, done.stdout, done.stderr


HIT = "hit = lambda: signal.raise_signal(signal.SIGINT)\nwatch()\n"


def test_a_second_one_does_not_break_off_the_clearing_up() -> None:
    script = """
try:
    hit()
except KeyboardInterrupt:
    hit()
    hit()
    print("cleared up")
"""
    assert run(HIT + script) == (0, "cleared up\n", "")


def test_one_that_comes_later_stops_what_the_first_did_not() -> None:
    script = """
for pause in (1.1, 0):
    try:
        hit()
    except KeyboardInterrupt:
        print("stopped")
    time.sleep(pause)
"""
    assert run(HIT + script) == (0, "stopped\nstopped\n", "")


def test_one_that_python_could_only_report_is_not_lost() -> None:
    """What is raised in `__del__` does not reach the caller."""
    script = """
class Held:
    def __del__(self):
        hit()

try:
    held = Held()
    del held
    print("lost")
    time.sleep(10)
except KeyboardInterrupt:
    print("stopped")
"""
    assert run(HIT + script) == (0, "lost\nstopped\n", "")


def test_other_errors_of_del_are_reported_as_ever() -> None:
    script = """
class Held:
    def __del__(self):
        raise ValueError("mine")

held = Held()
del held
"""
    code, _, shown = run(HIT + script)
    assert (code, shown.splitlines()[-1]) == (0, "ValueError: mine")


def test_none_hurts_a_process_that_ends() -> None:
    script = """
ignore()
for number in (signal.SIGINT, signal.SIGALRM):
    os.kill(os.getpid(), number)
import atexit
atexit.register(hit)
print("ended")
"""
    assert run(HIT + script) == (0, "ended\n", "")


def test_a_process_that_ignores_it_goes_on_to_do_so() -> None:
    """A shell starts so what runs in the background."""
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert run(ignoring + HIT + "hit()\nprint('went on')") == (0, "went on\n", "")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A conversion of a file of 8 MB."""
    state = {f"layer{number}.weight": torch.randn(20_000) for number in range(100)}
    torch.save(state, tmp_path / "source.pth")
    words = ["convert", str(tmp_path / "source.pth"), "--dtype", "fp16", "--force"]
    return [sys.executable, "-m", "ckptool", *words, "-o", str(tmp_path / "out.pth")]


def test_two_at_random_moments(
    words: list[str], tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    """From when the command line is up: what Python says while it starts is its own."""
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - start
    moments = random.Random("two")
    codes: Counter[int] = Counter()
    for _ in range(12):
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(moments.uniform(whole / 4, whole))
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(moments.choice([0, 0.0005, 0.004]))
        _, shown = process.communicate(timeout=20)
        assert (process.returncode, shown.strip()) in [(130, "stopped"), (0, "")], shown
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "source.pth"]
        codes[process.returncode] += 1
    count("conversions that got three Ctrl-C at once", sum(codes.values()))
    assert codes[130] > 3


def test_on_a_terminal_one_word_is_left(words: list[str]) -> None:
    """Typed twice while the progress bar is there, which is wiped."""
    child, terminal = pty.fork()
    if not child:
        os.execv(words[0], words)
    shown = b""
    while "░".encode() not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03\x03")
    try:
        while more := os.read(terminal, 4096):
            shown += more
    except OSError:  # how a terminal ends whose last process is gone
        pass
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    lines = [line.rpartition(b"\r")[2] for line in shown.replace(b"\r\n", b"\n").split(b"\n")]
    assert [line for line in lines if line.strip()] == [b"stopped"], shown
    assert os.waitstatus_to_exitcode(status) == 130


def test_an_end_of_data_is_no_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library of the command line takes both for a wish to stop."""

    def read(*_: object, **__: object) -> None:
        raise EOFError("cut short")

    monkeypatch.setattr("ckptool.inspection.inspect", read)
    assert main(["inspect", "x.pth"]) == 2
    assert "error: a defect in ckptool: EOFError: cut short\n" in capsys.readouterr().err
