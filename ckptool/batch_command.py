"""`ckptool batch`: many files, one plan or one target."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ckptool.interrupts import STOPPED
from ckptool.options import common, conversion_options

if TYPE_CHECKING:
    from ckptool.fleet.batch import Summary


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="[PLAN.json] INPUTS…")
@click.option("--out", metavar="DIR_OR_URL", required=True, help="Where the outputs go.")
@click.option("--suffix", default=".safetensors", show_default=True, help="Format of the outputs.")
@click.option("--root", metavar="FOLDER", help="Keep the inputs' folders below this one.")
@click.option("--max-shard-size", metavar="SIZE", help="Several files of at most 2GB, say.")
@click.option("--journal", metavar="FILE", help="JSON lines; by default in the --out folder.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@click.option("--force", is_flag=True, help="Replace outputs that the journal does not know.")
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Worker processes.")
@click.option("--memory", metavar="SIZE", help="The most for a worker's data; 4GiB here.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Who works.")
@click.option("--address", metavar="HOST:PORT", help="A Ray cluster's; by default this machine's.")
@conversion_options
@common
def batch(
    inputs: tuple[str, ...],
    out: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Convert many files alike, and say what came of each; run again, it goes on.

    INPUTS are files, patterns, URLs, or @FILE with one of them a line. A stored plan comes first,
    and is checked against each file; without one, each file gets its own.

    Example: ckptool batch --arch tf_efficientdet_d0 --dtype fp16 'runs/*/best.pth' --out fp16
    """
    from ckptool.fleet.batch import batch as call
    from ckptool.render.batch import batch_json, batch_text
    from ckptool.terminal import show

    plan = None
    if inputs[0].endswith(".json") and not inputs[0].endswith(".index.json"):
        plan, inputs = inputs[0], inputs[1:]
    if not inputs:
        raise click.UsageError("no INPUTS are given")
    try:
        with _progress() as progress:
            found = call(inputs, out, plan=plan, progress=progress, **options)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on where it was", err=True)
        return STOPPED
    show(as_json, lambda: batch_json(found), lambda width: batch_text(found, width))
    return 1 if found.failed or found.failed_before else 0


@contextmanager
def _progress() -> Iterator[Callable[[Summary], None] | None]:
    """What shows how far it is on a terminal; None where stderr is none."""
    if not sys.stderr.isatty():
        yield None
        return
    from ckptool.render.batch import pace_text

    last = 0.0

    def step(found: Summary) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            click.echo(f"\r{pace_text(found):<72}", nl=False, err=True)

    try:
        yield step
    finally:
        click.echo("\r" + " " * 72 + "\r", nl=False, err=True)
