"""What differs between the tensors that a file has and those that an architecture wants.

The rules are those of `load_state_dict(strict=True)`: keys and shapes decide, element types do
not, and BatchNorm is as lenient as it is in torch.

Source: `torch/nn/modules/module.py` and `batchnorm.py` (`_load_from_state_dict`; torch 2.15).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptool.tensors import TensorSpec

COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Entry:
    """One difference; `kind` is missing, unexpected, shape or dtype."""

    key: str
    kind: str
    found: TensorSpec | None
    wanted: TensorSpec | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences in the order of the wanted keys, then of the found ones.

    `tolerated` are differences that torch accepts: counters that are missing or of shape (n,).
    """

    entries: tuple[Entry, ...]
    matched: int
    tolerated: tuple[Entry, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether a strict load succeeds."""
        return not any(self.counts[kind] for kind in ("missing", "unexpected", "shape"))


def compare(
    found: Mapping[str, TensorSpec],
    wanted: Mapping[str, TensorSpec],
    versions: Mapping[str, int] | None = None,
) -> Comparison:
    """The differences; `versions` is the `_metadata` of the file's state dict."""
    entries: list[Entry] = []
    tolerated: list[Entry] = []
    counts = dict.fromkeys(("missing", "unexpected", "shape", "dtype"), 0)
    matched = 0
    for key, want in wanted.items():
        have = found.get(key)
        if have is None:
            entry = Entry(key, "missing", None, want)
            (tolerated if _filled_in(key, versions) else entries).append(entry)
        elif have.shape != want.shape:
            entry = Entry(key, "shape", have, want)
            # torch takes the first element of a 1-d tensor for a 0-d one.
            scalar = want.shape == () and len(have.shape) == 1 and have.numel > 0
            (tolerated if scalar else entries).append(entry)
            matched += scalar
        else:
            matched += 1
            if have.dtype != want.dtype:
                entries.append(Entry(key, "dtype", have, want))
    for key, have in found.items():
        if key not in wanted:
            entries.append(Entry(key, "unexpected", have, None))
    for entry in entries:
        counts[entry.kind] += 1
    return Comparison(tuple(entries), matched, tuple(tolerated), {"matched": matched, **counts})


def _filled_in(key: str, versions: Mapping[str, int] | None) -> bool:
    """Whether BatchNorm itself fills in a missing counter: its state is older than version 2."""
    module, _, name = key.rpartition(".")
    return name == COUNTER and (versions is None or versions.get(module, 0) < 2)
