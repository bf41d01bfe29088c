"""The same tasks on a real Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from files_made import fleet
from test_batch import check_outputs

import ckptool
from ckptool.errors import UnsupportedError
from ckptool.fleet import on_ray
from ckptool.fleet.batch import run_job
from ckptool.fleet.tasks import Job, Outcome, Task
from ckptool.planning import Options

HOME = Path(ckptool.__file__).parent.parent


def on_two_nodes(folder: Path, out: Path, kill_after: int, seconds: int) -> dict[str, Any]:
    script = str(Path(__file__).with_name("two_nodes.py"))
    words = [f"{folder}/*/*.pth", str(out), str(kill_after)]
    done = subprocess.run(
        [sys.executable, script, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_node_that_is_killed_costs_no_file(tmp_path: Path) -> None:
    broken = fleet(tmp_path / "in", 80)
    out = tmp_path / "out"
    found = on_two_nodes(tmp_path / "in", out, 20, 240)
    assert found["killed"]
    assert found["again"] > 0
    assert (found["done"], found["failed"]) == (76, 4)
    check_outputs(tmp_path / "in", out, broken, found["journal"])
    # The journal is the same whoever worked: the local engine finds nothing left to do.
    job = Job(options=Options(dtype="fp16"))
    again = run_job([f"{tmp_path}/in/*/*.pth"], str(out), job, workers=1)
    assert (again.done, again.failed, again.skipped) == (0, 0, 76)


class NewsLost:
    """A cluster of one processor that does each task, and loses the news of the first attempt."""

    class exceptions:
        RayError = ConnectionError

    def __init__(self) -> None:
        self.attempts: list[Task] = []

    def remote(self, **_: Any) -> Any:
        return lambda function: SimpleNamespace(
            remote=lambda job, task: (len(self.attempts), self._done(function, job, task))
        )

    def _done(self, function: Any, job: Job, task: Task) -> Outcome | None:
        first = task.input not in {given.input for given in self.attempts}
        self.attempts.append(task)
        outcome: Outcome = function(job, task)
        return None if first else outcome

    def get(self, reference: tuple[int, Outcome | None]) -> Outcome:
        if reference[1] is None:
            raise ConnectionError
        return reference[1]

    def put(self, value: Any) -> Any:
        return value

    def wait(self, references: list[Any], num_returns: int) -> Any:
        return references[:num_returns], references[num_returns:]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1}

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("several", [False, True], ids=["file", "shards"])
def test_what_was_done_and_not_heard_of_is_done_again(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own output gives way; what stood there before is not replaced by a second attempt."""
    for name in "ab":
        torch.save({"x": torch.ones(9), "y": torch.ones(9)}, tmp_path / f"{name}.pth")
    theirs = tmp_path / "out" / "b.safetensors"
    theirs.parent.mkdir()
    theirs.write_text("older")
    os.utime(theirs, (1, 1))
    cluster = NewsLost()
    monkeypatch.setattr(on_ray, "_joined", lambda _: cluster)
    job = Job(max_shard_size=40 if several else None)
    found = run_job([f"{tmp_path}/*.pth"], str(theirs.parent), job, engine="ray")
    assert len(cluster.attempts) == 4
    assert (found.done, {*found.causes}) == (1, {"output.exists"})
    assert theirs.read_text() == "older"


def test_without_ray_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UnsupportedError) as caught:
        run_job([str(tmp_path / "a.pth")], str(tmp_path / "out"), Job(), engine="ray")
    assert caught.value.hint == "pip install 'ckptool[ray]'"


def test_without_a_cluster_it_is_said_how_to_start_one(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    words = ["batch", str(tmp_path / "a.pth"), "--out", str(tmp_path / "out"), "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "hint: ray start --head, or --address HOST:6379"
    assert "no Ray cluster is found from this machine" in done.stderr
