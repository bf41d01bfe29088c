"""How far the values of two checkpoints are apart, tensor by tensor, read once in a stream.

Bytes are compared first: what is equal to the last bit is not computed with. The rest is computed
in float64, whatever the types are; both sides of a place that is NaN are alike there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ckptool.changes import Change, Values, added, rank
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import CkptError, quoted
from ckptool.tensors import LazyTensor, View, rechunk

# Elements that are computed with at once: they stay in the processor's cache, and are so few that
# OpenBLAS starts no threads of its own for a dot product: they would fight ours for the cores.
_STEP = 1 << 13
_BLOCK = 1 << 18  # elements that are read and compared at once
_RANGE = 1 << 23  # elements that one thread sees to before the next range
Progress = Callable[[str, int, int], None]

_WORDS = {1: "u1", 2: "u2", 4: "u4"}


def compare_values(
    found: Mapping[str, LazyTensor],
    wanted: Mapping[str, LazyTensor],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    progress: Progress | None = None,
) -> Values:
    """The changes of every tensor that both sides have in one shape.

    Two threads read and compute in turn; in memory are a few blocks of each side. `progress` is
    told the phase, the elements done and those in all.

    Raises: CkptError if a file cannot be read to the end, or is damaged where the two differ.
    """
    from concurrent.futures import ThreadPoolExecutor

    tolerance = (rtol, atol)
    changes = []
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for key, want in wanted.items():
            have = found.get(key)
            if have is not None and _is_comparable(have, want):
                pair = _Pair(key, have, want)
                jobs.append((pair, [pool.submit(pair.compare, *s, tolerance) for s in pair.spans]))
        done, total = 0, sum(pair.wanted.numel for pair, _ in jobs)
        try:
            for pair, parts in jobs:
                results = []
                for part in parts:
                    results.append(part.result())
                    done += results[-1].change.elements
                    if progress is not None:
                        progress("values", done, total)
                change = pair.whole(results)
                parts.clear()
                changes.append(replace(change, dtypes=(pair.found.dtype, pair.wanted.dtype)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    compared = {change.key for change in changes}
    left_out = tuple(key for key in dict.fromkeys([*wanted, *found]) if key not in compared)
    return Values(rtol, atol, tuple(sorted(changes, key=rank)), left_out=left_out)


def _is_comparable(found: LazyTensor, wanted: LazyTensor) -> bool:
    """Whether the shapes are the same; one element is one element, with an axis or without."""
    return found.shape == wanted.shape or {found.shape, wanted.shape} == {(), (1,)}


@dataclass(frozen=True, slots=True)
class _Part:
    """The change in one range of a tensor, and where blocks were equal and so not computed with."""

    change: Change
    skipped: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two tensors of one shape under one key."""

    key: str
    found: LazyTensor
    wanted: LazyTensor

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Ranges of elements, one for all of them where a side must be computed in order."""
        numel = self.found.numel
        if not self.is_plain:
            return [(0, numel)]
        return [(start, min(start + _RANGE, numel)) for start in range(0, numel, _RANGE)]

    @property
    def is_plain(self) -> bool:
        """Whether both sides are runs of bytes in their files, to be read from anywhere."""
        return self.found.extent() is not None and self.wanted.extent() is not None

    def compare(self, start: int, stop: int, tolerance: tuple[float, float]) -> _Part:
        """The change in a range."""
        total = Change(self.key, 0, identical=self.found.dtype == self.wanted.dtype)
        plain, checked = self.is_plain, False
        skipped = []
        at = start
        sides = (self._blocks(tensor, start, stop) for tensor in (self.found, self.wanted))
        for have, want in zip(*sides, strict=True):
            count = len(want) // DTYPES[self.wanted.dtype].itemsize
            same = self.found.dtype == self.wanted.dtype and bytes(have) == bytes(want)
            if same and plain:
                skipped.append((at, at + count))
                part = Change(self.key, count)
            else:
                if plain and not checked:
                    _check(self.found, self.wanted)
                    checked = True
                part = self._computed(have, want, same, tolerance)
            total = added(total, part)
            at += count
        return _Part(total, tuple(skipped))

    def whole(self, parts: Iterable[_Part]) -> Change:
        """The change of the whole tensor; the equal blocks of one that is not equal count too."""
        import numpy

        total = Change(self.key, 0, identical=self.found.dtype == self.wanted.dtype)
        skipped: list[tuple[int, int]] = []
        for part in parts:
            total = added(total, part.change)
            skipped += part.skipped
        if total.identical or total.max_abs is None:
            return total
        squares = 0.0
        kind = numpy_dtype(self.wanted.dtype)
        width = 2 if kind.kind == "c" else 1
        for start, stop in skipped:
            for block in self._blocks(self.wanted, start, stop):
                with numpy.errstate(invalid="ignore"):
                    numbers = _numbers(numpy.frombuffer(block, kind), width)
                numbers[~numpy.isfinite(numbers)] = 0
                squares += float(numbers @ numbers)
        return replace(
            total,
            found_squares=total.found_squares + squares,
            wanted_squares=total.wanted_squares + squares,
            products=total.products + squares,
        )

    def _blocks(self, tensor: LazyTensor, start: int, stop: int) -> Iterator[Any]:
        """The bytes of a range of elements, in blocks of a fixed number of them."""
        size = DTYPES[tensor.dtype].itemsize
        extent = tensor.extent() if self.is_plain else None
        with _located(tensor):
            if extent is None:
                yield from rechunk(tensor.chunks(), _BLOCK * size)
            else:
                offset = extent.offset + start * size
                yield from extent.file.blocks(offset, (stop - start) * size, _BLOCK * size)
                extent.file.check_unchanged()

    def _computed(self, have: Any, want: Any, same: bool, tolerance: tuple[float, float]) -> Change:
        """The change of one block."""
        import numpy

        found, wanted = DTYPES[self.found.dtype], DTYPES[self.wanted.dtype]
        total = Change(self.key, len(want) // wanted.itemsize, identical=same)
        if found.numpy is None or wanted.numpy is None:
            changed = total.elements
            if found == wanted:
                word = _WORDS[found.itemsize]
                differ = numpy.frombuffer(have, word) != numpy.frombuffer(want, word)
                changed = int(differ.sum())
            return replace(total, changed=changed, outside=changed, max_abs=None)
        sides = [numpy.frombuffer(have, numpy_dtype(found.name))]
        sides += [numpy.frombuffer(want, numpy_dtype(wanted.name))]
        for at in range(0, total.elements, _STEP):
            have, want = (side[at : at + _STEP] for side in sides)
            total = added(total, _measured(have, want, tolerance))
        return replace(total, identical=same)


def _measured(have: Any, want: Any, tolerance: tuple[float, float]) -> Change:
    """The change between the elements of two arrays."""
    import numpy

    parts = 2 if "c" in (have.dtype.kind, want.dtype.kind) else 1
    non_finite = 0
    with numpy.errstate(invalid="ignore", over="ignore"):  # NaN that signals, infinities
        found, wanted = _numbers(have, parts), _numbers(want, parts)
        delta = found - wanted
        squares = float(delta @ delta)
        if not math.isfinite(squares):
            bad = ~(numpy.isfinite(found) & numpy.isfinite(wanted))
            same = (found == wanted) | (numpy.isnan(found) & numpy.isnan(wanted))
            lost = bad & ~same
            non_finite = _elements(lost, parts)
            found, wanted = numpy.where(bad, 0.0, found), numpy.where(bad, 0.0, wanted)
            delta = found - wanted
            squares = float(delta @ delta)
        sums = float(found @ found), float(wanted @ wanted), float(found @ wanted)
        numpy.abs(delta, out=delta)
        # Whole numbers beyond 2^53 may differ although their float64 forms are the same.
        differ = have != want if have.dtype.kind in "iu" and want.dtype.kind in "iu" else delta != 0
        over = differ
        if tolerance != (0, 0):
            over = differ & (delta > tolerance[1] + tolerance[0] * numpy.abs(wanted))
        if non_finite:
            differ, over = differ | lost, over | lost
    return Change(
        "",
        0,
        changed=_elements(differ, parts),
        outside=_elements(over, parts),
        non_finite=non_finite,
        max_abs=float(delta.max(initial=0.0)),
        delta_squares=squares,
        found_squares=sums[0],
        wanted_squares=sums[1],
        products=sums[2],
    )


def _numbers(values: Any, parts: int) -> Any:
    """The values as float64; with two parts, the real and imaginary ones in turn."""
    import numpy

    if parts == 2:
        return values.astype(numpy.complex128).view(numpy.float64)
    return values.astype(numpy.float64)


def _elements(marked: Any, parts: int) -> int:
    """How many elements have a part that is marked."""
    import numpy

    return int(numpy.count_nonzero(marked.reshape(-1, parts).any(axis=1) if parts > 1 else marked))


def _check(*tensors: LazyTensor) -> None:
    """Raise if a storage is damaged: a difference may be nothing else."""
    for tensor in tensors:
        if isinstance(tensor.source, View):
            with _located(tensor):
                tensor.source.record.check()


@contextmanager
def _located(tensor: LazyTensor) -> Iterator[None]:
    """Errors get the name of the file that the tensor is read from."""
    try:
        yield
    except CkptError as error:
        if not isinstance(tensor.source, View):
            raise
        raise error.located(quoted(tensor.source.record.file.path)) from None
