"""The command line: parse, one public call, render, exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ckptool import completion
from ckptool.batch_command import batch
from ckptool.errors import CkptError, quoted
from ckptool.interrupts import STOPPED
from ckptool.options import (
    arch_option,
    common,
    conversion_options,
    html_option,
    target_options,
    value_options,
)
from ckptool.terminal import progress, save_page, show, show_error, unwritten
from ckptool.traffic import say_traffic
from ckptool.version import VERSION

FITS, DIFFERS, REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    finally:
        say_traffic()


def _run(words: Sequence[str]) -> int:
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
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes it for the end of a dialogue
            return _defect(stop.__cause__, words)
        click.echo("stopped", err=True)
        return STOPPED
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RecursionError:
        return _refused(CkptError("nested too deeply", code="defect"), words)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # click's own help
            return _refused(unwritten(error), words)
        return _defect(error, words)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="ckptool")
def cli() -> None:
    """Checkpoint surgery and conversion for PyTorch detectors.

    Opens a file without running a byte of it, says why it does not fit an architecture, and
    rewrites it so that load_state_dict(strict=True) works.

    Completion with Tab, in bash: eval "$(_CKPTOOL_COMPLETE=bash_source ckptool)"; also zsh_source,
    and for fish: _CKPTOOL_COMPLETE=fish_source ckptool | source
    """


cli.add_command(batch)


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--tree", is_flag=True, help="The module tree with sizes.")
@click.option("--keys", is_flag=True, help="Every key with its dtype and shape.")
@click.option("--stats", is_flag=True, help="Read all values once: extremes, mean, non-finite.")
@html_option
@common
def inspect(
    file: str,
    tree: bool,
    keys: bool,
    stats: bool,
    html: str | None,
    weights: str | None,
    as_json: bool,
) -> int:
    """What a file is and holds.

    Example: ckptool inspect weights.pth --tree
    """
    from ckptool.inspection import inspect as call
    from ckptool.render.inspect import inspection_json, inspection_text

    found = call(file, weights=weights, stats=stats)
    show(
        as_json,
        lambda: inspection_json(found),
        lambda width: inspection_text(found, tree=tree, keys=keys, width=width),
    )
    if html is not None:
        from ckptool.report.inspect import inspection_page

        save_page(html, inspection_page(found))
    return FITS


@cli.command()
@click.argument("file", type=click.Path())
@common
def identify(file: str, weights: str | None, as_json: bool) -> int:
    """Which architecture a file is of.

    Example: ckptool identify weights.pth
    """
    from ckptool.identification import identify as call
    from ckptool.render.identify import identified_json, identified_text

    found = call(file, weights=weights)
    show(as_json, lambda: identified_json(found), lambda _: identified_text(found))
    return FITS if found.fitting else DIFFERS


@cli.command()
@click.argument("file", type=click.Path())
@target_options
@click.option("--strict-dtype", is_flag=True, help="Count differences of dtype too.")
@click.option("--live", is_flag=True, help="Instantiate the architecture; needs torch.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(0), help="Lines of differences; 0 shows all."
)
@value_options
@html_option
@common
def diff(
    file: str,
    arch: str | None,
    like: str | None,
    limit: int | None,
    html: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """What differs between a file and an architecture, why, and what to type.

    Example: ckptool diff weights.pth --arch tf_efficientdet_d7

    Example: ckptool diff tuned.pth --like weights.pth --values
    """
    from ckptool.diagnose import diff as call
    from ckptool.render.diff import diff_json, diff_text

    _one_target(arch, like)
    with progress() as steps:
        found = call(file, arch=arch, like=like, progress=steps, **options)
    show(as_json, lambda: diff_json(found), lambda width: diff_text(found, limit, width))
    if html is not None:
        from ckptool.report.diff import diff_page

        save_page(html, diff_page(found))
    return FITS if found.agrees else DIFFERS


@cli.command()
@click.argument("file", type=click.Path())
@conversion_options
@click.option("--force", is_flag=True, help="Replace an existing PLAN.json.")
@click.option("-o", "output", metavar="PLAN.json", help="Write the plan to a file.")
@common
def plan(
    file: str,
    output: str | None,
    force: bool,
    weights: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """The steps that `convert` would take, as JSON that it can run.

    Example: ckptool plan weights.pth --arch tf_efficientdet_d7 --dtype fp16 -o plan.json
    """
    from ckptool.conversion import applied, prepare
    from ckptool.formats.atomic import replace_text
    from ckptool.planning import Options
    from ckptool.render.convert import plan_text

    arch, like = options.pop("arch"), options.pop("like")
    asked = Options(**options)
    prepared = prepare(file, arch=arch, like=like, weights=weights, options=asked)
    if output is not None:
        text = json.dumps(prepared.plan.to_json(), indent=1) + "\n"
        replace_text(output, text, force=force)
    show(
        as_json,
        prepared.plan.to_json,
        lambda width: plan_text(prepared.plan, applied(prepared), prepared.also_fits, width),
    )
    return FITS


@cli.command()
@click.argument("file", type=click.Path())
@conversion_options
@click.option("--plan", "stored", metavar="PLAN.json", help="Run a stored plan.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--max-shard-size", metavar="SIZE", help="Several files of at most 2GB, say.")
@click.option("-o", "output", metavar="OUT", help="Output; its suffix says the format.")
@html_option
@common
def convert(
    file: str,
    stored: str | None,
    dry_run: bool,
    force: bool,
    max_shard_size: str | None,
    output: str | None,
    html: str | None,
    weights: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Rewrite a file so that it loads, and prove it.

    Example: ckptool convert weights.pth --dtype fp32 --num-classes 20
    """
    from ckptool.conversion import applied, default_output, prepare
    from ckptool.destinations import check_suffix
    from ckptool.formats.sharded_writer import parse_size
    from ckptool.planning import Options
    from ckptool.plans import read_plan
    from ckptool.render.convert import plan_text, result_json, result_text
    from ckptool.writing import carry_out

    arch, like = options.pop("arch"), options.pop("like")
    if output is not None:
        check_suffix(output)
    shard_size = None if max_shard_size is None else parse_size(max_shard_size)
    prepared = prepare(
        file,
        arch=arch,
        like=like,
        weights=weights,
        plan=read_plan(stored) if stored else None,
        options=Options(**options),
    )
    path = output or default_output(prepared)
    if dry_run:
        show(
            as_json,
            prepared.plan.to_json,
            lambda width: (
                plan_text(prepared.plan, applied(prepared), prepared.also_fits, width)
                + f"\n\nnothing was written; it would be {quoted(path)}"
            ),
        )
        if html is not None:
            from ckptool.report.convert import conversion_page

            save_page(html, conversion_page(prepared, applied(prepared)))
        return FITS
    with progress() as steps:
        found = carry_out(
            prepared,
            path,
            force=force,
            max_shard_size=shard_size,
            progress=steps,
        )
    show(as_json, lambda: result_json(found), lambda width: result_text(found, width))
    if html is not None:
        from ckptool.report.convert import conversion_page

        save_page(html, conversion_page(prepared, applied(prepared), found))
    return FITS if found.verified else DIFFERS


@cli.command()
@click.argument("file", type=click.Path())
@arch_option(required=True)
@click.option("--num-classes", metavar="N", type=click.IntRange(1), help="Class count.")
@click.option("--forward", is_flag=True, help="Run one random image through the network.")
@common
def verify(
    file: str,
    arch: str,
    num_classes: int | None,
    forward: bool,
    weights: str | None,
    as_json: bool,
) -> int:
    """Load a file strictly into the real class; needs torch.

    Example: ckptool verify weights.fp32.c20.safetensors --arch tf_efficientdet_d0 --num-classes 20
    """
    from ckptool.render.verify import verified_json, verified_text
    from ckptool.verification import verify as call

    found = call(file, arch=arch, num_classes=num_classes, forward=forward, weights=weights)
    show(as_json, lambda: verified_json(found), lambda width: verified_text(found, width))
    return FITS if found.passed else DIFFERS


@cli.command()
@click.argument("file", type=click.Path(), required=False)
@arch_option(required=True)
@click.option("--num-classes", metavar="N", type=click.IntRange(1), help="Class count.")
@click.option("--coco", metavar="ANNOTATIONS.json", required=True, help="COCO annotations.")
@click.option("--images", metavar="DIR", help="Decode every image; needs Pillow.")
@html_option
@common
def check(
    file: str | None,
    arch: str,
    num_classes: int | None,
    coco: str,
    images: str | None,
    html: str | None,
    weights: str | None,
    as_json: bool,
) -> int:
    """What would break training on a data set, and which row of a head learns which class.

    Example: ckptool check weights.pth --arch tf_efficientdet_d0 --coco train.json --images train
    """
    from ckptool.preflight.dataset import check_dataset as call
    from ckptool.render.check import report_json, report_text

    with progress() as steps:
        found = call(
            coco,
            arch=arch,
            num_classes=num_classes,
            images=images,
            checkpoint=file,
            weights=weights,
            progress=steps,
        )
    show(as_json, lambda: report_json(found), lambda width: report_text(found, width))
    if html is not None:
        from ckptool.report.check import check_page

        save_page(html, check_page(found))
    return DIFFERS if found.errors else FITS


@cli.command()
@click.argument("pattern", required=False, shell_complete=completion.architectures)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def archs(pattern: str | None, as_json: bool) -> int:
    """The architectures that are known; PATTERN is a glob or a part of the name.

    Example: ckptool archs tf_efficientdet
    """
    from ckptool.architectures import archs as call
    from ckptool.render.archs import archs_json, archs_text

    found = call(pattern)
    show(as_json, lambda: archs_json(found), lambda _: archs_text(found))
    return FITS


def _one_target(arch: str | None, like: str | None) -> None:
    if (arch is None) == (like is None):
        raise click.UsageError("give one of --arch ARCH and --like FILE2")


def _refused(error: CkptError, words: Sequence[str]) -> int:
    show_error(error, as_json="--json" in words)
    return REFUSED


def _defect(error: Exception, words: Sequence[str]) -> int:
    if os.environ.get("CKPTOOL_DEBUG"):
        raise error
    text = f"a defect in ckptool: {type(error).__name__}: {error}"
    hint = "CKPTOOL_DEBUG=1 shows where; please report it"
    return _refused(CkptError(text, hint=hint, code="defect"), words)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
