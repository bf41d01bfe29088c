"""The bench on which the tests of causes compare and convert a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffs_made import Bench


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)
