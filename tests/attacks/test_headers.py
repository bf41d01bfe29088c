"""Safetensors headers and shard indexes that lie: a strict subset of what the library accepts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import safetensors

from .case import Case
from .harness import Worker, judge
from .headers import header_cases, index_cases

HEADERS = tuple(header_cases())
CASES = (*HEADERS, *index_cases())
READABLE = tuple(case for case in HEADERS if case.code is None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_header_is_strict_or_an_error(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    judge(case, worker.examine(case))
    count("safetensors headers and shard indexes", 1)


@pytest.mark.parametrize("case", READABLE, ids=str)
def test_the_library_accepts_what_is_read(case: Case) -> None:
    assert len(safetensors.deserialize(case.data)) >= 1
