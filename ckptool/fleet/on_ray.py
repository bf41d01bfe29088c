"""The same tasks on a Ray cluster: a node that dies costs the work that it had under way, no file.

Source: Ray 2.60, the core API; extra `ray`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ckptool.errors import CkptError, UnsupportedError, quoted
from ckptool.fleet.tasks import Job, Outcome, Task, died, run

_MOST_ATTEMPTS = 4
_AHEAD = 2  # tasks under way for each processor of the cluster
_OFTEN = 1.0  # seconds between two looks how large the cluster is


def run_all(job: Job, tasks: Iterator[Task], address: str | None) -> Iterator[Outcome]:
    """The outcomes of the tasks as they come.

    Raises: CkptError if there is no cluster.
    """
    ray = _joined(address)
    shared = ray.put(job)
    options = {"num_cpus": 1, "max_retries": 0}
    if job.memory is not None:
        options["memory"] = job.memory
        largest = max((node["Resources"].get("memory", 0) for node in ray.nodes()), default=0)
        if largest < job.memory:
            ray.shutdown()
            raise CkptError(
                f"no node of the cluster has {job.memory:,} bytes for a worker: "
                f"the largest has {largest:,.0f}",
                hint="--memory LESS",
                code="batch.memory",
            )
    remote = ray.remote(**options)(_run)
    under_way: dict[Any, tuple[Task, int]] = {}
    more = True
    try:
        room, asked = 0, -_OFTEN
        while True:
            if time.monotonic() - asked >= _OFTEN:
                room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
                asked = time.monotonic()
            while more and len(under_way) < room:
                task = next(tasks, None)
                more = task is not None
                if task is not None:
                    under_way[remote.remote(shared, task)] = task, 1
            if not under_way:
                return
            ready, _ = ray.wait(list(under_way), num_returns=1)
            for reference in ready:
                task, attempt = under_way.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    if attempt < _MOST_ATTEMPTS:
                        # It may have been done, and only the news of it lost.
                        since = task.begun if task.since is None else task.since
                        again = replace(task, since=since)
                        under_way[remote.remote(shared, again)] = again, attempt + 1
                        continue
                    outcome = died(task, f"{type(error).__name__}, {attempt} times")
                yield outcome
    finally:
        for reference in under_way:
            ray.cancel(reference, force=False)
        ray.shutdown()


def _run(job: Job, task: Task) -> Outcome:
    return run(job, task)


def _joined(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise UnsupportedError(
            "--engine ray needs ray, which is not installed",
            hint="pip install 'ckptool[ray]'",
            code="unsupported.ray",
        ) from None
    try:
        ray.init(address=address or "auto", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = quoted(address) if address else "this machine"
        raise CkptError(
            f"no Ray cluster is found from {where}: {str(error).splitlines()[0]}",
            hint="ray start --head, or --address HOST:6379",
            code="batch.ray",
        ) from None
    return ray
