"""A batch: every input converted once, whatever happens to others; run again, it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from ckptool.architectures import find
from ckptool.conversion import asked, refuse_contradictions
from ckptool.destinations import check_suffix
from ckptool.errors import CkptError
from ckptool.fleet.inputs import Input, expanded, outputs, without
from ckptool.fleet.journal import Journal, made_for
from ckptool.fleet.local import processors, run_all
from ckptool.fleet.tasks import (
    DONE,
    FAILED,
    Job,
    Outcome,
    Task,
    make_folder,
    state_of,
)
from ckptool.formats.sharded_writer import parse_size
from ckptool.plans import Plan, read_plan
from ckptool.reading import read
from ckptool.remote.urls import is_url, shown

JOURNAL = "ckptool-batch.jsonl"
MEMORY = 4 << 30  # bytes of data that a worker of this machine may have unless it is said


@dataclass(slots=True)
class Cause:
    """Failures of one kind: how many, and the first of them."""

    code: str
    count: int
    example: Outcome


@dataclass(slots=True)
class Summary:
    """What came of a batch so far.

    `skipped` were done before, `failed_before` failed before and were not tried again.
    """

    files: int
    journal: str
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failed_before: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    causes: dict[str, Cause] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """How many files are settled, one way or the other."""
        return self.done + self.failed + self.skipped + self.failed_before

    def count(self, outcome: Outcome, *, before: bool = False) -> None:
        """Take an outcome in."""
        if outcome.status == DONE:
            self.skipped += before
            self.done += not before
            self.nbytes += 0 if before else outcome.nbytes
            return
        self.failed_before += before
        self.failed += not before
        code = outcome.code or "error"
        cause = self.causes.setdefault(code, Cause(code, 0, outcome))
        cause.count += 1


Progress = Callable[[Summary], None]


def batch(
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    weights: str | None = None,
    suffix: str = ".safetensors",
    root: str | os.PathLike[str] | None = None,
    max_shard_size: str | int | None = None,
    journal: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    force: bool = False,
    jobs: int | None = None,
    memory: str | int | None = None,
    engine: str = "local",
    address: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Convert every input into the folder `out`, a path or a URL, and say what came of them all.

    The other options are those of `convert`. What came of each stands in the journal, and what it
    has as done, and is unchanged, is not done again. `engine` is `local`, with so many `jobs`, or
    `ray`. Workers import the script that calls this: it calls under `if __name__ == "__main__"`.

    Raises: CkptError for what is wrong with the batch as a whole, before anything is done.
    """
    job = Job(
        plan if plan is None or isinstance(plan, Plan) else read_plan(plan),
        arch,
        None if like is None else os.fspath(like),
        weights,
        asked(options),
        parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size,
        parse_size(memory) if isinstance(memory, str) else memory,
    )
    return run_job(
        (os.fspath(word) for word in inputs),
        os.fspath(out),
        job,
        suffix=suffix,
        root=None if root is None else os.fspath(root),
        journal=None if journal is None else os.fspath(journal),
        retry_failed=retry_failed,
        force=force,
        workers=jobs,
        engine=engine,
        address=address,
        progress=progress,
    )


def run_job(
    inputs: Iterable[str],
    out: str,
    job: Job,
    *,
    suffix: str = ".safetensors",
    root: str | None = None,
    journal: str | None = None,
    retry_failed: bool = False,
    force: bool = False,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Do the job with every input, as `batch` says.

    What failed is tried again with `retry_failed`, or when the input changed. An output that no
    journal knows is not replaced without `force`.
    """
    check_suffix(f"x{suffix}")
    _refuse(job)
    found = list(expanded(inputs))
    make_folder(out)
    path = journal or (JOURNAL if is_url(out) else os.path.join(out, JOURNAL))
    start = time.monotonic()
    with Journal(path, job.digest) as book:
        pairs = list(outputs(without(found, out, book.made), out, suffix, root))
        summary = Summary(len(pairs), path)
        tasks = _pending(pairs, book, summary, retry_failed=retry_failed, force=force)
        if engine == "ray":
            from ckptool.fleet.on_ray import run_all as on_ray

            running = on_ray(job, tasks, address)
        else:
            bounded = replace(job, memory=job.memory or MEMORY)
            running = run_all(bounded, tasks, workers or processors())
        with closing(running) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                book.add(outcome)
                summary.count(outcome)
                summary.seconds = time.monotonic() - start
                if progress is not None:
                    progress(summary)
    summary.seconds = time.monotonic() - start
    return summary


def _refuse(job: Job) -> None:
    """Raise for what would fail with every file."""
    refuse_contradictions(job.arch, job.like, job.plan, job.options)
    if job.arch is not None:
        find(job.arch)
    if job.like is not None:
        read(job.like)


def _pending(
    pairs: Iterable[tuple[Input, str]],
    book: Journal,
    summary: Summary,
    *,
    retry_failed: bool,
    force: bool,
) -> Iterator[Task]:
    """The tasks that are left to do, made and begun one by one; the others are counted."""
    for (path, _, state, _), output in pairs:
        known = book.before.get(shown(path))
        again = retry_failed and known is not None and known.status == FAILED
        if known is not None and not again and _is_current(known, output, state or _state(path)):
            summary.count(known, before=True)
            continue
        since = book.ours_since(shown(path), output)
        task = Task(path, output, force, since)
        book.begin(task)
        yield task


def _state(path: str) -> tuple[int, str]:
    """The state of an input; that of nothing, as its failure has it, if it is not there."""
    try:
        return state_of(path)
    except CkptError:
        return 0, ""


def _is_current(known: Outcome, output: str, state: tuple[int, str]) -> bool:
    """Whether an outcome is still that of the input, and its output still there."""
    if state != (known.nbytes, known.version):
        return False
    if known.status == FAILED:
        return known.output == output
    return made_for(known, output) and (is_url(known.output) or os.path.exists(known.output))
