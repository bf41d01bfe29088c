"""Which architecture a file is of, without being told.

Nothing is guessed: an architecture fits when its whole manifest does, and what cannot be told
apart by keys and shapes is listed together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from struct import unpack

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.dtypes import DTYPES
from ckptool.reading import read
from ckptool.tensors import LazyTensor, TensorSpec

# Segments that a wrapper inserts anywhere in a key. Source: torch 2.15 (`torch/_dynamo`,
# `torch/distributed/fsdp`, `torch/distributed/algorithms/_checkpoint`), Lightning 2.6.
SEGMENTS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
# Buffers that a model computes from its configuration, and what `thop.profile` leaves on one.
# Source: effdet 0.4.1 (`anchors.py`), YOLOv5 v6 (`models/yolo.py`), Detectron2 before 0.6.
DERIVED = (
    "anchors.boxes",
    "anchor_grid",
    "cell_anchors",
    "relative_position_index",
    "attn_mask",
    "pixel_mean",
    "pixel_std",
)
PROFILED = ("total_ops", "total_params")

_MOST_NEAR = 5
_NEAR = 0.5  # the least share of agreeing tensors that makes a near miss worth a line


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
    """The candidates, best first: all that fit, then a few near misses."""

    file: str
    format: str
    weights: str
    candidates: tuple[Candidate, ...]

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
    return Identified(opened.path, opened.contents.format, opened.weights.name, found)


def candidates(weights: WeightSet) -> tuple[Candidate, ...]:
    """The built-in architectures that the weights fit or nearly fit, best first."""
    specs = unwrapped(weights.specs)
    prefixes = _prefixes(specs)
    dtype = _main_dtype(specs.values())
    groups: dict[tuple[int, object], Candidate | None] = {}
    found = []
    for name in frozen.index():
        architecture = frozen.find(name)
        assert architecture is not None
        # Architectures with one manifest and one head are compared once.
        group = (id(architecture.specs), tuple(architecture.axes.items()))
        if group not in groups:
            groups[group] = _compared(architecture, specs, prefixes, weights, dtype)
        candidate = groups[group]
        if candidate is not None:
            found.append(replace(candidate, arch=name))
    fitting = told_apart(weights, [candidate for candidate in found if candidate.fits])
    near = sorted((c for c in found if not c.fits and _score(c) >= _NEAR), key=_score, reverse=True)
    return (*fitting, *near[:_MOST_NEAR])


def told_apart(weights: WeightSet, fitting: list[Candidate]) -> list[Candidate]:
    """Those of the candidates that agree with the anchors in the file, if it has any."""
    side = anchor_side(weights)
    if side is None:
        return fitting
    agreeing = [c for c in fitting if (found := frozen.find(c.arch)) and agrees(found, side)]
    return agreeing or fitting


def anchor_side(weights: WeightSet) -> float | None:
    """The side of the first box of effdet's `anchors.boxes`, None if the file has none."""
    boxes = next((t for key, t in weights.tensors.items() if is_named(key, DERIVED[:1])), None)
    return None if boxes is None else _first_side(boxes)


def agrees(architecture: Architecture, side: float) -> bool:
    """Whether the first anchor of an architecture has that side: anchor_scale · 2 ** first level.

    Source: effdet 0.4.1 `anchors.py`.
    """
    scale, levels = architecture.card.get("anchor_scale"), architecture.card.get("levels")
    if not isinstance(scale, float) or not isinstance(levels, (list, tuple)):
        return True
    return bool(abs(scale * 2 ** levels[0] - side) < 0.01 * side)


def unwrapped(specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """The specs without the segments that wrappers insert."""
    if not any(segment in key for key in specs for segment in SEGMENTS):
        return specs
    return {without_segments(key): spec for key, spec in specs.items()}


def without_segments(key: str) -> str:
    """The key without the segments that wrappers insert."""
    return ".".join(segment for segment in key.split(".") if segment not in SEGMENTS)


def is_named(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of the names, or ends with one."""
    return any(key == name or key.endswith(f".{name}") for name in names)


def class_count(specs: Mapping[str, TensorSpec], architecture: Architecture) -> int | None:
    """The class count that all class-dependent tensors agree on, None if they do not."""
    counts = set()
    for key, axis in architecture.axes.items():
        spec = specs.get(key)
        if spec is None or len(spec.shape) <= axis.axis:
            return None
        counts.add(axis.classes(spec.shape[axis.axis]))
    return counts.pop() if len(counts) == 1 else None


def _compared(
    architecture: Architecture,
    specs: Mapping[str, TensorSpec],
    prefixes: list[str],
    weights: WeightSet,
    dtype: str,
) -> Candidate | None:
    """How well an architecture fits, None if none of its landmarks is in the file."""
    landmarks = [next(iter(architecture.specs)), *architecture.axes]
    prefix = next(
        (prefix for prefix in prefixes for mark in landmarks if prefix + mark in specs), None
    )
    if prefix is None:
        return None
    inside = {key.removeprefix(prefix): s for key, s in specs.items() if key.startswith(prefix)}
    foreign = len(specs) - len(inside)
    foreign -= sum(is_named(k, _IGNORED) for k in specs if not k.startswith(prefix))
    count = class_count(inside, architecture)
    if architecture.axes and not count:
        count = architecture.num_classes
    wanted = architecture.manifest(count)
    inside = {k: s for k, s in inside.items() if k in wanted or not is_named(k, _IGNORED)}
    counts = compare(inside, wanted, weights.versions if not prefix else None).counts
    unexpected = counts["unexpected"] + foreign
    fits = not (counts["missing"] or unexpected or counts["shape"])
    return Candidate(
        architecture.name,
        fits,
        architecture.family,
        count,
        prefix,
        dtype,
        counts["matched"],
        counts["missing"],
        unexpected,
        counts["shape"],
    )


_IGNORED = (*DERIVED, *PROFILED)


def _prefixes(specs: Mapping[str, TensorSpec]) -> list[str]:
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


def _score(candidate: Candidate) -> float:
    wrong = candidate.missing + candidate.unexpected + candidate.shape
    return candidate.matched / (candidate.matched + wrong) if candidate.matched else 0.0


def _first_side(boxes: LazyTensor) -> float | None:
    """The height of the first box of an (n, 4) tensor."""
    code = {"float32": "<4f", "float16": "<4e", "float64": "<4d"}.get(boxes.dtype)
    if code is None or len(boxes.shape) != 2 or boxes.shape[1] != 4 or not boxes.shape[0]:
        return None
    first = next(boxes.chunks(), memoryview(b""))[: DTYPES[boxes.dtype].itemsize * 4]
    if len(first) < DTYPES[boxes.dtype].itemsize * 4:
        return None  # a live model's buffer, whose values are not looked at
    top, _, bottom, _ = unpack(code, first)
    return float(bottom - top)
