"""The tar format of torch before 0.1.10: members `sys_info`, `pickle`, `storages`, `tensors`.

Source: `torch/serialization.py` (`legacy_load`; torch 2.15); POSIX ustar for the headers. The
format is a few years older than checksums of content: only tar's own header sums are checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from ckptool.checkpoint import Contents, Finding, Refused
from ckptool.dtypes import DType
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable, cut_short
from ckptool.formats.globals import label
from ckptool.formats.graph import value_of
from ckptool.formats.legacy_stream import Values, names_of
from ckptool.formats.nodes import Global, ListNode, text
from ckptool.formats.pickle_vm import load
from ckptool.formats.rebuild import Storages, storage_dtype, view_on
from ckptool.records import Record
from ckptool.tensors import LazyTensor

NAME = "torch-tar"
LARGEST_MEMBER = 1 << 28
_LARGEST_EXTENDED = 1 << 12
_EXTENDED = re.compile(rb"(?:[0-9]+ (?:[amc]time|[ug]id|[ug]name)=[^\n]*\n)*")
_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is a tar archive whose first member is one of torch's."""
    at = 1024 if head[156:157] == b"x" else 0  # Python puts a fractional mtime in front
    name = head[at : at + 100].rstrip(b"\0").removeprefix(b"./")
    return len(head) >= 512 and name in (b"sys_info", b"pickle", b"storages", b"tensors")


def read(file: Readable) -> Contents:
    """The file's value.

    Raises: FormatError.
    """
    members = _members(file)
    missing = _MEMBERS - members.keys()
    if missing:
        raise _bad(f"the archive has no member {quoted(min(missing))}")
    first, second = _Cursor(file, members["storages"]), _Cursor(file, members["tensors"])
    tensors = _tensors(second, _storages(first, file))
    body = members["pickle"]
    data = _content(file, body)
    pickle = load(data)

    def record(key: str, nbytes: int) -> Record:
        raise FormatError(f"storage {quoted(key)} is not in the file", code="storage.missing")

    values = Values(file, body.offset, data)
    root = value_of(pickle.root, Storages(record, values.record, values.storage, tensors))
    names = (*first.names, *second.names, *names_of([pickle]))
    findings = (Finding("no-checksums", "a tar file has no checksums: damage cannot be seen"),)
    return Contents(NAME, root, label(names), findings)


def _members(file: Readable) -> dict[str, _Member]:
    """Offset and size of each member; links, long names and unknown types are refused."""
    members: dict[str, _Member] = {}
    at = 0
    while at < file.size:
        header = file.read(at, 512)
        if not header.strip(b"\0"):
            break
        name = str(header[:100].partition(b"\0")[0], "latin-1").removeprefix("./")
        size, checksum = _octal(header[124:136]), _octal(header[148:156])
        if checksum != sum(header) - sum(header[148:156]) + 8 * 0x20:
            raise _bad(f"the header of {quoted(name)} at byte {at:,} is damaged")
        extended = header[156:157] == b"x"
        if not extended and (
            header[156:157] not in (b"0", b"\0") or name not in _MEMBERS or name in members
        ):
            raise _bad(f"member {quoted(name)} is not one that torch writes")
        end = at + 512 + -(-size // 512) * 512
        if end > file.size:
            raise cut_short(f"the file is cut short: {end - file.size:,} bytes are missing")
        if extended:
            _check_extended(file.read(at + 512, min(size, _LARGEST_EXTENDED + 1)))
        else:
            members[name] = _Member(at + 512, size)
        at = end
    return members


def _check_extended(records: bytes) -> None:
    """Nothing of an extended header changes what a member is called or how long it is."""
    if len(records) > _LARGEST_EXTENDED or not _EXTENDED.fullmatch(records):
        raise _bad("an extended header says more than times and owners")


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit() or len(digits) > 11 or set(digits) & set(b"89"):
        raise _bad(f"found {quoted(str(field, 'latin-1'))}, wanted an octal number")
    return int(digits, 8)


class _Cursor:
    """A place in a member, at which pickles and numbers follow one another.

    `names` are the globals of the pickles so far.
    """

    def __init__(self, file: Readable, member: _Member) -> None:
        self._file = file
        self._at = member.offset
        self._end = member.offset + member.size
        self.names: list[Global] = []

    def skip(self, length: int) -> int:
        """The offset of the next bytes, which stay unread."""
        if not 0 <= length <= self._end - self._at:
            raise _bad(f"an entry of {length:,} bytes at byte {self._at:,} leaves its member")
        self._at += length
        return self._at - length

    def take(self, length: int) -> bytes:
        """The next bytes."""
        return self._file.read(self.skip(length), length)

    def pickle(self) -> object:
        """The root of the next pickle, which is short but for a list of views."""
        size = 4096
        while True:
            data = self._file.read(self._at, min(size, self._end - self._at))
            try:
                found = load(data)
                break
            except FormatError as problem:
                if problem.code != "pickle.truncated" or len(data) < size or size > LARGEST_MEMBER:
                    raise
                size *= 8
        self._at += found.end
        self.names += names_of([found])
        return found.root

    def count(self) -> int:
        """The next pickle, which is a number of entries."""
        root = self.pickle()
        if type(root) is not int or not 0 <= root <= 1 << 24:
            raise _bad("a count is not a number")
        return root

    def fields(self) -> tuple[str, object, object]:
        """The next pickle, a tuple of a key and two more fields; numbers as text."""
        root = self.pickle()
        if type(root) is not tuple or len(root) != 3:
            raise _bad("a pickled entry is malformed")
        first, second, third = (_key(part) or part for part in root)
        if type(first) is not str:
            raise _bad("a key is not text or a number")
        return first, second, third


def _key(value: object) -> str | None:
    return str(value) if type(value) is int else text(value)


def _storages(cursor: _Cursor, file: Readable) -> dict[str, tuple[Record, DType]]:
    """Each storage: a pickled (key, location, type), its length, its data; then the views."""
    found: dict[str, tuple[Record, DType]] = {}
    for _ in range(cursor.count()):
        key, _, kind = cursor.fields()
        dtype = storage_dtype(kind) if type(kind) is Global else None
        if dtype is None or key in found:
            raise _bad(f"storage {quoted(key)} occurs twice or has no element type")
        nbytes = int.from_bytes(cursor.take(8), "little", signed=True) * dtype.itemsize
        found[key] = Record(file, cursor.skip(nbytes), nbytes, nbytes, name=key), dtype
    views = cursor.pickle()
    if type(views) is not ListNode:
        raise _bad("the storage views are not a list")
    for view in views.items or ():
        if type(view) is not tuple or len(view) != 4:
            raise _bad("a storage view is malformed")
        target, whole = _key(view[0]), found.get(_key(view[1]) or "")
        offset, numel = view[2:]
        if not target or whole is None or type(offset) is not int or type(numel) is not int:
            raise _bad("a storage view is malformed")
        base, dtype = whole
        start, size = offset * dtype.itemsize, numel * dtype.itemsize
        if start < 0 or size < 0 or start + size > base.nbytes:
            raise _bad("a storage view reaches past its storage")
        found[target] = Record(file, base.offset + start, size, size, name=target), dtype
    return found


def _tensors(
    cursor: _Cursor, storages: Mapping[str, tuple[Record, DType]]
) -> dict[str, LazyTensor | Refused]:
    """Each tensor: a pickled (key, storage, type), then rank, sizes, strides and offset."""
    found: dict[str, LazyTensor | Refused] = {}
    for _ in range(cursor.count()):
        key, storage, _ = cursor.fields()
        rank, _ = Struct("<2i").unpack(cursor.take(8))
        known = storages.get(storage if type(storage) is str else "")
        if not 0 <= rank <= 64 or known is None or key in found:
            raise _bad(f"tensor {quoted(key)} has rank {rank}, an unknown storage, or occurs twice")
        numbers = Struct(f"<{2 * rank + 1}q").unpack(cursor.take(16 * rank + 8))
        size, stride, offset = numbers[:rank], numbers[rank:-1], numbers[-1]
        found[key] = view_on(*known, (0, offset, size, stride))
    return found


def _content(file: Readable, member: _Member) -> bytes:
    if member.size > LARGEST_MEMBER:
        raise _bad(f"a member has {member.size:,} bytes, wanted at most {LARGEST_MEMBER:,}")
    return file.read(member.offset, member.size)


def _bad(what: str) -> FormatError:
    return FormatError(f"torch tar: {what}", code="tar.format")
