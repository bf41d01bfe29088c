"""What a hostile file makes the package call: nothing but what a committed list names.

Audit events are blind to plain calls of built-in functions; a profile sees each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from . import test_headers, test_pickles, test_streams, test_views, test_zips
from .case import Case
from .harness import Worker

CORPORA: dict[str, tuple[Case, ...]] = {
    "pickles": tuple(case for _, case in test_pickles.CASES),
    "zips": test_zips.CASES,
    "views": test_views.CASES,
    "headers": test_headers.CASES,
    "streams": test_streams.CASES,
}
# Functions outside the package by name, the package's own by module.
GOLDEN = Path(__file__).with_name("callables.txt").read_text(encoding="ascii").split()
LONG = 20_000  # bytes; a profile makes such a pickle slow, and its container makes no difference
HARMFUL = (
    "exec eval compile __import__ import_module getattr setattr delattr vars globals open system "
    "loads load call_module resolve_name find_class breakpoint input print"
).split()


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_callable_is_on_the_list(
    corpus: str, worker: Worker, count: Callable[[str, int], None]
) -> None:
    """A new one that is harmless belongs into callables.txt; one that acts belongs nowhere."""
    strange: dict[str, str] = {}
    cases = [
        case
        for case in CORPORA[corpus]
        if len(case.data) < LONG or corpus != "pickles" or case.name.endswith("-raw")
    ]
    for case in cases:
        called = worker.examine(case, "profile")["callables"]
        assert "posix.open" in called
        strange.update(dict.fromkeys(set(called) - set(GOLDEN), case.name))
    assert not strange
    count("hostile files under a profile, nothing called but what is listed", len(cases))


def test_the_list_is_sorted_and_holds_nothing_that_acts() -> None:
    """What could act is harmless where it stands.

    `json.loads` makes numbers, text, lists and dicts, and `posix.open` opens to read: the audit of
    every case sees to that. `importlib._handle_fromlist` is run by import statements.
    """
    assert sorted(set(GOLDEN)) == GOLDEN
    outside = [name for name in GOLDEN if not name.startswith("ckptool.")]
    acting = {name for name in outside if name.rpartition(".")[2] in HARMFUL}
    assert acting == {"json.loads", "posix.open"}
