"""The diff that users see: every difference, the fewest causes that explain it, what to type."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptool.architectures import find, lookalikes, version_notes
from ckptool.causes import Cause, Target
from ckptool.checkpoint import Checkpoint
from ckptool.compare import Entry
from ckptool.planning import Solved, solve
from ckptool.reading import read


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between a checkpoint and a target, and why.

    `fits_strict` is the verdict of `load_state_dict(strict=True)`. `unexplained` are the keys that
    no cause accounts for. `also_fits` are architectures that cannot be told apart by keys and
    shapes, `not_in_file` what distinguishes them and no file stores. `fix` is the one command that
    makes the file load, None if there is none.
    """

    file: str
    format: str
    weights: str
    arch: str
    num_classes: int | None
    fits_strict: bool
    counts: Mapping[str, int]
    entries: tuple[Entry, ...]
    causes: tuple[Cause, ...]
    unexplained: tuple[str, ...] = ()
    also_fits: tuple[str, ...] = ()
    not_in_file: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fix: str | None = None

    def __str__(self) -> str:
        from ckptool.render import diff_text

        return diff_text(self)


def diff(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    live: bool = False,
    strict_dtype: bool = False,
) -> Diff:
    """What differs between a checkpoint and an architecture or another checkpoint.

    With `strict_dtype` a difference of dtype counts against the verdict too.

    Raises: CkptError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    target = target_of(arch, like, num_classes, live=live)
    solved = solve(opened.weights, target)
    explained = {key for cause in solved.causes for key in cause.keys}
    unexplained = tuple(
        entry.key
        for entry in solved.after.entries
        if entry.kind != "dtype" and entry.key not in explained
    )
    return Diff(
        opened.path,
        opened.contents.format,
        opened.weights.name,
        target.name,
        target.num_classes,
        solved.before.fits and not (strict_dtype and solved.before.counts["dtype"]),
        solved.before.counts,
        solved.before.entries,
        solved.causes,
        unexplained,
        also_fits=lookalikes(target.architecture) if target.architecture else (),
        not_in_file=target.architecture.card if target.architecture else {},
        notes=version_notes(target.architecture) if target.architecture else (),
        fix=_command(opened, target, solved),
    )


def target_of(
    arch: str | None,
    like: str | os.PathLike[str] | Checkpoint | None,
    num_classes: int | None,
    *,
    live: bool = False,
) -> Target:
    """The target that `--arch` or `--like` names."""
    if like is not None:
        other = like if isinstance(like, Checkpoint) else read(like)
        return Target(other.path, other.weights.specs)
    assert arch is not None
    architecture = find(arch, live=live)
    count = architecture.num_classes if num_classes is None else num_classes
    return Target(architecture.name, architecture.manifest(num_classes), count, architecture)


def _command(opened: Checkpoint, target: Target, solved: Solved) -> str | None:
    """The command whose result loads strictly, None if it does already or no edit gets there."""
    if solved.before.fits or not solved.after.fits:
        return None
    if any(cause.edit is None for cause in solved.causes):
        return None
    words = ["ckptool", "convert", opened.path]
    if opened.weights.name != "." and len(opened.sets) > 1:
        words += ["--weights", opened.weights.name]
    words += ["--arch" if target.architecture else "--like", target.name]
    options = [cause.fix for cause in solved.causes if not cause.automatic and cause.fix]
    return " ".join([shlex.join(words), *options])
