"""The architectures that a file under unknown names may be of: a guess, by the order of shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.pairing import Guess, guess
from ckptool.tensors import TensorSpec

# A file without the counters of its norms has no fewer tensors than this share of the others'.
_LEAST = 0.7


@dataclass(frozen=True, slots=True)
class Guessed:
    """An architecture whose shapes, read in order, a file has, with the pairing and its evidence.

    `arch` is the first of several that cannot be told apart, which are `also`.
    """

    arch: str
    also: tuple[str, ...]
    num_classes: int | None
    guess: Guess


def guesses(found: Mapping[str, TensorSpec]) -> tuple[Guessed, ...]:
    """The built-in architectures that a file may be of under other names, the nearest first."""
    seen: dict[tuple[int, object], tuple[list[str], Architecture, Guess | None]] = {}
    for name, entry in frozen.index().items():
        if not _LEAST < len(found) / entry["keys"] < 1 / _LEAST:
            continue
        architecture = frozen.find(name)
        assert architecture is not None
        kind = id(architecture.specs), tuple(architecture.axes.items())
        if kind not in seen:
            pairing = guess(found, architecture.specs, architecture.axes)
            seen[kind] = [], architecture, pairing
        seen[kind][0].append(name)
    all_found = [
        Guessed(names[0], tuple(names[1:]), _class_count(found, architecture, pairing), pairing)
        for names, architecture, pairing in seen.values()
        if pairing is not None
    ]
    return tuple(sorted(all_found, key=_distance))


def _class_count(
    found: Mapping[str, TensorSpec], architecture: Architecture, pairing: Guess
) -> int | None:
    """The class count that the paired tensors agree on, None if there is none."""
    counts = {
        axis.classes(found[key].shape[axis.axis])
        for key, name in pairing.names.items()
        if (axis := architecture.axes.get(name))
    }
    return counts.pop() if len(counts) == 1 else None


def _distance(guessed: Guessed) -> tuple[bool, int]:
    """What names contradict comes last, what has most tensors without a pair before it."""
    pairing = guessed.guess
    return pairing.against is not None, len(pairing.extra) + len(pairing.missing)
