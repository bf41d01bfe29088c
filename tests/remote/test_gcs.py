"""Objects in Google's storage: read by ranges, written so that they are there only when whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from servers import BUCKET, GCS, gcs

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, OutputError
from ckptool.fleet.batch import run_job
from ckptool.fleet.tasks import Job
from ckptool.planning import Options
from ckptool.reading import read
from ckptool.remote import stores

# gcsfs 2026.10 hands whole files to aiohttp, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
STATE = {f"layer.{n}.weight": torch.randn(300, 1_000) for n in range(4)}  # 4.8 MB


@pytest.fixture(scope="module")
def _emulator() -> Iterator[GCS]:
    with gcs() as state:
        yield state


@pytest.fixture
def bucket(_emulator: GCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GCS:
    """A bucket with a checkpoint in it; parts are small, and gcsfs does not wait long."""
    import gcsfs.retry

    async def soon(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=soon))
    monkeypatch.setattr(stores, "_PART", 1 << 20)
    _emulator.storage.wipe(keep_buckets=True)
    torch.save(STATE, tmp_path / "x.pth")
    put("in/x.pth", (tmp_path / "x.pth").read_bytes())
    _emulator.faults.clear()
    _emulator.calls.clear()
    _emulator.sent = 0
    return _emulator


SOURCE, OUTPUT = f"gs://{BUCKET}/in/x.pth", f"gs://{BUCKET}/out/out.safetensors"


def store() -> Any:
    import fsspec

    return fsspec.filesystem("gs")


def put(name: str, data: bytes) -> None:
    store().pipe_file(f"{BUCKET}/{name}", data)


def body(name: str) -> bytes:
    data: bytes = store().cat_file(f"{BUCKET}/{name}")
    return data


def test_little_is_fetched(bucket: GCS, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect", SOURCE], ["identify", SOURCE], ["diff", SOURCE, "--like", SOURCE]):
        bucket.sent = 0
        main(words)
        assert 0 < bucket.sent < 1 << 19
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3, "what gcsfs logs is not shown"
    assert all(line.startswith("fetched ") for line in said)


@pytest.mark.parametrize("faults", [[], ["slow down", "ok", "cut"]], ids=["", "bad"])
def test_from_one_object_to_another_is_what_it_is_locally(
    faults: list[str], bucket: GCS, tmp_path: Path
) -> None:
    ckptool.convert(tmp_path / "x.pth", tmp_path / "out.safetensors")
    bucket.faults += faults
    result = ckptool.convert(SOURCE, OUTPUT)
    assert not bucket.faults
    assert result.verified
    assert body("out/out.safetensors") == (tmp_path / "out.safetensors").read_bytes()
    parts = [call for call in bucket.calls if call.startswith("POST") and "upload_id=" in call]
    assert len(parts) > 2
    assert not bucket.storage.resumable


def test_small_ones_are_sent_at_once(bucket: GCS) -> None:
    ckptool.convert(SOURCE, OUTPUT, keep="layer.0.*", dtype="fp16")
    half = STATE["layer.0.weight"].half()
    assert read(OUTPUT)["layer.0.weight"].tobytes() == half.numpy().tobytes()
    (call,) = (call for call in bucket.calls if call.startswith("POST"))
    assert "uploadType=multipart&ifGenerationMatch=0" in call


@pytest.mark.parametrize("reason", [OSError("gone"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_aborted_upload_leaves_no_object(
    reason: BaseException, bucket: GCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcsfs.core

    real, begun = gcsfs.core.GCSFile._upload_chunk, []

    def fail(self: Any, final: bool = False) -> Any:
        if begun:
            raise reason
        begun.append(real(self, final))
        assert bucket.storage.resumable
        return begun[0]

    monkeypatch.setattr(gcsfs.core.GCSFile, "_upload_chunk", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        ckptool.convert(SOURCE, OUTPUT)
    assert bucket.names() == ["in/x.pth"]
    assert not bucket.storage.resumable
    assert bucket.calls[-1].startswith("DELETE ")


def test_what_exists_is_refused(bucket: GCS) -> None:
    put("out/out.safetensors", b"old")
    with pytest.raises(OutputError, match="exists already") as caught:
        ckptool.convert(SOURCE, OUTPUT)
    assert caught.value.code == "output.exists"
    assert body("out/out.safetensors") == b"old"
    ckptool.convert(SOURCE, OUTPUT, force=True)
    assert len(read(OUTPUT)) == len(STATE)


def test_an_object_that_changes_under_way(bucket: GCS, tmp_path: Path) -> None:
    """The same bytes under another generation are another object."""
    opened = read(SOURCE)
    put("in/x.pth", (tmp_path / "x.pth").read_bytes())
    with pytest.raises(FormatError) as caught:
        ckptool.convert(opened, tmp_path / "out.safetensors")
    assert caught.value.code == "file.changed"
    assert not (tmp_path / "out.safetensors").exists()


def test_a_generation_that_is_gone_is_a_change(bucket: GCS) -> None:
    known = stores.stat(SOURCE)
    store().rm_file(f"{BUCKET}/in/x.pth")
    with pytest.raises(FormatError, match="the file changed while it was read"):
        stores.fetch(SOURCE, 0, 10, known)
    assert f"generation={dict(known.version)['generation']}" in bucket.calls[-1]


def test_what_is_not_there_and_what_is_not_allowed(bucket: GCS) -> None:
    for url in (f"gs://{BUCKET}/y.pth", "gs://another/x.pth"):
        with pytest.raises(CkptError, match=rf"`{url}`: no such file$"):
            read(url)
    bucket.faults += ["forbidden"]
    with pytest.raises(CkptError, match=rf"`{SOURCE}`: no permission to read it"):
        read(SOURCE)


def test_a_throttle_that_stays_is_said(bucket: GCS) -> None:
    """What gcsfs tried six times is not tried six times again."""
    bucket.faults += ["slow down"] * 100
    with pytest.raises(CkptError, match=r"cannot be read: the server answered 503, 6 times$"):
        read(SOURCE)
    assert 100 - len(bucket.faults) < 20


def test_a_fleet_in_a_bucket(bucket: GCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing tells what was written down of each."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(4, 4)}, "small.pth")
    for number in range(4):
        put(f"fleet/{number}/best.pth", Path("small.pth").read_bytes())
    put("fleet/4/best.pth", b"")
    words = [f"gs://{BUCKET}/fleet/*/best.pth"], f"gs://{BUCKET}/out", Job(options=Options("fp16"))
    found = run_job(*words, workers=1)
    assert (found.done, {*found.causes}) == (4, {"not-a-checkpoint.empty"})
    assert [name for name in bucket.names() if name.startswith("out/")] == [
        f"out/{number}/best.safetensors" for number in range(4)
    ]
    stores.take_traffic()
    again = run_job(*words, workers=1)
    assert (again.done, again.skipped, again.failed_before) == (0, 4, 1)
    assert stores.take_traffic().requests == 1
