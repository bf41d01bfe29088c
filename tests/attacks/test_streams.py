"""Lies in legacy streams, tar files, numpy pickles and darknet files."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .case import Case
from .harness import Worker, judge
from .streams import cases

CASES = tuple(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_does_not_fit_is_an_error(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    judge(case, worker.examine(case))
    count("legacy, tar, numpy and darknet lies", 1)
