"""Tensors that lie about their storage: an error of one family, or a listed refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .case import Case
from .harness import Worker, judge
from .views import cases

CASES = tuple(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tensor_is_inside_its_storage_or_an_error(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    judge(case, worker.examine(case))
    count("storage and view lies", 1)
