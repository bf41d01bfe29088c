"""One armed process for all attacks of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Worker


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The process that reads hostile files."""
    process = Worker(str(tmp_path_factory.mktemp("attacks")))
    yield process
    process.close()
