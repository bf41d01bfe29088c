"""Which architecture a file is of, without being told.

Nothing is guessed: an architecture fits when its whole manifest does, and what cannot be told
apart by keys and shapes is listed together.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ckptool import dialects
from ckptool.anchors import agrees, anchor_side
from ckptool.architectures import darknet_files, frozen
from ckptool.architectures.spec import Architecture, ClassAxis
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.derived import DERIVED, PROFILED, is_named
from ckptool.dialects.spec import Dialect
from ckptool.dtypes import DTYPES
from ckptool.guessing import Guessed, guesses
from ckptool.reading import read
from ckptool.tensors import Inline, LazyTensor, TensorSpec

# Segments that a wrapper inserts anywhere in a key. Source: torch 2.15 (`torch/_dynamo`,
# `torch/distributed/fsdp`, `torch/distributed/algorithms/_checkpoint`), Lightning 2.6.
SEGMENTS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)

# The least share of agreeing tensors that makes a near miss worth a line, and how many of them;
# once something fits, only what is nearer still.
_NEAR, _MOST_NEAR = 0.5, 5
_NEARER, _FEW_NEAR = 0.9, 3
# The number of elements of a large tensor, and the share of them that dialects have in common.
_LARGE, _ALIKE = 4096, 0.8


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture that a file fits, or nearly.

    The counts are what is left after the prefix, the dialect and the class count are accounted
    for; `fits` says that nothing is.
    """

    arch: str
    fits: bool
    dialect: str
    num_classes: int | None
    prefix: str
    dtype: str
    matched: int
    missing: int
    unexpected: int
    shape: int


@dataclass(frozen=True, slots=True)
class Identified:
    """The candidates, best first: all that fit, then near misses; guesses if there is none."""

    file: str
    format: str
    weights: str
    candidates: tuple[Candidate, ...]
    guesses: tuple[Guessed, ...] = ()

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """The candidates that fit: one, or those that keys and shapes cannot tell apart."""
        return tuple(candidate for candidate in self.candidates if candidate.fits)


def identify(
    checkpoint: str | os.PathLike[str] | Checkpoint, *, weights: str | None = None
) -> Identified:
    """The architectures that a checkpoint can be of.

    Raises: CkptError if the file is not readable.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    found = candidates(opened.weights)
    guessed = () if found else guesses(opened.weights.specs)
    return Identified(opened.path, opened.contents.format, opened.weights.name, found, guessed)


def candidates(weights: WeightSet) -> tuple[Candidate, ...]:
    """The built-in architectures that the weights fit or nearly fit, best first.

    Other dialects than an architecture's own are looked at if none fits in that; if one does, that
    dialect may be another's too. Of a darknet file only the size tells.
    """
    floats = darknet_files.flat(weights)
    if floats is not None:
        return tuple(Candidate(*fields) for fields in darknet_files.by_size(floats))
    largest = max(entry["keys"] for entry in frozen.index().values())
    if _NEAR * len(weights.tensors) > 2 * largest:
        return ()  # half of them, below some prefix, would still be too many to be near any
    seen = _seen(weights)
    found = _compared_all(seen, lambda architecture: (None,))
    marked = _shared([candidate for candidate in found if candidate.fits])
    if marked is None:
        marked = [d for d, _ in dialects.recognised(seen.specs, [v.prefix for v in seen.views])]
    if marked:
        sizes = _sizes(seen.specs)
        found += _compared_all(seen, lambda architecture: _others(architecture, marked, sizes))
    order = {name: number for number, name in enumerate(frozen.index())}
    fits = sorted((c for c in found if c.fits), key=lambda candidate: order[candidate.arch])
    fitting = told_apart(weights, fits)
    least, most = (_NEARER, _FEW_NEAR) if fitting else (_NEAR, _MOST_NEAR)
    near = [c for c in found if not c.fits and _score(c) >= least]
    return (*fitting, *sorted(near, key=_score, reverse=True)[:most])


def recognised(specs: Mapping[str, TensorSpec]) -> tuple[Candidate, ...]:
    """The built-in architectures that keys and shapes alone fit."""
    tensors = {key: LazyTensor(spec, Inline(b"")) for key, spec in specs.items()}
    return tuple(c for c in candidates(WeightSet(".", tensors)) if c.fits)


def told_apart(weights: WeightSet, fitting: list[Candidate]) -> list[Candidate]:
    """Those of the candidates that agree with the anchors in the file, if it has any."""
    side = anchor_side(weights)
    if side is None:
        return fitting
    agreeing = [c for c in fitting if (found := frozen.find(c.arch)) and agrees(found, side)]
    return agreeing or fitting


def unwrapped(specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """The specs without the segments that wrappers insert."""
    if not any(segment in key for key in specs for segment in SEGMENTS):
        return specs
    return {without_segments(key): spec for key, spec in specs.items()}


def without_segments(key: str) -> str:
    """The key without the segments that wrappers insert."""
    return ".".join(segment for segment in key.split(".") if segment not in SEGMENTS)


def class_count(specs: Mapping[str, TensorSpec], axes: Mapping[str, ClassAxis]) -> int | None:
    """The class count that all class-dependent tensors agree on, None if there is none."""
    counts = set()
    for key, axis in axes.items():
        spec = specs.get(key)
        if spec is None or len(spec.shape) <= axis.axis:
            return None
        counts.add(axis.classes(spec.shape[axis.axis]))
    return (counts.pop() or None) if len(counts) == 1 else None


@dataclass(frozen=True, slots=True)
class _View:
    """The specs below a prefix, without it: those of weights, those that any model may lack.

    `foreign` is the number of other tensors of the file.
    """

    prefix: str
    inside: Mapping[str, TensorSpec]
    ignored: Mapping[str, TensorSpec]
    foreign: int


def _view(specs: Mapping[str, TensorSpec], prefix: str) -> _View:
    inside: dict[str, TensorSpec] = {}
    ignored: dict[str, TensorSpec] = {}
    foreign = 0
    for key, spec in specs.items():
        may_lack = is_named(key, _IGNORED)
        if key.startswith(prefix):
            (ignored if may_lack else inside)[key.removeprefix(prefix)] = spec
        else:
            foreign += not may_lack
    return _View(prefix, inside, ignored, foreign)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Weights as they are compared: without wrappers' segments, below each possible prefix."""

    specs: Mapping[str, TensorSpec]
    views: tuple[_View, ...]
    versions: Mapping[str, int] | None
    dtype: str


def _seen(weights: WeightSet) -> _Seen:
    specs, versions = unwrapped(weights.specs), weights.versions
    if versions is not None:
        versions = {without_segments(path): version for path, version in versions.items()}
    views = tuple(_view(specs, prefix) for prefix in prefixes(specs))
    return _Seen(specs, views, versions, _main_dtype(specs.values()))


def _compared_all(
    seen: _Seen, spellings: Callable[[Architecture], Iterable[Dialect | None]]
) -> list[Candidate]:
    """How well the built-in architectures fit, in their own spelling (None) or in dialects."""
    groups: dict[tuple[int, object, str], Candidate | None] = {}
    found = []
    for name, entry in frozen.index().items():
        # At best all keys agree of the side that has fewer.
        if not any(_share(len(view.inside), entry["keys"]) >= _NEAR for view in seen.views):
            continue
        architecture = frozen.find(name)
        assert architecture is not None
        axes = tuple(architecture.axes.items())
        for dialect in spellings(architecture):
            # Architectures with one manifest and one head are compared once.
            group = (id(architecture.specs), axes, dialect.name if dialect else "")
            if group not in groups:
                groups[group] = _compared(architecture, dialect, seen)
            candidate = groups[group]
            if candidate is not None:
                found.append(replace(candidate, arch=name))
    return found


def _shared(fitting: Iterable[Candidate]) -> list[Dialect] | None:
    """The own dialects of architectures that fit, which may be others' too; None if none fits."""
    found = [frozen.find(candidate.arch) for candidate in fitting]
    own = {known.name: known for a in found if a and (known := dialects.native(a))}
    return list(own.values()) if found else None


def _others(
    architecture: Architecture, marked: Iterable[Dialect], sizes: Counter[int]
) -> list[Dialect]:
    """The dialects among those recognised that spell an architecture, but for its own.

    None if the sizes of its large tensors, which are the same in most dialects, are not the file's.
    """
    found = [
        dialect
        for dialect in marked
        if dialects.spells(dialect, architecture)
        and not all(mark in architecture.specs for mark in dialect.marks)
    ]
    if found:
        own = _sizes(architecture.specs)
        least = _ALIKE * min(own.total(), sizes.total())
        if (own & sizes).total() < least:
            return []
    return found


def _sizes(specs: Mapping[str, TensorSpec]) -> Counter[int]:
    """How many large tensors there are of each number of elements."""
    numbers = (math.prod(spec.shape) for spec in specs.values())
    return Counter(number for number in numbers if number >= _LARGE)


def _compared(architecture: Architecture, dialect: Dialect | None, seen: _Seen) -> Candidate | None:
    """How well an architecture fits; None if none of its landmarks is in the file."""
    missing = 0
    if dialect is not None:
        missing = len(dialects.uncovered(architecture, dialect))
        architecture = dialects.spelled(architecture, dialect)
    landmarks = [next(iter(architecture.specs)), *architecture.axes]
    view = next((v for v in seen.views if any(mark in v.inside for mark in landmarks)), None)
    if view is None:
        return None
    count = class_count(view.inside, architecture.axes)
    if architecture.axes and not count:
        count = architecture.num_classes
    wanted = architecture.manifest(count)
    inside = view.inside
    if any(key in wanted for key in view.ignored):
        inside = {**inside, **{k: spec for k, spec in view.ignored.items() if k in wanted}}
    if dialect is not None and dialect.drops:
        inside = {k: s for k, s in inside.items() if k in wanted or not dialects.drops(dialect, k)}
    # Under a prefix the module paths of `_metadata` have it too.
    known = seen.versions
    if known is not None and view.prefix:
        known = _below(known, view.prefix)
    counts = compare(inside, wanted, known, legacy=architecture.legacy).counts
    unexpected = counts["unexpected"] + view.foreign
    missing += counts["missing"]
    fits = not (missing or unexpected or counts["shape"])
    own = dialect or dialects.native(architecture)
    return Candidate(
        architecture.name,
        fits,
        own.name if own else architecture.family,
        count,
        view.prefix,
        seen.dtype,
        counts["matched"],
        missing,
        unexpected,
        counts["shape"],
    )


def _below(versions: Mapping[str, int], prefix: str) -> Mapping[str, int]:
    return {
        path.removeprefix(prefix): version
        for path, version in versions.items()
        if path.startswith(prefix)
    }


_IGNORED = (*DERIVED, *PROFILED)


def prefixes(specs: Mapping[str, TensorSpec]) -> list[str]:
    """The prefixes that at least half of the keys have, the shortest first; the empty one too."""
    votes: Counter[str] = Counter()
    for key in specs:
        votes.update(_leading(key))
    common = [prefix for prefix, count in votes.items() if 2 * count >= len(specs)]
    return ["", *sorted(common, key=len)]


def _leading(key: str) -> Iterator[str]:
    at = key.find(".")
    for _ in range(6):
        if at < 0:
            return
        yield key[: at + 1]
        at = key.find(".", at + 1)


def _main_dtype(specs: Iterable[TensorSpec]) -> str:
    """The floating type of most tensors."""
    counts = Counter(spec.dtype for spec in specs if DTYPES[spec.dtype].kind == "f")
    return counts.most_common(1)[0][0] if counts else ""


def _share(one: int, other: int) -> float:
    return min(one, other) / max(one, other, 1)


def _score(candidate: Candidate) -> float:
    wrong = candidate.missing + candidate.unexpected + candidate.shape
    return candidate.matched / (candidate.matched + wrong) if candidate.matched else 0.0
