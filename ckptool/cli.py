"""The command line: parse, one public call, render, exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ckptool.errors import CkptError
from ckptool.version import VERSION

FITS, DIFFERS, REFUSED = 0, 1, 2

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(words, prog_name="ckptool", standalone_mode=False)
        return int(code or 0)
    except CkptError as error:
        return _refused(error, words)
    except click.UsageError as error:
        hint = error.ctx.get_usage().removeprefix("Usage: ") if error.ctx else None
        message = error.format_message()
        return _refused(CkptError(_lowered(message), hint=hint, code="usage"), words)
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RecursionError:
        return _refused(CkptError("nested too deeply", code="defect"), words)
    except Exception as error:
        if os.environ.get("CKPTOOL_DEBUG"):
            raise
        text = f"a defect in ckptool: {type(error).__name__}: {error}"
        hint = "CKPTOOL_DEBUG=1 shows where; please report it"
        return _refused(CkptError(text, hint=hint, code="defect"), words)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="ckptool")
def cli() -> None:
    """Checkpoint surgery and conversion for PyTorch detectors.

    Opens a file without running a byte of it, says why it does not fit an architecture, and
    rewrites it so that load_state_dict(strict=True) works.
    """


def common(command: F) -> F:
    """The options that every command with a FILE takes."""
    command = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(command)
    return click.option("--weights", metavar="NAME", help="Which weight set inside FILE.")(command)


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--tree", is_flag=True, help="The module tree with sizes.")
@click.option("--keys", is_flag=True, help="Every key with its dtype and shape.")
@click.option("--stats", is_flag=True, help="Read all values once: extremes, mean, non-finite.")
@common
def inspect(
    file: str, tree: bool, keys: bool, stats: bool, weights: str | None, as_json: bool
) -> int:
    """What a file is and holds.

    Example: ckptool inspect weights.pth --tree
    """
    from ckptool import render
    from ckptool.inspection import inspect as call

    found = call(file, weights=weights, stats=stats)
    if as_json:
        _json(render.inspection_json(found))
    else:
        click.echo(render.inspection_text(found, tree=tree, keys=keys))
    return FITS


def _json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))


def _refused(error: CkptError, words: Sequence[str]) -> int:
    if "--json" in words:
        from ckptool.render import error_json

        _json(error_json(error))
    else:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"\nhint: {error.hint}", err=True)
    return REFUSED


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
