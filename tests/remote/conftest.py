"""The servers, once for each worker, and retries without long pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import S3, Web, s3, web

from ckptool.remote import stores


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3]:
    with s3() as state:
        yield state


@pytest.fixture
def bucket(_s3_server: S3) -> S3:
    """Moto's S3, without faults."""
    _s3_server.faults.clear()
    _s3_server.refused.clear()
    _s3_server.sent = 0
    return _s3_server


@pytest.fixture
def client(bucket: S3) -> Any:
    """Amazon's own client of it."""
    import boto3

    return boto3.client("s3")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Web]:
    """An HTTP server of a new folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with web(folder) as state:
        yield state


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_FIRST_PAUSE", 0.001)
    for name in ("requests", "nbytes", "whole", "retries"):
        monkeypatch.setattr(stores.traffic, name, 0)
