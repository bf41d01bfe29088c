"""The processes of this machine that run tasks: each runs many, one at a time.

A worker that dies costs the task that it had, and is replaced. Stopped, all of them clean up.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ckptool.errors import CkptError
from ckptool.fleet.tasks import Job, Outcome, Task, died, run

_PATIENCE = 20.0  # seconds that workers have to clean up
_MOST_STILLBORN = 3


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection[Any, Any]
    task: Task | None = None
    served: int = 0


def run_all(job: Job, tasks: Iterator[Task], workers: int) -> Iterator[Outcome]:
    """The outcomes of the tasks as they come; a task is taken only when a worker is free for it.

    Raises: CkptError if workers die before they get anything to do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ckptool.fleet.tasks"])
    crew: list[_Worker] = []
    stillborn = 0
    try:
        for first in islice(tasks, workers):
            crew.append(_hired(context, job))
            _give(crew[-1], first)
        while any(worker.task for worker in crew):
            by_connection = {worker.connection: worker for worker in crew if worker.task}
            for ready in wait(list(by_connection)):
                worker = by_connection[ready]  # type: ignore[index]
                assert worker.task is not None
                try:
                    outcome = worker.connection.recv()
                    worker.served += 1
                    stillborn = 0
                except (EOFError, OSError):
                    worker.process.join()
                    stillborn += not worker.served
                    outcome = died(worker.task, _how(worker.process.exitcode))
                    worker.connection.close()
                    crew.remove(worker)
                    worker = _hired(context, job)
                    crew.append(worker)
                    if stillborn > _MOST_STILLBORN * workers:
                        raise CkptError(
                            f"{outcome.reason}; so did {stillborn - 1} before it, at once",
                            hint="--memory MORE, or fewer --jobs",
                            code="worker.died",
                        ) from None
                worker.task = None
                following = next(tasks, None)
                if following is not None:
                    _give(worker, following)
                yield outcome
        for worker in crew:
            with suppress(OSError):
                worker.connection.send(None)
    except BaseException:
        for worker in crew:
            worker.process.terminate()
        raise
    finally:
        for worker in crew:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()


def _hired(context: Any, job: Job) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job, dict(os.environ)), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, task: Task) -> None:
    worker.task = task
    with suppress(OSError):  # it is dead, which its silence will tell
        worker.connection.send(task)


def _serve(connection: Connection[Any, Any], job: Job, environment: dict[str, str]) -> None:
    """Run tasks until there are no more, or nobody is there to give them.

    The environment is the parent's of now; the fork server's is that of the first batch.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all of us
    signal.signal(signal.SIGTERM, _stop)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # nothing here multiplies matrices
    if job.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory, job.memory))
    try:
        while True:
            task = connection.recv()
            if task is None:
                return
            connection.send(run(job, task))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
