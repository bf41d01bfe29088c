"""Work on several threads: what comes of it in order, and that nothing goes on after a failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest

from ckptool.threads import batches, each, workers


def test_results_come_in_the_order_of_the_tasks() -> None:
    def late(number: int) -> int:
        time.sleep(0.01 * (4 - number))
        return number

    with workers() as pool:
        assert each([partial(late, number) for number in range(4)], pool) == [0, 1, 2, 3]


def test_after_an_error_nothing_is_begun_and_nothing_runs() -> None:
    running: list[int] = []
    begun: list[int] = []

    def task(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first")
        running.append(number)
        time.sleep(0.05)
        running.remove(number)

    with workers() as pool:
        with pytest.raises(ValueError, match="the first"):
            each([partial(task, number) for number in range(100)], pool)
        assert not running
        count = len(begun)
        time.sleep(0.1)
        assert len(begun) == count < 100


def test_stopped_while_tasks_are_handed_out_none_goes_on() -> None:
    """The caller closes the file that they write to."""

    class Stopping(ThreadPoolExecutor):
        """A pool in whose fourth hand-out somebody presses Ctrl-C."""

        def submit(self, task: Callable[[], None]) -> Future[None]:  # type: ignore[override]
            if len(given) == 3:
                raise KeyboardInterrupt
            given.append(super().submit(task))
            return given[-1]

    given: list[Future[None]] = []
    with Stopping(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            each([partial(time.sleep, 0.05)] * 5, pool)
        assert [future.done() for future in given] == [True] * 3
        assert given[2].cancelled()


@pytest.mark.parametrize("sizes", [[], [0], [1] * 5000, [1 << 23, 1, 1 << 30, 0], [0] * 1024])
def test_every_item_is_in_one_batch(sizes: list[int]) -> None:
    runs = list(batches(sizes))
    assert [number for run in runs for number in run] == list(range(len(sizes)))
    assert all(runs)
