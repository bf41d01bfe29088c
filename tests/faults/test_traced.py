"""The system calls of a conversion, traced: their order, and faults put below ckptool.

By strace, where a process may be traced; elsewhere by the functions of `os` that ckptool calls.
The summary says which of the two it was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .harness import KINDS, Job, Worker, make_job

DATA = ("pwrite64", "copy_file_range")
WRITING = (
    *(*DATA, "openat", "close", "flock", "fchmod", "fchown", "fsetxattr", "fremovexattr", "fsync"),
    *("rename", "link", "unlink", "mkdir", "rmdir"),
)
# What the functions of `os` are called.
OS = {
    "openat": "open",
    "pwrite64": "pwrite",
    "fsetxattr": "setxattr",
    "fremovexattr": "removexattr",
}
# What else a conversion may do with what it writes: nothing of it changes a byte or a name.
READING = (
    *("pread64", "read", "lseek", "newfstatat", "fstat", "stat", "lstat", "statx", "getdents64"),
    *("getxattr", "fgetxattr", "readlink", "access", "getcwd", "ioctl", "fcntl", "fadvise64"),
)
ERRORS = ("error=ENOSPC", "error=EIO", "error=EDQUOT", "error=EINTR")
KILL = "signal=SIGKILL"
LIE = "retval=9999"  # nothing is done, that many bytes are said to be
_LINE = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>.*)")
# A call during which another thread makes one takes two lines; it counts from when it is done.
_BEGUN = re.compile(r"(\d+) +(\w+\(.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")

Counting = Callable[[str, int], None]


@dataclass(frozen=True)
class Call:
    """A system call: its name, what it was about, and which of that name it was in its thread."""

    name: str
    about: str
    number: int


@cache
def may_trace() -> bool:
    """Whether strace is there, and may spoil a call."""
    if not shutil.which("strace"):
        return False
    words = ["strace", "-f", "-qq", "-e", "inject=mkdir:error=EIO", "mkdir", "/"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "(INJECTED)" in done.stderr


def trace(job: Job, *inject: str) -> tuple[dict[str, Any], list[Call], bool]:
    """What came out, the calls about the job's folder in order, and whether a fault was put in."""
    log = job.folder.parent / "log"
    words = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log)]
    words += [] if KILL in "".join(inject) else ["--seccomp-bpf"]  # faster, but no signals then
    words += ["-e", f"trace={','.join(WRITING)}", *(f"--inject={item}" for item in inject)]
    done = subprocess.run(
        [*words, sys.executable, "-m", "ckptool", *job.words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    calls, numbers = [], Counter[tuple[str, str]]()
    text = log.read_text()
    begun: dict[str, str] = {}
    for line in text.splitlines():
        if match := _BEGUN.fullmatch(line):
            begun[match[1]] = match[2]
            continue
        if match := _ENDED.fullmatch(line):
            line = f"{match[1]} {begun.pop(match[1])}{match[2]}"
        match = _LINE.match(line)
        if match:
            thread, name, arguments, _ = match.groups()
            numbers[thread, name] += 1
            if writes(name, arguments, str(job.folder)):
                calls.append(Call(name, arguments, numbers[thread, name]))
    return {"code": done.returncode, "stderr": done.stderr}, calls, "(INJECTED)" in text


def writes(name: str, arguments: str, folder: str) -> bool:
    """Whether a call is about what is written: a temporary name, or the folder of the target."""
    if name == "openat":
        return folder in arguments and ("O_CREAT" in arguments or is_folder(arguments))
    return ".ckptool-" in arguments or f"<{folder}>" in arguments


def is_folder(arguments: str) -> bool:
    return "O_DIRECTORY" in arguments and "O_NONBLOCK" not in arguments  # those list it


def calls_of(job: Job, worker: Worker, count: Counting) -> list[Call]:
    """The write-side calls of a conversion, by whatever shows them."""
    if may_trace():
        count("orders of calls, shown by strace", 1)
        found, calls, _ = trace(job)
    else:
        count("orders of calls, shown by a double of os: nothing may be traced here", 1)
        found = worker.run(job.words)
        names = {theirs: name for name, theirs in OS.items()}
        parted = [call.partition("(") for call in found["calls"]]
        calls = [Call(names.get(name, name), about, 0) for name, _, about in parted]
    assert job.judge(found, "traced")
    return calls


@pytest.fixture(scope="module", params=KINDS)
def traced(
    request: pytest.FixtureRequest,
    worker: Worker,
    count: Counting,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Job, list[Call]]:
    """A job of each kind, and its calls."""
    job = make_job(worker, tmp_path_factory.mktemp("traced") / "job", request.param)
    return job, calls_of(job, worker, count)


def test_data_are_on_the_disk_before_they_have_a_name(traced: tuple[Job, list[Call]]) -> None:
    """All data, their flush, the name, the flush of the folder; of a set, the index last."""
    job, calls = traced
    order = ""
    for call in calls:
        if call.name in DATA:
            order += "d"
        elif call.name == "fsync":
            order += "f" if ".ckptool-" in call.about else "F"
        elif call.name in ("rename", "link"):
            order += "I" if "index.json" in call.about else "N"
    assert re.fullmatch("(d+f){4}NNNFIF" if len(job.new) == 4 else "d+fNF", order), order


def test_what_is_written_is_new_and_locked_before_the_first_byte(
    traced: tuple[Job, list[Call]],
) -> None:
    job, calls = traced
    names = [call.name for call in calls]
    made = calls[names.index("mkdir" if len(job.new) == 4 else "openat")]
    assert ".ckptool-" in made.about
    assert "flock" in names[: names.index("pwrite64")]
    if may_trace() and made.name == "openat":
        assert "O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC" in made.about


def test_untouched_data_are_copied_by_the_kernel(traced: tuple[Job, list[Call]]) -> None:
    """One call for each of the two untouched tensors."""
    assert [call.name for call in traced[1]].count("copy_file_range") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_call_writes(kind: str, worker: Worker, tmp_path: Path, count: Counting) -> None:
    """Of all system calls about what is written, those above are the only ones that change it."""
    if not may_trace():
        pytest.skip("nothing may be traced here: strace is not installed, or not allowed")
    job = make_job(worker, tmp_path / "job", kind)
    log = tmp_path / "log"
    words = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log), sys.executable]
    subprocess.run([*words, "-m", "ckptool", *job.words], check=True, stdout=subprocess.DEVNULL)
    others = Counter[str]()
    for name, arguments in re.findall(r"(?m)^\d+ +(\w+)\((.*)", log.read_text()):
        about = ".ckptool-" in arguments or f"{job.folder}/out" in arguments
        if not about or name in (*READING, *WRITING):
            continue
        others[name] += name != "mmap" or "PROT_WRITE" in arguments
    assert not +others, others
    count("conversions whose every system call was looked at", 1)


def spoil(job: Job, worker: Worker, count: Counting, call: Call, at: int, fault: str) -> None:
    """Put a fault into one call, below ckptool where that may be, and judge what is left."""
    if may_trace():
        found, _, injected = trace(job, f"{call.name}:{fault}:when={call.number}")
        assert injected or found["code"] < 0, (call, fault)
        count("faults put into system calls by strace", 1)
    else:
        double = {KILL: "kill before", LIE: "lie"}.get(fault, fault.removeprefix("error="))
        found = worker.run(job.words, at=at, fault=double)
        count("faults put in by a double of os: nothing may be traced here", 1)
    is_new = job.judge(found, f"{fault} at {call}")
    if fault == LIE:
        assert (found["code"], is_new) == (2, False), call


def test_faults_below_ckptool(worker: Worker, tmp_path: Path, count: Counting) -> None:
    """The last call of each name on a full disk; the first write, and copy, that only says so."""
    job = make_job(worker, tmp_path / "job", "torch replaced")
    calls = calls_of(job, worker, count)
    for number in {call.name: at for at, call in enumerate(calls)}.values():
        spoil(job, worker, count, calls[number], number, "error=ENOSPC")
    for name in DATA:
        number = next(at for at, call in enumerate(calls) if call.name == name)
        spoil(job, worker, count, calls[number], number, LIE)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_all_faults_below_ckptool(
    kind: str, worker: Worker, tmp_path: Path, count: Counting
) -> None:
    """Every call: four errors, a kill, a write that only says it was."""
    job = make_job(worker, tmp_path / "job", kind)
    calls = calls_of(job, worker, count)
    for at, call in enumerate(calls):
        for fault in (*ERRORS, KILL, *((LIE,) if call.name in DATA else ())):
            spoil(job, worker, count, call, at, fault)
