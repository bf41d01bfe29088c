"""The journal of a batch: a JSON line for each file that was tried; the last one counts.

A line is written in one piece and handed to the system at once, so that a batch that is killed has
lost nothing but what was under way. A line that is cut off all the same is passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import IO, Any

from ckptool.errors import OutputError, PlanError, quoted
from ckptool.fleet.tasks import DONE, Outcome
from ckptool.version import VERSION

_FIELDS = {field.name for field in fields(Outcome)}


class Journal:
    """An open journal: what it said before, and where to add to it; only one batch may write it."""

    def __init__(self, path: str, job: str) -> None:
        self.path = path
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
            self.before = self._read(job)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Write what came of a task."""
        self._write(asdict(outcome))

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _read(self, job: str) -> dict[str, Outcome]:
        """The last outcome of each input; a new journal gets its first line.

        Raises: PlanError if it is the journal of another job.
        """
        self._file.seek(0)
        found: dict[str, Outcome] = {}
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
            elif value is not None and _FIELDS >= value.keys() >= {"input", "output", "status"}:
                if value["status"] == DONE:
                    value |= {"sha256": None, "plan": None}  # a million of them are kept
                outcome = Outcome(**value)
                found[outcome.input] = outcome
        if not last.endswith(b"\n"):
            self._file.write(b"\n")
        if first is None:
            self._write({"ckptool": VERSION, "job": job})
        return found


def entries(path: str) -> Iterator[dict[str, Any]]:
    """The lines of a journal but for the first, as they are; for scripts and tests."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            value = _parsed(line)
            if number and value is not None:
                yield value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
