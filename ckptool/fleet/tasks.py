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
from ckptool.errors import CkptError, printable
from ckptool.planning import Options
from ckptool.plans import Plan
from ckptool.remote.urls import is_url
from ckptool.writing import carry_out

DONE, FAILED = "done", "failed"


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
    """A file to convert; `force` where an older output of this very batch may be replaced."""

    input: str
    output: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task, as the journal has it.

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
        _make_folder(task.output)
        result = carry_out(
            prepared, task.output, force=task.force, max_shard_size=job.max_shard_size
        )
    except CkptError as error:
        code, reason = error.code, error.message
    except MemoryError:
        code, reason = "memory", "it needs more memory than a worker may have"
    except RecursionError:
        code, reason = "defect", "nested too deeply"
    except Exception as error:
        code, reason = "defect", printable(f"{type(error).__name__}: {error}")
    else:
        seconds = time.perf_counter() - start
        plan = digest(result.plan.to_json())
        done = Outcome(task.input, result.output, DONE, nbytes, version, result.sha256, plan)
        return replace(done, seconds=round(seconds, 4))
    seconds = round(time.perf_counter() - start, 4)
    failed = Outcome(task.input, task.output, FAILED, nbytes, version, seconds=seconds)
    return replace(failed, code=code, reason=reason)


def died(task: Task, how: str) -> Outcome:
    """The outcome of a task whose worker is gone."""
    reason = f"the worker died ({how}): too little memory, or killed from outside"
    nbytes, version = 0, ""
    with suppress(CkptError):
        nbytes, version = state_of(task.input)
    return Outcome(
        task.input, task.output, FAILED, nbytes, version, code="worker.died", reason=reason
    )


def state_of(path: str) -> tuple[int, str]:
    """The size of a file or an object in bytes, and a text that is another one once it is changed.

    Raises: CkptError if there is no such file.
    """
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


def digest(value: Any) -> str:
    """A short digest of JSON values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_folder(output: str) -> None:
    if not is_url(output):
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
