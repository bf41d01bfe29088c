"""Carry a plan out: write the planned weights, prove what was written, then give it its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ckptool.causes import Target
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.errors import OutputError, quoted
from ckptool.files import ByteFile
from ckptool.formats import writer_for
from ckptool.formats.atomic import Output, refuse_target, replace_file, replace_set
from ckptool.formats.payload import Payload
from ckptool.formats.sharded_writer import index_path, shard_paths, split, write_index
from ckptool.planning import Plan, execute
from ckptool.plugins import Applied
from ckptool.provenance import provenance, source_files, start_hashing
from ckptool.verification import prove

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint, the plan for it, and the architectures that would get the same plan.

    `target` is what the result should fit, None where nothing was named or identified.
    """

    checkpoint: Checkpoint
    plan: Plan
    target: Target | None = None
    also_fits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion did.

    `dropped` are the keys that are not in the output, `measured` what the edits cost, by key;
    `fits_strict` whether the output fits its target, None if it has none. `sha256` is the source's.
    """

    input: str
    output: str
    plan: Plan
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    verified: bool
    nbytes: int
    sha256: str
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    also_fits: tuple[str, ...] = ()
    fits_strict: bool | None = None


def carry_out(
    prepared: Prepared,
    output: str,
    *,
    force: bool = False,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Write the planned weights to a file, or to shards with an index, and prove them.

    `progress` is told the phase (`write` or `verify`), the bytes done and the bytes in all.

    Raises: CkptError; nothing is left behind then, and an existing file is as it was.
    """
    checkpoint, plan = prepared.checkpoint, prepared.plan
    writer_for(output)
    files = source_files(checkpoint)
    _refuse_input([file.path for file in files], output)
    refuse_target(output, force=force)
    weights, applied = execute(plan, checkpoint.weights)
    total = sum(tensor.nbytes for tensor in weights.tensors.values())
    with ThreadPoolExecutor(1) as pool:
        hashed = start_hashing(files, pool)
        payload = Payload(
            weights.tensors,
            weights.versions,
            _kept_metadata(checkpoint),
            provenance(plan, checkpoint, weights, hashed),
            _counter("write", total, progress),
        )
        counter = _counter("verify", total, progress)
        shards = split(payload, max_shard_size) if max_shard_size else [payload]
        if len(shards) == 1:
            written = [output]
            measured = _write_one(output, payload, weights, counter, force)
        else:
            written = [index_path(output), *shard_paths(output, len(shards))]
            measured = _write_shards(output, shards, payload, weights, counter, force)
        for file in files:
            if isinstance(file, ByteFile):
                file.check_unchanged()
    return Result(
        checkpoint.path,
        written[0],
        plan,
        dropped_keys(applied),
        tuple(note for result in applied for note in result.notes),
        True,
        sum(map(os.path.getsize, written)),
        hashed.result()[files[0].path],
        measured,
        prepared.also_fits,
        _fits(prepared.target, weights),
    )


def dropped_keys(applied: tuple[Applied, ...]) -> tuple[str, ...]:
    """The keys that the edits removed."""
    return tuple(key for result in applied for key in result.dropped)


def _write_one(
    output: str,
    payload: Payload,
    weights: WeightSet,
    counter: Callable[[int], None],
    force: bool,
) -> dict[str, dict[str, float]]:
    write = writer_for(output)
    return replace_file(
        output,
        lambda file: write(file, payload),
        lambda path: prove(path, weights, counter),
        force=force,
    )


def _write_shards(
    output: str,
    shards: list[Payload],
    whole: Payload,
    weights: WeightSet,
    counter: Callable[[int], None],
    force: bool,
) -> dict[str, dict[str, float]]:
    write = writer_for(output)
    paths = shard_paths(output, len(shards))
    by_path = dict(zip(paths, shards, strict=True))

    def fill(path: str, file: Output) -> None:
        if path in by_path:
            write(file, by_path[path])
        else:
            write_index(file, paths, shards, whole)

    names = [*paths, index_path(output)]
    return replace_set(names, fill, lambda folder: prove(folder, weights, counter), force=force)


def _refuse_input(sources: list[str], output: str) -> None:
    """The output may not be an input, by whatever name."""
    for source in sources:
        if os.path.exists(output) and os.path.samefile(source, output):
            raise OutputError(
                f"{quoted(output)} is the input file itself", hint="-o ANOTHER", code="output.input"
            )


def _fits(target: Target | None, weights: WeightSet) -> bool | None:
    if target is None:
        return None
    return compare(weights.specs, target.specs, weights.versions).fits


def _kept_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The source's own metadata, if it is of a safetensors file."""
    metadata = checkpoint.contents.metadata
    if "safetensors" not in checkpoint.contents.format:
        return {}
    return {key: value for key, value in metadata.items() if key not in ("ckptool", "format")}


def _counter(phase: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(phase, done, total)

    return count
