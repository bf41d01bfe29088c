"""Convert: a plan, carried out lazily, written atomically, proven before it gets its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.errors import OutputError, quoted
from ckptool.files import BLOCK, ByteFile
from ckptool.formats import writer_for
from ckptool.formats.atomic import refuse_target, replace_file
from ckptool.formats.payload import Payload
from ckptool.planning import Plan, execute
from ckptool.plugins import Applied
from ckptool.verification import prove
from ckptool.version import VERSION

_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion did; `measured` is what its edits cost, by key."""

    input: str
    output: str
    plan: Plan
    applied: tuple[Applied, ...]
    dropped: tuple[str, ...]
    verified: bool
    nbytes: int
    sha256: str
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    also_fits: tuple[str, ...] = ()
    fits_strict: bool | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each thing that an edit did not carry over."""
        return tuple(note for result in self.applied for note in result.notes)


def carry_out(
    plan: Plan,
    checkpoint: Checkpoint,
    output: str,
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Write the planned weights to a file and prove it.

    `progress` is told the phase (`write` or `verify`), the bytes done and the bytes in all.

    Raises: CkptError; nothing is left behind then, and an existing file is as it was.
    """
    writer = writer_for(output)
    _refuse_input(checkpoint.path, output)
    refuse_target(output, force=force)
    weights, applied = execute(plan, checkpoint.weights)
    dropped = tuple(key for result in applied for key in result.dropped)
    total = sum(tensor.nbytes for tensor in weights.tensors.values())
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, checkpoint.path)
        payload = Payload(
            weights.tensors,
            weights.versions,
            _kept_metadata(checkpoint),
            _provenance(plan, checkpoint, weights, digest),
            _counter("write", total, progress),
        )
        measured = replace_file(
            output,
            lambda file: writer(file, payload),
            lambda path: prove(path, weights, _counter("verify", total, progress)),
            force=force,
        )
    return Result(
        checkpoint.path,
        output,
        plan,
        applied,
        dropped,
        True,
        os.path.getsize(output),
        digest.result(),
        measured,
    )


def _refuse_input(source: str, output: str) -> None:
    """The output may not be the input, by whatever name."""
    if os.path.exists(output) and os.path.samefile(source, output):
        raise OutputError(
            f"{quoted(output)} is the input file itself", hint="-o ANOTHER", code="output.input"
        )


def _sha256(path: str) -> str:
    file = ByteFile(path)
    digest = hashlib.sha256()
    for block in file.blocks(0, file.size, BLOCK):
        digest.update(block)
    file.check_unchanged()
    return digest.hexdigest()


def _provenance(
    plan: Plan, checkpoint: Checkpoint, weights: WeightSet, digest: Future[str]
) -> Callable[[], str]:
    """The provenance's text: without the source's hash at first, with it when asked again."""
    asked: list[None] = []

    def text() -> str:
        sha256 = digest.result() if asked else _NO_HASH
        asked.append(None)
        value: dict[str, Any] = {
            "version": VERSION,
            "source": {
                "name": os.path.basename(checkpoint.path),
                "bytes": checkpoint.nbytes,
                "sha256": sha256,
                "weights": checkpoint.weights.name,
            },
            "plan": plan.to_json(),
        }
        if weights.aliases:
            value["aliases"] = weights.aliases
        return json.dumps(value, separators=(",", ":"))

    return text


def _kept_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The source's own metadata, if it is of a safetensors file."""
    metadata = checkpoint.contents.metadata
    if checkpoint.contents.format != "safetensors":
        return {}
    return {key: value for key, value in metadata.items() if key not in ("ckptool", "format")}


def _counter(
    phase: str, total: int, progress: Callable[[str, int, int], None] | None
) -> Callable[[int], None]:
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(phase, done, total)

    return count
