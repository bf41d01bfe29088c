"""Every write-side call of a conversion fails once, in every way: old or new, nothing between.

The calls are spoiled between ckptool and the system, at the functions of `os` that it calls, so
that this runs where nothing may be traced; test_traced.py does the same below them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import KINDS, Job, Worker, make_job

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EINTR")
DATA = ("pwrite", "copy_file_range")
# Without a lock others leave the file alone, and what is not removed now is removed later.
HARMLESS = ("flock", "unlink", "rmdir")


@pytest.fixture(params=KINDS)
def job(request: pytest.FixtureRequest, worker: Worker, tmp_path: Path) -> Job:
    return make_job(worker, tmp_path / "job", request.param)


def test_a_conversion_survives_every_fault_of_every_call(
    job: Job, worker: Worker, count: Callable[[str, int], None]
) -> None:
    calls = worker.run(job.words)["calls"]
    job.judge({"code": 0}, "no fault")
    codes: Counter[str] = Counter()
    for at, call in enumerate(calls):
        name = call.partition("(")[0]
        faults = [*ERRORS, "kill before", "kill after"]
        faults += ["short", "lie"] if name in DATA else []
        for fault in faults:
            found = worker.run(job.words, at=at, fault=fault)
            is_new = job.judge(found, f"{fault} at {call}")
            codes[f"{fault}: {found['code']}"] += 1
            if fault.startswith("kill"):
                assert found["code"] == -9, (fault, call, found)
            elif fault == "short":
                assert found["code"] == 0
            elif fault == "lie":
                assert (found["code"], is_new) == (2, False), call
            elif name in HARMLESS or (fault == "EINTR" and name == "copy_file_range"):
                assert (found["code"], is_new) == (0, True), (call, fault)
            else:
                assert found["code"] == 2, (call, fault)
                assert "cannot be written: " in found["stderr"]
                assert not (is_new and name in DATA), (call, fault)
    count("write-side calls spoiled (by a double of os)", sum(codes.values()))
    assert len(calls) > 10


def test_the_calls_are_those_that_are_meant(job: Job, worker: Worker) -> None:
    """Among them the making, the flushing, the renaming and the flushing of the folder."""
    names = Counter(call.partition("(")[0] for call in worker.run(job.words)["calls"])
    assert {"open", "flock", "pwrite", "copy_file_range", "fsync", "close"} <= names.keys()
    assert ("rename" if job.old else "link") in names
    assert ("fchmod" in names) is bool(job.old)
    assert ("fchown" in names) is (bool(job.old) and os.geteuid() == 0)
