"""How far the values of two checkpoints are apart, tensor by tensor, read once in a stream.

Bytes are compared first: what is equal to the last bit is not computed with. The rest is computed
in float64, whatever the types are; both sides of a place that is NaN are alike there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import CkptError, quoted
from ckptool.tensors import LazyTensor, View, rechunk

# Elements that are computed with at once: they stay in the processor's cache, and are so few that
# OpenBLAS starts no threads of its own for a dot product: they would fight ours for the cores.
_STEP = 1 << 13
_BLOCK = 1 << 18  # elements that are read and compared at once
_RANGE = 1 << 23  # elements that one thread sees to before the next range
_WORDS = {1: "u1", 2: "u2", 4: "u4"}


@dataclass(frozen=True, slots=True)
class Change:
    """How one tensor differs from another of its shape, or several tensors from theirs.

    `changed` elements differ in value, `outside` of them by more than the tolerances allow,
    `non_finite` of them since only one side is a number, or infinities differ. `max_abs` is the
    largest |found - wanted| of the others, None for types that cannot be computed with. `identical`
    says that the dtypes and all bits are the same. The sums are over the tensors that are not.
    """

    key: str
    elements: int
    dtypes: tuple[str, str] = ("float32", "float32")
    identical: bool = True
    changed: int = 0
    outside: int = 0
    non_finite: int = 0
    max_abs: float | None = 0.0
    delta_squares: float = 0.0
    found_squares: float = 0.0
    wanted_squares: float = 0.0
    products: float = 0.0

    @property
    def relative_l2(self) -> float | None:
        """The length of the difference as a share of the wanted one's; infinite if that is 0."""
        if self.max_abs is None:
            return None
        if not self.delta_squares:
            return 0.0
        if not self.wanted_squares:
            return math.inf
        return math.sqrt(self.delta_squares) / math.sqrt(self.wanted_squares)

    @property
    def cosine(self) -> float | None:
        """The cosine between the two; 1 for the same, None where one of them is all zeros."""
        if self.identical:
            return 1.0
        lengths = math.sqrt(self.found_squares) * math.sqrt(self.wanted_squares)
        return max(-1.0, min(1.0, self.products / lengths)) if lengths else None

    @property
    def counts(self) -> bool:
        """Whether these are whole numbers or booleans, not weights."""
        return DTYPES[self.dtypes[1]].kind in "iub"

    @property
    def share(self) -> float:
        """The share of elements whose values differ."""
        return self.changed / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """The changes of a module's tensors taken together, and how many of the tensors changed."""

    total: Change
    tensors: int
    changed: int


@dataclass(frozen=True, slots=True)
class Values:
    """The changes of all tensors that both sides have in one shape, what changed most first.

    `edits` name what was done to the found side before: edits that preserve every value.
    """

    rtol: float
    atol: float
    tensors: tuple[Change, ...]
    edits: tuple[str, ...] = ()

    @property
    def identical(self) -> int:
        """How many tensors are equal to the last bit."""
        return sum(change.identical for change in self.tensors)

    @property
    def within(self) -> bool:
        """Whether no element is outside the tolerances: |found - wanted| ≤ atol + rtol·|wanted|."""
        return not any(change.outside for change in self.tensors)

    @property
    def counters(self) -> ModuleChange:
        """The changes of all whole numbers and booleans, which are counters and indices."""
        return _together("", [change for change in self.tensors if change.counts])

    def modules(self, most: int = 16) -> list[ModuleChange]:
        """The changes by module, what changed most first: as deep as there are at most so many.

        Counters are left out: a step of training changes every one of them beyond comparison.
        """
        weights = [change for change in self.tensors if not change.counts]
        groups = _by_depth(weights, 1)
        for depth in range(2, 9):
            deeper = _by_depth(weights, depth)
            if len(deeper) > most:
                break
            groups = deeper
        found = [_together(name, changes) for name, changes in groups.items()]
        return sorted(found, key=lambda module: _rank(module.total))


def compare_values(
    found: Mapping[str, LazyTensor],
    wanted: Mapping[str, LazyTensor],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Values:
    """The changes of every tensor that both sides have in one shape.

    Two threads read and compute in turn; in memory are a few blocks of each side.

    Raises: CkptError if a file cannot be read to the end, or is damaged where the two differ.
    """
    from concurrent.futures import ThreadPoolExecutor

    tolerance = (rtol, atol)
    changes = []
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for key, want in wanted.items():
            have = found.get(key)
            if have is not None and have.shape == want.shape:
                pair = _Pair(key, have, want)
                jobs.append((pair, [pool.submit(pair.compare, *s, tolerance) for s in pair.spans]))
        try:
            for pair, parts in jobs:
                change = pair.added(part.result() for part in parts)
                parts.clear()
                changes.append(replace(change, dtypes=(pair.found.dtype, pair.wanted.dtype)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Values(rtol, atol, tuple(sorted(changes, key=_rank)))


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
            total = _sum(total, part)
            at += count
        return _Part(total, tuple(skipped))

    def added(self, parts: Iterable[_Part]) -> Change:
        """The change of the whole tensor; the equal blocks of one that is not equal count too."""
        import numpy

        total = Change(self.key, 0, identical=self.found.dtype == self.wanted.dtype)
        skipped: list[tuple[int, int]] = []
        for part in parts:
            total = _sum(total, part.change)
            skipped += part.skipped
        if total.identical or total.max_abs is None:
            return total
        squares = 0.0
        kind = numpy_dtype(self.wanted.dtype)
        width = 2 if kind.kind == "c" else 1
        for start, stop in skipped:
            for block in self._blocks(self.wanted, start, stop):
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
            total = _sum(total, _measured(have, want, tolerance))
        return replace(total, identical=same)


def _measured(have: Any, want: Any, tolerance: tuple[float, float]) -> Change:
    """The change between the elements of two arrays."""
    import numpy

    parts = 2 if "c" in (have.dtype.kind, want.dtype.kind) else 1
    found, wanted = _numbers(have, parts), _numbers(want, parts)
    non_finite = 0
    with numpy.errstate(invalid="ignore", over="ignore"):
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


def _sum(one: Change, other: Change) -> Change:
    """Two changes taken together, under the first one's key."""
    unknown = one.max_abs is None or other.max_abs is None
    return Change(
        one.key,
        one.elements + other.elements,
        one.dtypes,
        one.identical and other.identical,
        one.changed + other.changed,
        one.outside + other.outside,
        one.non_finite + other.non_finite,
        None if unknown else max(one.max_abs or 0.0, other.max_abs or 0.0),
        one.delta_squares + other.delta_squares,
        one.found_squares + other.found_squares,
        one.wanted_squares + other.wanted_squares,
        one.products + other.products,
    )


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


def _rank(change: Change) -> tuple[object, ...]:
    """What sorts changes: lost numbers first, the identical last, counters behind weights."""
    size = change.relative_l2
    return (
        not change.non_finite,
        not change.changed,
        change.counts,
        -(math.inf if size is None else size),
        change.identical,
    )


def _by_depth(changes: Iterable[Change], depth: int) -> dict[str, list[Change]]:
    """The changes by the first segments of their keys, never by their last."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        parts = change.key.split(".")
        groups.setdefault(".".join(parts[:-1][:depth]) or change.key, []).append(change)
    return groups


def _together(name: str, changes: list[Change]) -> ModuleChange:
    total = Change(name, 0)
    for change in changes:
        total = _sum(total, change)
    return ModuleChange(total, len(changes), sum(bool(change.changed) for change in changes))
