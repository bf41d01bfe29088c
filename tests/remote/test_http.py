"""Files behind a web server: little is fetched, faults are survived or said, nothing is leaked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from servers import Web

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, UnsupportedError
from ckptool.reading import read
from ckptool.remote import stores
from ckptool.remote.urls import shown

STATE = {f"layer.{n}.weight": torch.randn(64, 100) for n in range(40)}
D0 = Path(ckptool.__file__).parent.parent / "fixtures" / "d0.pth"


def of_two_gigabytes(path: Path, tensors: int = 2_000) -> None:
    """A safetensors file with a hole where the tensors are."""
    header, at = {}, 0
    for number in range(tensors):
        size = 4 * 250_000
        name = f"backbone.stages.{number // 20}.blocks.{number % 20}.conv.weight"
        header[name] = {"dtype": "F32", "shape": [250_000], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_of_two_gigabytes_only_the_header_is_fetched(
    server: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    of_two_gigabytes(server.folder / "x.safetensors")
    url = f"{server.url}/x.safetensors"
    commands = (["inspect", url], ["identify", url], ["diff", url, "--like", url])
    for words in commands:
        server.sent = server.gets = 0
        main(words)
        assert server.sent < 1 << 20
        assert server.gets <= 6
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert [line.split(" in ")[0].rpartition(" of ")[2] for line in said] == [
        "1.9 GiB",
        "1.9 GiB",
        "3.7 GiB",
    ]
    assert all(line.startswith("fetched ") for line in said)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_of_two_thousand_tensors_only_the_directory_is_fetched(legacy: bool, server: Web) -> None:
    """The headers that stand before each tensor are looked at when the tensor is."""
    state = {f"a.very.usual.module.{n}.weight": torch.zeros(2_500) for n in range(2_000)}
    path = server.folder / "x.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    found = ckptool.inspect(f"{server.url}/x.pth")
    assert len(found.chosen.tensors if found.chosen else ()) == 2_000
    assert server.sent < 3 << 19 < path.stat().st_size // 10
    assert server.gets <= 8


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_was_not_looked_at_is_when_the_tensor_is_read(legacy: bool, server: Web) -> None:
    """A header before the data that differs from the directory."""
    path = server.folder / "x.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    data = bytearray(path.read_bytes())
    start = data.index(STATE["layer.20.weight"].numpy().tobytes())
    if legacy:
        data[start - 8] ^= 1
    else:
        at = data.rindex(b"PK\x03\x04", 0, start)
        data[at + 8] ^= 8  # how it is stored
    path.write_bytes(data)
    opened = read(f"{server.url}/x.pth")
    assert opened["layer.0.weight"].tobytes() == STATE["layer.0.weight"].numpy().tobytes()
    with pytest.raises(FormatError):
        opened["layer.20.weight"].tobytes()
    with pytest.raises(FormatError):
        read(path)


FAULTS: dict[str, list[int | str]] = {
    "throttled": [503, 503, 429, "ok", 503],
    "broken": [500, "ok", 502, 504],
    "cut": ["cut", "ok", "cut", "cut"],
    "short": ["short", "ok", "short"],
    "slow": ["slow"] * 3,
    "everything": [503, "cut", "short", "slow", 500],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_conversion_survives(name: str, server: Web, tmp_path: Path) -> None:
    torch.save(STATE, server.folder / "x.pth")
    ckptool.convert(server.folder / "x.pth", tmp_path / "local.safetensors", dtype="fp16")
    server.faults += FAULTS[name]
    result = ckptool.convert(f"{server.url}/x.pth", tmp_path / "distant.safetensors", dtype="fp16")
    assert not server.faults
    assert (tmp_path / "distant.safetensors").read_bytes() == (
        tmp_path / "local.safetensors"
    ).read_bytes()
    assert result.input == f"{server.url}/x.pth"
    hurt = [fault for fault in FAULTS[name] if fault not in ("ok", "slow")]
    assert stores.traffic.retries == len(hurt)


def test_a_connection_that_says_nothing_is_given_up(
    server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_QUIET", 0.3)
    torch.save(STATE, server.folder / "x.pth")
    server.faults += ["stall", "ok", "stall"]
    assert len(read(f"{server.url}/x.pth")) == len(STATE)
    assert stores.traffic.retries == 2


def test_every_byte_is_fetched_once(server: Web, tmp_path: Path) -> None:
    """To hash, to convert and to prove a file are three ways through it."""
    torch.save(STATE, server.folder / "x.pth")
    ckptool.convert(f"{server.url}/x.pth", tmp_path / "out.safetensors", dtype="fp16")
    assert server.sent == (server.folder / "x.pth").stat().st_size


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "the server answered 503"),
        ("short", "the connection was cut: found 32,768 bytes, wanted 65,536"),
    ],
)
def test_what_does_not_go_away_is_said(fault: int | str, reason: str, server: Web) -> None:
    torch.save(STATE, server.folder / "x.pth")
    server.faults += [fault] * 6
    with pytest.raises(CkptError) as caught:
        read(f"{server.url}/x.pth")
    assert caught.value.message == (
        f"`{server.url}/x.pth`: at byte 0: cannot be read: {reason}, 6 times"
    )
    assert caught.value.code == "file.unreadable"
    assert server.gets == 6


def test_a_server_that_is_not_there() -> None:
    """That is not to say that it does not have the file."""
    url = "http://127.0.0.1:9/x.pth"
    with pytest.raises(
        CkptError, match=rf"`{url}`: cannot be read: .* connect .*, 6 times"
    ) as caught:
        read(url)
    assert caught.value.code == "file.unreadable"


def test_a_file_that_is_not_there(server: Web) -> None:
    with pytest.raises(CkptError, match=r"`.*/x\.pth`: no such file$"):
        read(f"{server.url}/x.pth")


@pytest.mark.parametrize("status", [401, 403])
def test_no_permission(status: int, server: Web) -> None:
    torch.save(STATE, server.folder / "x.pth")
    server.faults.append(status)
    with pytest.raises(CkptError, match="no permission to read it") as caught:
        read(f"{server.url}/x.pth")
    assert server.gets == 1
    assert "provider's own tool" in str(caught.value.hint)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_answers_no_head(status: int, server: Web) -> None:
    """Presigned URLs are for one method only."""
    torch.save(STATE, server.folder / "x.pth")
    server.head = status
    assert len(read(f"{server.url}/x.pth")) == len(STATE)


def test_no_permission_by_any_method(server: Web) -> None:
    torch.save(STATE, server.folder / "x.pth")
    server.head = 403
    server.faults += [403] * 9
    with pytest.raises(CkptError, match="no permission to read it"):
        read(f"{server.url}/x.pth")
    assert server.gets == 1


def test_a_server_without_ranges(server: Web) -> None:
    torch.save(STATE, server.folder / "x.pth")
    server.ranges = False
    with pytest.raises(UnsupportedError, match="sends whole files only"):
        read(f"{server.url}/x.pth")


@pytest.mark.parametrize("etags", [True, False], ids=["etag", "size"])
def test_a_file_that_changes_under_way(etags: bool, server: Web, tmp_path: Path) -> None:
    server.etags = etags
    path = server.folder / "x.pth"
    torch.save(STATE, path)
    opened = read(f"{server.url}/x.pth")
    torch.save({**STATE, "more": torch.ones(5)}, path)
    with pytest.raises(FormatError) as caught:
        ckptool.convert(opened, tmp_path / "out.safetensors", dtype="fp16")
    assert caught.value.code == "file.changed"
    assert "the file changed while it was read" in caught.value.message
    assert os.listdir(tmp_path) == ["served"]


def test_a_signature_is_not_shown(server: Web, capsys: pytest.CaptureFixture[str]) -> None:
    """That of a presigned URL, or a password, whatever happens."""
    torch.save(STATE, server.folder / "x.pth")
    host = server.url.removeprefix("http://")
    for name, faults in (("x.pth", []), ("y.pth", []), ("x.pth", [403]), ("x.pth", [503] * 6)):
        server.faults[:] = faults
        main(["inspect", f"http://me:pass-word@{host}/{name}?X-Amz-Signature=sig-nature"])
        main(["inspect", f"http://me:pass-word@{host}/{name}?X-Amz-Signature=sig-nature", "--json"])
    said = "".join(capsys.readouterr())
    assert "/x.pth" in said
    assert "pass-word" not in said
    assert "sig-nature" not in said


def test_a_batch_keeps_no_signature(server: Web, tmp_path: Path, capfd: Any) -> None:
    """Nor does it take one for a pattern; another signature is no other file."""
    torch.save(STATE, server.folder / "x.pth")
    host, out = server.url.removeprefix("http://"), tmp_path / "out"
    for signature in ("sig-nature", "sig-other"):
        url = f"http://me:pass@word@{host}/{{}}?X-Amz-Signature={signature}"
        words = ["--out", str(out), "--dtype", "fp16", "--jobs", "1"]
        assert main(["batch", url.format("x.pth"), url.format("y.pth"), *words]) == 1
        assert main(["batch", url.format("x.pth"), url.format("x.bin"), *words]) == 2
        assert main(["batch", url.format("*.pth"), *words]) == 2
    said = "".join(capfd.readouterr()) + (out / "ckptool-batch.jsonl").read_text()
    assert "1 done before" in said
    assert "word@" not in said
    assert "sig-" not in said
    assert sorted(os.listdir(out)) == ["ckptool-batch.jsonl", "x.safetensors"]


def test_passwords_of_other_servers_are_not_shown() -> None:
    assert shown("sftp://me:secret@host/x.pth") == "sftp://host/x.pth"
    assert shown("hf://me/repository@v1/x.pth") == "hf://me/repository@v1/x.pth"
    assert shown("s3://bucket/a:b@c?d") == "s3://bucket/a:b@c?d"


def test_an_index_and_its_shards(server: Web) -> None:
    save_file(dict(list(STATE.items())[:20]), server.folder / "a.safetensors")
    save_file(dict(list(STATE.items())[20:]), server.folder / "b.safetensors")
    places = {
        key: "a.safetensors" if number < 20 else "b.safetensors" for number, key in enumerate(STATE)
    }
    index = server.folder / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    opened = read(f"{server.url}/x.safetensors.index.json")
    assert {key: x.tobytes() for key, x in opened.items()} == {
        key: x.numpy().tobytes() for key, x in STATE.items()
    }
    for name in ("../a.safetensors", "http://other/a.safetensors", "/a.safetensors", "a?b=c"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, name)}))
        with pytest.raises(CkptError):
            read(f"{server.url}/x.safetensors.index.json")


def test_a_web_server_is_not_written_to(server: Web, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    with pytest.raises(CkptError, match="a web server is not written to"):
        ckptool.convert(tmp_path / "x.pth", f"{server.url}/out.safetensors")


def test_the_output_is_in_the_working_directory(
    server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, server.folder / "x.pth")
    assert main(["convert", f"{server.url}/x.pth", "--dtype", "fp16"]) == 0
    assert (tmp_path / "x.fp16.safetensors").exists()


def test_memory_does_not_grow_with_the_file(server: Web) -> None:
    """300 MB are hashed; in memory are the parts under way."""
    of_two_gigabytes(server.folder / "x.safetensors", tensors=300)
    code = (
        "import sys, resource, ckptool.remote.file as f\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file = f.RemoteFile(sys.argv[1]); file.read(0, 100); before = peak()\n"
        "print(sum(len(block) for block in file.blocks(0, file.size)), peak() - before)"
    )
    url = f"{server.url}/x.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, check=True
    )
    size, growth = map(int, done.stdout.split())
    assert size == (server.folder / "x.safetensors").stat().st_size
    assert growth < 120 << 10  # KiB


@pytest.mark.parametrize("words", [["inspect"], ["identify"], ["convert", "--dry-run"]])
def test_local_files_import_nothing_of_it(words: list[str]) -> None:
    code = (
        "import sys; from ckptool.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'fsspec', 'aiohttp', 's3fs', 'ray', 'asyncio', 'ckptool.remote.stores'}; "
        "print(code, *sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, str(D0)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0"


def test_without_the_packages_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UnsupportedError) as caught:
        read("s3://bucket/x.pth")
    assert caught.value.message == "`s3://bucket/x.pth`: s3:// needs s3fs, which is not installed"
    assert caught.value.hint == "pip install 'ckptool[remote]'"


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedError, match=r"`nothing://` is not known"):
        read("nothing://x/y.pth")


def test_files_in_memory(tmp_path: Path) -> None:
    import fsspec

    torch.save(STATE, tmp_path / "x.pth")
    memory: Any = fsspec.filesystem("memory")
    memory.pipe_file("/home/x.pth", (tmp_path / "x.pth").read_bytes())
    result = ckptool.convert("memory://home/x.pth", "memory://home/out.safetensors", dtype="fp16")
    ckptool.convert(tmp_path / "x.pth", tmp_path / "out.safetensors", dtype="fp16")
    assert result.output == "memory://home/out.safetensors"
    assert memory.cat_file("/home/out.safetensors") == (tmp_path / "out.safetensors").read_bytes()
