"""Work on several threads: reading, copying, hashing and casting all let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from threading import Lock

MANY = 1 << 26  # bytes; to begin threads takes longer than to load a small network

T = TypeVar("T")
_MOST = 4  # threads; more would wait for the memory or the disk
_BATCH = 1 << 23  # bytes that are worth a task of their own
_SMALL = 1 << 16  # bytes; work on fewer lets go of the lock so briefly that others fight for it


def workers() -> Executor:
    """A pool of as many threads as there are processors to use, two at least, four at most."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(min(_MOST, max(2, len(os.sched_getaffinity(0)))))


def for_all(work: Callable[[int], T], sizes: Sequence[int]) -> list[T]:
    """As `for_each`, on threads that are begun for it, where there is enough to do for them."""
    with workers() if sum(sizes) > MANY else nullcontext() as pool:
        return for_each(work, sizes, pool)


def undivided(work: Callable[[Lock], T]) -> T | None:
    """What the work gives, done on a thread of its own; None if there is no thread to be had.

    Nothing that a signal's handler raises, as for Ctrl-C, leaves it done by halves: if the work
    has not acquired the lock by then, it must not begin, and else it ends first.
    """
    from _thread import start_new_thread
    from threading import Lock, Thread

    turn, done = Lock(), Lock()
    done.acquire()
    results: list[T | None] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(turn))
        except BaseException as error:
            errors.append(error)
        finally:
            done.release()

    def begin() -> None:
        try:
            Thread(target=run, daemon=False).start()
        except (RuntimeError, MemoryError):
            results.append(None)
            done.release()

    # Nothing but bare locks here: a queue or a Thread, if interrupted, may stay locked for ever.
    interruption: BaseException | None = None
    try:
        start_new_thread(begin, ())
    except BaseException as error:
        if turn.acquire(blocking=False):
            if isinstance(error, (RuntimeError, MemoryError)):
                return None
            raise
        interruption = error
    while not (results or errors):
        try:
            done.acquire()
        except BaseException as error:
            if turn.acquire(blocking=False):
                raise
            interruption = error
    if interruption is not None:
        raise interruption
    if errors:
        raise errors.pop()
    return results[0]


def for_each(work: Callable[[int], T], sizes: Sequence[int], pool: Executor | None) -> list[T]:
    """What the work on each item gives, by its number, in their order; `sizes` are their bytes.

    Large items are shared out among the threads, all small ones are one thread's. After the first
    error none is begun, and those under way have ended.
    """
    results: list[T | None] = [None] * len(sizes)
    stopped = False

    def run(numbers: Sequence[int]) -> None:
        nonlocal stopped
        try:
            for number in numbers:
                if stopped:
                    return
                results[number] = work(number)
        except BaseException:
            stopped = True
            raise

    if pool is None:
        run(range(len(sizes)))
        return cast("list[T]", results)
    from concurrent.futures import Future, wait

    futures: list[Future[None]] = []
    try:
        futures.extend(pool.submit(run, numbers) for numbers in _shared_out(sizes))
        for future in futures:
            future.result()
    finally:
        stopped = True
        for future in futures:
            future.cancel()
        wait(futures)
    return cast("list[T]", results)


def _shared_out(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of the items: all small ones together, then the others in batches."""
    small = [number for number, size in enumerate(sizes) if size < _SMALL]
    if small:
        yield small
    batch: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if size < _SMALL:
            continue
        batch.append(number)
        total += size
        if total >= _BATCH:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
