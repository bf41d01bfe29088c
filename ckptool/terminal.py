"""What is written to the terminal: results to stdout, everything else to stderr.

Texts come plain from `render`; they are coloured here, by what their lines mean.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ckptool.errors import CkptError, OutputError

if TYPE_CHECKING:
    from ckptool.report.page import Page

_NO_STDOUT = "output.stdout"


def show(as_json: bool, value: Callable[[], Any], text: Callable[[int], str]) -> None:
    """Write a result: its JSON value, or its text for the width of the terminal."""
    if as_json:
        _write(json.dumps(value(), ensure_ascii=True))
        return
    from ckptool.render.words import terminal_width

    said = text(terminal_width())
    if _is_colourful(sys.stdout):
        from ckptool.render.colours import coloured

        said = coloured(said)
    _write(said)


def _write(said: str) -> None:
    """Write to stdout.

    Raises: OutputError if the system refuses; nothing is written there any more then.
    """
    try:
        click.echo(said)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError) -> OutputError:
    """The error for what stdout did not take; nothing is written there any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    message = f"the result cannot be written to stdout: {error.strerror}"
    return OutputError(message, code=_NO_STDOUT)


def show_error(error: CkptError, *, as_json: bool) -> None:
    """Write an error: where, what was found, what was wanted; then what to type."""
    if as_json and error.code != _NO_STDOUT:
        from ckptool.render.words import error_json

        try:
            _write(json.dumps(error_json(error), ensure_ascii=True))
        except OutputError:
            show_error(error, as_json=False)
        return
    lines = [f"error: {error.message}"]
    if error.hint:
        lines += ["", f"hint: {error.hint}"]
    said = "\n".join(lines)
    if _is_colourful(sys.stderr):
        from ckptool.render.colours import coloured

        said = coloured(said)
    try:
        click.echo(said, err=True)
    except OSError:  # nobody is left to be told, at the end of the process neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def save_page(path: str, page: Page) -> None:
    """Write the page of a result, and say so.

    Raises: CkptError if it cannot be written.
    """
    from ckptool.report.html import write_page

    write_page(path, page)
    click.echo(f"page: {path}", err=True)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """What shows the progress on a terminal; None where stderr is none."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = {"phase": "", "share": -1}

    def step(phase: str, done: int, total: int) -> None:
        share = 100 * done // max(total, 1)
        if (phase, share) != (shown["phase"], shown["share"]):
            shown.update(phase=phase, share=share)
            bar = "█" * (share // 4) + "░" * (25 - share // 4)
            click.echo(f"\r{phase:6} {bar} {share:3d} %", nl=False, err=True)

    try:
        yield step
    finally:
        click.echo("\r" + " " * 40 + "\r", nl=False, err=True)


def _is_colourful(stream: Any) -> bool:
    """Whether the stream is a terminal, and colours are neither refused nor beyond it."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
