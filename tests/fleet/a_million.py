"""A batch of so many files in a bucket in which nothing is real but the parent's own work.

    python a_million.py COUNT FOLDER

The store's listing is made up, and one worker that does nothing gives each outcome at once. What
is left is what a batch costs beside the conversions: names, outputs, the journal, the summary; and
the same when nothing is left to do. Writes the figures as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptool.fleet import batch, local
from ckptool.fleet.tasks import DONE, Job, Outcome, Task, digest
from ckptool.remote import stores


def outcome(task: Task) -> Outcome:
    """What a real one has: a digest of the input's version, a hash, a plan, how long it took."""
    name = task.input.rpartition("/")[2].removesuffix(".pth")
    version = digest((("ETag", f'"{name * 4}"'),))
    return Outcome(
        task.input, task.output, DONE, 16_000_000, version, "0" * 64, "0" * 16, seconds=0.0512
    )


def listed(count: int) -> dict[str, stores.Stat]:
    names = (f"s3://bucket/runs/{n // 1_000:04d}/{n:08d}.pth" for n in range(count))
    return {url: stores.Stat(16_000_000, (("ETag", f'"{url[-12:-4] * 4}"'),)) for url in names}


def serve(connection: Connection[Any, Any], job: Job, environment: dict[str, str]) -> None:
    """A worker that converts nothing."""
    while (task := connection.recv()) is not None:
        connection.send(outcome(task))


def at_once(job: Job, tasks: Iterator[Task], workers: int) -> Iterator[Outcome]:
    """An engine that needs no time."""
    for task in tasks:
        yield outcome(task)


def main(count: int, folder: Path) -> None:
    found: dict[str, float] = {}

    def timed(name: str, files: int, journal: str) -> None:
        stores.matching = lambda _: listed(files)  # type: ignore[assignment]
        start = time.perf_counter()
        told = batch.run_job(
            ["s3://bucket/runs/*/*.pth"],
            "s3://bucket/out",
            Job(),
            journal=str(folder / journal),
            workers=1,
        )
        found[name] = time.perf_counter() - start
        assert (told.done or told.skipped) == files

    local._serve = serve
    timed("one worker", count // 10, "tenth.jsonl")
    batch.run_all = at_once  # type: ignore[assignment]
    timed("first", count, "all.jsonl")
    found["journal bytes"] = (folder / "all.jsonl").stat().st_size
    timed("again", count, "all.jsonl")
    found["peak bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
