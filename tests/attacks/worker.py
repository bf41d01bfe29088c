"""The process that reads hostile files: whatever else than reading happens in it ends it.

A script: one request a line on stdin, one answer a line on stdout, both JSON. While a file is
read, every audit event but the opening of a file in its folder to read it is a violation; so is
any exception but CkptError, and any change of the folder, the modules or the open descriptors.
"""

from __future__ import annotations

import copyreg
import gc
import hashlib
import json
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy
import numpy.lib.stride_tricks

from ckptool.checkpoint import WeightSet
from ckptool.containers import choose, left_aside
from ckptool.errors import CkptError
from ckptool.formats import folders, foreign, formats, sharded, tiles
from ckptool.reading import open_file, read

MOST_SECONDS = 30  # of CPU, for one case; one that never ends is killed
MOST_MEMORY = 6 << 30

# What the readers import on first use, and the codecs that they name.
ON_FIRST_USE = (*formats(), folders, foreign, sharded, tiles)
numpy.dtype(ml_dtypes.bfloat16)
for _codec in ("utf-8", "ascii", "latin-1", "raw-unicode-escape"):
    b"a".decode(_codec)

_answers = 1  # the descriptor that answers go to
_armed_for: str | None = None  # the folder that may be read; None: not armed
_READ_ONLY = ~(os.O_CLOEXEC | os.O_NONBLOCK)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _armed_for is None or event == "builtins.id":
        return
    path = str(args[0]) if args else ""
    real = os.path.dirname(os.path.realpath(path))
    if event == "open" and real == _armed_for and args[2] & _READ_ONLY == os.O_RDONLY:
        return
    if event == "os.listdir" and path == _armed_for:
        return
    _violate(f"audit event {event} {args!r:.300}")


def _violate(what: str) -> None:
    """Tell the parent, and end before anything else can happen."""
    os.write(_answers, json.dumps({"violation": what}).encode() + b"\n")
    os._exit(99)


def _armed(path: str, act: Callable[[], Any]) -> Any:
    """What an act gives, or the CkptError that it raises, under watch."""
    global _armed_for
    folder = os.path.dirname(path)
    before = _state(folder)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    _armed_for = folder
    try:
        result = act()
    except CkptError as error:
        result = _checked(error)
    except BaseException:
        _armed_for = None
        _violate(f"an exception that is no CkptError:\n{traceback.format_exc()[-2000:]}")
    _armed_for = None
    signal.setitimer(signal.ITIMER_PROF, 0)
    after = _state(folder)
    if after != before:
        _violate(f"the process or the folder changed: {before!r:.400} -> {after!r:.400}")
    return result


def _state(folder: str) -> tuple[Any, ...]:
    """Everything that reading a file must leave as it is."""
    files = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            files[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    free = os.dup(0)  # the lowest free descriptor: larger if one was left open
    os.close(free)
    return (
        files,
        os.listdir("."),
        free,
        len(sys.modules),
        "torch" in sys.modules,
        (len(copyreg.dispatch_table), len(copyreg._extension_registry)),  # type: ignore[attr-defined]
        id(pickle.Unpickler),
        sys.getrecursionlimit(),
        sys.getprofile(),
    )


def _checked(error: CkptError) -> dict[str, Any]:
    for text in (error.message, error.hint or "", str(error)):
        if len(text) > 1_000 or not text.isprintable():
            _violate(f"{error.code}: a message of {len(text)} characters: {text!r:.300}")
    return {"code": error.code, "message": error.message}


def _read(path: str, twice: bool = True) -> dict[str, Any]:
    """Everything that a reading command asks of a file; refusals that come late are noted."""
    opened = open_file(path)
    found: dict[str, Any] = {
        "opened": True,
        "format": opened.contents.format,
        "globals": {item.name: item.danger for item in opened.contents.globals},
        "sets": [item.name[:200] for item in opened.sets[:20]],
        "findings": [finding.code for finding in opened.contents.findings],
    }
    chosen = None
    try:
        chosen = choose(opened.sets)
        if twice:
            found["keys"] = [key[:200] for key in list(read(path))[:20]]
    except CkptError as error:
        found["unchosen"] = _checked(error)["code"]
    found["aside"] = [
        item.what for item in left_aside(opened.contents.root, chosen, opened.nbytes)[:20]
    ]
    try:
        found["digest"] = _digest(opened.sets)
    except CkptError as error:
        found["tensors"] = _checked(error)
    return found


def _digest(sets: tuple[WeightSet, ...]) -> str:
    """A hash of all names, types, shapes and values."""
    whole = hashlib.sha256()
    for found in sets:
        whole.update(repr((found.name, sorted(found.refused))).encode("utf-8", "surrogatepass"))
        for key, tensor in found.tensors.items():
            about = repr((key, tensor.dtype, tensor.shape))
            whole.update(about.encode("utf-8", "surrogatepass"))
            for chunk in tensor.chunks():
                whole.update(chunk)
    return whole.hexdigest()


def _opened(path: str) -> dict[str, Any]:
    """The digest alone: what a mutant of a seed is asked for."""
    return {"digest": _digest(open_file(path).sets)}


def _mutants(path: str, kind: str, first: int, last: int) -> dict[str, Any]:
    """All truncations to, or all flips of the bits of, the bytes from `first` to `last`."""
    with open(path, "rb") as file:
        seed = file.read()
    whole = _armed(path, lambda: _opened(path))
    outcomes: Counter[str] = Counter()
    changed: list[int] = []
    writing = os.open(path, os.O_WRONLY)

    def judge(place: int) -> None:
        found = _armed(path, lambda: _opened(path))
        same = found.get("digest") == whole["digest"]
        outcomes[found.get("code") or ("same" if same else "changed")] += 1
        if "code" not in found and not same:
            changed.append(place)

    for at in range(first, last):
        if kind == "cut":
            os.ftruncate(writing, at)
            judge(at)
            os.pwrite(writing, seed, 0)
        else:
            for bit in range(8):
                os.pwrite(writing, bytes((seed[at] ^ 1 << bit,)), at)
                judge(at * 8 + bit)
            os.pwrite(writing, seed[at : at + 1], at)
    os.close(writing)
    return {"outcomes": outcomes, "changed": changed}


def _profiled(path: str) -> list[str]:
    """What the package's own code calls while the file is read.

    Every function outside the package by name, as `package.function` if it is in Python, and the
    modules of the package that are entered.
    """
    seen: set[str] = set()

    def note(frame: Any, event: str, function: Any) -> None:
        caller = frame if event == "c_call" else frame.f_back
        if not caller.f_globals.get("__name__", "").startswith("ckptool"):
            return
        if event == "c_call":
            owner = function.__module__
            seen.add(f"{owner + '.' if owner else ''}{function.__qualname__}")
        elif event == "call":
            module = frame.f_globals.get("__name__", "")
            inside = module.startswith("ckptool")
            package = module.partition(".")[0]
            seen.add(module if inside else f"{package}.{frame.f_code.co_name}")

    sys.setprofile(note)  # not armed: to look at a frame is an audit event, too
    try:
        _read(path, twice=False)
    except CkptError:
        pass
    finally:
        sys.setprofile(None)
    return sorted(seen)


def _timed(path: str, times: int) -> dict[str, Any]:
    """The least CPU seconds of several runs, and the peak memory of the first."""
    spent: list[float] = []

    def act() -> None:
        start = time.process_time()
        _armed(path, lambda: _read(path, twice=False))
        spent.append(time.process_time() - start)

    _, peak = _peak_of(act)
    gc.disable()  # the collector's runs come in steps of their own
    for _ in range(1, times):
        act()
    gc.enable()
    return {"seconds": min(spent[-times:]), "peak": peak}


def _peak_of(act: Callable[[], Any]) -> tuple[Any, int]:
    """What an act gives, and the bytes that the process grew by at most meanwhile."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts again at the present size
    before = _memory("VmRSS")
    result = act()
    return result, _memory("VmHWM") - before


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def _in_child(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an act gives in a process that has read nothing yet: freed memory hides what is used."""
    global _answers
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _answers = writing
        os.write(writing, json.dumps(act()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    return dict(json.loads(answer)) if answer else {"violation": f"died: {status}"}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    path = request["path"]
    kind = request["do"]
    if kind == "read":
        found, peak = _peak_of(lambda: _armed(path, lambda: _read(path)))
        return {**found, "peak": peak}
    if kind == "profile":
        return {"callables": _profiled(path)}
    if kind == "time":
        return _in_child(lambda: _timed(path, request["times"]))
    return _mutants(path, kind, request["first"], request["last"])


def main() -> None:
    """Answer until the requests end."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_watch)
    for line in sys.stdin:
        answer = _answer(json.loads(line))
        os.write(_answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
