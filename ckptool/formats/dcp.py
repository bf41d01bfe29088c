"""A torch.distributed.checkpoint folder: `.metadata`, and the tensors in pieces in other files.

`.metadata` is a pickle. It says of each tensor its type, its shape and the boxes that it is cut
into, and of each box the file, the offset and the length of what `torch.save` wrote for it. Nested
state dicts are flattened there; the paths that it keeps as well give them their nesting back.

Source: `torch/distributed/checkpoint/metadata.py`, `filesystem.py`, `_nested_dict.py` (torch 2.15).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ckptool.checkpoint import MADE_BY, Budget, Contents, Finding, Refused, Value
from ckptool.dtypes import DType, find
from ckptool.errors import CkptError, FormatError, UnsupportedError, counted, listed, quoted
from ckptool.files import Readable, allow_open
from ckptool.formats.flat import FlatTree
from ckptool.formats.globals import label
from ckptool.formats.nodes import Call, DictNode, Global, ListNode, called, integers, pairs, text
from ckptool.formats.pickle_vm import load
from ckptool.formats.tiles import Box, Item, Tiled
from ckptool.places import names_in, open_bytes, sibling
from ckptool.tensors import LazyTensor, TensorSpec, is_possible

NAME = "dcp"
INDEX = ".metadata"
PROVENANCE = "ckptool.json"  # beside it, where ckptool made the folder
LARGEST = 1 << 28
_MODULE = "torch.distributed.checkpoint."
_DEEPEST = 32
_MOST_ITEM = 1 << 50


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is a pickle under the name that torch gives it."""
    return os.path.basename(file.path) == INDEX and head[:1] == b"\x80"


def read(file: Readable) -> Contents:
    """The tensors of the folder; only `.metadata` is read, the other files are opened.

    Raises: FormatError for pieces that do not make up their tensor, a missing or short file.
    """
    if file.size > LARGEST:
        raise _bad(f"found {file.size:,} bytes, wanted at most {LARGEST:,}")
    pickle = load(file.read(0, file.size))
    fields = _fields(pickle.root, "metadata.Metadata")
    items = _items(fields.get("storage_data"))
    files = _opened(file.path, items)
    values: dict[str, Value] = {}
    budget = Budget(file.size)
    for node, entry in _entries(fields.get("state_dict_metadata"), "state_dict_metadata"):
        key = text(node)
        if key is None:
            raise _bad("a key is not text")
        try:
            values[key] = _value(key, entry, items, files, budget)
        except CkptError as error:
            raise error.located(quoted(key)) from None
    if not values:
        raise _bad("`state_dict_metadata` is empty")
    findings = [Finding("shards", _counted(values, files))]
    aside = [key for key, value in values.items() if isinstance(value, FlatTree)]
    if aside:
        what = counted(len(aside), "pickled value")
        findings.append(Finding("not-read", f"{what} beside the tensors: {listed(aside, 3)}"))
    return Contents(
        NAME,
        FlatTree(_nested(values, fields.get("planner_data"))),
        label(pickle.globals),
        tuple(findings),
        _provenance(file.path),
        shards_nbytes=sum(part.size for part in files.values()),
    )


def _value(
    key: str,
    entry: object,
    items: Mapping[tuple[str, tuple[int, ...] | None], tuple[str, int, int]],
    files: Mapping[str, Readable],
    budget: Budget,
) -> Value:
    """A tensor, or a value that is none, which stays pickled."""

    def item(offsets: tuple[int, ...] | None) -> Item:
        found = items.get((key, offsets))
        if found is None:
            raise _bad(f"`storage_data` does not say where its piece at {offsets} is")
        return Item(files[found[0]], *found[1:])

    if called(entry) == f"{_MODULE}metadata.BytesStorageMetadata":
        return FlatTree({}, "bytes", item(None).nbytes)
    fields = _fields(entry, "metadata.TensorStorageMetadata")
    shape = integers(fields.get("size"))
    if shape is None or not is_possible(shape):
        raise _bad("its size is none")
    dtype = _dtype(fields.get("properties"))
    if dtype is None:
        return Refused("dtype", "its element type is not known here")
    if dtype.kind == "q":
        return Refused("quantised", "its integers mean nothing without a scale")
    budget.spend((1 + len(shape)) * len(_list(fields.get("chunks"), "chunks")))
    boxes = [_box(node, len(shape)) for node in _list(fields.get("chunks"), "chunks")]
    boxes = [box for box in boxes if 0 not in box[1] or 0 in shape]
    if 0 not in shape:
        _check_tiling(boxes, shape)
    source = Tiled({box: item(box[0]) for box in boxes})
    return LazyTensor(TensorSpec(dtype.name, shape), source)


def _check_tiling(boxes: list[Box], shape: tuple[int, ...], axis: int = 0) -> None:
    """Refuse boxes that do not cover every element once.

    They are looked at as bands along the first axis, each cut along the next, and so on: so does
    every mesh of ranks cut a tensor.
    """
    if axis == len(shape):
        if len(boxes) != 1:
            raise _bad(f"{len(boxes)} of its pieces are in the same place, wanted 1")
        return
    bands: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        bands.setdefault((box[0][axis], box[1][axis]), []).append(box)
    reached = 0
    for start, size in sorted(bands):
        if start != reached:
            what = "overlap" if start < reached else "leave a gap"
            raise _bad(f"its pieces {what} at {start} of axis {axis}, wanted {reached}")
        reached += size
        _check_tiling(bands[start, size], shape, axis + 1)
    if reached != shape[axis]:
        raise _bad(f"its pieces reach {reached} along axis {axis}, its shape is {shape}")


def _box(node: object, rank: int) -> Box:
    fields = _fields(node, "metadata.ChunkStorageMetadata")
    offsets, sizes = integers(fields.get("offsets")), integers(fields.get("sizes"))
    if offsets is None or sizes is None or not len(offsets) == len(sizes) == rank:
        raise _bad("a piece has no offsets and sizes of the tensor's rank")
    if min((*offsets, *sizes), default=0) < 0:
        raise _bad("a piece has a negative offset or size")
    return offsets, sizes


def _dtype(node: object) -> DType | None:
    """The element type of `TensorProperties`, the first thing in its state."""
    states = node.states if type(node) is Call else None
    if called(node) != f"{_MODULE}metadata.TensorProperties" or not states or len(states) != 1:
        raise _bad("its properties are none")
    found = states[0][0] if type(states[0]) is tuple and states[0] else None
    if type(found) is not Global or found.module != "torch":
        raise _bad("its properties do not start with a dtype")
    return find(found.name)


def _items(node: object) -> dict[tuple[str, tuple[int, ...] | None], tuple[str, int, int]]:
    """Key and offsets of each piece to its file's name, its offset in it and its length."""
    found: dict[tuple[str, tuple[int, ...] | None], tuple[str, int, int]] = {}
    for index, info in _entries(node, "storage_data"):
        where = _fields(index, "metadata.MetadataIndex")
        there = _fields(info, "filesystem._StorageInfo")
        if there.get("transform_descriptors"):
            raise UnsupportedError(
                "its pieces are compressed, which is not read",
                hint="python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
                "out.pth",
                code="unsupported.dcp",
            )
        key, name = text(where.get("fqn")), text(there.get("relative_path"))
        offsets = None if where.get("offset") is None else integers(where.get("offset"))
        start, length = there.get("offset"), there.get("length")
        if key is None or name is None or not _is_size(start) or not _is_size(length):
            raise _bad("an entry of `storage_data` is malformed")
        assert isinstance(start, int)
        assert isinstance(length, int)
        if (key, offsets) in found:
            raise _bad(f"`storage_data` has {quoted(key)} at {offsets} twice")
        found[key, offsets] = name, start, length
    return found


def _opened(
    path: str, items: Mapping[tuple[str, tuple[int, ...] | None], tuple[str, int, int]]
) -> dict[str, Readable]:
    """The files of the folder, by name, each large enough for what should be in it."""
    wanted: dict[str, int] = {}
    for name, start, length in items.values():
        wanted[name] = max(wanted.get(name, 0), start + length)
    files: dict[str, Readable] = {}
    allow_open(len(wanted))
    for name, size in wanted.items():
        try:
            files[name] = open_bytes(sibling(path, name))
        except CkptError as error:
            raise error.located(f"piece {quoted(name)}") from None
        if files[name].size < size:
            raise FormatError(
                f"{quoted(name)} is cut short: {size - files[name].size:,} bytes are missing "
                f"(found {files[name].size:,}, wanted {size:,})",
                code="format.truncated",
            )
    return files


def _provenance(path: str) -> dict[str, str]:
    folder = os.path.dirname(path) or "."
    if PROVENANCE not in names_in(folder):
        return {}
    file = open_bytes(sibling(path, PROVENANCE))
    return {MADE_BY: str(file.read(0, min(file.size, 1 << 26)), "utf-8", "replace")}


def _nested(values: Mapping[str, Value], paths: object) -> dict[str, Value]:
    """The values nested as they were before they were flattened; flat if nothing tells."""
    if type(paths) is not DictNode:
        return {**values}
    root: dict[str, Any] = {}
    known = {text(key): path for key, path in pairs(paths)}
    for key, value in values.items():
        path = known.get(key, (key,))
        steps = [str(step) if type(step) is int else text(step) for step in _tuple(path)]
        if not steps or len(steps) > _DEEPEST or ".".join(map(str, steps)) != key:
            raise _bad(f"`planner_data` has another path for {quoted(key)}")
        here = root
        for step in steps[:-1]:
            here = here.setdefault(str(step), {})
            if type(here) is not dict:
                raise _bad(f"`planner_data` has {quoted(key)} inside a value")
        if here.setdefault(str(steps[-1]), value) is not value:
            raise _bad(f"`planner_data` has {quoted(key)} twice")
    return _as_trees(root)


def _as_trees(values: Mapping[str, Any]) -> dict[str, Value]:
    return {
        key: FlatTree(_as_trees(value)) if type(value) is dict else value
        for key, value in values.items()
    }


def _fields(node: object, name: str) -> dict[str | None, object]:
    """The fields of an instance of one of torch's classes.

    Raises: FormatError for anything else.
    """
    states = node.states if type(node) is Call else None
    if called(node) != _MODULE + name:
        found = called(node) or type(node).__name__
        raise _bad(f"found {quoted(found)}, wanted {quoted(_MODULE + name)}")
    if not states:
        return {}
    if len(states) != 1 or type(states[0]) is not DictNode:
        raise _bad(f"{quoted(_MODULE + name)} has no plain fields")
    return {text(key): value for key, value in pairs(states[0])}


def _entries(node: object, name: str) -> Iterator[tuple[object, object]]:
    if type(node) is not DictNode:
        raise _bad(f"{quoted(name)} is not a dict")
    return pairs(node)


def _list(node: object, name: str) -> list[object]:
    if type(node) is not ListNode:
        raise _bad(f"{quoted(name)} is not a list")
    return node.items or []


def _tuple(node: object) -> tuple[object, ...]:
    return node if type(node) is tuple else ()


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_ITEM


def _counted(values: Mapping[str, Value], files: Mapping[str, Readable]) -> str:
    tiled = [value.source for value in values.values() if isinstance(value, LazyTensor)]
    pieces = sum(len(source.items) for source in tiled if isinstance(source, Tiled))
    return (
        f"{counted(len(tiled), 'tensor')} in {counted(pieces, 'piece')} "
        f"in {counted(len(files), 'file')}"
    )


def _bad(what: str) -> FormatError:
    return FormatError(f"{INDEX}: {what}", code="dcp.format")
