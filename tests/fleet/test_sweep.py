"""2,000 small and 20 full-size checkpoints, 5 % of them broken, here and on a Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints_made import effdet
from files_made import BROKEN, fleet
from test_batch import check_outputs
from test_ray import HOME, on_two_nodes

from ckptool.fleet.batch import run_job
from ckptool.fleet.journal import entries
from ckptool.fleet.tasks import Job
from ckptool.planning import Options

pytestmark = pytest.mark.sweep
SMALL, FULL = 2_000, 20
MOST_BEYOND = 25  # ms
MILLION = 1_000_000


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("fleet") / "in"
    broken = fleet(folder, SMALL)
    state = {
        key: torch.randn(x.shape) if x.is_floating_point() else torch.tensor(1)
        for key, x in effdet("tf_efficientdet_d0").state_dict().items()
    }
    (folder / "full").mkdir()
    for number in range(FULL):
        torch.save(state, folder / "full" / f"{number:02d}.pth")
    (folder / "full" / "07.pth").write_bytes((folder / "full" / "06.pth").read_bytes()[:-99_999])
    broken[str(folder / "full" / "07.pth")] = "format.truncated"
    assert {*broken.values()} == {*BROKEN}
    return folder, broken


def test_here(
    thousands: tuple[Path, dict[str, str]], tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    folder, broken = thousands
    job, words, out = Job(options=Options(dtype="fp16")), [f"{folder}/*/*.pth"], tmp_path / "out"
    found = run_job(words, str(out), job, workers=2)
    assert (found.done, found.failed) == (SMALL + FULL - len(broken), len(broken))
    check_outputs(folder, out, broken, found.journal)
    took = sum(entry["seconds"] for entry in entries(found.journal))
    beyond = 1_000 * (2 * found.seconds - took) / found.files
    count("seconds for 2,020 files", round(found.seconds))
    count("µs of a worker's time for a file, beyond its conversion", round(1_000 * beyond))
    assert beyond <= MOST_BEYOND
    again = run_job(words, str(out), job, workers=2)
    assert (again.done, again.failed) == (0, 0)
    count("ms to find that nothing of 2,020 files is left to do", round(1_000 * again.seconds))


def test_on_two_nodes(
    thousands: tuple[Path, dict[str, str]], tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    folder, broken = thousands
    found = on_two_nodes(folder, tmp_path / "out", SMALL // 2, 1_200)
    assert found["killed"]
    assert found["again"] > 0
    assert (found["done"], found["failed"]) == (SMALL + FULL - len(broken), len(broken))
    check_outputs(folder, tmp_path / "out", broken, found["journal"])
    count("seconds for 2,020 files on two nodes, one killed", round(found["seconds"]))
    again = run_job(
        [f"{folder}/*/*.pth"], str(tmp_path / "out"), Job(options=Options(dtype="fp16"))
    )
    assert (again.done, again.failed) == (0, 0)


def test_what_a_million_files_cost_the_parent(
    tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    """All of its own work is real but for the store's listing; no file is converted."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("a_million.py")), str(MILLION), tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    count("µs of the parent for one of a million files", round(found["first"]))
    count("µs to find that one of a million is done", round(found["again"]))
    count("µs to give a task to a worker and hear of it", round(found["one worker"] * 10))
    count(
        "bytes of the journal for one of a million files", round(found["journal bytes"] / MILLION)
    )
    count("MiB of the parent with a million files", round(found["peak bytes"]) >> 20)
    assert found["first"] + found["one worker"] * 10 < MILLION / 1_000  # a thousand a second
    assert found["peak bytes"] < 2 << 30
