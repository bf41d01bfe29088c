"""The side of the tests: a worker that runs command lines, and the rule that holds after each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ckptool
from ckptool.formats.atomic import replace_text

_WORKER = Path(__file__).with_name("worker.py")
_ROOT = Path(ckptool.__file__).parent.parent


class Worker:
    """A warm process that forks a child for each command line."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, words: list[str], **more: object) -> dict[str, Any]:
        """Exit code (negative: killed by that signal), stderr, write-side calls, seconds."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"words": words, **more}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Job:
    """A conversion in a folder of its own: what is there before, and what it makes of it.

    `new` is what an undisturbed run writes, by name; `old` the file that it replaces, if any.
    """

    folder: Path
    words: list[str]
    new: dict[str, bytes]
    old: dict[str, bytes]

    def outputs(self) -> dict[str, bytes]:
        """What lies in the folder, the source and what a next run cleans up aside."""
        replace_text(str(self.folder / "next"), "")
        (self.folder / "next").unlink()
        return {
            path.name: path.read_bytes()
            for path in self.folder.iterdir()
            if path.name != "source.pth"
        }

    def again(self) -> None:
        """Make the folder as it was before."""
        for path in self.folder.iterdir():
            if path.name != "source.pth":
                path.unlink()
        for name, data in self.old.items():
            (self.folder / name).write_bytes(data)
            with suppress(PermissionError):
                os.chown(self.folder / name, 1, 1)  # what replaces it is given to its owner

    def judge(self, found: dict[str, Any], what: str) -> bool:
        """Whether the new file is there; AssertionError if what is there is neither old nor new."""
        outputs = self.outputs()
        assert outputs in (self.old, self.new), (what, sorted(outputs), found)
        is_new = outputs == self.new
        if found["code"] == 0:
            assert is_new, (what, found)
        elif found["code"] > 0:
            lines = found["stderr"].splitlines()
            assert found["code"] in (2, 130), (what, found)
            assert lines, what
            assert found["code"] != 2 or lines[0].startswith("error: `"), (what, lines)
            assert len(lines) in (1, 2, 3), (what, lines)
            assert "a defect in ckptool" not in found["stderr"], (what, lines)
        if is_new:
            self.again()
        return is_new


def make_job(worker: Worker, folder: Path, kind: str, elements: int = 3000) -> Job:
    """A conversion of that kind, run once undisturbed: copied bytes, cast values, a tie."""
    folder.mkdir()
    torch.manual_seed(0)
    shared = torch.randn(elements)
    state = {"a": shared, "b": torch.arange(elements), "c": shared, "d": torch.randn(elements)}
    torch.save(state, folder / "source.pth")
    suffix = "pth" if "torch" in kind else "safetensors"
    words = ["convert", str(folder / "source.pth"), "-o", str(folder / f"out.{suffix}")]
    words += ["--keep-fp32", "d", "--dtype", "fp16"]
    old = {f"out.{suffix}": b"old"} if "replaced" in kind else {}
    if "replaced" in kind:
        words.append("--force")
    if "shards" in kind:
        words += ["--max-shard-size", str(elements * 7)]
    job = Job(folder, words, {}, old)
    job.again()
    found = worker.run(words, warm=True)
    assert found["code"] == 0, found
    job = Job(folder, words, job.outputs(), old)
    assert len(job.new) == (4 if "shards" in kind else 1)
    job.again()
    return job


KINDS = ("torch", "torch replaced", "safetensors", "safetensors replaced", "shards")
