"""One task of a batch, the same wherever it runs: convert one file, and say what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ckptool.conversion import prepare
from ckptool.errors import CkptError, OutputError, printable, quoted
from ckptool.files import is_plain
from ckptool.fleet.earlier import gives_way
from ckptool.formats.sharded import LARGEST_INDEX
from ckptool.places import inside, is_folder, names_in, open_bytes
from ckptool.planning import Options
from ckptool.plans import Plan
from ckptool.remote.urls import is_url, shown
from ckptool.writing import carry_out

DONE, FAILED = "done", "failed"
DIED = "worker.died"
_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to every file: a plan that is made already, or what one is made from each time.

    `memory` is how many bytes of data a worker may have, None for any.
    """

    plan: Plan | None = None
    arch: str | None = None
    like: str | None = None
    weights: str | None = None
    options: Options = field(default_factory=Options)
    max_shard_size: int | None = None
    memory: int | None = None

    @property
    def digest(self) -> str:
        """Equal for jobs that give equal outputs."""
        value = asdict(replace(self, plan=None, memory=None))
        value["plan"] = self.plan.to_json() if self.plan else None
        return digest(value)


@dataclass(frozen=True, slots=True)
class Task:
    """A file to convert, and when it was handed out first.

    `force` is whether any output may be replaced. Without it, one that this very batch wrote may:
    one that is there and not older than `since`; None where nothing was tried before.
    """

    input: str
    output: str
    force: bool = False
    since: float | None = None
    begun: float = field(default_factory=lambda: round(time.time(), 3))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task, as the journal has it: `input` is without what may be a secret.

    `version` tells one state of the input from another; `code` and `reason` say why it failed.
    """

    input: str
    output: str
    status: str
    nbytes: int = 0
    version: str = ""
    sha256: str | None = None
    plan: str | None = None
    code: str | None = None
    reason: str | None = None
    seconds: float = 0.0


def run(job: Job, task: Task) -> Outcome:
    """Convert the file of a task; whatever happens is in the outcome, but for being stopped."""
    start = time.perf_counter()
    nbytes, version = 0, ""
    try:
        nbytes, version = state_of(task.input)
        prepared = prepare(
            task.input,
            arch=job.arch,
            like=job.like,
            plan=job.plan,
            weights=job.weights,
            options=job.options,
        )
        make_folder(os.path.dirname(task.output))
        several = job.max_shard_size is not None
        force = task.force or (
            task.since is not None and gives_way(task.output, task.since, several=several)
        )
        result = carry_out(prepared, task.output, force=force, max_shard_size=job.max_shard_size)
    except CkptError as error:
        code, reason = error.code, error.message
    except MemoryError:
        code, reason = "memory", _too_much(job)
    except RecursionError:
        code, reason = "defect", "nested too deeply"
    except Exception as error:
        code, reason = "defect", printable(f"{type(error).__name__}: {error}")
    else:
        seconds = time.perf_counter() - start
        plan = digest(result.plan.to_json())
        done = Outcome(shown(task.input), result.output, DONE, nbytes, version, result.sha256, plan)
        return replace(done, seconds=round(seconds, 4))
    seconds = round(time.perf_counter() - start, 4)
    failed = Outcome(shown(task.input), task.output, FAILED, nbytes, version, seconds=seconds)
    return replace(failed, code=code, reason=reason)


def _too_much(job: Job) -> str:
    if job.memory is None:
        return "it needs more memory than there is; --memory SIZE asks for a node that has as much"
    return (
        f"it needs more than the {job.memory:,} bytes that a worker may have; "
        "--memory MORE, perhaps with fewer --jobs"
    )


def died(task: Task, how: str) -> Outcome:
    """The outcome of a task whose worker is gone."""
    reason = f"the worker died ({how}): too little memory, or killed from outside"
    nbytes, version = 0, ""
    with suppress(CkptError):
        nbytes, version = state_of(task.input)
    return Outcome(task.input, task.output, FAILED, nbytes, version, code=DIED, reason=reason)


def state_of(path: str) -> tuple[int, str]:
    """The size of a checkpoint in bytes, and a text that is another one once it is changed.

    A folder and an index of shards are as large as the files that belong to them, and change with
    any of them.

    Raises: CkptError if there is no such file.
    """
    size, version = _state_of_one(path)
    folder = is_folder(path)
    if not folder and not path.endswith(_INDEX):
        return size, version
    names = names_in(path) if folder else _shards(path)
    home = path if folder else os.path.dirname(path)
    parts = []
    for name in names:
        try:
            parts.append((name, *_state_of_one(inside(home, name))))
        except CkptError as error:
            parts.append((name, 0, error.code))
    own = 0 if folder else size
    return own + sum(part[1] for part in parts), digest([None if folder else version, parts])


def _state_of_one(path: str) -> tuple[int, str]:
    if is_url(path):
        from ckptool.remote import stores

        found = stores.stat(path)
        return found.size, digest(found.version)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise CkptError(f"`{printable(path)}`: no such file", code="file.missing") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CkptError(f"`{printable(path)}`: {reason}", code="file.unreadable") from None
    return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"


def _shards(path: str) -> list[str]:
    """The files that an index of shards names, in its folder; none if it is broken."""
    file = open_bytes(path)
    try:
        places = json.loads(bytes(file.read(0, min(file.size, LARGEST_INDEX))))["weight_map"]
        return sorted({name for name in places.values() if is_plain(name)})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def digest(value: Any) -> str:
    """A short digest of JSON values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_folder(path: str) -> None:
    """Make a folder if it is not there; of a URL there is none to be made.

    Raises: OutputError if that cannot be.
    """
    if is_url(path):
        return
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise OutputError(
            f"{quoted(path)}: no folder can be made there: {reason}",
            hint="--out ANOTHER",
            code="output.folder",
        ) from None
