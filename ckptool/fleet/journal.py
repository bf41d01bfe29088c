"""The journal of a batch: a JSON line for each file that is begun, and one for what came of it.

The last one counts. What was under way when a batch was killed may have got its output all the
same, which a later run knows for its own by when it was written. A line is written in one piece
and handed to the system at once, so that nothing else is lost; one that is cut off all the same is
passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import IO, Any

from ckptool.errors import OutputError, PlanError, quoted
from ckptool.fleet.tasks import DIED, DONE, Outcome, Task
from ckptool.formats.sharded_writer import index_path
from ckptool.remote.urls import shown
from ckptool.version import VERSION

_FIELDS = {field.name for field in fields(Outcome)}


class Journal:
    """An open journal: what it said before, and where to add to it; only one batch may write it."""

    def __init__(self, path: str, job: str) -> None:
        self.path = path
        self.before: dict[str, Outcome] = {}
        # Of what has no outcome yet: the output, and since when it is ours if it is there.
        self._outputs: dict[str, str] = {}
        self._begun: dict[str, float] = {}
        self._first: dict[str, Any] | None = None
        try:
            self._file: IO[bytes] = open(path, "a+b")  # noqa: SIM115
        except OSError as error:
            raise OutputError(
                f"{quoted(path)}: the journal cannot be written: {error.strerror}",
                hint="--journal FILE chooses another",
                code="batch.journal",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OutputError(
                f"{quoted(path)}: another batch writes this journal",
                hint="wait for it, or --journal ANOTHER",
                code="batch.journal",
            ) from None
        try:
            self._read(job)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def made(self) -> set[str]:
        """The journal, and all outputs that it knows: those that were made, or may have been."""
        return {self.path, *(known.output for known in self.before.values()), *self._outputs}

    def ours_since(self, path: str, output: str) -> float | None:
        """Since when that output of an input is ours if it is there; None if it never was."""
        if self._outputs.get(path) == output:
            return self._begun[path]
        known = self.before.get(path)
        return 0.0 if known is not None and made_for(known, output) else None

    def begin(self, task: Task) -> None:
        """Write that a task is handed out."""
        name = shown(task.input)
        self._write({"input": name, "output": task.output, "begun": task.begun})

    def add(self, outcome: Outcome) -> None:
        """Write what came of a task."""
        self._write(asdict(outcome))

    def _write(self, *values: dict[str, Any]) -> None:
        if self._first is not None:
            values = (self._first, *values)
            self._first = None
        for value in values:
            self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _read(self, job: str) -> None:
        """Take in what it says; a new journal gets its first line with the second.

        Raises: PlanError if it is the journal of another job.
        """
        self._file.seek(0)
        first: dict[str, Any] | None = None
        last = b"\n"
        for last in self._file:
            value = _parsed(last)
            if first is None:
                first = value or {}
                if first.get("job") != job:
                    raise PlanError(
                        f"{quoted(self.path)}: the journal is of another job"
                        if "job" in first
                        else f"{quoted(self.path)}: this is no journal of a batch",
                        hint="--journal ANOTHER, or another --out",
                        code="batch.journal",
                    )
            elif value is not None:
                self._take(value)
        if not last.endswith(b"\n"):
            self._file.write(b"\n")
        if first is None:
            self._first = {"ckptool": VERSION, "job": job}

    def _take(self, value: dict[str, Any]) -> None:
        """Take in one line."""
        if {"input", "output", "begun"} == value.keys():
            path, output = value["input"], value["output"]
            since = self.ours_since(path, output)
            self._begun[path] = value["begun"] if since is None else since
            self._outputs[path] = output
        elif _FIELDS >= value.keys() >= {"input", "output", "status"}:
            if value["status"] == DONE:
                value |= {"sha256": None, "plan": None}  # a million of them are kept
            outcome = Outcome(**value)
            self.before[outcome.input] = outcome
            # What failed has left nothing, but for an older output that was ours before.
            older = self._begun.get(outcome.input) == 0.0 and outcome.status != DONE
            if outcome.code != DIED and not older:
                self._begun.pop(outcome.input, None)
                self._outputs.pop(outcome.input, None)


def made_for(known: Outcome, output: str) -> bool:
    """Whether that is the output that was made, which for shards is their index."""
    return known.status == DONE and known.output in (output, index_path(output))


def entries(path: str) -> Iterator[dict[str, Any]]:
    """What came of each task, as the lines of a journal have it; for scripts and tests."""
    with open(path, "rb") as file:
        for line in file:
            value = _parsed(line)
            if value is not None and "status" in value:
                yield value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
