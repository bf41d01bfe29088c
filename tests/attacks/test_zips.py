"""Zip archives that lie: refused, unless every reader would see the same in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pytest
import torch

from .case import Case
from .harness import Worker, judge
from .zips import FAULTS, cases, valid

CASES = tuple(cases())
VALID = tuple(valid())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_archive_that_readers_could_disagree_on_is_refused(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    judge(case, worker.examine(case))
    count("zip variants", 1)


def test_every_pair_of_faults_is_a_case() -> None:
    pairs = [case for case in CASES if case.name.startswith("pair-")]
    assert len(pairs) == len(FAULTS) * (len(FAULTS) - 1) // 2


READABLE = [case for case in CASES if case.code is None and case.tensors_code is None]


@pytest.mark.parametrize("case", READABLE, ids=str)
def test_zipfile_and_torch_see_what_was_read(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    """Both give the same pickle; zipfile does not know that a CRC of 0 means none."""
    found = worker.examine(case)
    with zipfile.ZipFile(io.BytesIO(case.data)) as archive:
        named = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(named[0]) as record:
            if case.name == "valid-no-crc":
                record._expected_crc = None  # type: ignore[attr-defined]
            pickle = record.read()
    assert torch._C.PyTorchFileReader(io.BytesIO(case.data)).get_record("data.pkl") == pickle
    assert len(named) == 1
    assert found["sets"] == ["."]
    count("zip archives that zipfile and torch read alike", 1)


@pytest.mark.parametrize("label", [label for label, _ in VALID])
def test_valid_forms_hold_the_same_tensors(label: str, worker: Worker) -> None:
    """How an archive is laid out changes nothing that is read."""
    plain, other = dict(VALID)["plain"], dict(VALID)[label]
    digests = [worker.examine(Case(label, a.build()))["digest"] for a in (plain, other)]
    assert digests[0] == digests[1]
