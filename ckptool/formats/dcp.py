"""A torch.distributed.checkpoint folder: `.metadata`, and the tensors in pieces in other files.

`.metadata` is a pickle. It says of each tensor its type, its shape and the boxes that it is cut
into, and of each box the file, the offset and the length of what `torch.save` wrote for it. Nested
state dicts are flattened there; the paths that it keeps as well give them their nesting back.

Source: `torch/distributed/checkpoint/metadata.py`, `filesystem.py`, `_nested_dict.py` (torch 2.15).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptool.checkpoint import Contents, Finding, Refused, Value
from ckptool.dtypes import DTYPES, DType, find
from ckptool.errors import CkptError, FormatError, UnsupportedError, counted, listed, quoted
from ckptool.files import BLOCK, Readable
from ckptool.formats import torch_zip
from ckptool.formats.flat import FlatTree
from ckptool.formats.globals import label
from ckptool.formats.nodes import Call, DictNode, Global, ListNode, called, integers, pairs, text
from ckptool.formats.pickle_vm import load
from ckptool.places import names_in, open_bytes, sibling
from ckptool.tensors import Extent, LazyTensor, TensorSpec, View, is_possible

NAME = "dcp"
INDEX = ".metadata"
PROVENANCE = "ckptool.json"  # beside it, where ckptool made the folder
LARGEST = 1 << 28
_MODULE = "torch.distributed.checkpoint."
_DEEPEST = 32
_MOST_ITEM = 1 << 50

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


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
    for node, entry in _entries(fields.get("state_dict_metadata"), "state_dict_metadata"):
        key = text(node)
        if key is None:
            raise _bad("a key is not text")
        try:
            values[key] = _value(key, entry, items, files)
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


@dataclass(frozen=True, slots=True)
class Item:
    """What `torch.save` wrote for one box: a run of bytes in a file of the folder."""

    file: Readable
    offset: int
    nbytes: int

    def tensor(self, spec: TensorSpec) -> LazyTensor:
        """The tensor in it.

        Raises: FormatError unless it is one of that type and shape.
        """
        part = Part(self.file, self.offset, self.nbytes)
        try:
            found = torch_zip.read(part).root
        except CkptError as error:
            where = f"{quoted(self.file.path)} at byte {self.offset:,}"
            raise error.located(where) from None
        if not isinstance(found, LazyTensor) or not isinstance(found.source, View):
            raise _bad(f"at byte {self.offset:,} of {quoted(self.file.path)} is no dense tensor")
        if found.spec != spec:
            raise _bad(
                f"at byte {self.offset:,} of {quoted(self.file.path)}: found {found.dtype} "
                f"{found.shape}, wanted {spec.dtype} {spec.shape}"
            )
        return found


@dataclass(slots=True)
class Part:
    """A range of a file, read like a file of its own."""

    file: Readable
    start: int
    size: int
    path: str = ""
    verified: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.path = self.file.path

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the range ends before."""
        if not 0 <= offset <= offset + length <= self.size:
            raise FormatError(
                f"at byte {offset:,}: wanted {length:,} bytes of {self.size:,}",
                code="format.truncated",
            )
        return self.file.read(self.start + offset, length)

    def blocks(self, offset: int, length: int, step: int = BLOCK) -> Iterator[bytes]:
        """The bytes of a range, in order, at most `step` at a time."""
        self.read(offset + length, 0)
        return self.file.blocks(self.start + offset, length, step)

    def check_unchanged(self) -> None:
        """Raise if the file is no longer what was opened."""
        self.file.check_unchanged()


@dataclass(frozen=True, slots=True, eq=False)
class Tiled:
    """A tensor cut into boxes: along the first axis into bands, each of one box or of several."""

    items: Mapping[Box, Item]

    @property
    def files(self) -> tuple[Readable, ...]:
        """The files that the boxes are in."""
        return tuple(item.file for item in self.items.values())

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The data, a few rows at a time where several boxes share them."""
        if not spec.numel:
            return
        bands: dict[tuple[int, int], list[Box]] = {}
        for box in self.items:
            bands.setdefault((box[0][0], box[1][0]) if spec.shape else (0, 0), []).append(box)
        for start, size in sorted(bands):
            boxes = bands[start, size]
            opened = [
                (box, self.items[box].tensor(TensorSpec(spec.dtype, box[1]))) for box in boxes
            ]
            if len(opened) == 1:
                yield from opened[0][1].chunks(step)
            else:
                yield from _joined(opened, (size, *spec.shape[1:]), step)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: where the data lies is not known before the boxes are opened."""
        return None


def _joined(
    tiles: list[tuple[Box, LazyTensor]], shape: tuple[int, ...], step: int
) -> Iterator[memoryview]:
    """The rows of a band whose boxes lie side by side."""
    import numpy

    spec = TensorSpec(tiles[0][1].dtype, shape)
    width = spec.nbytes // shape[0]
    rows = max(1, step // width)
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        band = numpy.empty((count, *shape[1:], DTYPES[spec.dtype].itemsize), numpy.uint8)
        for (offsets, sizes), tensor in tiles:
            place = tuple(slice(o, o + n) for o, n in zip(offsets[1:], sizes[1:], strict=True))
            data = numpy.frombuffer(_rows(tensor, first, count).tobytes(), numpy.uint8)
            band[(slice(None), *place)] = data.reshape(count, *sizes[1:], -1)
        yield memoryview(band.reshape(-1))  # type: ignore[arg-type]


def _rows(tensor: LazyTensor, first: int, count: int) -> LazyTensor:
    view = tensor.source
    assert isinstance(view, View)
    offset = view.offset + first * view.stride[0]
    spec = TensorSpec(tensor.dtype, (count, *tensor.shape[1:]))
    return LazyTensor(spec, View(view.record, offset, view.stride, view.conj, view.negative))


def _value(
    key: str,
    entry: object,
    items: Mapping[tuple[str, tuple[int, ...] | None], tuple[str, int, int]],
    files: Mapping[str, Readable],
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
    return {"ckptool": str(file.read(0, min(file.size, 1 << 26)), "utf-8", "replace")}


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
