"""What a tensor is without its bytes (TensorSpec), and how to get them (LazyTensor).

A LazyTensor is a spec and a source. Bytes always come out in one form: row-major, little-endian,
in blocks of bounded size.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import FormatError, UnsupportedError, quoted
from ckptool.files import BLOCK, Readable

if TYPE_CHECKING:
    import numpy as np
    import torch


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


@dataclass(frozen=True, slots=True)
class Extent:
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

        array = numpy.empty(self.shape, numpy_dtype(self.dtype))
        flat = array.reshape(-1).view(numpy.uint8)
        at = 0
        for chunk in self.chunks():
            flat[at : at + len(chunk)] = chunk
            at += len(chunk)
        return array

    def torch(self) -> torch.Tensor:
        """The tensor as a new torch tensor on the CPU; imports torch."""
        import torch

        kind = getattr(torch, self.dtype)
        if not self.numel:
            return torch.empty(self.shape, dtype=kind)
        return torch.frombuffer(bytearray(self.tobytes()), dtype=kind).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Record:
    """A storage: one run of bytes in a file.

    `offset` is where the bytes start in the file, `stored` how many there are; `nbytes` is the
    size of the storage itself, larger than `stored` when it is deflated. `crc` is the CRC-32 of
    the storage, None where the file has none.
    """

    file: Readable
    offset: int
    nbytes: int
    stored: int
    byteorder: str = "little"
    crc: int | None = None
    deflated: bool = False
    name: str = ""

    def blocks(self, step: int = BLOCK) -> Iterator[bytes]:
        """The whole storage in order; FormatError at the end if its CRC is not the stored one."""
        raw = self.file.blocks(self.offset, self.stored, step)
        crc = 0
        for block in _inflate(raw, self.nbytes, self.name) if self.deflated else raw:
            crc = zlib.crc32(block, crc)
            yield block
        if self.crc is not None:
            if crc != self.crc:
                raise FormatError(
                    f"record {quoted(self.name)} at byte {self.offset:,}: found CRC {crc:08x}, "
                    f"wanted {self.crc:08x}: the file is damaged",
                    code="zip.crc",
                )
            self.file.verified.add(self.offset)

    def check(self) -> None:
        """Read the whole storage once if its CRC was not checked yet."""
        if self.crc is not None and self.offset not in self.file.verified:
            for _ in self.blocks():
                pass


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a storage; `offset` and `stride` count elements."""

    record: Record
    offset: int
    stride: tuple[int, ...]
    conj: bool = False
    negative: bool = False

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The window's data, gathered where it is not contiguous."""
        if not spec.numel:
            return
        record = self.record
        _refuse_expansion(spec, record)
        if self.extent(spec) is not None and spec.nbytes == record.nbytes:
            yield from (memoryview(block) for block in record.blocks(step))
        elif self.extent(spec) is not None:
            record.check()
            start = record.offset + self.offset * DTYPES[spec.dtype].itemsize
            for block in record.file.blocks(start, spec.nbytes, step):
                yield memoryview(block)
        else:
            yield from self._gathered(spec, step)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """The run of file bytes, for a contiguous little-endian window that is not deflated."""
        record = self.record
        itemsize = DTYPES[spec.dtype].itemsize
        if (
            record.deflated
            or (record.byteorder != "little" and itemsize > 1)
            or self.conj
            or self.negative
            or not is_contiguous(spec.shape, self.stride)
        ):
            return None
        return Extent(record.file, record.offset + self.offset * itemsize, spec.nbytes)

    def _gathered(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """Row blocks of the window; the bytes that a block spans are in memory at one time."""
        import numpy

        record, itemsize = self.record, DTYPES[spec.dtype].itemsize
        shape, stride = (spec.shape, self.stride) if spec.shape else ((1,), (0,))
        inner = 1 + sum((n - 1) * s for n, s in zip(shape[1:], stride[1:], strict=True))
        interleaved = stride[0] < inner
        if record.deflated:
            whole = b"".join(record.blocks())
            rows = shape[0]
        else:
            record.check()
            rows = shape[0] if interleaved else 1 + max(0, step // itemsize - inner) // stride[0]
        for first in range(0, shape[0], rows):
            count = min(rows, shape[0] - first)
            start = (self.offset + first * stride[0]) * itemsize
            span = ((count - 1) * stride[0] + inner) * itemsize
            data = (
                whole[start : start + span]
                if record.deflated
                else record.file.read(record.offset + start, span)
            )
            # Elements as raw bytes, so that types unknown to numpy are gathered alike.
            block = numpy.lib.stride_tricks.as_strided(
                numpy.frombuffer(data, numpy.uint8),
                (count, *shape[1:], itemsize),
                (*(s * itemsize for s in stride), 1),
            )
            block = numpy.ascontiguousarray(block)
            yield memoryview(self._in_order(block, spec.dtype).reshape(-1))

    def _in_order(self, block: Any, dtype: str) -> Any:
        """The block with its bytes little-endian and its conj and neg bits carried out."""
        import numpy

        kind = DTYPES[dtype]
        if self.record.byteorder == "big":
            word = kind.itemsize // 2 if kind.kind == "c" else kind.itemsize
            words = block.reshape(*block.shape[:-1], -1, word)
            block = numpy.ascontiguousarray(words[..., ::-1])
        if self.conj or self.negative:
            values = block.reshape(-1).view(numpy_dtype(dtype))
            values = numpy.conjugate(values) if self.conj else values
            values = numpy.negative(values) if self.negative else values
            block = values.view(numpy.uint8)
        return block


@dataclass(frozen=True, slots=True)
class Inline:
    """Data that is in memory already, row-major and little-endian."""

    data: bytes

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The data."""
        if self.data:
            yield memoryview(self.data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is not in a file."""
        return None


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major strides of a shape, in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie row-major without a gap; strides of axes of length 1 are free."""
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


def _refuse_expansion(spec: TensorSpec, record: Record) -> None:
    """Stride 0 lets a small file declare any size; what is out of all proportion is not made."""
    if spec.nbytes > 4 * record.file.size + (64 << 20):
        raise UnsupportedError(
            f"shape {spec.shape} expands {record.nbytes:,} stored bytes to {spec.nbytes:,}; "
            "that is out of all proportion to the file",
            code="tensor.expansion",
        )


def _inflate(blocks: Iterator[bytes], nbytes: int, name: str) -> Iterator[bytes]:
    """The inflated record; FormatError unless it gives exactly the declared size."""
    engine = zlib.decompressobj(-15)
    left = nbytes
    try:
        for block in blocks:
            data = block
            while data:
                piece = engine.decompress(data, min(left + 1, BLOCK))
                data = engine.unconsumed_tail
                left -= len(piece)
                if left < 0 or engine.unused_data:
                    raise FormatError(
                        f"record {quoted(name)}: inflates to more than the declared {nbytes:,} "
                        "bytes",
                        code="zip.deflate",
                    )
                if piece:
                    yield piece
        piece = engine.flush()
        left -= len(piece)
        if piece and left >= 0:
            yield piece
    except zlib.error:
        raise FormatError(
            f"record {quoted(name)}: its compressed data is damaged", code="zip.deflate"
        ) from None
    if left or not engine.eof:
        raise FormatError(
            f"record {quoted(name)}: inflates to {nbytes - left:,} bytes, wanted {nbytes:,}",
            code="zip.deflate",
        )
