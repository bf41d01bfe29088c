"""Killed at any moment, or out of disk, a conversion leaves the old file or the new one."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptool.formats.atomic import Output, replace_file

from .harness import KINDS, Worker, make_job

ELEMENTS = 1_250_000  # a source of 20 MB: copied, cast, tied
KILLS = {"torch replaced": 70, "safetensors": 30, "safetensors replaced": 50, "shards": 50}


@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_random_moments(
    kind: str, worker: Worker, tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    """The moments lie anywhere in the time that an undisturbed run takes; the seed is fixed."""
    job = make_job(worker, tmp_path / "job", kind, ELEMENTS)
    whole = math.inf
    for _ in range(3):
        found = worker.run(job.words)
        whole = min(whole, found["seconds"])
        assert job.judge(found, "undisturbed")
    moments = random.Random(kind)
    killed = new = late = 0
    while killed < KILLS[kind]:
        found = worker.run(job.words, kill_after=moments.uniform(0, whole))
        is_new = job.judge(found, f"kill {killed}")
        if found["code"] == -signal.SIGKILL:
            killed, new = killed + 1, new + is_new
        else:
            late += 1
            whole = min(whole, found["seconds"])  # a machine that was busy then is no more
        assert late <= KILLS[kind], "most runs are over before they are killed"
    count("kills at random moments", killed)
    count("of these after the file had its name", new)
    assert not [path.name for path in job.folder.iterdir() if ".ckptool-" in path.name]


def test_stopped_at_random_moments(
    worker: Worker, tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    """Ctrl-C: the same, and one word about it."""
    job = make_job(worker, tmp_path / "job", "torch replaced", ELEMENTS)
    whole = worker.run(job.words)["seconds"]
    job.again()
    moments = random.Random("stop")
    stopped = 0
    for _ in range(15):
        after = moments.uniform(0, whole)
        found = worker.run(job.words, kill_after=after, signal=signal.SIGINT)
        left = [path.name for path in job.folder.iterdir() if ".ckptool-" in path.name]
        assert found["code"] in (0, 130), found
        assert len(left) <= 1
        job.judge({**found, "stderr": found["stderr"] or "stopped"}, "stop")
        stopped += found["code"] == 130
        assert found["stderr"].strip() in ("stopped", "")
    count("stops at random moments", stopped)
    assert stopped > 5


# A full disk


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_must_not_grow_any_more(
    kind: str, share: float, worker: Worker, tmp_path: Path
) -> None:
    """The limit of the process on the size of files: short writes first, then EFBIG."""
    job = make_job(worker, tmp_path / "job", kind)
    largest = max(map(len, job.new.values()))
    found = worker.run(job.words, largest=int(largest * share))
    assert job.judge(found, f"{share}") is False
    assert found["code"] == 2
    first = found["stderr"].splitlines()[0]
    assert first.startswith(f"error: `{job.folder}/out.")
    assert "cannot be written: File too large" in first
    assert not [path.name for path in job.folder.iterdir() if ".ckptool-" in path.name]


def test_a_disk_that_is_full(worker: Worker, tmp_path: Path) -> None:
    """A file system of 64 KiB, where one may be mounted; else the limits above must do."""
    job = make_job(worker, tmp_path / "job", "torch", 20_000)
    small = tmp_path / "small"
    small.mkdir()
    source, output = job.folder / "source.pth", small / "out.pth"
    script = (
        f"mount -t tmpfs -o size=64k none {small} && echo mounted && printf old > {output} && "
        f"{sys.executable} -m ckptool convert {source} -o {output} --force; echo $?; "
        f"cat {output}; echo; ls -A {small}"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if "mounted" not in done.stdout:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["mounted", "2", "old", "out.pth"]
    assert done.stderr.startswith(f"error: `{output}`: cannot be written: No space left on device")
    assert len(done.stderr.splitlines()) == 1


# Readers meanwhile

READER = """
import sys, os, signal
going, reads, seen = [1], 0, set()
signal.signal(signal.SIGTERM, lambda *_: going.clear())
print(flush=True)
while going:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    assert len(data) == 100_000 and data == data[:1] * 100_000, (len(data), set(data))
    reads += 1
    seen.add(data[:1])
print(reads, len(seen))
"""


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    path = tmp_path / "target"
    path.write_bytes(b"\0" * 100_000)
    processes = [
        subprocess.Popen([sys.executable, "-c", READER, path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


@pytest.mark.parametrize("replaces", [300, pytest.param(5_000, marks=pytest.mark.sweep)])
def test_readers_see_the_old_or_the_new_file(
    replaces: int,
    readers: list[subprocess.Popen[str]],
    tmp_path: Path,
    count: Callable[[str, int], None],
) -> None:
    def fill(number: int) -> Callable[[Output], None]:
        return lambda output: output.write(bytes((number & 255,)) * 100_000)

    for number in range(replaces):
        replace_file(str(tmp_path / "target"), fill(number), lambda _: None, force=True)
    time.sleep(0.05)
    reads = 0
    for process in readers:
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        total, seen = map(int, process.stdout.readline().split())
        assert process.wait() == 0
        assert seen > 10
        reads += total
    count("reads while a file was replaced, none torn", reads)
    assert os.listdir(tmp_path) == ["target"]


def test_two_conversions_to_one_name_at_once(worker: Worker, tmp_path: Path) -> None:
    """Both run to their end; one of the two files is there, whole."""
    job = make_job(worker, tmp_path / "job", "torch replaced", 200_000)
    processes = [
        subprocess.Popen([sys.executable, "-m", "ckptool", *job.words], stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert job.judge({"code": 0}, "three at once")
    assert shutil.disk_usage(job.folder).total > 0
    assert sorted(path.name for path in job.folder.iterdir()) == ["out.pth", "source.pth"]
