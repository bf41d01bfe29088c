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
from typing import Any

from ckptool.dtypes import numpy_dtype

_BLOCK = 1 << 15  # elements
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


def rounded(values: Any, dtype: str) -> Any:
    """The values in another floating type; what is too large becomes infinite."""
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
    bits = values.view(numpy.uint16)
    return bool(((bits & 0x7FFF) >= infinity).any())


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

    half, smallest = _HALF_STEP[new.dtype.name], _SMALLEST_WORD[new.dtype.name]
    doubtful = []
    for number, (part, out) in enumerate(_blocks(old, new)):
        off = _widened(out)
        numpy.subtract(part.view(numpy.uint32), off, out=off)
        off += half  # a distance within half a step is now from 0 to 2 * half
        words = out.view(numpy.uint16) & 0x7FFF
        zero = words == 0
        extreme = words >= _INFINITY[new.dtype.name] - 1  # the largest may be a clamped one
        words -= 1  # zero becomes the largest
        odd = words < smallest - 1
        odd |= extreme
        if zero.any():
            odd |= zero & (off != half)
        if off.max() > 2 * half:
            odd |= off > 2 * half
        if odd.any():
            chosen = numpy.flatnonzero(odd)
            doubtful.append(chosen + number * _BLOCK)
            off[chosen] = half
        if worst * _MANTISSA >= half:
            continue
        furthest = max(int(off.max()) - half, half - int(off.min()))
        if furthest > worst * _MANTISSA:
            steps = numpy.abs(off.astype(numpy.int64) - half)
            chosen = numpy.flatnonzero(steps > worst * _MANTISSA)
            before = part[chosen].astype(numpy.float64)
            error = numpy.abs(out[chosen].astype(numpy.float64) / before - 1)
            worst = max(worst, float(error.max()))
    return (numpy.concatenate(doubtful) if doubtful else numpy.empty(0, numpy.int64)), worst


def can_be_plain(old: Any, new: Any) -> bool:
    """Whether `plainly_rounded` knows the two types."""
    return old.dtype.name == "float32" and new.dtype.name in _HALF_STEP


def _blocks(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    for at in range(0, len(one), _BLOCK):
        yield one[at : at + _BLOCK], other[at : at + _BLOCK]


def _to_half(values: Any, out: Any) -> None:
    """Float32 to float16, to nearest, ties to even.

    Rounding is adding just less than half a step, and the bit that would be the last; the carry
    goes into the exponent, as it should.
    """
    import numpy

    bits = values.view(numpy.uint32)
    magnitude = bits & _MAGNITUDE
    if magnitude.max(initial=0) >= _TOO_LARGE_HALF:
        with numpy.errstate(over="ignore", invalid="ignore"):
            out[:] = values.astype(numpy.float16)
        return
    made = bits >> 13
    made &= 1
    made += magnitude
    made += numpy.uint32((0xFFF - (112 << 23)) % (1 << 32))  # 127 - 15: the exponents' zeros
    made >>= 13
    sign = bits >> 16
    sign &= 0x8000
    made |= sign
    numpy.copyto(out.view(numpy.uint16), made, casting="unsafe")
    small = numpy.flatnonzero(magnitude < _SMALLEST_HALF)
    if small.size:
        with numpy.errstate(under="ignore"):
            out[small] = values[small].astype(numpy.float16)


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
