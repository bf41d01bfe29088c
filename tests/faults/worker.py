"""The process that runs conversions: everything is imported, each run is a fork of its own.

A script: one request a line on stdin, one answer a line on stdout, both JSON. `words` is a command
line; with `warm` it is run in the process itself, so that all is imported then. `kill_after` ends
the run after so many seconds; `largest` is how large its files may become. `at` and `fault` name
one of its write-side calls, counted from 0, and what happens to it: an errno, `kill before`,
`kill after`, `short` (half of it is done) or `lie` (nothing is done, all of it is reported).
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from ckptool.cli import main

DATA = ("pwrite", "copy_file_range")
CALLS = (
    *(*DATA, "open", "close", "fsync", "fchmod", "fchown", "setxattr", "removexattr"),
    *("rename", "link", "unlink", "mkdir", "rmdir"),
)


class Faults:
    """Stands between ckptool and the system: notes all write-side calls, and spoils one of them."""

    def __init__(self, at: int, fault: str | None) -> None:
        self.calls: list[str] = []
        self._at = at
        self._fault = fault
        self._ours: set[int] = set()  # the descriptors that are written to, or of folders

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        fcntl.flock = self._wrapped("flock", fcntl.flock)

    def _wrapped(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if not self._counts(name, args):
                return plain(*args, **more)
            self.calls.append(f"{name}({', '.join(self._shown(item) for item in args)})")
            if len(self.calls) - 1 == self._at:
                return self._spoiled(name, plain, args)
            result = plain(*args, **more)
            if name == "open":
                self._ours.add(result)
            return result

        return call

    def _counts(self, name: str, args: tuple[Any, ...]) -> bool:
        if name == "open":
            return bool(args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY))
        if name == "close":
            ours = args[0] in self._ours
            self._ours.discard(args[0])
            return ours
        return True

    def _spoiled(self, name: str, plain: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self._fault == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "kill after":
            try:
                plain(*args)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._fault in ("short", "lie"):
            size = len(args[1]) if name == "pwrite" else args[2]
            if self._fault == "lie":
                return size
            half = (size + 1) // 2
            args = (args[0], args[1][:half], args[2]) if name == "pwrite" else args
            args = (*args[:2], half, *args[3:]) if name == "copy_file_range" else args
            return plain(*args)
        if name == "close":
            plain(*args)  # Linux gives the descriptor back whatever it says
        number = getattr(errno, str(self._fault))
        raise OSError(number, os.strerror(number))

    def _shown(self, item: Any) -> str:
        if isinstance(item, int) and item in self._ours:
            return os.readlink(f"/proc/self/fd/{item}")
        return str(item) if isinstance(item, (int, str)) else "…"


def _run(request: dict[str, Any], report: int) -> int:
    """The exit code of a command line; what it shows and what it called go into the report."""
    errors, stderr = os.pipe2(os.O_NONBLOCK)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(stderr, 2)
    os.write(stderr, b" ")  # so that there is always something to read
    if "largest" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], request["largest"]))
    faults = Faults(request.get("at", -1), request.get("fault"))
    faults.install()
    code = main(request["words"])
    sys.stderr.flush()
    shown = os.read(errors, 1 << 16).decode()[1:]
    os.write(report, json.dumps({"stderr": shown, "calls": faults.calls}).encode())
    return code


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a request in a child, and wait for its end."""
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 99
        try:
            code = _run(request, writing)
        except KeyboardInterrupt:  # sent before or after the command line ran
            code = 130
        finally:
            os._exit(code)
    os.close(writing)
    if "kill_after" in request:
        time.sleep(request["kill_after"])
        os.kill(child, request.get("signal", signal.SIGKILL))
    with os.fdopen(reading, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    answer = json.loads(report) if report else {"stderr": "", "calls": []}
    code = os.waitstatus_to_exitcode(status)
    return {**answer, "code": code, "seconds": time.monotonic() - start}


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("warm"):
            with redirect_stdout(io.StringIO()):
                answer: dict[str, Any] = {"code": main(request["words"])}
        else:
            answer = _answer(request)
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
