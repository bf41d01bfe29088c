"""A flat mapping of values as a Tree, for the formats that have no nesting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptool.checkpoint import Value


@dataclass(frozen=True, slots=True, eq=False)
class FlatTree:
    """A mapping whose values are at hand."""

    values: Mapping[str, Value]
    type: str = "dict"
    nbytes: int = 0

    @property
    def identity(self) -> int:
        """Equal for the same object."""
        return id(self)

    def items(self) -> Iterator[tuple[str, Value]]:
        """The entries."""
        yield from self.values.items()

    def attributes(self) -> Iterator[tuple[str, Value]]:
        """None."""
        yield from ()
