"""One warm process for all faults of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """The process that runs conversions."""
    process = Worker()
    yield process
    process.close()
