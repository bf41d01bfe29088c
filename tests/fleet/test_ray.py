"""The same tasks on a real Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from files_made import fleet
from test_batch import check_outputs

import ckptool
from ckptool.errors import UnsupportedError
from ckptool.fleet.batch import run_job
from ckptool.fleet.tasks import Job
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
