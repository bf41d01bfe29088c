"""Read the files named on stdin in a process that can import nothing but ckptool and numpy.

Prints, as JSON, for each file its weight sets: keys in order, dtype, shape, SHA-256 of the bytes.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import ckptool
from ckptool.errors import CkptError
from ckptool.reading import Opened, open_file

# `org` is Jython's, which the standard library asks for when numpy imports its own `pickle`.
ALLOWED = {*sys.stdlib_module_names, "ckptool", "numpy", "ml_dtypes", "org"}


def read_elsewhere(paths: Sequence[Path]) -> dict[str, Any]:
    """What such a process reads, by path; it fails if it was asked for any other import."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", __file__],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(ckptool.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["torch"] is False
    found: dict[str, Any] = answer["files"]
    return found


class Wall(importlib.abc.MetaPathFinder):
    """Refuses, loudly, every import that a reader has no business with."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in ALLOWED:
            print(f"import of {name}", file=sys.stderr)  # noqa: T201
            sys.exit(3)
        return None


def described(opened: Opened) -> dict[str, Any]:
    return {
        "format": opened.contents.format,
        "globals": [item.name for item in opened.contents.globals],
        "sets": {
            found.name: {
                "origin": found.origin,
                "findings": {item.code: item.message for item in found.findings},
                "refused": {key: item.kind for key, item in found.refused.items()},
                "tensors": [
                    [key, x.dtype, list(x.shape), hashlib.sha256(x.tobytes()).hexdigest()]
                    for key, x in found.tensors.items()
                ],
            }
            for found in opened.sets
        },
    }


def main() -> None:
    sys.meta_path.insert(0, Wall())
    found = {}
    for path in json.load(sys.stdin):
        try:
            found[path] = described(open_file(path))
        except CkptError as error:
            found[path] = {"error": error.message}
    json.dump({"files": found, "torch": "torch" in sys.modules}, sys.stdout)


if __name__ == "__main__":
    main()
