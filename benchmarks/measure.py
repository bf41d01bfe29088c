"""Whole-process measurements: commands run in turn, so that a drifting machine is fair to all."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Command:
    """A command to time; `before` prepares each run and is not counted.

    One with `own_figures` prints them itself, as JSON: of a part of what it does.
    """

    name: str
    words: Sequence[str]
    before: Callable[[], None] | None = None
    exits: tuple[int, ...] = (0,)
    own_figures: bool = False


@dataclass(frozen=True)
class Case:
    """Our command, first, and what a user would run instead; which make their inputs."""

    name: str
    commands: Callable[[], Sequence[Command]]
    rounds: int = 5


@dataclass
class Figures:
    """The runs of one command: seconds of wall and CPU, peak memory in MiB."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """The median of one figure."""
        return statistics.median(getattr(self, name))


def run(command: Command) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of one run, the process and its children together."""
    if command.before is not None:
        command.before()
    start = time.perf_counter()
    process = subprocess.Popen(
        command.words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    said = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in command.exits:
        sys.exit(f"{command.name}: exit {process.returncode}: {command.words}")
    own = json.loads(said.splitlines()[-1]) if command.own_figures else {}
    return (
        own.get("wall", wall),
        usage.ru_utime + usage.ru_stime,
        own.get("memory", usage.ru_maxrss / 1024),
    )


def measure(case: Case) -> dict[str, Figures]:
    """The figures of a case's commands, run in turn after a warm-up of each."""
    commands = case.commands()
    figures = {command.name: Figures() for command in commands}
    for number in range(case.rounds + 1):
        for command in commands:
            wall, cpu, memory = run(command)
            if number:
                figures[command.name].wall.append(wall)
                figures[command.name].cpu.append(cpu)
                figures[command.name].memory.append(memory)
    return figures


def ratios(ours: Figures, other: Figures) -> tuple[float, float, float]:
    """Least, median and greatest of other / ours, round by round."""
    pairs = sorted(b / a for a, b in zip(ours.wall, other.wall, strict=True))
    return pairs[0], statistics.median(pairs), pairs[-1]
