"""Work on several threads: what comes of it in order, and that nothing goes on after a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ckptool.threads import for_each, workers

LARGE = 1 << 23  # bytes; a batch of its own


@pytest.mark.parametrize(
    "sizes", [[], [0], [1] * 5000, [LARGE, 1, 1 << 30, 0], [LARGE // 2] * 5, [0] * 1024]
)
@pytest.mark.parametrize("side_by_side", [True, False])
def test_every_item_is_worked_on_once_and_results_keep_their_order(
    sizes: list[int], side_by_side: bool
) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        time.sleep(0.001 if len(sizes) < 10 else 0)
        return -number

    with workers() as pool:
        found = for_each(work, sizes, pool if side_by_side else None)
    assert found == [-number for number in range(len(sizes))]
    assert sorted(done) == list(range(len(sizes)))


def test_small_items_are_one_threads_and_large_ones_are_shared_out() -> None:
    """Two threads that read a few bytes each would only wait for each other."""
    both = threading.Barrier(2, timeout=10)
    threads: dict[int, int] = {}

    def work(number: int) -> None:
        threads[number] = threading.get_ident()
        if number in (0, 1):
            both.wait()

    with workers() as pool:
        for_each(work, [LARGE, LARGE] + [10] * 500, pool)
    assert threads[0] != threads[1]
    assert len({threads[number] for number in range(2, 502)}) == 1


@pytest.mark.parametrize("size", [1, LARGE])
def test_after_an_error_nothing_is_begun_and_nothing_runs(size: int) -> None:
    running: list[int] = []
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first")
        running.append(number)
        time.sleep(0.05)
        running.remove(number)

    with workers() as pool:
        with pytest.raises(ValueError, match="the first"):
            for_each(work, [size] * 100, pool)
        assert not running
        count = len(begun)
        time.sleep(0.1)
        assert len(begun) == count < 100


def test_an_error_among_the_large_ends_the_small_ones() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("the large one")
        begun.append(number)
        time.sleep(0.01)

    with workers() as pool, pytest.raises(ValueError, match="the large one"):
        # Those that are small come first in line, but go on only until a large one fails.
        for_each(work, [LARGE] + [1] * 1000, pool)
    assert len(begun) < 1000


def test_stopped_while_tasks_are_handed_out_none_goes_on() -> None:
    """The caller closes the file that they write to."""

    class Stopping(ThreadPoolExecutor):
        """A pool in whose fourth hand-out somebody presses Ctrl-C."""

        def submit(self, task: Callable[..., Any], *given: Any) -> Future[Any]:  # type: ignore[override]
            if len(futures) == 3:
                raise KeyboardInterrupt
            futures.append(super().submit(task, *given))
            return futures[-1]

    futures: list[Future[Any]] = []
    with Stopping(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            for_each(lambda _: time.sleep(0.05), [LARGE] * 5, pool)
        assert [future.done() for future in futures] == [True] * 3
        assert futures[2].cancelled()
