"""Carry a plan out: write the planned weights, prove what was written, then give it its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

from ckptool.architectures.darknet_files import told
from ckptool.causes import Target
from ckptool.checkpoint import MADE_BY, Checkpoint
from ckptool.compare import compare_weights
from ckptool.destinations import check_suffix, put, refuse
from ckptool.errors import FormatError, OutputError, PlanError, VerificationError, quoted
from ckptool.files import Readable
from ckptool.formats.payload import Payload
from ckptool.outputs import formed
from ckptool.plans import Plan, execute
from ckptool.plugins import Applied
from ckptool.proof import Proof, prove
from ckptool.provenance import hashing, provenance, source_files
from ckptool.threads import workers

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
    `seconds` are those of writing, of verifying, and of what the disk took longer than that.
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
    seconds: Mapping[str, float] = field(default_factory=dict)


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
    check_suffix(output)
    files = source_files(checkpoint)
    _refuse_input(files, output)
    refuse(output, force=force)
    weights, applied = execute(plan, checkpoint.weights)
    if not weights.tensors:
        raise PlanError("no tensor is left to be written", code="plan.empty")
    sharded = max_shard_size is not None
    form = formed(output, checkpoint, weights, prepared.target, sharded=sharded)
    weights = form.weights
    total = sum(tensor.nbytes for tensor in weights.tensors.values())
    times = [perf_counter()]
    with workers() as pool, hashing(files, pool) as hashed:
        text = provenance(plan, checkpoint, weights, hashed)
        counter = _counter("write", total, progress)
        payload = Payload(
            form.tensors, weights.versions, form.metadata, text, counter, pool, form.wrapper
        )

        def check(path: str) -> Proof:
            said = {**form.said, MADE_BY: text(True)} if form.traced else form.said
            progressed = _counter("verify", total, progress)
            times.append(perf_counter())
            proof = prove(path, weights, said, progressed, pool, form.reopen)
            for file in files:
                file.check_unchanged()
            times.append(perf_counter())
            return proof

        try:
            written = put(output, payload, check, max_shard_size=max_shard_size, force=force)
        except FormatError as error:
            raise error.located(quoted(checkpoint.path)) from None
        except VerificationError as error:
            raise error.located(quoted(output)) from None
        hashes = hashed.result()
        times.append(perf_counter())
    phases = zip(("write", "verify", "flush"), times, times[1:], strict=False)
    notes = [*told(checkpoint.weights), *(note for result in applied for note in result.notes)]
    return Result(
        checkpoint.path,
        written.path,
        plan,
        (*dropped_keys(applied), *form.dropped, *weights.refused),
        (*notes, *form.notes),
        True,
        written.nbytes,
        hashes[files[0].path],
        written.proof.measured,
        prepared.also_fits,
        _fits(prepared.target, written.proof),
        {name: end - start for name, start, end in phases},
    )


def dropped_keys(applied: tuple[Applied, ...]) -> tuple[str, ...]:
    """The keys that the edits removed."""
    return tuple(key for result in applied for key in result.dropped)


def _refuse_input(sources: tuple[Readable, ...], output: str) -> None:
    """The output may not be an input, by whatever name."""
    for source in sources:
        local = os.path.exists(output) and os.path.exists(source.path)
        if source.path == output or (local and os.path.samefile(source.path, output)):
            raise OutputError(
                f"{quoted(output)} is the input file itself", hint="-o ANOTHER", code="output.input"
            )


def _fits(target: Target | None, proof: Proof) -> bool | None:
    """Whether what was read back fits the target: `_metadata` that is not there counts, too."""
    if target is None:
        return None
    return compare_weights(proof.weights, target.specs, target.legacy).fits


def _counter(phase: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    if progress is None:
        return lambda nbytes: None
    done = 0
    lock = Lock()  # several threads report

    def count(nbytes: int) -> None:
        nonlocal done
        with lock:
            done = min(done + nbytes, total)  # tied tensors are counted once or each, as they come
            progress(phase, done, total)

    return count
