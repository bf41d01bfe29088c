"""Work on several threads: reading, copying, hashing and casting all let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

T = TypeVar("T")
_MOST = 4  # threads; more would wait for the memory or the disk


def workers() -> Executor:
    """A pool of as many threads as there are processors to use, two at least, four at most."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(min(_MOST, max(2, len(os.sched_getaffinity(0)))))


def each(tasks: Iterable[Callable[[], T]], pool: Executor | None) -> list[T]:
    """The results of the tasks in their order; in turn where there is no pool.

    After the first one that raises, none is begun, and those under way have ended.
    """
    if pool is None:
        return [task() for task in tasks]
    from concurrent.futures import wait

    futures: list[Future[T]] = []
    try:
        futures.extend(pool.submit(task) for task in tasks)
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def batches(sizes: Iterable[int]) -> Iterator[range]:
    """The numbers of items in runs, each large enough to be worth a task of its own."""
    first = last = total = 0
    for last, size in enumerate(sizes, 1):
        total += size
        if total >= _BATCH or last - first >= _MOST_ITEMS:
            yield range(first, last)
            first, total = last, 0
    if first < last:
        yield range(first, last)


_BATCH = 1 << 23  # bytes
_MOST_ITEMS = 1 << 10
