"""What the format of an output asks of the weights: their order, what goes beside them.

A torch or safetensors file takes any weights as they are. A darknet file is the floats of one
network in that network's order; Detectron2 reads weights under `model`.

Source: Detectron2 at 02b5c4e (`checkpoint/detection_checkpoint.py`: `__author__` and
`matching_heuristics` of a `.pkl`, the key `model` of a `.pth`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ckptool.architectures import darknet_files, detectron2
from ckptool.causes import Target
from ckptool.checkpoint import MADE_BY, Checkpoint, Value, WeightSet, is_tree
from ckptool.compare import COUNTER, compare_weights
from ckptool.errors import OutputError, PlanError, listed, quoted
from ckptool.formats import pickled
from ckptool.formats.darknet_writer import HEADER
from ckptool.provenance import darknet_header
from ckptool.reading import read
from ckptool.tensors import LazyTensor

_TORCH = (".pth", ".pt", ".ckpt", ".bin")
_CAFFE2 = "Caffe2"
_LONGEST = 200  # characters of an author's name


@dataclass(frozen=True, slots=True)
class Form:
    """How weights stand in a file.

    `weights` are what is written and read back, `tensors` the same in the order of the file.
    `metadata` is told to the writer, `said` what the file then says of itself; `traced` whether it
    has a place for the provenance.
    `wrapper` is the key of the mapping that the tensors are in, None for the file itself;
    `reopen` reads the written file. `dropped` are keys that the format has no place for.
    """

    weights: WeightSet
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    reopen: Callable[[str], Checkpoint]
    said: Mapping[str, str] = field(default_factory=dict)
    traced: bool = True
    wrapper: str | None = None
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def formed(
    output: str,
    checkpoint: Checkpoint,
    weights: WeightSet,
    target: Target | None,
    *,
    sharded: bool = False,
) -> Form:
    """The form of edited weights of a checkpoint in a file of that name.

    Raises: PlanError if the format cannot hold them; OutputError for shards of a format that has
    none.
    """
    suffix = os.path.splitext(output)[1]
    if sharded and suffix in (".weights", ".pkl"):
        raise OutputError(
            f"{quoted(output)}: a {suffix} file is one file: no reader of it knows shards",
            hint="-o OUT.safetensors or -o OUT.pth, or no --max-shard-size",
            code="output.shards",
        )
    if suffix == ".weights":
        return _darknet(checkpoint, weights, target)
    wrapped = suffix == ".pkl" or (suffix in _TORCH and _is_detectron2(weights, target))
    own = _own_metadata(checkpoint)
    kept = own if suffix == ".safetensors" else {}
    kind = "pickle" if suffix == ".pkl" else "torch file"
    notes = (
        [f"a {kind} has no place for the source's metadata: {listed(own)}"] if own != kept else ()
    )
    return Form(
        weights,
        weights.tensors,
        _detectron2(checkpoint, weights, target) if suffix == ".pkl" else kept,
        partial(read, weights="model" if wrapped else "."),
        kept,
        wrapper="model" if wrapped else None,
        notes=tuple(notes),
    )


def _darknet(checkpoint: Checkpoint, weights: WeightSet, target: Target | None) -> Form:
    """The tensors in the order of the network's layers, without what darknet does not keep."""
    architecture = target.architecture if target else None
    if target is None or architecture is None or architecture.family not in darknet_files.FAMILIES:
        raise PlanError(
            "a darknet file holds the floats of a network in its order and no keys: only a network "
            "of darknet's tells the order",
            hint="--arch yolov4, or --arch darknet:FILE.cfg",
            code="plan.darknet",
        )
    if architecture.dialect is not None:
        raise PlanError(
            f"a darknet file is written from the keys of {quoted(architecture.name)} itself, not "
            f"from those of the dialect {quoted(architecture.dialect)}",
            hint=f"--arch {architecture.name}, which converts from that dialect",
            code="plan.darknet",
        )
    slots = darknet_files.find_slots(architecture.name, target.num_classes)
    found = weights.specs
    unlike = [slot.key for slot in slots if slot.key not in found]
    unlike += [s.key for s in slots if s.key in found and found[s.key].shape != s.shape]
    wanted = {slot.key for slot in slots}
    extra = [key for key in found if key not in wanted]
    unlike += [key for key in extra if not key.endswith(COUNTER)]
    if unlike:
        raise PlanError(
            f"the weights are not those of {quoted(architecture.name)}, so that they have no place "
            f"in a darknet file of it: {listed(unlike)}",
            hint=f"ckptool diff FILE --arch {architecture.name}",
            code="plan.darknet",
        )
    kept = {key: tensor for key, tensor in weights.tensors.items() if key in wanted}
    ordered = {key: kept[key] for key in architecture.specs if key in kept}
    given = darknet_header(checkpoint)
    notes = (
        ()
        if given
        else (
            "the header is that of a new file (version 0.2.5, no images seen): the source has none",
        )
    )

    def reopen(path: str) -> Checkpoint:
        return darknet_files.keyed(read(path, darknet=True), architecture)

    return Form(
        replace(weights, tensors=ordered, versions=None),
        {slot.key: kept[slot.key] for slot in slots},
        given or HEADER,
        reopen,
        given or HEADER,
        traced=False,
        dropped=tuple(extra),
        notes=notes,
    )


def _detectron2(
    checkpoint: Checkpoint, weights: WeightSet, target: Target | None
) -> dict[str, str]:
    """Who made the weights, and whether Detectron2 is to match keys by their ends.

    It does so for weights that are only part of a model, or under others' names; those of Caffe2
    it renames before.
    """
    stated = _root_value(checkpoint, "__author__")
    author = _text(stated) or "ckptool"
    said = _root_value(checkpoint, "matching_heuristics")
    if target is not None and compare_weights(weights, target.specs, target.legacy).fits:
        return {"author": author, "heuristics": ""}
    if checkpoint.contents.format == pickled.NAME and checkpoint.weights.name in (".", "blobs"):
        return {"author": _CAFFE2, "heuristics": "true"}
    foreign = detectron2.head_of(weights.specs) is None if stated is None else said is True
    return {"author": author, "heuristics": "true" if foreign else ""}


def _text(value: Value) -> str | None:
    """A short text that any reader can show, None for anything else."""
    short = isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()
    return str(value) if short else None


def _is_detectron2(weights: WeightSet, target: Target | None) -> bool:
    architecture = target.architecture if target else None
    if architecture is not None:
        return architecture.family == detectron2.FAMILY
    return detectron2.head_of(weights.specs) is not None


def _root_value(checkpoint: Checkpoint, name: str) -> Value:
    root = checkpoint.contents.root
    if not is_tree(root):
        return None
    return next((value for key, value in root.items() if key == name), None)


def _own_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The texts that the source's makers put into it, if it is of a safetensors file."""
    if not checkpoint.contents.format.endswith("safetensors"):
        return {}
    metadata = checkpoint.contents.metadata
    return {key: value for key, value in metadata.items() if key not in (MADE_BY, "format")}
