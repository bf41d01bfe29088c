"""Spell the keys as another implementation does, and lay the values out as it does.

Options: `from` and `to` (dialects, see `ckptool.dialects`), `arch`, the architecture that both
spell, and maybe `prefix`, which is taken off the keys that have it. Every value is kept bit for
bit; what is one tensor in one dialect may be several in another. The eps of a dialect's BatchNorms
is the business of another edit, `eps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from ckptool import dialects
from ckptool.architectures import find
from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import WeightSet
from ckptool.dialects.links import Link, canonical_specs, links
from ckptool.dialects.spec import Aside
from ckptool.errors import PlanError, counted, quoted
from ckptool.plugins import EXACT, SELECTIVE, Applied, rename
from ckptool.plugins.rearranged import cut, joined, moved
from ckptool.tensors import Inline, LazyTensor, TensorSpec

NAME = "dialect"

# The prefix of architectures that are described by a file, not by somebody's code.
_DESCRIBED = "darknet:"
_ONES = {"float32": b"\0\0\x80\x3f"}


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights in the other dialect; keys that are none of the first one's stay as they are.

    Weights in the order of the architecture's manifest stay in it, any others in their own.

    Raises: PlanError for a dialect or an architecture that is not known, if nothing matches, or if
    two tensors would get one name.
    """
    architecture = _architecture(options["arch"])
    own, other = (dialects.find(options[side], architecture) for side in ("from", "to"))
    native = dialects.native(architecture)
    assert native is not None  # what is spelled in two dialects has one of its own
    canonical = canonical_specs(native, architecture)
    before, after = (links(dialect, architecture, canonical) for dialect in (own, other))
    prefix = options.get("prefix", "")
    bare = rename.apply(weights, {"strip": prefix}).weights if prefix else weights
    full = dict(zip(bare.tensors, weights.tensors, strict=True))
    middle = _carried(bare.tensors, before)
    if not middle:
        raise PlanError(
            f"no key is one of {quoted(architecture.name)} in the dialect {quoted(own.name)}",
            code="plan.no-match",
        )
    result = _through(middle, [_turned(link) for link in after])
    used = {key for made in middle.values() for key in made.origins}
    arrived = {key for made in result.values() for key in made.origins}
    others = [key for key in bare.tensors if key not in used]
    aside = _reasons(others, own.drops)
    lost = [name for name, made in middle.items() if arrived.isdisjoint(made.origins)]
    why = f"spells the {other.part} only" if other.part else "has no such tensors"
    missing = (*other.lacks, Aside("*", f"{quoted(other.name)} {why}"))
    added = {k: LazyTensor(spec, _ones(spec)) for k, spec in other.makes(architecture).items()}
    tensors = _ordered(bare, before, after, result)
    stay = {key: bare.tensors[key] for key in others if key not in aside}
    for key, tensor in (*stay.items(), *added.items()):
        if key in tensors:
            raise PlanError(f"two tensors would be called {quoted(key)}", code="plan.collision")
        tensors[key] = tensor
    gone = {*aside, *(used - arrived)}
    names = {made.origins[0]: key for key, made in result.items()}
    both = {*own.notes} & {*other.notes}
    return Applied(
        replace(bare, tensors=tensors, versions=rename.renamed_versions(bare, names)),
        SELECTIVE if own.part or other.part else EXACT,
        (*result, *added),
        tuple(full[key] for key in bare.tensors if key in gone),
        (
            *_told([*aside.values(), *_reasons(lost, missing).values()]),
            *([f"{counted(len(added), 'tensor')} of ones made, never read"] if added else ()),
            *(note for note in (*own.notes, *other.notes) if note not in both),
        ),
    )


def describe(options: Mapping[str, Any]) -> str:
    """`zylo117 to effdet`."""
    return f"{options['from']} to {options['to']}"


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor and the keys of the file that it is made of."""

    tensor: LazyTensor
    origins: tuple[str, ...]


def _architecture(name: str) -> Architecture:
    """The architecture of a name that may come from a plan: none that is somebody's code."""
    if ":" in name and not name.startswith(_DESCRIBED):
        raise PlanError(f"{quoted(name)} is spelled in no dialects", code="plan.architecture")
    return find(name)


def _carried(tensors: Mapping[str, LazyTensor], found: Iterable[Link]) -> dict[str, _Made]:
    """What the links make of the tensors, as far as all that belongs to one is there."""
    groups: dict[str, list[Link]] = {}
    for link in found:
        groups.setdefault(link.canonical.key, []).append(link)
    made = {}
    for key, group in groups.items():
        if not all(link.theirs.key in tensors for link in group):
            continue
        pieces = []
        for link in group:
            piece, there = tensors[link.theirs.key], link.theirs
            if there.index is not None:
                piece = cut(key, piece, there.index, there.count)
            pieces.append((link.canonical.index or 0, moved(key, piece, link.moves)))
        pieces.sort(key=lambda piece: piece[0])
        whole, count = pieces[0][1], group[0].canonical.count
        if group[0].canonical.index is not None:
            whole = joined(key, tuple(piece for _, piece in pieces), count)
        made[key] = _Made(whole, tuple(dict.fromkeys(link.theirs.key for link in group)))
    return made


def _through(middle: Mapping[str, _Made], found: Iterable[Link]) -> dict[str, _Made]:
    """What the links make of what was made before, with the first origins."""
    made = _carried({key: made.tensor for key, made in middle.items()}, found)
    return {
        key: _Made(m.tensor, tuple(dict.fromkeys(o for k in m.origins for o in middle[k].origins)))
        for key, m in made.items()
    }


def _turned(link: Link) -> Link:
    moves = tuple(move.inverse for move in reversed(link.moves))
    return Link(link.canonical, link.theirs, moves)


def _ordered(
    weights: WeightSet,
    before: Iterable[Link],
    after: Iterable[Link],
    result: Mapping[str, _Made],
) -> dict[str, LazyTensor]:
    """The new tensors in the manifest's order if the old ones were, else in that of the old."""
    manifest = list(dict.fromkeys(link.theirs.key for link in after))
    place = {key: number for number, key in enumerate(manifest)}
    keys = sorted(result, key=place.__getitem__)
    known = dict.fromkeys(link.theirs.key for link in before)
    found = [key for key in weights.tensors if key in known]
    if found != [key for key in known if key in weights.tensors]:
        number = {key: number for number, key in enumerate(found)}
        keys.sort(key=lambda key: min(number[origin] for origin in result[key].origins))
    return {key: result[key].tensor for key in keys}


def _reasons(keys: Iterable[str], asides: Iterable[Aside]) -> dict[str, str]:
    """Why each of the keys is left out, for those that are."""
    found = {}
    for key in keys:
        for aside in asides:
            if fnmatchcase(key, aside.keys):
                found[key] = aside.reason
                break
    return found


def _told(reasons: Iterable[str]) -> list[str]:
    return [
        f"{counted(count, 'tensor')} left out: {reason}"
        for reason, count in Counter(reasons).items()
    ]


def _ones(spec: TensorSpec) -> Inline:
    return Inline(_ONES[spec.dtype] * spec.numel)
