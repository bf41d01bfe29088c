"""The side of the tests: a worker process, cases handed to it, and the judgement."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import ckptool

from .case import Case

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(ckptool.__file__)))
_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


class Worker:
    """An armed process that reads files in `folder`; one that a violation ended starts again."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "case")
        self._home = os.path.join(folder, "home")  # its working directory, which must stay empty
        os.mkdir(self._home)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: str, do: str, **more: object) -> dict[str, Any]:
        """The answer to one request; AssertionError for a violation or a death."""
        process = self._process or self._started()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"do": do, "path": path, **more}).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"violation": "the process died"}
        if "violation" in answer:
            process.stdin.close()  # it may be waiting for the next request
            status = process.wait()
            self.close()
            raise AssertionError(f"{answer['violation']} (exit status {status})")
        return dict(answer)

    def examine(self, case: Case, do: str = "read", **more: object) -> dict[str, Any]:
        """The answer for a case, in a folder of its own."""
        os.mkdir(self._folder)
        try:
            return self.ask(case.write(self._folder), do, **more)
        finally:
            shutil.rmtree(self._folder)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin and process.stdout
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": _ROOT,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._home,
            env=environment,
        )
        return self._process


def judge(case: Case, found: dict[str, Any]) -> None:
    """Whether a case came out as it must; the worker has seen to the rest."""
    if case.code is not None:
        assert found.get("code", "").startswith(case.code) and "code" in found, found
    else:
        assert found.get("opened"), found
        assert found.get("tensors", {}).get("code") == case.tensors_code, found
        listed = {name for name, danger in found["globals"].items() if danger}
        assert set(case.names) <= listed, found["globals"]
    assert found["peak"] <= (64 << 20) + 64 * len(case.data), f"{found['peak']:,} bytes of memory"
