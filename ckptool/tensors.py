"""What a tensor is without its bytes (TensorSpec), and how to get them (LazyTensor).

A LazyTensor is a spec and a source. Bytes always come out in one form: row-major, little-endian,
in blocks of bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import UnsupportedError
from ckptool.files import BLOCK, Readable
from ckptool.records import Record

if TYPE_CHECKING:
    import numpy as np
    import torch


MOST_AXES = 64
MOST_ELEMENTS = 1 << 48


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What an architecture wants and a file declares: the element type's name and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes, contiguous."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@lru_cache(1 << 10)  # most specs of a network are there many times
def spec_of(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """The spec of a possible shape, the same one for equal shapes."""
    return TensorSpec(dtype, shape)


class Extent(NamedTuple):
    """A run of bytes in a file that is exactly a tensor's data."""

    file: Readable
    offset: int
    nbytes: int


class Source(Protocol):
    """What supplies a tensor's data."""

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The data, row-major and little-endian, in order, about `step` bytes at a time."""

    def extent(self, spec: TensorSpec) -> Extent | None:
        """Where the data lies as it is, None where it must be gathered or computed."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of which only the spec is in memory; the data is read when it is asked for."""

    spec: TensorSpec
    source: Source

    def __hash__(self) -> int:
        """Of its source and shape: a file could have any number of tensors on one source."""
        return hash((self.source, self.spec.shape))

    @property
    def dtype(self) -> str:
        """The canonical name of the element type, `float32`."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; empty for a 0-d tensor."""
        return self.spec.shape

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.spec.numel

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes, contiguous."""
        return self.spec.nbytes

    def chunks(self, step: int = BLOCK) -> Iterator[memoryview]:
        """The data, row-major and little-endian, in blocks of about `step` bytes."""
        return self.source.chunks(self.spec, step)

    def extent(self) -> Extent | None:
        """The run of file bytes that is exactly this tensor's data, if there is one."""
        return self.source.extent(self.spec)

    def tobytes(self) -> bytes:
        """All of the data at once, row-major and little-endian."""
        return b"".join(self.chunks())

    def numpy(self) -> np.ndarray[Any, Any]:
        """The tensor as a new array; bfloat16 and float8 come as ml_dtypes types."""
        import numpy

        kind = numpy_dtype(self.dtype)
        if not self.numel:
            return numpy.empty(self.shape, kind)
        return numpy.frombuffer(self._data(), kind).reshape(self.shape)

    def torch(self, *, own: bool = True) -> torch.Tensor:
        """The tensor as a new torch tensor on the CPU; imports torch.

        One that need not have memory of its `own` is to be copied from, not to be written to.
        """
        import torch

        kind = getattr(torch, self.dtype)
        if not self.numel:
            return torch.empty(self.shape, dtype=kind)
        return torch.frombuffer(self._data(own), dtype=kind).reshape(self.shape)

    def _data(self, own: bool = True) -> bytearray | memoryview:
        """The data in memory of its own, taken only once the first block was not refused.

        Not of its own, if that will do, where the file is in memory that can be written to.
        """
        chunks = self.chunks()
        first = next(chunks, memoryview(b""))
        if not own and len(first) == self.nbytes and not first.readonly:
            for _ in chunks:  # the checksum is looked at after the last block
                pass
            return first
        data = bytearray(self.nbytes)
        target, at = memoryview(data), 0
        for chunk in chain((first,), chunks):
            target[at : at + len(chunk)] = chunk
            at += len(chunk)
        return data


_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "V16"}  # numpy's name for raw elements, by size


class View(NamedTuple):
    """A strided window on a storage; `offset` and `stride` count elements."""

    record: Record
    offset: int
    stride: tuple[int, ...]
    conj: bool = False
    negative: bool = False

    def __hash__(self) -> int:
        """Where it begins, and its strides: a file could have any number at one place."""
        record = self.record
        return hash((record.file, record.offset, record.name, self.offset, self.stride))

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The window's data, gathered where it is not contiguous."""
        nbytes = spec.nbytes
        if not nbytes:
            return
        record = self.record
        _refuse_expansion(spec, nbytes, record)
        plain = self._is_plain(spec)
        if plain and nbytes == record.nbytes:
            for block in record.blocks(step):
                yield memoryview(block)
        elif plain and not record.deflated:
            record.check()
            start = record.offset + self.offset * DTYPES[spec.dtype].itemsize
            for block in record.file.blocks(start, nbytes, step):
                yield memoryview(block)
        else:
            yield from self._gathered(spec, step)
        record.file.check_unchanged()

    def extent(self, spec: TensorSpec) -> Extent | None:
        """The run of file bytes, for a contiguous little-endian window that is not deflated."""
        record = self.record
        if record.deflated or not self._is_plain(spec):
            return None
        offset = record.offset + self.offset * DTYPES[spec.dtype].itemsize
        return Extent(record.file, offset, spec.nbytes)

    def _is_plain(self, spec: TensorSpec) -> bool:
        """Whether the storage's bytes are the tensor's, as they are and in their order."""
        swapped = self.record.byteorder != "little" and DTYPES[spec.dtype].itemsize > 1
        return not (swapped or self.conj or self.negative) and is_contiguous(
            spec.shape, self.stride
        )

    def _gathered(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """Blocks along one axis; in memory are the storage's bytes that one block spans.

        Where the axes interleave (a transposed matrix), or the storage is deflated, every block
        spans nearly all of the window, which is then read once.
        """
        import numpy

        record, itemsize = self.record, DTYPES[spec.dtype].itemsize
        shape, stride = (spec.shape, self.stride) if spec.shape else ((1,), (1,))
        spans = [span(shape[axis:], stride[axis:]) for axis in range(len(shape) + 1)]
        axis, row = len(shape) - 1, itemsize
        while axis and row * shape[axis] <= step:
            row *= shape[axis]
            axis -= 1
        rows = max(1, step // row)
        interleaved = any(
            shape[outer] > 1 and 0 < stride[outer] < spans[outer + 1] for outer in range(axis + 1)
        )
        whole = None
        if record.deflated:
            start = self.offset * itemsize
            whole = b"".join(record.blocks())[start : start + spans[0] * itemsize]
        else:
            record.check()
            if interleaved or spans[0] * itemsize <= step:
                start = record.offset + self.offset * itemsize
                whole = record.file.read(start, spans[0] * itemsize)
            elif stride[axis]:
                rows = min(rows, 1 + max(0, step // itemsize - spans[axis + 1]) // stride[axis])
        kind = numpy.dtype(_WORDS[itemsize])  # raw words: types unknown to numpy too
        for outer in numpy.ndindex(shape[:axis]):
            base = sum(i * s for i, s in zip(outer, stride, strict=False))
            for first in range(0, shape[axis], rows):
                count = min(rows, shape[axis] - first)
                start = (base + first * stride[axis]) * itemsize
                length = ((count - 1) * stride[axis] + spans[axis + 1]) * itemsize
                if whole is None:
                    start += record.offset + self.offset * itemsize
                    data = memoryview(record.file.read(start, length))
                else:
                    data = memoryview(whole)[start : start + length]
                block = numpy.lib.stride_tricks.as_strided(
                    numpy.frombuffer(data, kind),
                    (count, *shape[axis + 1 :]),
                    tuple(s * itemsize for s in stride[axis:]),
                )
                words = numpy.ascontiguousarray(block).reshape(-1)
                yield memoryview(self._in_order(words, spec.dtype).view(numpy.uint8))

    def _in_order(self, words: Any, dtype: str) -> Any:
        """The elements little-endian and with their conj and neg bits carried out."""
        import numpy

        kind = DTYPES[dtype]
        parts = kind.itemsize // 2 if kind.kind == "c" else kind.itemsize
        if self.record.byteorder == "big" and parts > 1:
            words = words.view(_WORDS[parts]).byteswap()
        if self.conj or self.negative:
            number = f"float{parts * 8}" if kind.kind == "c" else dtype
            values = words.view(numpy_dtype(number))
            if self.conj:
                values = numpy.stack((values[::2], numpy.negative(values[1::2])), axis=-1)
            words = numpy.negative(values) if self.negative else values
        return words.reshape(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Inline:
    """Data that is in memory already, row-major and little-endian.

    Equal bytes do not make two of them one tensor: each is equal to itself only.
    """

    data: bytes

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The data."""
        if self.data:
            yield memoryview(self.data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is not in a file."""
        return None


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The number of elements from the first to the last that a window reaches, both included."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


@lru_cache(1 << 10)  # most shapes of a network are there many times
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major strides of a shape, in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether a tensor may have the shape: not too many axes, nor elements, empty axes aside."""
    in_range = len(shape) <= MOST_AXES and min(shape, default=0) >= 0
    return in_range and (math.prod(shape) or math.prod(filter(None, shape))) < MOST_ELEMENTS


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie row-major without a gap; strides of axes of length 1 are free."""
    if stride == contiguous_strides(shape):
        return True
    step = 1
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if size == 0:
            return True
        if size > 1:
            if found != step:
                return False
            step *= size
    return True


def rechunk(chunks: Iterator[memoryview], size: int) -> Iterator[memoryview]:
    """The same bytes in blocks of exactly `size`, the last one shorter."""
    rest = b""
    for chunk in chunks:
        at = 0
        if rest:
            at = min(size - len(rest), len(chunk))
            rest += chunk[:at]
            if len(rest) < size:
                continue
            yield memoryview(rest)
            rest = b""
        while len(chunk) - at >= size:
            yield chunk[at : at + size]
            at += size
        rest = bytes(chunk[at:])
    if rest:
        yield memoryview(rest)


def _refuse_expansion(spec: TensorSpec, nbytes: int, record: Record) -> None:
    """Stride 0 or deflation let a small file declare any size; none out of proportion is made."""
    needed = max(nbytes, record.nbytes) if record.deflated else nbytes
    if needed > 4 * record.file.size + (64 << 20):
        raise UnsupportedError(
            f"shape {spec.shape} expands {record.stored:,} stored bytes to {needed:,}; "
            "that is out of all proportion to the file",
            code="tensor.expansion",
        )
