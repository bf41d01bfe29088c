"""The options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckptool import completion

F = TypeVar("F", bound=Callable[..., Any])


def common(command: F) -> F:
    """The options that every command with a FILE takes."""
    command = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(command)
    return click.option(
        "--weights",
        metavar="NAME",
        shell_complete=completion.weight_sets,
        help="Which weight set inside FILE.",
    )(command)


def arch_option(*, required: bool = False, help: str = "An architecture.") -> Callable[[F], F]:
    """The option that names an architecture."""
    return click.option(
        "--arch",
        metavar="ARCH",
        required=required,
        shell_complete=completion.architectures,
        help=help,
    )


def target_options(command: F) -> F:
    """The options that name what a file should fit."""
    for option in (
        click.option("--num-classes", metavar="N", type=click.IntRange(1), help="Class count."),
        click.option(
            "--like", metavar="FILE2", type=click.Path(), help="Another checkpoint as the target."
        ),
        arch_option(help="An architecture; see `ckptool archs`."),
    ):
        command = option(command)
    return command


def conversion_options(command: F) -> F:
    """The options that say what to do with the weights."""
    for option in (
        click.option(
            "--seed", metavar="N", type=click.IntRange(0), default=0, help="For new rows."
        ),
        click.option(
            "--keep-fp32",
            shell_complete=completion.keys,
            metavar="GLOB",
            multiple=True,
            help="Keys that stay float32.",
        ),
        click.option(
            "--on-overflow",
            type=click.Choice(["error", "keep-fp32", "clamp"]),
            default="error",
            help="What happens to finite values that the new dtype cannot hold.",
        ),
        click.option(
            "--keep",
            shell_complete=completion.keys,
            metavar="GLOB",
            multiple=True,
            help="Keep only these keys of FILE.",
        ),
        click.option(
            "--drop",
            shell_complete=completion.keys,
            metavar="GLOB",
            multiple=True,
            help="Leave these keys of FILE out.",
        ),
        click.option(
            "--rename",
            metavar="OLD=NEW",
            multiple=True,
            help="Prefix (`neek.=neck.`), glob, pattern (`a.{i}.{*}=b.{i}.{*}`), or @FILE: JSON.",
        ),
        click.option(
            "--accept-guess", is_flag=True, help="Pair unknown names by the order of shapes."
        ),
        click.option(
            "--from-dialect",
            shell_complete=completion.dialects,
            metavar="NAME",
            help="Where the keys cannot tell.",
        ),
        click.option(
            "--to-dialect",
            shell_complete=completion.dialects,
            metavar="NAME",
            help="As another implementation spells it.",
        ),
        click.option("--add-prefix", metavar="P", help="Put P in front of every key."),
        click.option("--strip-prefix", metavar="P", help="Take P off the keys that have it."),
        click.option("--in-chans", metavar="N", type=click.IntRange(1), help="Input channels."),
        click.option("--class-map", metavar="SPEC", help="first, coco90:voc20, or a file."),
        click.option(
            "--dtype",
            shell_complete=completion.dtypes,
            metavar="DTYPE",
            help="fp32, fp16, bf16 or fp64.",
        ),
    ):
        command = option(command)
    return target_options(command)


def value_options(command: F) -> F:
    """The options of `diff` that compare values with another checkpoint's."""
    number = click.FloatRange(0, max=math.inf, max_open=True)
    for option in (
        click.option("--atol", metavar="A", type=number, default=0.0, help="The A of --rtol; 0."),
        click.option(
            "--rtol",
            metavar="R",
            type=number,
            default=0.0,
            help="Values are equal if |found - wanted| ≤ A + R·|wanted|; 0.",
        ),
        click.option("--values", is_flag=True, help="Compare the values with FILE2's."),
        click.option(
            "--like-weights",
            shell_complete=completion.other_weight_sets,
            metavar="NAME",
            help="Which weight set inside FILE2.",
        ),
    ):
        command = option(command)
    return command


def html_option(command: F) -> F:
    """The option for a page beside the result on the terminal."""

    def checked(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
        if path is not None:
            from ckptool.report.html import check_target

            check_target(path)
        return path

    words = "Write a page for the browser too."
    return click.option("--html", metavar="FILE.html", callback=checked, help=words)(command)
