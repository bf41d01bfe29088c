"""The diff that users see: every difference, the fewest causes that explain it, what to type."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ckptool.anchors import agrees, anchor_side
from ckptool.architectures import darknet_files, find, lookalikes, version_notes
from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Solved, Target
from ckptool.causes.precision import dtypes
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import Entry, as_loaded, compare_weights
from ckptool.errors import ArchitectureError, PlanError, counted, listed
from ckptool.reading import read
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    from ckptool.changes import Values
    from ckptool.values import Progress


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between a checkpoint and a target, and why.

    `fits_strict` is the verdict of `load_state_dict(strict=True)`. `unexplained` are the keys that
    no cause accounts for. `also_fits` are architectures that cannot be told apart by keys and
    shapes, `distinguished` what each of them has instead (own fact, other fact), `not_in_file` what
    no file stores. `fix` is the one command that makes the file load, None if there is none.
    `found` and `wanted` are all specs of both sides; `values` how far apart the values are, None
    unless that was asked for.
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
    distinguished: Mapping[str, Mapping[str, tuple[object, object]]] = field(default_factory=dict)
    not_in_file: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fix: str | None = None
    found: Mapping[str, TensorSpec] = field(default_factory=dict, repr=False)
    wanted: Mapping[str, TensorSpec] = field(default_factory=dict, repr=False)
    values: Values | None = None

    @property
    def agrees(self) -> bool:
        """Whether the file fits, and its values, if they were compared, are within tolerance."""
        return self.fits_strict and (self.values is None or self.values.within)

    def __str__(self) -> str:
        from ckptool.render.diff import diff_text

        return diff_text(self)

    def _repr_html_(self) -> str:
        from ckptool.render.notebook import diff_html

        return diff_html(self)


def diff(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    live: bool = False,
    strict_dtype: bool = False,
    like_weights: str | None = None,
    values: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    progress: Progress | None = None,
) -> Diff:
    """What differs between a checkpoint and an architecture or another checkpoint.

    With `strict_dtype` a difference of dtype counts against the verdict too. `like_weights` names
    the weight set in `like`. With `values` the values of both are compared, element by element:
    |found - wanted| ≤ atol + rtol·|wanted| is equal, and `progress` is told how far it is.

    Raises: CkptError.
    """
    _refuse_tolerances(values, rtol, atol)
    darknet = darknet_files.is_darknet(arch)
    found = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else read(checkpoint, weights=weights, darknet=darknet)
    )
    other = _other(like, like_weights, values)
    if other is not None:
        found, other = darknet_files.paired(found, other)
    if other is not None and num_classes is not None:
        from ckptool.planning import architecture_of, refuse_other_count

        refuse_other_count(other.path, architecture_of(other.weights), num_classes)
    target = target_of(arch, other, num_classes, live=live)
    opened = found if other is not None else darknet_files.keyed(found, target.architecture)
    solved = _solved(opened.weights, target, other)
    also = _also_fits(opened.weights, target)
    whole = any(cause.whole for cause in solved.causes)
    casts = [] if whole else dtypes(solved.weights.specs, solved.after.entries)
    return Diff(
        opened.path,
        opened.contents.format,
        opened.weights.name,
        target.name,
        target.num_classes,
        solved.before.fits and not (strict_dtype and solved.before.counts["dtype"]),
        solved.before.counts,
        solved.before.entries,
        (*solved.causes, *casts),
        solved.unexplained,
        also_fits=also,
        distinguished={name: _contrast(target.architecture, name) for name in also},
        not_in_file=target.architecture.card if target.architecture else {},
        notes=(
            *darknet_files.told(opened.weights),
            *_notes(opened.weights, target),
            *_new_rows(solved, target),
            *_beyond_weights(solved),
        ),
        fix=_command(opened, target, solved, casts if strict_dtype else ()),
        found=opened.weights.specs,
        wanted=target.specs,
        values=_compared(opened, other, solved, rtol, atol, progress) if values and other else None,
    )


def _refuse_tolerances(values: bool, rtol: float, atol: float) -> None:
    """Refuse tolerances that are none, or that nothing would be measured by."""
    for name, number in (("rtol", rtol), ("atol", atol)):
        if not 0 <= number < math.inf:
            raise PlanError(
                f"{name} is {number}, wanted a number from 0 up",
                hint=f"--{name} 1e-6, say",
                code="diff.tolerance",
            )
    if (rtol or atol) and not values:
        raise PlanError(
            "a tolerance is for values, which are not compared",
            hint="--like FILE2 --values compares them",
            code="diff.tolerance",
        )


def _other(
    like: str | os.PathLike[str] | Checkpoint | None, weights: str | None, values: bool
) -> Checkpoint | None:
    """The checkpoint to compare with.

    Raises: ArchitectureError if values are to be compared with an architecture, which has none.
    """
    if like is None and values:
        raise ArchitectureError(
            "an architecture has no values to compare with",
            hint="--like FILE2 instead of --arch",
            code="architecture.values",
        )
    return like if like is None or isinstance(like, Checkpoint) else read(like, weights=weights)


def _solved(weights: WeightSet, target: Target, other: Checkpoint | None) -> Solved:
    """The causes of the differences from the target, which `other` is if that is a checkpoint.

    What fits has none, and the detectors are not even imported.
    """
    before = compare_weights(weights, target.specs, target.legacy)
    if before.fits and not before.tolerated:
        return Solved((), (), weights, before, before, ())
    from ckptool.planning import architecture_of
    from ckptool.solving import solve

    # What the other checkpoint is of tells another size of the same network from another network.
    architecture = architecture_of(other.weights) if other and not before.fits else None
    if architecture is not None:
        count = architecture.num_classes
        return solve(weights, replace(target, num_classes=count, architecture=architecture))
    return solve(weights, target, before)


def _compared(
    opened: Checkpoint,
    other: Checkpoint,
    solved: Solved,
    rtol: float,
    atol: float,
    progress: Progress | None,
) -> Values:
    """How far the values are apart, once what only names them differently is undone."""
    from ckptool.plugins import EXACT
    from ckptool.values import compare_values

    done = [result for _, result in solved.applied]
    same = all(result.grade == EXACT for result in done)
    weights = solved.weights if same else opened.weights
    found = compare_values(
        weights.tensors, other.weights.tensors, rtol=rtol, atol=atol, progress=progress
    )
    edits = tuple(cause.summary for cause, _ in solved.applied) if same else ()
    return replace(found, edits=edits)


def _also_fits(weights: WeightSet, target: Target) -> tuple[str, ...]:
    """The architectures with the target's keys and shapes, but for those that anchors rule out."""
    if target.architecture is None:
        return ()
    names = lookalikes(target.architecture)
    side = anchor_side(weights)
    return tuple(name for name in names if side is None or agrees(find(name), side))


def _contrast(architecture: Architecture | None, other: str) -> Mapping[str, tuple[object, object]]:
    """The facts in which another architecture's card differs, the own one first."""
    own = architecture.card if architecture else {}
    theirs = find(other).card
    names = dict.fromkeys([*own, *theirs])
    return {n: (own.get(n), theirs.get(n)) for n in names if own.get(n) != theirs.get(n)}


def _notes(weights: WeightSet, target: Target) -> tuple[str, ...]:
    """What is worth knowing but no difference of keys and shapes."""
    if target.architecture is None:
        return ()
    notes = list(version_notes(target.architecture))
    specs = weights.specs
    renamed = specs.keys() - as_loaded(specs, weights.versions, target.legacy).keys()
    if renamed:
        notes.append(
            f"{counted(len(renamed), 'key')} of an older version ({listed(sorted(renamed), 2)}) "
            f"{'is' if len(renamed) == 1 else 'are'} renamed or left out by the architecture's own "
            "classes as they load"
        )
    side = anchor_side(weights)
    if side is not None and not agrees(target.architecture, side):
        fitting = [n for n in lookalikes(target.architecture) if agrees(find(n), side)]
        notes.append(
            f"the anchors in the file are not those of {target.name}: the first has the side "
            f"{side:g}" + (f", as in {listed(fitting)}" if fitting else "")
        )
    return tuple(notes)


def _new_rows(solved: Solved, target: Target) -> tuple[str, ...]:
    """What another class count costs, and how to do without."""
    notes = []
    for cause, _ in solved.applied:
        if cause.code == "class-count":
            old, new = cause.options["from"], cause.options["to"]
            note = f"--num-classes {new} starts every class row anew, unless --class-map says which"
            as_it_is = f"; --num-classes {old} compares the file as it is"
            notes.append(f"{note} are kept{as_it_is if target.architecture else ''}")
    return tuple(notes)


def _beyond_weights(solved: Solved) -> tuple[str, ...]:
    """What a conversion between dialects leaves out, adds, or cannot carry."""
    notes = (result.notes for cause, result in solved.applied if cause.code == "dialect")
    return tuple(note for found in notes for note in found)


def target_of(
    arch: str | None,
    like: str | os.PathLike[str] | Checkpoint | None,
    num_classes: int | None,
    *,
    live: bool = False,
) -> Target:
    """The target that `--arch` or `--like` names.

    Raises: CkptError.
    """
    if like is not None:
        other = like if isinstance(like, Checkpoint) else read(like)
        return Target(other.path, other.weights.specs)
    if arch is None:
        raise ArchitectureError(
            "neither an architecture nor another checkpoint is given",
            hint="arch=..., or like=...",
            code="architecture.none",
        )
    architecture = find(arch, live=live)
    count = architecture.num_classes if num_classes is None else num_classes
    return Target(architecture.name, architecture.manifest(num_classes), count, architecture)


def _command(
    opened: Checkpoint, target: Target, solved: Solved, casts: Sequence[Cause]
) -> str | None:
    """The command whose result fits, None if the file does already or no edit gets there.

    A dtype that no option casts stops no load: it is a reason to propose nothing only where the
    dtypes are all that is to be mended.
    """
    if solved.before.fits and not (casts and all(cause.fix for cause in casts)):
        return None
    asked = [cause for cause in solved.causes if not cause.automatic]
    if not solved.fixable or not all(cause.fix for cause in asked):
        return None
    asked += [cause for cause in casts if cause.fix]
    words = ["ckptool", "convert", opened.path]
    if opened.weights.name != "." and len(opened.sets) > 1:
        words += ["--weights", opened.weights.name]
    options = dict.fromkeys(cause.fix for cause in asked if cause.fix)
    return " ".join([shlex.join(words), target.option, *options])
