"""The benchmarks: `make bench`, or `make bench ONLY=diff` for the cases with `diff` in their name.

Every case runs our command and the others in turn, whole processes, after a warm-up of each.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from tabulate import tabulate

from benchmarks.cases import GROUPS
from benchmarks.measure import Case, Figures, measure, ratios


@click.command()
@click.option("--only", default="", help="Groups or cases with this in their name.")
@click.option("--json", "as_json", is_flag=True, help="Figures of every run as JSON.")
def main(only: str, as_json: bool) -> None:
    """Run the benchmarks and show what they took."""
    found: list[tuple[Case, dict[str, Figures]]] = []
    for case in chosen(only):
        click.echo(f"… {case.name}", err=True)
        found.append((case, measure(case)))
    if as_json:
        runs = {
            case.name: {name: vars(f) for name, f in figures.items()} for case, figures in found
        }
        click.echo(json.dumps({"machine": machine(), "runs": runs}, indent=1))
        return
    click.echo(machine() + "\n")
    rows = [row for case, figures in found for row in rows_of(case, figures)]
    titles = ["case", "what", "wall s", "CPU s", "peak MiB", "times ours (least to most)"]
    click.echo(tabulate(rows, titles, tablefmt="github", disable_numparse=True))


def chosen(only: str) -> Iterator[Case]:
    """The cases of a group, or those with the word in their name."""
    for group, cases in GROUPS.items():
        for case in cases:
            if only in (group, "") or only in case.name:
                yield case


def rows_of(case: Case, figures: dict[str, Figures]) -> Iterator[list[str]]:
    """A line for each command: medians, and how many times as long as ours it took."""
    ours = next(iter(figures.values()))
    for number, (name, found) in enumerate(figures.items()):
        low, middle, high = ratios(ours, found)
        yield [
            "" if number else case.name,
            name,
            f"{found.median('wall'):.2f}",
            f"{found.median('cpu'):.2f}",
            f"{found.median('memory'):,.0f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})" if number else "",
        ]


def machine() -> str:
    """The machine and the versions, in one line."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    names = ["ckptool", "torch", "effdet", "safetensors", "numpy", "ckptkit"]
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        f"{name} {installed(name)}" for name in names
    )


def installed(name: str) -> str:
    """The version of a package; ours is not installed where the benchmarks run."""
    if name == "ckptool":
        import ckptool

        return ckptool.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
