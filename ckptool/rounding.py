"""Casting floats, and measuring what it cost, by integer arithmetic on blocks that fit the cache.

Between 32 and 16 bits numpy casts element by element; here whole blocks go through operations on
their bits, several times as fast. What these cannot do, infinities, NaN and what is subnormal in
the narrower type, is left to numpy and to float64.

The values are torch's own: from float64 to a 16-bit type they are rounded to float32 on the way.
Source: IEEE 754-2019 §3.4 for the bits of binary16 and binary32; a bfloat16 is the upper half of a
binary32 (`torch/headeronly/util/BFloat16.h`, torch 2.15).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from threading import local
from typing import Any

from ckptool.dtypes import numpy_dtype

_BLOCK = 1 << 18  # elements
_FEW = 512  # elements; numpy casts so many in less time than it takes to begin so many operations
_MAGNITUDE = 0x7FFFFFFF
_MANTISSA = 1 << 23  # the first value that needs all of a float32's bits, as a count of steps

# As the bits of a float32: half's smallest normal value, and the first that rounds to infinity.
_SMALLEST_HALF, _TOO_LARGE_HALF = 0x38800000, 0x477FF000
# Of the 16-bit types, as bits of a float32: half a step of the mantissa; as their own bits: the
# smallest normal value and infinity.
_HALF_STEP = {"float16": 1 << 12, "bfloat16": 1 << 15}
_SMALLEST_WORD = {"float16": 0x0400, "bfloat16": 0x0080}
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}
_REBIAS = {"float16": (127 - 15) << 23, "bfloat16": 0}  # from their exponents to a float32's


def rounded(values: Any, dtype: str) -> Any:
    """The values of a flat array in another floating type; what is too large becomes infinite."""
    import numpy

    found = values.dtype.name
    if (found, dtype) == ("float32", "float16") and values.size > _FEW:
        made = numpy.empty(values.shape, numpy.float16)
        for part, out in _blocks(values, made):
            _to_half(part, out)
        return made
    if (found, dtype) == ("float16", "float32") and values.size > _FEW:
        return _widened(values).view(numpy.float32)
    with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
        if found == "float64" and dtype == "float16":
            values = values.astype(numpy.float32)
        return values.astype(numpy_dtype(dtype))


def has_infinity(values: Any) -> bool:
    """Whether a value is infinite, or may be: of the 16-bit types NaN counts, too."""
    import numpy

    infinity = _INFINITY.get(values.dtype.name)
    if infinity is None:
        return bool(numpy.isinf(values).any())
    words, memory = values.view(numpy.uint16), _scratch()
    for at in range(0, len(words), _BLOCK):
        part = words[at : at + _BLOCK]
        magnitude = numpy.bitwise_and(part, 0x7FFF, out=memory.words[: len(part)])
        if magnitude.max() >= infinity:
            return True
    return False


def is_same(old: Any, new: Any) -> bool:
    """Whether float32 values are 16-bit ones, widened bit by bit; False where that is unknown."""
    import numpy

    if old.dtype.name not in _HALF_STEP or new.dtype != numpy.float32:
        return False
    return all(
        numpy.array_equal(_widened(part), out.view(numpy.uint32)) for part, out in _blocks(old, new)
    )


def plainly_rounded(old: Any, new: Any, worst: float) -> tuple[Any, float]:
    """Which values need a closer look, and the worst relative error of the others.

    Of float32 `old` and 16-bit `new`: the others are normal values or zeros, not the largest one,
    at most half a step from where they were. `worst` is the error known so far: only what exceeds
    it is computed.
    """
    import numpy

    name, memory = new.dtype.name, _scratch()
    half, smallest = _HALF_STEP[name], _SMALLEST_WORD[name]
    doubtful = []
    for number, (part, out) in enumerate(_blocks(old, new)):
        bits, words, size = part.view(numpy.uint32), out.view(numpy.uint16), len(part)
        off = _spread(words, name, memory.bits[:size])
        numpy.subtract(bits, off, out=off)
        off += numpy.uint32((half - _REBIAS[name]) % (1 << 32))  # now from 0 to 2 * half
        magnitude = numpy.bitwise_and(words, 0x7FFF, out=memory.words[:size])
        magnitude -= smallest  # zeros and what is subnormal become the largest
        # The largest value may be a clamped one.
        odd = numpy.greater_equal(
            magnitude, _INFINITY[name] - 1 - smallest, out=memory.flags[:size]
        )
        if off.max() > 2 * half:
            odd |= off > 2 * half
        if odd.any():
            none = (half - _REBIAS[name]) % (1 << 32)  # the distance of equal bits
            zero = numpy.equal(off, none, out=memory.more_flags[:size])
            zero &= magnitude == (1 << 16) - smallest  # that stayed one, and its sign
            numpy.copyto(off, half, where=odd)
            numpy.greater(odd, zero, out=odd)
            doubtful.append(numpy.flatnonzero(odd) + number * _BLOCK)
        known = int(worst * _MANTISSA)  # so many steps cannot exceed the worst error
        if known < half and max(int(off.max()) - half, half - int(off.min())) > known:
            off -= numpy.uint32(half - known)
            chosen = numpy.flatnonzero(off > 2 * known)
            before = part[chosen].astype(numpy.float64)
            error = numpy.abs(out[chosen].astype(numpy.float64) / before - 1)
            worst = max(worst, float(error.max()))
    return (numpy.concatenate(doubtful) if doubtful else numpy.empty(0, numpy.int64)), worst


def can_be_plain(old: Any, new: Any) -> bool:
    """Whether `plainly_rounded` knows the two types."""
    return old.dtype.name == "float32" and new.dtype.name in _HALF_STEP


def _spread(words: Any, dtype: str, bits: Any) -> Any:
    """The bits of normal 16-bit values where a float32 has them; the exponents as they are."""
    import numpy

    numpy.copyto(bits, words)
    bits <<= 16
    if dtype == "float16":
        signed = bits.view(numpy.int32)
        signed >>= 3  # the sign spreads over the bits below it
        bits &= 0x8FFFE000
    return bits


def _blocks(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    for at in range(0, len(one), _BLOCK):
        yield one[at : at + _BLOCK], other[at : at + _BLOCK]


def _to_half(values: Any, out: Any) -> None:
    """Float32 to float16, to nearest, ties to even.

    Rounding is adding just less than half a step, and the bit that would be the last; the carry
    goes into the exponent, as it should.
    """
    import numpy

    bits, memory, size = values.view(numpy.uint32), _scratch(), len(values)
    magnitude = numpy.bitwise_and(bits, _MAGNITUDE, out=memory.bits[:size])
    small = numpy.flatnonzero(numpy.less(magnitude, _SMALLEST_HALF, out=memory.flags[:size]))
    if magnitude.max() >= _TOO_LARGE_HALF or small.size > size // 4:
        with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
            out[:] = values.astype(numpy.float16)
        return
    made = numpy.right_shift(bits, 13, out=memory.more_bits[:size])
    made &= 1
    made += magnitude
    made += numpy.uint32((0xFFF - (112 << 23)) % (1 << 32))  # 127 - 15: the exponents' zeros
    made >>= 13
    sign = numpy.right_shift(bits, 16, out=memory.bits[:size])
    sign &= 0x8000
    made |= sign
    numpy.copyto(out.view(numpy.uint16), made, casting="unsafe")
    if small.size:
        with numpy.errstate(under="ignore"):
            out[small] = values[small].astype(numpy.float16)


class _Memory(local):
    """What a thread works in: to be given new memory takes as long as the arithmetic."""

    def __init__(self) -> None:
        import numpy

        self.bits, self.more_bits = numpy.empty((2, _BLOCK), numpy.uint32)
        self.words = numpy.empty(_BLOCK, numpy.uint16)
        self.flags, self.more_flags = numpy.empty((2, _BLOCK), numpy.bool_)


@cache
def _scratch() -> _Memory:
    """The calling thread's."""
    return _Memory()


def _widened(values: Any) -> Any:
    """The bits of the float32 of each 16-bit value."""
    import numpy

    words = values.view(numpy.uint16)
    if values.dtype == numpy.float16:
        return numpy.take(_halves(), words)
    bits = words.astype(numpy.uint32)
    bits <<= 16
    return bits


@cache
def _halves() -> Any:
    """The bits of the float32 of each of the 65,536 halves."""
    import numpy

    halves = numpy.arange(1 << 16, dtype=numpy.uint16).view(numpy.float16)
    with numpy.errstate(invalid="ignore"):
        return halves.astype(numpy.float32).view(numpy.uint32)
