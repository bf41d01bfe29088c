"""Many files at once: each converted once, each failure with its cause, nothing done twice."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from files_made import BROKEN, fleet
from safetensors.torch import save_file

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, OutputError, PlanError
from ckptool.fleet import local
from ckptool.fleet.batch import Summary, run_job
from ckptool.fleet.journal import Journal, entries
from ckptool.fleet.local import run_all
from ckptool.fleet.tasks import FAILED, Job, Outcome, Task, run
from ckptool.planning import Options
from ckptool.reading import read

HALF = Job(options=Options(dtype="fp16"))


def saved(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"layer.weight": torch.full((4, 4), value), "layer.bias": torch.ones(4)}, path)
    return path


def done(journal: str | Path) -> Counter[str]:
    return Counter(entry["input"] for entry in entries(str(journal)) if entry["status"] == "done")


def check_outputs(folder: Path, out: Path, broken: dict[str, str], journal: str) -> None:
    """Every good file is converted once, every bad one is listed with its cause."""
    good = {str(path) for path in folder.rglob("*.pth")} - {*broken}
    assert done(journal) == Counter(dict.fromkeys(good, 1))
    failed = {e["input"]: e["code"] for e in entries(journal) if e["status"] == "failed"}
    assert failed == broken
    written = {str(path.relative_to(out)) for path in out.rglob("*.safetensors")}
    assert written == {
        str(Path(path).relative_to(folder).with_suffix(".safetensors")) for path in good
    }
    left = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert left == [Path(journal)]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("fleet")
    broken = fleet(folder / "in", 140)
    assert {*broken.values()} == {*BROKEN}
    return folder / "in", broken


def test_a_fleet(hundred: tuple[Path, dict[str, str]], tmp_path: Path, count: Any) -> None:
    folder, broken = hundred
    seen: list[int] = []
    found = run_job(
        [f"{folder}/*/*.pth"],
        str(tmp_path / "out"),
        HALF,
        workers=2,
        progress=lambda summary: seen.append(summary.settled),
    )
    assert (found.files, found.done, found.failed) == (140, 133, 7)
    assert seen == list(range(1, 141))
    assert {code: cause.count for code, cause in found.causes.items()} == dict.fromkeys(BROKEN, 1)
    check_outputs(folder, tmp_path / "out", broken, found.journal)
    for entry in entries(found.journal):
        if entry["status"] == "done":
            assert len(entry["sha256"]) == 64
            assert entry["plan"]
    number = "run-1/00077"
    weights = read(tmp_path / "out" / f"{number}.safetensors")
    assert weights["0.weight"].dtype == "float16"
    assert weights["number"].numpy() == 77
    took = sum(entry["seconds"] for entry in entries(found.journal))
    beyond = 1_000 * (2 * found.seconds - took) / found.files
    count("ms of a worker's time for a small file, beyond its conversion", round(beyond))
    again = run_job([f"{folder}/*/*.pth"], str(tmp_path / "out"), HALF, workers=2)
    assert (again.done, again.failed, again.skipped, again.failed_before) == (0, 0, 133, 7)
    assert again.seconds < took
    check_outputs(folder, tmp_path / "out", broken, found.journal)


def test_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "in" / "a.pth")
    (tmp_path / "in" / "b.pth").write_bytes(b"")
    (tmp_path / "in" / "c.pth").write_bytes(b"")
    words = ["batch", "--dtype", "fp16", f"{tmp_path}/in/*", "--out", str(tmp_path / "out")]
    assert main([*words, "--jobs", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 files: 1 converted, 2 failed (0:0")
    assert said[1:] == [
        "",
        "failed, by cause",
        "     2  not-a-checkpoint.empty",
        f"        `{tmp_path}/in/b.pth`: the file is empty",
        "",
        f"journal: {tmp_path}/out/ckptool-batch.jsonl",
    ]
    assert main([*words, "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["files"] == 3
    assert (value["done"], value["skipped"], value["failed"]) == (0, 1, 2)
    assert value["causes"][0]["code"] == "not-a-checkpoint.empty"
    assert main(words) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "2 failed before and were not tried again; --retry-failed tries them"
    )


def test_what_failed_is_tried_again_where_asked(tmp_path: Path) -> None:
    """Or where it is another file by now."""
    saved(tmp_path / "a.pth")
    words, out = [f"{tmp_path}/*.pth"], str(tmp_path / "out")
    (tmp_path / "b.pth").write_bytes(b"")
    job = Job(weights="nothing")
    assert run_job(words, out, job, workers=1).failed == 2
    assert run_job(words, out, job, workers=1).failed_before == 2
    again = run_job(words, out, job, workers=1, retry_failed=True)
    assert (again.failed, again.failed_before) == (2, 0)
    (tmp_path / "b.pth").write_bytes(b"<html>")
    again = run_job(words, out, job, workers=1)
    assert (again.failed, again.failed_before) == (1, 1)
    assert {*again.causes} == {"weights.unknown", "not-a-checkpoint.html"}


def test_what_changed_is_done_again(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{name}.pth") for name in "abc"]
    words, out = [f"{tmp_path}/*.pth"], tmp_path / "out"
    assert run_job(words, str(out), HALF, workers=1).done == 3
    saved(paths[0], 2.0)
    (out / "b.safetensors").unlink()
    again = run_job(words, str(out), HALF, workers=1)
    assert (again.done, again.skipped) == (2, 1)
    assert read(out / "a.safetensors")["layer.weight"].numpy().max() == 2
    assert (out / "b.safetensors").exists()


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    saved(tmp_path / "out" / "a.safetensors")
    words, out = [f"{tmp_path}/*.pth"], str(tmp_path / "out")
    found = run_job(words, out, HALF, workers=1)
    assert {*found.causes} == {"output.exists"}
    found = run_job(words, out, HALF, workers=1, retry_failed=True, force=True)
    assert found.done == 1


def test_a_stored_plan_is_for_one_signature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "a.pth")
    saved(tmp_path / "b.pth", 3.0)
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "c.pth")
    plan = tmp_path / "plan.json"
    assert main(["plan", str(tmp_path / "a.pth"), "--dtype", "fp16", "-o", str(plan)]) == 0
    words = ["batch", str(plan), f"{tmp_path}/*.pth", "--out", str(tmp_path / "out")]
    assert main([*words, "--jobs", "1", "--json"]) == 1
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (value["done"], value["failed"]) == (2, 1)
    assert value["causes"][0]["code"] == "plan.signature"
    with pytest.raises(CkptError):
        ckptool.read(tmp_path / "out" / "c.safetensors")
    assert main([*words, "--dtype", "fp16"]) == 2
    assert "a stored plan says everything itself" in capsys.readouterr().err


def test_a_worker_that_dies_costs_its_own_file(tmp_path: Path) -> None:
    tasks = [
        Task(str(saved(tmp_path / f"{n}.pth")), str(tmp_path / f"out-{n}.safetensors"))
        for n in range(8)
    ]
    outcomes = run_all(HALF, iter(tasks), 1)
    found = [next(outcomes)]
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    found += outcomes
    assert sorted(outcome.input for outcome in found) == sorted(task.input for task in tasks)
    dead = [outcome for outcome in found if outcome.status == "failed"]
    assert [outcome.code for outcome in dead] == ["worker.died"]
    assert dead[0].reason is not None
    assert dead[0].reason.startswith("the worker died (SIGKILL)")
    assert not multiprocessing.active_children()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file that needs more than a worker may have fails alone."""
    small = saved(tmp_path / "small.pth")
    with (tmp_path / "large.pkl").open("wb") as file:
        file.write(b"\x80\x04")
        file.truncate(600 << 20)  # a pickle is read as a whole
    found = run_job(
        [str(tmp_path / "large.pkl"), str(small)],
        str(tmp_path / "out"),
        Job(memory=256 << 20),
        workers=1,
    )
    assert found.done == 1
    assert {*found.causes} == {"memory"}
    assert found.failed == 1
    assert found.causes["memory"].example.reason == (
        "it needs more than the 268,435,456 bytes that a worker may have; "
        "--memory MORE, perhaps with fewer --jobs"
    )


def test_workers_that_die_as_they_start_are_not_replaced_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_serve", math.sqrt)  # it does not take what workers are given
    words = [str(saved(tmp_path / f"{number}.pth")) for number in range(20)]
    with pytest.raises(CkptError) as caught:
        run_job(words, str(tmp_path / "out"), HALF, workers=1)
    assert caught.value.code == "worker.died"
    assert caught.value.message.endswith("so did 3 before it, at once")
    assert caught.value.hint == "--memory MORE, or fewer --jobs"


def started(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["batch", "--dtype", "fp16", f"{folder}/*/*.pth", "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    journal = out / "ckptool-batch.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and len(journal.read_bytes().splitlines()) > 10:
            return process
        time.sleep(0.01)
    raise AssertionError("nothing was done")


def gone(group: int) -> bool:
    """Whether all processes of a group have ended, soon."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_stopped_in_the_middle_it_goes_on(
    sign: signal.Signals, hundred: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, broken = hundred
    out = tmp_path / "out"
    process = started(folder, out)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert gone(process.pid)
    assert len(done(out / "ckptool-batch.jsonl")) < 133
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert said.decode() == "stopped; the same command goes on where it was\n"
        assert not list(out.rglob(".ckptool-*"))
    found = run_job([f"{folder}/*/*.pth"], str(out), HALF, workers=2)
    assert found.done + found.skipped == 133
    assert found.causes.keys().isdisjoint({"output.exists"})
    check_outputs(folder, out, broken, found.journal)


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    for name in "abc":
        saved(tmp_path / f"{name}.pth")
    words, out = [f"{tmp_path}/*.pth"], tmp_path / "out"
    run_job(words, str(out), HALF, workers=1)
    journal = out / "ckptool-batch.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    again = run_job(words, str(out), HALF, workers=1)
    assert (again.done, again.skipped) == (1, 2)
    assert run_job(words, str(out), HALF, workers=1).skipped == 3


def test_what_a_killed_batch_began_does_not_replace_what_was_there_before(tmp_path: Path) -> None:
    """Its output is its own if it was written since; what is older never was."""
    for name in "ab":
        saved(tmp_path / f"{name}.pth")
    words, out = [f"{tmp_path}/*.pth"], tmp_path / "out"
    ours, theirs = saved(out / "a.safetensors"), saved(out / "b.safetensors")
    with Journal(str(out / "ckptool-batch.jsonl"), HALF.digest) as book:
        for output in (ours, theirs):
            book.begin(Task(str(tmp_path / f"{output.stem}.pth"), str(output)))
    os.utime(ours, (time.time() + 60,) * 2)
    os.utime(theirs, (0, 0))
    found = run_job(words, str(out), HALF, workers=1)
    assert (found.done, found.failed, {*found.causes}) == (1, 1, {"output.exists"})
    found = run_job(words, str(out), HALF, workers=1, retry_failed=True)
    assert (found.skipped, {*found.causes}) == (1, {"output.exists"})
    assert read(theirs)["layer.weight"].dtype == "float32"


def test_shards_are_made_anew(tmp_path: Path) -> None:
    """They cannot be replaced at once, so that they are removed: those that are the batch's own."""
    words, out, job = [str(tmp_path / "a.pth")], tmp_path / "out", Job(max_shard_size=70)
    for value in (1.0, 2.0):
        saved(tmp_path / "a.pth", value)
        assert run_job(words, str(out), job, workers=1).done == 1
        assert read(out / "a.safetensors.index.json")["layer.weight"].numpy().max() == value
    assert len([*out.glob("*.safetensors")]) == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".index.json", ".dcp"])
def test_what_an_earlier_attempt_left_gives_way(suffix: str, tmp_path: Path) -> None:
    """A whole output or a part of one; what is older than the attempt is not touched."""
    path, out = str(saved(tmp_path / "a.pth")), tmp_path / "out"
    job = Job(max_shard_size=70 if suffix == ".index.json" else None)
    output = str(out / ("a.dcp" if suffix == ".dcp" else "a.safetensors"))
    since = round(time.time(), 3)
    assert run(job, Task(path, output)).status == "done"
    exists = "output.kind" if suffix == ".dcp" else "output.exists"
    assert run(job, Task(path, output)).code == exists
    again = Task(path, output, since=since)
    assert run(job, again).status == "done"
    files = sorted(file for file in out.rglob("*") if file.is_file())
    files[0].unlink()
    assert run(job, again).status == "done"
    assert sorted(file for file in out.rglob("*") if file.is_file()) == files
    for file in files:
        os.utime(file, (1, 1))
    os.utime(output if suffix == ".dcp" else out, (1, 1))
    assert run(job, again).code == exists
    assert all(os.stat(file).st_mtime == 1 for file in files)


def test_its_own_outputs_are_no_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        saved(tmp_path / "in" / f"{name}.pth")
    for job, out in ((HALF, "in/whole"), (Job(max_shard_size=8), "in/shards"), (HALF, "in")):
        journal = f"{out}/journal.jsonl"
        assert run_job(["in/?.pth"], out, job, workers=1, journal=journal).done == 2
        found = run_job(["./in/**/*.[pjs]*"], out, job, workers=1, journal=journal, root="in")
        assert (found.files, found.skipped) == (2, 2)
        for path in Path("in").rglob("*"):
            if path.is_file() and path.suffix != ".pth":
                path.unlink()


def test_another_name_for_the_output_is_another_output(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    words, out = [f"{tmp_path}/*.pth"], tmp_path / "out"
    assert run_job(words, str(out), HALF, workers=1).done == 1
    assert run_job(words, str(out), HALF, workers=1, suffix=".pth").done == 1
    assert run_job([f"{tmp_path}/./a.pth"], str(out), HALF, workers=1, suffix=".pth").skipped == 1
    assert sorted(path.name for path in out.iterdir()) == [
        "a.pth",
        "a.safetensors",
        "ckptool-batch.jsonl",
    ]


def test_a_shard_that_changed_is_a_change_of_the_set(tmp_path: Path) -> None:
    folder, out = tmp_path / "set", str(tmp_path / "out")
    folder.mkdir()
    parts = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part in parts:
        save_file({part.stem: torch.ones(2)}, part)
    places = {part.stem: part.name for part in parts}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    words = [str(index), str(folder)]
    assert run_job(words, out, HALF, workers=1).done == 2
    assert run_job(words, out, HALF, workers=1).skipped == 2
    with open(parts[1], "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(bytes(4))
    os.utime(parts[1], (1, 1))
    assert run_job(words, out, HALF, workers=1).done == 2


def test_a_script_does_what_the_command_does(tmp_path: Path) -> None:
    path, out = saved(tmp_path / "a.pth"), tmp_path / "out"
    found = ckptool.batch([path], out, dtype="fp16", drop="*.bias", memory="4GiB", jobs=1)
    assert isinstance(found, ckptool.Summary)
    assert list(ckptool.read(out / "a.safetensors").keys()) == ["layer.weight"]
    words = ["--dtype", "fp16", "--drop", "*.bias", "--memory", "4GiB", "--jobs", "1", "--json"]
    assert main(["batch", str(path), "--out", str(out), *words]) == 0
    assert len([*entries(found.journal)]) == 1, "it is the same job"


def test_workers_have_the_environment_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a script sets after its first batch counts for the second."""
    path = str(saved(tmp_path / "a.pth"))
    assert run_job([path], str(tmp_path / "one"), HALF, workers=1).done == 1
    monkeypatch.setenv("CKPTOOL_SEEN", "now")
    monkeypatch.setattr(local, "_serve", _tell_environment)
    found = [*run_all(HALF, iter([Task(path, "CKPTOOL_SEEN")]), 1)]
    assert [outcome.reason for outcome in found] == ["now"]


def _tell_environment(connection: Any, job: Job, environment: dict[str, str]) -> None:
    task = connection.recv()
    connection.send(Outcome(task.input, task.output, FAILED, reason=environment[task.output]))


def test_an_out_that_is_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth")
    for out, reason in ((path, "it is a file"), (path / "x", "Not a directory")):
        with pytest.raises(OutputError) as caught:
            run_job([str(path)], str(out), HALF)
        assert caught.value.message == f"`{out}`: no folder can be made there: {reason}"
        assert caught.value.hint == "--out ANOTHER"


def test_a_journal_is_of_one_job_and_one_batch(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    words, out = [f"{tmp_path}/*.pth"], str(tmp_path / "out")
    journal = run_job(words, out, HALF, workers=1).journal
    with pytest.raises(PlanError, match="the journal is of another job"):
        run_job(words, out, Job(options=Options(dtype="bf16")), workers=1)
    other = tmp_path / "notes.txt"
    other.write_text("not a journal\n")
    with pytest.raises(PlanError, match="this is no journal of a batch"):
        run_job(words, out, HALF, workers=1, journal=str(other))
    assert other.read_text() == "not a journal\n"
    import fcntl

    with open(journal, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another batch writes this journal"):
            run_job(words, out, HALF, workers=1)


def test_what_is_wrong_with_all_is_said_at_once(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    words, out = [f"{tmp_path}/*.pth"], str(tmp_path / "out")
    for job, code in (
        (Job(arch="nothing"), "architecture.unknown"),
        (Job(like=str(tmp_path / "none.pth")), "file.missing"),
        (Job(arch="yolov4", like="x.pth"), "plan.options"),
    ):
        with pytest.raises(CkptError) as caught:
            run_job(words, out, job)
        assert caught.value.code == code
    with pytest.raises(OutputError):
        run_job(words, out, HALF, suffix=".xyz")
    assert not (tmp_path / "out").exists()


def test_a_summary_counts() -> None:
    assert Summary(5, "x").settled == 0
