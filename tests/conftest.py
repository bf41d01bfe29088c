"""What all tests share: counts of generated cases, printed in the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

_COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="session")
def count() -> Callable[[str, int], None]:
    """Add to a line of the summary: `count("zip variants", 150)`."""

    def add(name: str, number: int) -> None:
        _COUNTS[name] += number

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its counts over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(_COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """The counts of a finished worker join those of this process."""
    _COUNTS.update(getattr(node, "workeroutput", {}).get("counts", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases of each kind were generated and passed."""
    if _COUNTS:
        terminalreporter.section("counts")
        for name, number in sorted(_COUNTS.items()):
            terminalreporter.write_line(f"{number:>9,}  {name}")
