"""Where a written file comes from: the source's name and hash, the version, the plan.

The text goes into the written file, so that it can be traced back; it is complete only once the
whole source is hashed, which happens while the tensors are copied.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.files import ByteFile, Readable
from ckptool.planning import Plan
from ckptool.tensors import View
from ckptool.version import VERSION

_NO_HASH = "0" * 64


def source_files(checkpoint: Checkpoint) -> tuple[Readable, ...]:
    """The files that the chosen weights are read from, the named one first."""
    files: dict[str, Readable] = {}
    for tensor in checkpoint.weights.tensors.values():
        if isinstance(tensor.source, View):
            file = tensor.source.record.file
            files.setdefault(file.path, file)
    own = files.pop(checkpoint.path, None) or ByteFile(checkpoint.path)
    return (own, *(file for file in files.values() if isinstance(file, ByteFile)))


def start_hashing(files: tuple[Readable, ...], pool: Executor) -> Future[dict[str, str]]:
    """The SHA-256 of each file by its path, computed by the pool."""
    return pool.submit(lambda: {file.path: sha256(file) for file in files})


def sha256(file: Readable) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    for block in file.blocks(0, file.size):
        digest.update(block)
    return digest.hexdigest()


def provenance(
    plan: Plan, checkpoint: Checkpoint, weights: WeightSet, hashed: Future[dict[str, str]]
) -> Callable[[bool], str]:
    """A function that gives the text: with zeros for the hashes, or, asked for the final one, them.

    Both have the same length, so that the one can take the other's place in a file.
    """
    files = source_files(checkpoint)
    value: dict[str, Any] = {"version": VERSION, "source": {}, "plan": plan.to_json()}
    if weights.aliases:
        value["aliases"] = weights.aliases

    def text(final: bool) -> str:
        hashes = hashed.result() if final else {}
        named = [
            {
                "name": os.path.basename(file.path),
                "bytes": file.size,
                "sha256": hashes.get(file.path, _NO_HASH),
            }
            for file in files
        ]
        source: dict[str, Any] = {**named[0], "weights": checkpoint.weights.name}
        if len(named) > 1:
            source["shards"] = named[1:]
        return json.dumps({**value, "source": source}, separators=(",", ":"))

    return text
