"""A checkpoint against the architecture that it is to be trained or run in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import Checkpoint
from ckptool.diagnose import Diff, diff
from ckptool.errors import counted, quoted
from ckptool.identification import identify
from ckptool.preflight.findings import Finding, error, warning
from ckptool.reading import read

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Fit:
    """What a file has: its own class count where that can be told, and how it differs."""

    path: str
    num_classes: int | None
    dtypes: frozenset[str]
    diff: Diff


def fit_of(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    architecture: Architecture,
    num_classes: int | None,
    weights: str | None,
) -> Fit:
    """A file against an architecture; without a class count, with that of the file.

    Raises: CkptError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    own = next(
        (c.num_classes for c in identify(opened).candidates if c.arch == architecture.name), None
    )
    found = diff(opened, arch=architecture.name, num_classes=num_classes or own)
    dtypes = frozenset(
        spec.dtype for spec in opened.weights.specs.values() if "float" in spec.dtype
    )
    return Fit(opened.path, own, dtypes, found)


def check_file(fit: Fit, architecture: Architecture, num_classes: int | None) -> Iterator[Finding]:
    """The findings about a checkpoint: what does not load, and what loads and does not run well."""
    file, found = quoted(fit.path), fit.diff
    wanted = num_classes or fit.num_classes or architecture.num_classes
    fix = found.fix or shlex.join(["ckptool", "diff", fit.path, "--arch", architecture.name])
    if fit.num_classes and wanted and fit.num_classes != wanted:
        yield error(
            "file-classes",
            f"{file} has a head for {counted(fit.num_classes, 'class', 'classes')}, wanted "
            f"{wanted:,}: it does not load",
            where=fit.path,
            fix=fix,
        )
    elif not found.fits_strict:
        causes = [cause for cause in found.causes if not cause.harmless]
        why = causes[0].summary if len(causes) == 1 else f"{len(causes):,} causes"
        counts = ", ".join(
            f"{count:,} {'of another shape' if kind == 'shape' else kind}"
            for kind, count in found.counts.items()
            if count and kind in ("missing", "unexpected", "shape")
        )
        yield error(
            "file-fit",
            f"{file} does not load strictly into {quoted(architecture.name)}: {counts}, wanted "
            f"none" + (f"; {why}" if causes else ""),
            where=fit.path,
            count=sum(found.counts[kind] for kind in ("missing", "unexpected", "shape")),
            fix=fix,
        )
    if fit.dtypes and fit.dtypes <= set(_HALF):
        (dtype, *_) = sorted(fit.dtypes)
        yield warning(
            "file-half",
            f"all weights of {file} are {dtype}, wanted float32: images of float32 raise, a CPU is "
            "many times slower, and steps of an optimiser are rounded away",
            where=fit.path,
            fix=shlex.join(["ckptool", "convert", fit.path, "--dtype", "fp32"]),
        )
