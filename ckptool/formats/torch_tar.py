"""The tar format of torch before 0.1.10: members `sys_info`, `pickle`, `storages`, `tensors`.

Source: `torch/serialization.py` (`legacy_load`; torch 2.15); POSIX ustar for the headers. The
format is a few years older than checksums of content: only tar's own header sums are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from ckptool.checkpoint import Contents, Finding, Refused
from ckptool.dtypes import DType
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable
from ckptool.formats.globals import label
from ckptool.formats.graph import value_of
from ckptool.formats.legacy_stream import large_value, nested_storage
from ckptool.formats.nodes import Global, ListNode, text
from ckptool.formats.pickle_vm import Pickle, load
from ckptool.formats.rebuild import Storages, storage_dtype, view_on
from ckptool.tensors import LazyTensor, Record

NAME = "torch-tar"
LARGEST_MEMBER = 1 << 28
_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is a tar archive whose first member is one of torch's."""
    name = head[:100].rstrip(b"\0").removeprefix(b"./")
    return len(head) >= 512 and name in (b"sys_info", b"pickle", b"storages", b"tensors")


def read(file: Readable) -> Contents:
    """The file's value.

    Raises: FormatError.
    """
    members = _members(file)
    missing = _MEMBERS - members.keys()
    if missing:
        raise _bad(f"the archive has no member {quoted(min(missing))}")
    storages = _storages(file, members["storages"])
    tensors = _tensors(file, members["tensors"], storages)
    body = members["pickle"]
    data = _content(file, body)
    pickle = load(data)

    def record(key: str, nbytes: int) -> Record:
        raise FormatError(f"storage {quoted(key)} is not in the file", code="storage.missing")

    resolver = Storages(
        record,
        lambda value: large_value(file, body.offset, data, value),
        nested_storage,
        {key: tensor for key, tensor in tensors.items() if isinstance(tensor, LazyTensor)},
    )
    findings = (Finding("no-checksums", "a tar file has no checksums: damage cannot be seen"),)
    return Contents(NAME, value_of(pickle.root, resolver), label(pickle.globals), findings)


def _members(file: Readable) -> dict[str, _Member]:
    """Offset and size of each member; links, long names and unknown types are refused."""
    members: dict[str, _Member] = {}
    at = 0
    while at + 512 <= file.size:
        header = file.read(at, 512)
        if not header.strip(b"\0"):
            break
        name = str(header[:100].partition(b"\0")[0], "latin-1").removeprefix("./")
        size, checksum = _octal(header[124:136]), _octal(header[148:156])
        if checksum != sum(header) - sum(header[148:156]) + 8 * 0x20:
            raise _bad(f"the header of {quoted(name)} at byte {at:,} is damaged")
        if header[156:157] not in (b"0", b"\0") or name not in _MEMBERS or name in members:
            raise _bad(f"member {quoted(name)} is not one that torch writes")
        if at + 512 + size > file.size:
            raise FormatError(
                f"the file is cut short: {at + 512 + size - file.size:,} bytes are missing",
                code="format.truncated",
            )
        members[name] = _Member(at + 512, size)
        at += 512 + -(-size // 512) * 512
    return members


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit() or len(digits) > 11 or set(digits) & set(b"89"):
        raise _bad(f"found {quoted(str(field, 'latin-1'))}, wanted an octal number")
    return int(digits, 8)


def _storages(file: Readable, member: _Member) -> dict[str, tuple[Record, DType]]:
    """Each storage: a pickled (key, location, type), its length, its data; then the views."""
    found: dict[str, tuple[Record, DType]] = {}
    at, end = member.offset, member.offset + member.size
    count, at = _number(file, at, end)
    for _ in range(count):
        (key, _, kind), at = _fields(file, at, end)
        dtype = storage_dtype(kind) if type(kind) is Global else None
        if dtype is None:
            raise _bad(f"storage {key} has no element type")
        nbytes = int.from_bytes(_read(file, at, 8, end), "little", signed=True) * dtype.itemsize
        if nbytes < 0 or at + 8 + nbytes > end:
            raise _bad(f"storage {key} declares {nbytes:,} bytes, past its member's end")
        found[key] = Record(file, at + 8, nbytes, nbytes, name=key), dtype
        at += 8 + nbytes
    views, at = _pickle(file, at, end)
    if type(views.root) is not ListNode:
        raise _bad("the storage views are not a list")
    for view in views.root.items or ():
        if type(view) is not tuple or len(view) != 4:
            raise _bad("a storage view is malformed")
        target, root, offset, numel = view
        whole = found.get(str(root) if type(root) is int else text(root) or "")
        if whole is None or type(offset) is not int or type(numel) is not int:
            raise _bad("a storage view is malformed")
        base, dtype = whole
        start, size = offset * dtype.itemsize, numel * dtype.itemsize
        if start < 0 or size < 0 or start + size > base.nbytes:
            raise _bad("a storage view reaches past its storage")
        key = str(target) if type(target) is int else text(target) or ""
        found[key] = Record(file, base.offset + start, size, size, name=key), dtype
    return found


def _tensors(
    file: Readable, member: _Member, storages: Mapping[str, tuple[Record, DType]]
) -> dict[str, LazyTensor | Refused]:
    """Each tensor: a pickled (key, storage, type), then rank, sizes, strides and offset."""
    found: dict[str, LazyTensor | Refused] = {}
    at, end = member.offset, member.offset + member.size
    count, at = _number(file, at, end)
    for _ in range(count):
        (key, storage, _), at = _fields(file, at, end)
        rank = int.from_bytes(_read(file, at, 4, end), "little", signed=True)
        known = storages.get(storage if type(storage) is str else "")
        if not 0 <= rank <= 64 or known is None:
            raise _bad(f"tensor {key} has rank {rank} or an unknown storage")
        numbers = Struct(f"<{2 * rank + 1}q").unpack(_read(file, at + 8, 16 * rank + 8, end))
        at += 8 + 16 * rank + 8
        size, stride, offset = numbers[:rank], numbers[rank:-1], numbers[-1]
        found[key] = view_on(*known, (0, offset, size, stride))
    return found


def _fields(file: Readable, at: int, end: int) -> tuple[tuple[str, object, object], int]:
    """A pickled tuple of key, a second field (numbers as text) and a third."""
    pickle, at = _pickle(file, at, end)
    if type(pickle.root) is not tuple or len(pickle.root) != 3:
        raise _bad("a pickled entry is malformed")
    first, second, third = (str(v) if type(v) is int else text(v) or v for v in pickle.root)
    if type(first) is not str:
        raise _bad("a key is not text or a number")
    return (first, second, third), at


def _number(file: Readable, at: int, end: int) -> tuple[int, int]:
    pickle, at = _pickle(file, at, end)
    if type(pickle.root) is not int or not 0 <= pickle.root <= 1 << 24:
        raise _bad("a count is not a number")
    return pickle.root, at


def _pickle(file: Readable, at: int, end: int) -> tuple[Pickle, int]:
    """The pickle at an offset, which is short but for a list of views, and the offset behind it."""
    size = 4096
    while True:
        data = file.read(at, min(size, end - at))
        try:
            pickle = load(data)
        except FormatError as problem:
            if problem.code != "pickle.truncated" or len(data) < size or size > LARGEST_MEMBER:
                raise
            size *= 8
        else:
            return pickle, at + pickle.end


def _read(file: Readable, at: int, length: int, end: int) -> bytes:
    if at + length > end:
        raise _bad("an entry is cut off by its member's end")
    return file.read(at, length)


def _content(file: Readable, member: _Member) -> bytes:
    if member.size > LARGEST_MEMBER:
        raise _bad(f"a member has {member.size:,} bytes, wanted at most {LARGEST_MEMBER:,}")
    return file.read(member.offset, member.size)


def _bad(what: str) -> FormatError:
    return FormatError(f"torch tar: {what}", code="tar.format")
