"""Writing a checkpoint as several files of bounded size, with an index that says which holds what.

Source: the names and the index of transformers and huggingface_hub (2.4).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

from ckptool.checkpoint import MADE_BY
from ckptool.errors import PlanError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, storages
from ckptool.tensors import LazyTensor

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The bytes of a size such as `2GB` (decimal) or `500MiB` (binary).

    Raises: PlanError for anything else, or for less than a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match:
        number, unit, binary = match.groups()
        power = " KMGT".index(unit.upper() or " ")
        size = int(float(number) * (1024 if binary else 1000) ** power)
        if size > 0:
            return size
    raise PlanError(
        f"found {quoted(text)}, wanted a size", hint="2GB or 500MiB, say", code="plan.size"
    )


def split(payload: Payload, largest: int) -> list[Payload]:
    """The tensors in shards of at most that many bytes, in order; tied ones stay together.

    A tensor that is larger gets a shard of its own.

    Raises: PlanError for less than a byte.
    """
    if largest < 1:
        raise PlanError(
            f"found {largest:,} bytes, wanted a size", hint="--max-shard-size 2GB", code="plan.size"
        )
    numbers = storages(payload.tensors)
    groups: dict[int, dict[str, LazyTensor]] = {}
    for key, tensor in payload.tensors.items():
        groups.setdefault(numbers[key], {})[key] = tensor
    shards: list[dict[str, LazyTensor]] = []
    room = 0
    for group in groups.values():
        size = sum(tensor.nbytes for tensor in group.values())
        if not shards or size > room:
            shards.append({})
            room = largest
        shards[-1].update(group)
        room -= size
    return [replace(payload, tensors=tensors) for tensors in shards]


def shard_paths(output: str, count: int) -> list[str]:
    """`weights-00001-of-00003.safetensors` and so on for `weights.safetensors`."""
    stem, suffix = os.path.splitext(output)
    return [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]


def index_path(output: str) -> str:
    """The path of the index beside the shards."""
    return f"{output}.index.json"


def write_index(output: Output, paths: list[str], shards: list[Payload], whole: Payload) -> None:
    """The index, with the keys in their order and the provenance in its metadata."""
    places = {
        key: os.path.basename(path)
        for path, shard in zip(paths, shards, strict=True)
        for key in shard.tensors
    }
    total = sum(tensor.nbytes for tensor in whole.tensors.values())
    metadata: dict[str, object] = {"total_size": total}
    if whole.provenance is not None:
        metadata[MADE_BY] = whole.provenance(True)
    value = {"metadata": metadata, "weight_map": {key: places[key] for key in whole.tensors}}
    output.write((json.dumps(value, indent=2) + "\n").encode("utf-8"))
