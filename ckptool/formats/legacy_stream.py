"""The stream that torch wrote before 1.6: five pickles, then the storages one after another.

It also occurs inside other pickles, once for every storage, where a model was dumped with
`pickle.dump` (`torch.storage._load_from_bytes`).

Source: `torch/serialization.py` (`_legacy_save`, `_legacy_load`; torch 2.15). The numbers are
little-endian whatever the machine was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from ckptool.dtypes import DType
from ckptool.errors import FormatError, quoted
from ckptool.files import MemoryFile, Readable, cut_short
from ckptool.formats.nodes import Global, ListNode, Span, arguments, holder, raw_bytes, text
from ckptool.formats.pickle_vm import Pickle, load
from ckptool.formats.rebuild import storage_reference
from ckptool.records import Record

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LARGEST_PICKLE = 1 << 28
_FIRST_READ = 1 << 18


@dataclass(frozen=True, slots=True)
class LegacyStream:
    """The object's pickle, whose data starts at `base` in the file, and the storages.

    `pickles` are all five; `end` is the file offset behind the last storage.
    """

    pickle: Pickle
    pickles: tuple[Pickle, ...]
    base: int
    records: Mapping[str, Record]
    end: int


def parse(file: Readable, start: int, end: int) -> LegacyStream:
    """The stream between two file offsets.

    Raises: FormatError, also if the storages are cut short: the message counts what is missing.
    """
    size = _FIRST_READ
    while True:
        data = file.read(start, min(size, end - start))
        try:
            pickles = _pickles(data)
            break
        except FormatError as error:
            whole = len(data) == end - start or len(data) >= LARGEST_PICKLE
            if error.code != "pickle.truncated" or whole:
                raise
            size *= 4
    *_, body, keys = pickles
    records, reached = _records(file, _keys(keys), _sizes(body), start + keys.end, end)
    return LegacyStream(body, tuple(pickles), start, records, reached)


class Values:
    """The bytes values of a pickle as records, and the storages that are pickled inside them.

    Each is made once, however often the stream refers to it. `base` is where the pickle's data
    lies in the file, None where it does not lie there as it is.
    """

    def __init__(self, file: Readable, base: int | None, data: bytes) -> None:
        self._file = MemoryFile(data, file.path) if base is None else file
        self._base = base or 0
        self._records: dict[tuple[type, int], tuple[object, Record]] = {}
        self._storages: dict[int, tuple[Record, DType | None]] = {}

    def record(self, node: object) -> Record | None:
        """A bytes value as a record, None for any other value."""
        value = holder(node)
        key = type(node), id(value)
        if key not in self._records:
            raw = raw_bytes(node)
            if raw is None:
                return None
            self._records[key] = value, self._record(raw)
        return self._records[key][1]

    def storage(self, node: object) -> tuple[Record, DType | None] | None:
        """The storage in a bytes value and its element type, None if it is no bytes value."""
        outer = self.record(node)
        if outer is None:
            return None
        if id(outer) not in self._storages:
            self._storages[id(outer)] = _nested_storage(outer)
        return self._storages[id(outer)]

    def _record(self, raw: bytes | Span) -> Record:
        if type(raw) is Span:
            size = raw.stop - raw.start
            return Record(self._file, self._base + raw.start, size, size, name="pickled bytes")
        assert isinstance(raw, bytes)
        file = MemoryFile(raw, self._file.path)
        return Record(file, 0, file.size, file.size, name="pickled bytes")


def names_of(pickles: Iterable[Pickle], depth: int = 2) -> list[Global]:
    """The globals of pickles, and of those that they would load from bytes inside them.

    Nested bytes are read as at most five pickles, which is what torch writes; what is no pickle,
    or lies deeper than two levels, stays opaque.
    """
    names: list[Global] = []
    for pickle in pickles:
        names += pickle.globals
        loaded = {id(holder(arg)): arg for call in pickle.nested for arg in arguments(call)[:1]}
        for value in loaded.values() if depth else ():
            names += names_of(_nested_pickles(value, pickle.data), depth - 1)
    return names


def _nested_pickles(value: object, data: bytes) -> Iterator[Pickle]:
    try:
        raw = raw_bytes(value)
        stream = data[raw.start : raw.stop] if type(raw) is Span else raw
        at = 0
        for _ in range(5):
            if type(stream) is bytes and at < len(stream):
                pickle = load(stream, at)
                yield pickle
                at = pickle.end
    except FormatError:
        return


def _nested_storage(outer: Record) -> tuple[Record, DType | None]:
    """The one storage that a legacy stream inside a bytes value holds, and its element type."""
    stream = parse(outer.file, outer.offset, outer.offset + outer.nbytes)
    key, dtype, numel, _ = storage_reference(stream.pickle.root)
    record = stream.records.get(key)
    if record is None or record.nbytes != numel * (dtype.itemsize if dtype else 1):
        raise FormatError("a nested storage is malformed", code="legacy.nested")
    return record, dtype


def _pickles(data: bytes) -> list[Pickle]:
    """Magic number, protocol, system, object, keys; each right before the next."""
    pickles: list[Pickle] = []
    at = 0
    for wanted in (MAGIC, PROTOCOL, None, None, None):
        pickle = load(data, at)
        if wanted is not None and (type(pickle.root) is not int or pickle.root != wanted):
            raise FormatError(
                f"at byte {at:,}: the legacy stream lacks its "
                + ("magic number" if wanted == MAGIC else "protocol number 1001"),
                code="legacy.magic",
            )
        at = pickle.end
        pickles.append(pickle)
    return pickles


def _keys(pickle: Pickle) -> list[str]:
    items = pickle.root.items if type(pickle.root) is ListNode else None
    if type(pickle.root) is not ListNode:
        raise FormatError("the legacy stream has no list of storage keys", code="legacy.keys")
    keys = [text(item) for item in items or ()]
    found = [key for key in keys if key is not None]
    if len(found) < len(keys) or len(set(found)) < len(found):
        raise FormatError("the list of storage keys is malformed", code="legacy.keys")
    return found


def _sizes(pickle: Pickle) -> dict[str, tuple[int, int]]:
    """Number of elements and element size of every storage that the pickle refers to, by key."""
    sizes: dict[str, tuple[int, int]] = {}
    for node in pickle.persistent:
        if type(node.id) is tuple and node.id and text(node.id[0]) == "module":
            continue  # source code of a class: text, never written or run
        key, dtype, numel, _ = storage_reference(node)
        size = (numel, dtype.itemsize if dtype else 1)
        if sizes.setdefault(key, size) != size:
            raise FormatError(
                f"storage {quoted(key)} is referred to with two sizes", code="storage.size"
            )
    return sizes


def _records(
    file: Readable, keys: list[str], sizes: Mapping[str, tuple[int, int]], at: int, end: int
) -> tuple[dict[str, Record], int]:
    unknown = [key for key in keys if key not in sizes]
    if unknown:
        raise FormatError(
            f"storage {quoted(unknown[0])} is listed, but no tensor says how large it is",
            code="legacy.keys",
        )
    wanted = at + sum(8 + numel * itemsize for numel, itemsize in map(sizes.__getitem__, keys))
    if wanted > end:
        raise cut_short(
            f"the file is cut short: {wanted - end:,} bytes of the storages are missing "
            f"(found {end:,} bytes, wanted {wanted:,})"
        )
    records = {}
    for key in keys:
        numel, itemsize = sizes[key]
        nbytes = numel * itemsize
        check = partial(_check_length, file, at, key, numel)
        if file.distant:  # with the storage, not a request for each
            records[key] = Record(file, at + 8, nbytes, nbytes, name=key, confirm=check)
        else:
            check()
            records[key] = Record(file, at + 8, nbytes, nbytes, name=key)
        at += 8 + nbytes
    return records, at


def _check_length(file: Readable, at: int, key: str, numel: int) -> None:
    found = int.from_bytes(file.read(at, 8), "little", signed=True)
    if found != numel:
        raise FormatError(
            f"storage {quoted(key)} at byte {at:,}: found {found:,} elements, "
            f"the pickle wants {numel:,}",
            code="storage.size",
        )
