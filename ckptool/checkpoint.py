"""What a file holds: a tree of values, the weight sets in it, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeGuard

from ckptool.errors import FormatError
from ckptool.tensors import LazyTensor, TensorSpec

# The key in a file's metadata under which it says how ckptool made it.
MADE_BY = "ckptool"


@dataclass(frozen=True, slots=True)
class Refused:
    """A tensor-like value that cannot be given as a dense tensor, and why."""

    kind: str
    reason: str


class Tree(Protocol):
    """A mapping, sequence or object in a loaded file; its children are made when asked for.

    `type` is `dict`, `list`, `tuple`, `set` or the dotted name of a class that was not imported;
    `identity` is equal for two trees that are the same object in the file.
    """

    @property
    def type(self) -> str:
        """The type's name."""

    @property
    def identity(self) -> int:
        """Equal for the same object."""

    @property
    def nbytes(self) -> int:
        """The bytes of a large value held here, 0 for a container or an object."""

    def items(self) -> Iterator[tuple[str, Value]]:
        """The entries of a mapping or sequence, keys as text."""

    def attributes(self) -> Iterator[tuple[str, Value]]:
        """The attributes of an object."""


def is_tree(value: Value) -> TypeGuard[Tree]:
    """Whether a value has children."""
    return not isinstance(value, _LEAVES)


_LEAVES = (type(None), bool, int, float, str, bytes, LazyTensor, Refused)
Value = None | bool | int | float | str | bytes | LazyTensor | Refused | Tree


class Budget:
    """How much of a file may still be walked.

    A file can refer to its parts over and over again, and so ask for any amount of work and of
    keys; the budget is several times what its size explains.
    """

    __slots__ = ("_left",)

    def __init__(self, nbytes: int) -> None:
        self._left = 1_000_000 + 4 * nbytes

    def spend(self, entries: int) -> None:
        """Pay for walking over entries; FormatError if the budget is used up."""
        self._left -= entries
        if self._left < 0:
            raise FormatError(
                "the file refers to its own parts more often than its size explains",
                code="tree.size",
            )

    def spend_key(self, prefix: str, key: str) -> None:
        """Pay for a key that is put together: an entry of a file is smaller than its full name."""
        self.spend(20 + (len(prefix) + len(key)) // 4)


class GlobalName(NamedTuple):
    """A name that a plain unpickler would import; `danger` says what it would have done."""

    name: str
    danger: str | None = None


class Finding(NamedTuple):
    """Something about a file or its values that its user should know."""

    code: str
    message: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a format's reader gives: the root value and what the container around it says.

    `shards_nbytes` is the size of the files beside the one that was opened.
    """

    format: str
    root: Value
    globals: tuple[GlobalName, ...] = ()
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    shards_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One mapping in a file that holds weights.

    `name` is its dotted path in the file, `.` for the file itself. `refused` are the tensor-like
    values that are not dense tensors, by key; `others` the keys of the same mapping whose values
    are no tensors at all. `versions` is torch's `_metadata` (module path to version), None where
    there is none. `origin` is the class of the pickled module that the set was rebuilt from, None
    for a plain state dict; `averaged` tells an EMA copy, None if unknown.
    """

    name: str
    tensors: Mapping[str, LazyTensor]
    refused: Mapping[str, Refused] = field(default_factory=dict)
    versions: Mapping[str, int] | None = None
    origin: str | None = None
    averaged: bool | None = None
    findings: tuple[Finding, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Key to spec, in order."""
        return {key: tensor.spec for key, tensor in self.tensors.items()}

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """The groups of keys that are one tensor: the same bytes, seen the same way."""
        groups: dict[LazyTensor, list[str]] = {}
        for key, tensor in self.tensors.items():
            if 0 not in tensor.shape:
                groups.setdefault(tensor, []).append(key)
        return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


class LeftAside(NamedTuple):
    """Something in the file that is not part of the chosen weights: where, what, how big."""

    name: str
    what: str
    nbytes: int


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, LazyTensor]):
    """An opened checkpoint: key to LazyTensor in file order; nothing read but the headers.

    `weights` is the chosen set, `sets` are all that the file holds, `contents` is the whole file.
    """

    path: str
    nbytes: int
    weights: WeightSet
    sets: tuple[WeightSet, ...]
    contents: Contents

    def __getitem__(self, key: str) -> LazyTensor:
        return self.weights.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights.tensors)

    def __len__(self) -> int:
        return len(self.weights.tensors)

    def _repr_html_(self) -> str:
        from ckptool.render.notebook import checkpoint_html

        return checkpoint_html(self)

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """The groups of keys whose tensors are the same bytes of the file, seen the same way."""
        return self.weights.aliases
