"""What a hostile file may cost: time that grows as it does, and memory bounded by its size."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .case import Case
from .families import FAMILIES, Family
from .harness import Worker

MOST_GROWTH = 2.6  # of the time, for a file of twice the size
LEAST_SECONDS = 0.05  # below it the clock's steps would be measured
MOST_BYTES = 64  # of memory for a byte of the file, beside what any file costs
ATTEMPTS = 8


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_cost_is_linear_in_the_size(
    family: Family, worker: Worker, count: Callable[[str, int], None]
) -> None:
    """The least of several runs counts, and a busy machine is given a few more."""
    files = [family.make(family.parts * times) for times in (1, 2)]
    seconds = [float("inf"), float("inf")]
    for attempt in range(ATTEMPTS):
        for place, data in enumerate(files):
            found = worker.examine(Case(family.name, data, family.file), "time", times=2)
            seconds[place] = min(seconds[place], found["seconds"])
            if not attempt:
                bound = (8 << 20) + MOST_BYTES * len(data)
                assert found["peak"] <= bound, f"{found['peak']:,} bytes for {len(data):,}"
        growth = seconds[1] / max(seconds[0], LEAST_SECONDS)
        if growth <= MOST_GROWTH:
            break
    assert growth <= MOST_GROWTH, f"{seconds[0]:.3f} s, then {seconds[1]:.3f} s"
    count("scaled families, time and memory linear in size", 1)


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_memory_of_a_large_file(family: Family, worker: Worker) -> None:
    """The bound holds for files that are many times larger."""
    data = family.make(family.parts * 10)
    found = worker.examine(Case(family.name, data, family.file), "time", times=1)
    assert found["peak"] <= (64 << 20) + MOST_BYTES * len(data), f"{found['peak']:,}"
