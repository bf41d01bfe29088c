"""A sharded checkpoint: an index that says which file holds which tensor.

Source: the `*.index.json` of transformers and huggingface_hub (2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptool.checkpoint import Contents, Finding, GlobalName, Value, is_tree
from ckptool.errors import CkptError, FormatError, listed, quoted
from ckptool.files import Readable, allow_open
from ckptool.formats.flat import FlatTree
from ckptool.formats.safetensors import parse_json
from ckptool.places import open_bytes, sibling
from ckptool.tensors import LazyTensor, View

NAME = "sharded"
LARGEST_INDEX = 1 << 26


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is JSON with a `weight_map`."""
    if not head.lstrip().startswith(b"{") or b"\0" in head or file.size > LARGEST_INDEX:
        return False
    return b'"weight_map"' in file.read(0, file.size)


def read(file: Readable, read_shard: Callable[[Readable], Contents]) -> Contents:
    """The tensors of all shards as one mapping, in the index's order; only headers are read.

    Raises: FormatError for a name that leads elsewhere, a missing or foreign shard, a tensor that
    is not where the index says.
    """
    index = parse_json(file.read(0, file.size).strip(), "index.json", fractions=True)
    places = _places(index)
    allow_open(len(set(places.values())))
    shards = {name: _shard(file.path, name, read_shard) for name in dict.fromkeys(places.values())}
    values: dict[str, Value] = {}
    for key, name in places.items():
        if key not in shards[name][1]:
            raise _bad(f"{quoted(key)} is not in the shard {quoted(name)}")
        values[key] = shards[name][1][key]
    for name, (_, held, _) in shards.items():
        foreign = [key for key in held if places.get(key) != name]
        if foreign:
            raise _bad(f"the shard {quoted(name)} holds {listed(foreign, 3)}, not in the index")
    _check_total(index, values)
    parts = [contents for contents, _, _ in shards.values()]
    names: dict[GlobalName, None] = {name: None for part in parts for name in part.globals}
    findings: dict[Finding, None] = {item: None for part in parts for item in part.findings}
    return Contents(
        f"{NAME} {parts[0].format if parts else 'nothing'}",
        FlatTree(values),
        tuple(names),
        (Finding("shards", f"{len(shards):,} shards"), *findings),
        parts[0].metadata if parts else {},
        sum(size for _, _, size in shards.values()),
    )


def _places(index: Mapping[str, Any]) -> dict[str, str]:
    places = index.get("weight_map")
    if type(places) is not dict or any(type(name) is not str for name in places.values()):
        raise _bad("`weight_map` is not a map from keys to file names")
    return places


def _shard(
    path: str, name: str, read_shard: Callable[[Readable], Contents]
) -> tuple[Contents, dict[str, Value], int]:
    """A shard's contents, its tensors by key, its size in bytes."""
    try:
        file = open_bytes(sibling(path, name))
        contents = read_shard(file)
    except CkptError as error:
        missing = error.code == "file.missing"
        hint = "put all files that the index names beside it" if missing else error.hint
        found = type(error)(error.message, hint=hint, code=error.code)
        raise found.located(f"shard {quoted(name)}") from None
    root = contents.root
    held = dict(root.items()) if is_tree(root) else {}
    return contents, held, file.size


def _check_total(index: Mapping[str, Any], values: Mapping[str, Value]) -> None:
    metadata = index.get("metadata")
    wanted = metadata.get("total_size") if type(metadata) is dict else None
    tensors = [value for value in values.values() if isinstance(value, LazyTensor)]
    found = sum(tensor.nbytes for tensor in tensors)
    # huggingface_hub counts a storage once, in full, whatever looks at it.
    stored = {item.source.record for item in tensors if isinstance(item.source, View)}
    if type(wanted) is int and wanted not in (found, sum(record.nbytes for record in stored)):
        raise _bad(f"the tensors have {found:,} bytes, the index says {wanted:,}")


def _bad(what: str) -> FormatError:
    return FormatError(f"shard index: {what}", code="index.format")
