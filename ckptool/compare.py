"""What differs between the tensors that a file has and those that an architecture wants.

The rules are those of `load_state_dict(strict=True)`: keys and shapes decide, element types do
not, and what torch puts right by itself is no difference.

Source: `_load_from_state_dict` in `torch/nn/modules/module.py` and `batchnorm.py`, and
`_weight_norm_compat_hook` in `torch/nn/utils/parametrizations.py` (torch 2.15).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptool.checkpoint import WeightSet
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    from ckptool.architectures.spec import Legacy

COUNTER = "num_batches_tracked"

_STATISTICS = "running_mean"
_RENAMED_SINCE = 2  # the version of torchvision's modules with new names
_NONE: Legacy = {}
# The keys of a weight under the new weight_norm, and the suffixes that the old one gave its parts.
_WEIGHT_NORM = re.compile(r"((?:.*\.)?)parametrizations\.([^.]+)\.original([01])")
_OLD_SUFFIX = {"0": "_g", "1": "_v"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One difference; `kind` is missing, unexpected, shape or dtype.

    `found` is None where the file has nothing under the key, or nothing that is a dense tensor.
    """

    key: str
    kind: str
    found: TensorSpec | None
    wanted: TensorSpec | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences in the order of the wanted keys, then of the found ones.

    `tolerated` are differences that torch puts right by itself: BatchNorm counters that it starts
    at zero, one element with an axis where none is wanted.
    """

    entries: tuple[Entry, ...]
    matched: int
    tolerated: tuple[Entry, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether a strict load succeeds."""
        return not any(self.counts[kind] for kind in ("missing", "unexpected", "shape"))


def compare_weights(
    weights: WeightSet, wanted: Mapping[str, TensorSpec], legacy: Legacy = _NONE
) -> Comparison:
    """What differs between all that a weight set holds and what is wanted."""
    strays = (*weights.refused, *weights.others)
    return compare(weights.specs, wanted, weights.versions, strays, legacy)


def compare(
    found: Mapping[str, TensorSpec],
    wanted: Mapping[str, TensorSpec],
    versions: Mapping[str, int] | None = None,
    strays: Iterable[str] = (),
    legacy: Legacy = _NONE,
) -> Comparison:
    """The differences; `versions` is the `_metadata` of the file's state dict.

    `strays` are keys of the state dict whose values are no dense tensors; `legacy` are the old keys
    that the model's own classes rename (see `Architecture`).
    """
    entries: list[Entry] = []
    tolerated: list[Entry] = []
    counts = dict.fromkeys(("missing", "unexpected", "shape", "dtype"), 0)
    matched = 0
    others = dict.fromkeys(strays)
    found = _upgraded(as_loaded(found, versions, legacy), wanted)
    for key, want in wanted.items():
        have = found.get(key)
        if have is None:
            entry = Entry(key, "missing", None, want)
            started = key not in others and _started(key, wanted, versions)
            (tolerated if started else entries).append(entry)
        elif have.shape != want.shape:
            entry = Entry(key, "shape", have, want)
            # torch takes a 1-d tensor of one element for a 0-d one, but not the other way round.
            scalar = want.shape == () and have.shape == (1,)
            (tolerated if scalar else entries).append(entry)
            matched += scalar
        else:
            matched += 1
            if have.dtype != want.dtype:
                entries.append(Entry(key, "dtype", have, want))
    for key, have in found.items():
        if key not in wanted:
            entries.append(Entry(key, "unexpected", have, None))
    entries += [Entry(key, "unexpected", None, None) for key in others if key not in wanted]
    for entry in entries:
        counts[entry.kind] += 1
    return Comparison(tuple(entries), matched, tuple(tolerated), {"matched": matched, **counts})


def as_loaded(
    found: Mapping[str, TensorSpec], versions: Mapping[str, int] | None, legacy: Legacy
) -> Mapping[str, TensorSpec]:
    """The specs under the names that the model's own classes give them as they load."""
    if not legacy:
        return found
    specs = dict(found)
    for module, names in legacy.items():
        old_file = versions is None or versions.get(module, 0) < _RENAMED_SINCE
        for old, new in names:
            if old in specs and (old_file or new is None):
                spec = specs.pop(old)
                if new is not None:
                    specs[new] = spec
    return specs


def _started(
    key: str, wanted: Mapping[str, TensorSpec], versions: Mapping[str, int] | None
) -> bool:
    """Whether BatchNorm itself starts a missing counter: its state is older than version 2."""
    module, dot, name = key.rpartition(".")
    if name != COUNTER or f"{module}{dot}{_STATISTICS}" not in wanted:
        return False
    return versions is None or versions.get(module, 0) < 2


def _upgraded(
    found: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]
) -> Mapping[str, TensorSpec]:
    """The specs with weight_norm's old keys under its new ones, which torch renames as it loads."""
    names = {}
    for key in wanted:
        match = _WEIGHT_NORM.fullmatch(key) if ".original" in key else None
        if match:
            module, name, number = match.groups()
            if all(f"{module}{name}{suffix}" in found for suffix in _OLD_SUFFIX.values()):
                names[f"{module}{name}{_OLD_SUFFIX[number]}"] = key
    return {names.get(key, key): spec for key, spec in found.items()} if names else found
