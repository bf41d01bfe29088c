"""Objects in S3: read by ranges, written so that they are there only once they are whole."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import BUCKET, S3

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, OutputError
from ckptool.fleet.batch import run_job
from ckptool.fleet.tasks import Job
from ckptool.planning import Options
from ckptool.reading import read
from ckptool.remote import stores

STATE = {f"layer.{n}.weight": torch.randn(300, 1_000) for n in range(12)}  # 14 MB


@pytest.fixture
def source(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint in the bucket, which is otherwise empty; parts are as small as S3 allows."""
    monkeypatch.setattr(stores, "_PART", 5 << 20)
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    torch.save(STATE, tmp_path / "x.pth")
    client.upload_file(str(tmp_path / "x.pth"), BUCKET, "in/x.pth")
    return f"s3://{BUCKET}/in/x.pth"


def keys(client: Any) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def under_way(client: Any) -> list[Any]:
    found: list[Any] = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


def test_little_is_fetched(source: str, bucket: S3, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect", source], ["identify", source], ["diff", source, "--like", source]):
        bucket.sent = 0
        main(words)
        assert bucket.sent < 1 << 19
    said = capsys.readouterr().err
    assert "fetched " in said
    assert "a-secret" not in said


@pytest.mark.parametrize("faults", [[], ["slow down", "ok", "slow down", "cut"]], ids=["", "bad"])
def test_from_s3_to_s3_is_what_it_is_locally(
    faults: list[str], source: str, client: Any, bucket: S3, tmp_path: Path
) -> None:
    ckptool.convert(tmp_path / "x.pth", tmp_path / "out.safetensors")
    bucket.faults += faults
    bucket.sent = 0
    result = ckptool.convert(source, f"s3://{BUCKET}/out/out.safetensors")
    assert not bucket.faults
    assert result.verified
    body = client.get_object(Bucket=BUCKET, Key="out/out.safetensors")["Body"].read()
    assert body == (tmp_path / "out.safetensors").read_bytes()
    head = client.head_object(Bucket=BUCKET, Key="out/out.safetensors")
    assert re.fullmatch(r".*-\d+", head["ETag"].strip('"'))  # of several parts
    size = (tmp_path / "x.pth").stat().st_size
    assert size <= bucket.sent - len(body) < size * 2


def test_a_throttled_upload_goes_on_or_leaves_nothing(
    source: str, client: Any, bucket: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    output = f"s3://{BUCKET}/out/out.safetensors"
    bucket.refused += ["ok", "slow down", "slow down"]
    assert ckptool.convert(source, output).verified
    assert not bucket.refused
    client.delete_object(Bucket=BUCKET, Key="out/out.safetensors")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    bucket.refused += ["ok", *["slow down"] * 50]
    with pytest.raises(OutputError, match=r"out\.safetensors`: cannot be written: "):
        ckptool.convert(source, output)
    assert keys(client) == ["in/x.pth"]
    assert under_way(client) == []


@pytest.mark.parametrize("reason", [OSError("gone"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_aborted_upload_leaves_no_object(
    reason: BaseException, source: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    real = s3fs.S3File._upload_chunk
    begun = []

    def fail(self: Any, final: bool = False) -> Any:
        if begun:
            raise reason
        begun.append(real(self, final))
        assert under_way(client)
        return begun[0]

    monkeypatch.setattr(s3fs.S3File, "_upload_chunk", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        ckptool.convert(source, f"s3://{BUCKET}/out.safetensors")
    assert keys(client) == ["in/x.pth"]
    assert under_way(client) == []


def test_what_exists_is_refused(source: str, client: Any) -> None:
    output = f"s3://{BUCKET}/out.safetensors"
    client.put_object(Bucket=BUCKET, Key="out.safetensors", Body=b"old")
    with pytest.raises(OutputError, match="exists already") as caught:
        ckptool.convert(source, output)
    assert caught.value.code == "output.exists"
    assert client.get_object(Bucket=BUCKET, Key="out.safetensors")["Body"].read() == b"old"
    ckptool.convert(source, output, force=True)
    assert len(read(output)) == len(STATE)
    with pytest.raises(OutputError, match="is the input file itself"):
        ckptool.convert(source.replace("in/x.pth", "out.safetensors"), output, force=True)


@pytest.mark.parametrize("size", [100, 6 << 20], ids=["at once", "in parts"])
def test_the_store_refuses_a_name_that_was_taken_meanwhile(
    size: int, source: str, client: Any
) -> None:
    client.put_object(Bucket=BUCKET, Key="out.safetensors", Body=b"old")
    with pytest.raises(OutputError, match=r"out\.safetensors`: exists already") as caught:
        stores.upload(lambda: iter([bytes(size)]), f"s3://{BUCKET}/out.safetensors", size, new=True)
    assert caught.value.code == "output.exists"
    assert client.get_object(Bucket=BUCKET, Key="out.safetensors")["Body"].read() == b"old"
    assert under_way(client) == []


def test_shards_and_their_index(source: str, client: Any) -> None:
    result = ckptool.convert(source, f"s3://{BUCKET}/set/out.safetensors", max_shard_size="4MB")
    assert result.output == f"s3://{BUCKET}/set/out.safetensors.index.json"
    assert len(keys(client)) == 1 + 5
    for path in (result.output, f"s3://{BUCKET}/set", f"s3://{BUCKET}/set/"):
        opened = read(path)
        assert {key: x.tobytes() for key, x in opened.items()} == {
            key: x.numpy().tobytes() for key, x in STATE.items()
        }
    client.delete_object(Bucket=BUCKET, Key="set/out-00002-of-00004.safetensors")
    with pytest.raises(CkptError, match=r"shard `out-00002-of-00004\.safetensors`: .*no such file"):
        read(result.output)


def test_without_an_output_it_is_beside_the_input(source: str, client: Any) -> None:
    assert main(["convert", source, "--dtype", "fp16"]) == 0
    assert keys(client) == ["in/x.fp16.safetensors", "in/x.pth"]


def test_an_object_that_changes_under_way(source: str, client: Any, tmp_path: Path) -> None:
    opened = read(source)
    client.put_object(Bucket=BUCKET, Key="in/x.pth", Body=(tmp_path / "x.pth").read_bytes()[::-1])
    with pytest.raises(FormatError) as caught:
        ckptool.convert(opened, tmp_path / "out.safetensors")
    assert caught.value.code == "file.changed"
    assert not (tmp_path / "out.safetensors").exists()


def test_no_such_object_and_no_such_bucket(source: str) -> None:
    for url in (f"s3://{BUCKET}/y.pth", "s3://another/x.pth"):
        with pytest.raises(CkptError, match=rf"`{url}`: no such file"):
            read(url)


def test_a_throttle_that_stays_is_said(
    source: str, bucket: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    bucket.faults += ["slow down"] * 100
    with pytest.raises(CkptError, match=r"cannot be read: .*, 6 times$") as caught:
        read(source)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in caught.value.message


def test_a_fleet_in_a_bucket(
    source: str, client: Any, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run asks for the listing alone: what it tells is what was written down."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        torch.save({"w": torch.ones(4, 4)}, tmp_path / "small.pth")
        client.upload_file(str(tmp_path / "small.pth"), BUCKET, f"fleet/{number % 2}/{number}.pth")
    client.put_object(Bucket=BUCKET, Key="fleet/0/empty.pth", Body=b"")
    job = Job(options=Options(dtype="fp16"))
    words, out = [f"s3://{BUCKET}/fleet/*/*.pth"], f"s3://{BUCKET}/out"
    found = run_job(words, out, job, workers=1)
    assert (found.done, {*found.causes}) == (6, {"not-a-checkpoint.empty"})
    assert [key for key in keys(client) if key.startswith("out/")] == [
        f"out/{number % 2}/{number}.safetensors" for number in (0, 2, 4, 1, 3, 5)
    ]
    stores.take_traffic()
    again = run_job(words, out, job, workers=1)
    assert (again.done, again.skipped, again.failed_before) == (0, 6, 1)
    assert stores.take_traffic().requests == 1
    client.put_object(Bucket=BUCKET, Key="fleet/0/empty.pth", Body=b"<html>")
    again = run_job(words, out, job, workers=1)
    assert {*again.causes} == {"not-a-checkpoint.html"}
    assert found.journal == "ckptool-batch.jsonl"


def test_a_folder_that_torch_writes(source: str, client: Any) -> None:
    """What names the other files is sent last, and the folder is read by its name alone."""
    output = f"s3://{BUCKET}/steps/100.dcp"
    result = ckptool.convert(source, output)
    assert result.output == output
    written = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert [key.rpartition("/")[2] for key in written if "steps" in key] == [
        ".metadata",
        "__0_0.distcp",
        "ckptool.json",
    ]
    opened = read(output)
    assert opened.path == f"{output}/.metadata"
    assert opened["layer.3.weight"].tobytes() == STATE["layer.3.weight"].numpy().tobytes()
    with pytest.raises(OutputError, match="exists already"):
        ckptool.convert(source, output)


def test_without_credentials_it_is_said_who_has_them(
    bucket: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(CkptError) as caught:
            read(f"s3://{BUCKET}/x.pth")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert caught.value.message == f"`s3://{BUCKET}/x.pth`: no credentials are found"
    assert caught.value.hint == "log in with the provider's own tool; its credentials are used"
