"""Rounding on bits: numpy's own values, and nothing far off passes for near."""

from __future__ import annotations

import numpy
import pytest

from ckptool.dtypes import numpy_dtype
from ckptool.rounding import has_infinity, is_same, plainly_rounded, rounded

# Every exponent and sign with mantissas all over, 5.9 million values.
FLOATS = numpy.arange(0, 1 << 32, 727, dtype=numpy.uint64).astype("<u4").view("f4")
NARROW = ("float16", "bfloat16")


@pytest.fixture(autouse=True)
def quiet():
    with numpy.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("dtype", NARROW)
def test_floats_are_rounded_as_numpy_rounds_them(dtype: str) -> None:
    wanted = FLOATS.astype(numpy_dtype(dtype))
    assert numpy.array_equal(rounded(FLOATS, dtype).view("u2"), wanted.view("u2"))


@pytest.mark.parametrize("spread", (1e-5, 1e-4, 0.02, 1.0, 1e3))
def test_what_is_subnormal_among_other_values_is_rounded_as_numpy_rounds_it(spread: float) -> None:
    """A few, most, or none of a block; with zeros of both signs among them."""
    made = numpy.random.default_rng(0)
    values = (made.standard_normal(700_001) * spread).astype("f4")
    values[::1000], values[500::1000] = 0.0, -0.0
    new = rounded(values, "float16")
    assert numpy.array_equal(new.view("u2"), values.astype("f2").view("u2"))
    doubtful, worst = plainly_rounded(values, new, 0.0)
    plain = numpy.delete(numpy.arange(len(values)), doubtful)
    assert {0, 500} < set(plain.tolist())
    plain = plain[values[plain] != 0]
    assert (numpy.abs(new[plain].astype("f8")) >= 2.0**-14).all()
    error = numpy.abs(new[plain].astype("f8") / values[plain] - 1)
    assert worst == error.max(initial=0)


@pytest.mark.parametrize("dtype", NARROW)
def test_halves_are_widened_as_numpy_widens_them(dtype: str) -> None:
    halves = numpy.arange(1 << 16, dtype="u2").view(numpy_dtype(dtype))
    wide = rounded(halves, "float32")
    assert numpy.array_equal(wide.view("u4"), halves.astype("f4").view("u4"))
    assert is_same(halves, wide)
    wide.view("u4")[77] ^= 1
    assert not is_same(halves, wide)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_near_is_told_from_what_needs_a_closer_look(dtype: str) -> None:
    """No value off by a step passes; of those that pass, the error is the worst there is."""
    new = rounded(FLOATS, dtype)
    doubtful, worst = plainly_rounded(FLOATS, new, 0.0)
    plain = numpy.delete(numpy.arange(len(FLOATS)), doubtful)
    old = FLOATS[plain].astype("f8")
    error = numpy.abs(new[plain].astype("f8") / old - 1)
    assert len(plain) > len(FLOATS) // (10 if dtype == "float16" else 2)
    assert worst == numpy.nanmax(error) > 2.0 ** -(12 if dtype == "float16" else 9)
    assert plainly_rounded(FLOATS, new, 0.5)[1] == 0.5

    for step in (1, -1, 0x8000):  # a step up, one down, the other sign
        off = (new.view("u2") + numpy.uint16(step % 65536)).view(new.dtype)
        doubtful = set(plainly_rounded(FLOATS, off, 0.0)[0].tolist())
        far = numpy.abs(off.astype("f8") - FLOATS) > numpy.abs(new.astype("f8") - FLOATS)
        assert not set(numpy.flatnonzero(far)) - doubtful


@pytest.mark.parametrize("dtype", ("float64", "float32", *NARROW))
def test_infinities_are_seen(dtype: str) -> None:
    values = numpy.ones(100_000, numpy_dtype(dtype))
    assert not has_infinity(values)
    values[99_999] = -numpy.inf
    assert has_infinity(values)
