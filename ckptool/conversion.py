"""Convert: a plan, carried out lazily, written atomically, proven before it gets its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ckptool.architectures import find, frozen, lookalikes
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.diagnose import target_of
from ckptool.dtypes import SHORT
from ckptool.errors import OutputError, PlanError, listed, quoted
from ckptool.files import BLOCK, ByteFile
from ckptool.formats import writer_for
from ckptool.formats.atomic import refuse_target, replace_file
from ckptool.formats.payload import Payload
from ckptool.identification import candidates
from ckptool.planning import Options, Plan, aim, execute, make_plan
from ckptool.plugins import Applied
from ckptool.reading import read
from ckptool.verification import prove
from ckptool.version import VERSION

_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint with the plan for it and the architectures that would get the same plan."""

    checkpoint: Checkpoint
    plan: Plan
    also_fits: tuple[str, ...] = ()


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


def convert(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str] | None = None,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    plan: Plan | None = None,
    weights: str | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Result:
    """Write the checkpoint as the options ask for it, and prove the file that was written.

    The options are the fields of `ckptool.planning.Options`; a stored `plan` takes their place.
    Without `output` the file is written beside the input under a name that says what was done.

    Raises: CkptError; nothing is written then.
    """
    prepared = prepare(
        checkpoint, arch=arch, like=like, plan=plan, weights=weights, options=Options(**options)
    )
    path = os.fspath(output) if output else default_output(prepared)
    return carry_out(prepared, path, force=force, progress=progress)


def plan(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    weights: str | None = None,
    **options: Any,
) -> Plan:
    """The plan that `convert` would carry out; the options are those of `convert`.

    Raises: CkptError.
    """
    asked = Options(**options)
    return prepare(checkpoint, arch=arch, like=like, weights=weights, options=asked).plan


def write(
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Write the chosen weights as they are, in the format of the output's suffix.

    Raises: CkptError; nothing is written then.
    """
    prepared = Prepared(checkpoint, make_plan(checkpoint.weights, None, Options()))
    return carry_out(prepared, os.fspath(output), force=force, progress=progress)


def prepare(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str | None = None,
    like: str | os.PathLike[str] | Checkpoint | None = None,
    plan: Plan | None = None,
    weights: str | None = None,
    options: Options | None = None,
) -> Prepared:
    """The checkpoint and its plan; without `arch` the file is identified.

    Raises: CkptError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    if plan is not None:
        execute(plan, opened.weights)
        return Prepared(opened, plan)
    options = options or Options()
    if like is not None:
        return Prepared(opened, make_plan(opened.weights, target_of(None, like, None), options))
    if arch is not None:
        target = aim(opened.weights, find(arch), options.num_classes)
        made = make_plan(opened.weights, target, options)
        return Prepared(opened, made, lookalikes(find(arch)))
    return _identified(opened, options)


def _identified(opened: Checkpoint, options: Options) -> Prepared:
    """The plan for what the file is; those that would get another plan make it ambiguous.

    Raises: PlanError if an architecture is needed and several fit, or none does.
    """
    fitting = [candidate.arch for candidate in candidates(opened.weights) if candidate.fits]
    plans = {}
    for name in fitting:
        target = aim(opened.weights, find(name), options.num_classes)
        plans[name] = make_plan(opened.weights, target, options)
    if len({json.dumps(plan.to_json()["steps"]) for plan in plans.values()}) == 1:
        return Prepared(opened, plans[fitting[0]], tuple(fitting[1:]))
    if options.num_classes is None and options.in_chans is None:
        return Prepared(opened, make_plan(opened.weights, None, options), tuple(fitting))
    if fitting:
        raise PlanError(
            f"the file fits {listed(fitting, 8)}, which would be converted differently",
            hint=f"--arch {fitting[0]}",
            code="plan.ambiguous",
        )
    raise PlanError(
        "the file fits no architecture that ckptool knows, and only one tells which tensors "
        "depend on the class count",
        hint="--arch NAME; `ckptool identify` shows what comes near",
        code="plan.architecture",
    )


def default_output(prepared: Prepared) -> str:
    """The path beside the input whose name says what was done: `weights.fp32.c20.safetensors`."""
    plan = prepared.plan
    stem = os.path.splitext(prepared.checkpoint.path)[0].removesuffix(".index")
    words = [] if plan.dtype is None else [SHORT[plan.dtype]]
    if any(step.edit == "heads" for step in plan.steps):
        words.append(f"c{plan.num_classes}")
    return ".".join([stem, *(words or ["converted"]), "safetensors"])


def carry_out(
    prepared: Prepared,
    output: str,
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Write the planned weights to a file and prove it.

    `progress` is told the phase (`write` or `verify`), the bytes done and the bytes in all.

    Raises: CkptError; nothing is left behind then, and an existing file is as it was.
    """
    checkpoint, plan = prepared.checkpoint, prepared.plan
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
        prepared.also_fits,
        _fits(plan, weights),
    )


def _fits(plan: Plan, weights: WeightSet) -> bool | None:
    """Whether the result fits the plan's architecture, None if it has none that is built in."""
    architecture = frozen.find(plan.arch) if plan.arch else None
    if architecture is None:
        return None
    return compare(weights.specs, architecture.manifest(plan.num_classes), weights.versions).fits


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
