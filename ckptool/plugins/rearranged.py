"""Tensors with the values of others: moved to other places, cut out, joined; every bit is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptool.dialects.spec import Move
from ckptool.errors import VerificationError, quoted
from ckptool.tensors import Extent, LazyTensor, TensorSpec


def moved(key: str, tensor: LazyTensor, moves: tuple[Move, ...]) -> LazyTensor:
    """The tensor after the moves; itself if there are none."""
    shape = tensor.shape
    for move in moves:
        shape = tuple(shape[move.axis(axis)] for axis in range(len(shape)))
    return (
        LazyTensor(TensorSpec(tensor.dtype, shape), Moved(key, tensor, moves)) if moves else tensor
    )


def cut(key: str, tensor: LazyTensor, index: int, count: int | None) -> LazyTensor:
    """An element along the first axis, or one of `count` equal blocks.

    A tensor without axes, a counter, is whole in each of its blocks.
    """
    if not tensor.shape:
        return tensor
    length, *rest = tensor.shape
    shape = tuple(rest) if count is None else (length // count, *rest)
    return LazyTensor(TensorSpec(tensor.dtype, shape), Cut(key, tensor, index, count))


def joined(key: str, pieces: tuple[LazyTensor, ...], count: int | None) -> LazyTensor:
    """The tensor whose elements along a new first axis, or whose `count` blocks, are the pieces.

    Of counters, which have no axes, the first stands for all.
    """
    first = pieces[0]
    if count is not None and not first.shape:
        return first
    shape = (len(pieces), *first.shape)
    if count is not None:
        shape = (count * first.shape[0], *first.shape[1:])
    return LazyTensor(TensorSpec(first.dtype, shape), Joined(key, pieces))


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor with its values in other places."""

    key: str
    input: LazyTensor
    moves: tuple[Move, ...]

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The tensor as it was."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The whole tensor."""
        values = self.input.numpy()
        for move in self.moves:
            values = move.carried(values)
        yield _bytes(values)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """Nothing; VerificationError unless the written values, moved back, are the old ones."""
        values = written.numpy()
        for move in reversed(self.moves):
            values = move.inverse.carried(values)
        _compare(self.key, values, self.input.numpy())
        return {}


@dataclass(frozen=True, slots=True)
class Cut:
    """An element of a tensor along its first axis, or one of `count` equal blocks."""

    key: str
    input: LazyTensor
    index: int
    count: int | None

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The tensor that it is cut out of."""
        return (self.input,)

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The whole part."""
        yield _bytes(self._part())

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is gathered."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """Nothing; VerificationError unless the written values are the part."""
        _compare(self.key, written.numpy(), self._part())
        return {}

    def _part(self) -> Any:
        values = self.input.numpy()
        if self.count is None:
            return values[self.index]
        size = len(values) // self.count
        return values[self.index * size : (self.index + 1) * size]


@dataclass(frozen=True, slots=True)
class Joined:
    """Tensors one behind the other."""

    key: str
    inputs: tuple[LazyTensor, ...]

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The bytes of each, in order."""
        for tensor in self.inputs:
            yield from tensor.chunks(step)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is gathered."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """Nothing; VerificationError unless each written part is the tensor that it was."""
        values = written.numpy().reshape(-1)
        at = 0
        for tensor in self.inputs:
            _compare(self.key, values[at : at + tensor.numel], tensor.numpy())
            at += tensor.numel
        return {}


def _bytes(values: Any) -> memoryview:
    import numpy

    return memoryview(numpy.ascontiguousarray(values).reshape(-1).view(numpy.uint8).data)


def _compare(key: str, found: Any, wanted: Any) -> None:
    if found.tobytes() != wanted.tobytes():
        raise VerificationError(
            f"{quoted(key)}: the written values are not the old ones in their new places"
        )
