"""The directory of a zip archive, read so strictly that no two readers can differ on it.

Every byte of the file belongs to a local header, a record, its descriptor, or the directory; the
two copies of each header agree; names are unique and relative, under one root in what torch writes.
There is no search for an end record, no shift, no repair.

Source: PKWARE APPNOTE 6.3.10 §4.3; what torch writes, torch 2.15 (`caffe2/serialize`).
"""

from __future__ import annotations

import re
from functools import partial
from struct import Struct
from typing import NamedTuple

from ckptool.errors import FormatError, quoted
from ckptool.files import Readable
from ckptool.records import Record

_END = Struct("<4s4H2IH")  # signature, disks, counts, directory size and offset, comment
_END64 = Struct("<4sQ2H2I4Q")
_LOCATOR = Struct("<4sIQI")
_CENTRAL = Struct("<4s4x2H4x3I4H6xI")  # without versions, time and attributes
_LOCAL = Struct("<4s5H3I2H")
_FIELD = Struct("<2H")  # what an extra field begins with: its id and its length
_HEADER = b"PK\x03\x04"  # what a local header begins with
_LATER = bytes(12)  # CRC and sizes in a local header, where they follow the data

_LARGEST_DIRECTORY = 1 << 28
_DESCRIPTORS = {12: Struct("<3I"), 16: Struct("<4x3I"), 20: Struct("<I2Q"), 24: Struct("<4xI2Q")}
_ALIGNED = 64  # what torch aligns its records to
_MAX32 = 0xFFFFFFFF
_DEFERRED, _UTF8 = 0x008, 0x800  # flag bits: sizes follow the data; the name is UTF-8
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+(?:/[^/\\\x00-\x1f\x7f]+)*")


class _Central(NamedTuple):
    """What the directory says of a record; `repeated` is what its local header says again.

    From the flags to the length of the name; empty where the sizes are 64-bit values elsewhere.
    """

    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int
    repeated: bytes


def read_directory(file: Readable, *, rooted: bool = True) -> dict[str, Record]:
    """The records by name, in directory order; empty entries for folders are left out.

    All names are below one folder, unless `rooted` says that they need not be.

    Raises: FormatError for every archive that is not laid out exactly as its directory says.
    """
    start, size, count = _end_record(file)
    if size > _LARGEST_DIRECTORY:
        raise _bad("size", f"the directory has {size:,} bytes, more than any checkpoint needs")
    central = _central(file.read(start, size), count)
    _check_names(central, rooted)
    found = _locate(file, central, start)
    records = (found[c.header] for c in central)
    return {record.name: record for record in records if not record.name.endswith("/")}


def _end_record(file: Readable) -> tuple[int, int, int]:
    """Offset, size and entry count of the directory."""
    at = file.size - _END.size
    if at < 0:
        raise _bad("end", "the file is shorter than a zip end record")
    end = _END.unpack(file.read(at, _END.size))
    signature, disk, first_disk, here, count, size, offset, comment = end
    if signature != b"PK\x05\x06":
        raise _bad("end", "the zip end record is not at the end of the file")
    if comment:
        raise _bad("comment", "the archive has a comment")
    large = at >= _LOCATOR.size and file.read(at - _LOCATOR.size, 4) == b"PK\x06\x07"
    if large:
        at, full = _end64(file, at - _LOCATOR.size)
        for short, long, limit in (
            (here, full[0], 0xFFFF),
            (count, full[0], 0xFFFF),
            (size, full[1], _MAX32),
            (offset, full[2], _MAX32),
        ):
            if short not in (long, limit):
                raise _bad("zip64", f"the two end records disagree: {short:,} and {long:,}")
        here = count = full[0]
        size, offset = full[1:]
    if disk or first_disk or here != count:
        raise _bad("disk", "the archive spans several disks")
    if offset + size != at:
        raise _bad(
            "shift", f"the directory ends at byte {offset + size:,}, its end record is at {at:,}"
        )
    return offset, size, count


def _end64(file: Readable, at: int) -> tuple[int, tuple[int, int, int]]:
    """Where the zip64 end record starts, and its entry count, directory size and offset."""
    _, disk, where, disks = _LOCATOR.unpack(file.read(at, _LOCATOR.size))
    if disk or disks != 1 or where + _END64.size != at:
        raise _bad("zip64", "the zip64 end record is not right before its locator")
    fields = _END64.unpack(file.read(where, _END64.size))
    signature, length, _, _, disk, first_disk, here, count, size, offset = fields
    if signature != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk:
        raise _bad("zip64", "the zip64 end record is malformed")
    if here != count:
        raise _bad("disk", "the archive spans several disks")
    return where, (count, size, offset)


def _central(directory: bytes, count: int) -> list[_Central]:
    entries: list[_Central] = []
    at = 0
    while at < len(directory):
        if len(directory) - at < _CENTRAL.size:
            raise _bad("directory", "the directory ends inside an entry")
        fields = _CENTRAL.unpack_from(directory, at)
        signature, flags, method, crc, stored, size = fields[:6]
        name_size, extra_size, comment, disk, header = fields[6:]
        repeated = directory[at + 8 : at + 30] if _MAX32 not in (stored, size) else b""
        at += _CENTRAL.size
        name = directory[at : at + name_size]
        at += name_size
        extra = directory[at : at + extra_size]
        at += extra_size
        if signature != b"PK\x01\x02" or at > len(directory):
            raise _bad("directory", f"entry {len(entries):,} of the directory is malformed")
        if comment or disk:
            raise _bad("comment", f"{_shown(name)} has a comment or is on another disk")
        if flags & ~(_DEFERRED | _UTF8):
            raise _bad("flags", f"{_shown(name)} has the flag bits {flags:#06x}: encrypted?")
        if method not in (0, 8):
            raise _bad("method", f"{_shown(name)} is compressed by method {method}, wanted 0 or 8")
        wide = _extra_fields(extra, name).get(1) if extra else None
        if wide is not None:
            size, stored, header = _widened(wide, (size, stored, header), name)
        if method == 0 and size != stored:
            raise _bad("size", f"{_shown(name)} is stored as {stored:,} bytes, wanted {size:,}")
        entries.append(_Central(name, flags, method, crc, stored, size, header, repeated))
    if len(entries) != count:
        raise _bad("count", f"the directory has {len(entries):,} entries, its end says {count:,}")
    return entries


def _extra_fields(extra: bytes, name: bytes) -> dict[int, bytes]:
    """The extra fields by their id; an alternative name (0x7075) is refused."""
    fields = {}
    at = 0
    while at < len(extra):
        ident, length = _FIELD.unpack_from(extra, at) if at + 4 <= len(extra) else (0, _MAX32)
        value = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if at > len(extra) or ident in fields or ident == 0x7075:
            raise _bad("extra", f"{_shown(name)} has a malformed or misleading extra field")
        fields[ident] = value
    return fields


def _widened(wide: bytes, values: tuple[int, ...], name: bytes) -> tuple[int, ...]:
    """Sizes and offset, those that are all ones replaced by the next 64-bit value."""
    numbers = [
        int.from_bytes(wide[at : at + 8], "little") for at in range(0, len(wide) // 8 * 8, 8)
    ]
    result = []
    for value in values:
        if value == _MAX32:
            if not numbers:
                raise _bad("zip64", f"{_shown(name)} lacks a 64-bit value")
            value = numbers.pop(0)
        result.append(value)
    if numbers or len(wide) % 8:
        raise _bad("zip64", f"{_shown(name)} has a 64-bit value too many")
    return tuple(result)


def _check_names(central: list[_Central], rooted: bool) -> None:
    seen = set()
    root = None
    for entry in central:
        try:
            name = str(entry.name, "utf-8" if entry.flags & _UTF8 else "ascii")
        except UnicodeDecodeError:
            raise _bad("name", f"{_shown(entry.name)} is not valid text") from None
        segments = name.split("/")
        # Packed by hand, an archive has entries for its folders, which torch passes over, too.
        folder = name.endswith("/") and not entry.stored
        if (
            not _NAME.fullmatch(f"{name}folder" if folder else name)
            or (rooted and len(segments) < 2)
            or "." in segments
            or ".." in segments
        ):
            where = " under one root" if rooted else ""
            raise _bad("name", f"{_shown(entry.name)} is not a relative name{where}")
        plain = name.rstrip("/").casefold()
        if plain in seen:
            raise _bad("duplicate", f"two records are called {_shown(entry.name)}")
        seen.add(plain)
        if rooted and root not in (None, segments[0]):
            raise _bad("root", f"two roots: {quoted(str(root))} and {quoted(segments[0])}")
        root = segments[0]


def _locate(file: Readable, central: list[_Central], end: int) -> dict[int, Record]:
    """The records by header offset, each local header read and compared, no byte left over.

    Of a file far away the headers are read with the records, one by one, where the directory alone
    tells where the records are: to read them all would be a request for each.
    """
    records: dict[int, Record] = {}
    ordered = sorted(central, key=lambda entry: entry.header)
    reached = 0  # every byte before it is accounted for, but for the descriptor of `last`
    last: _Central | None = None
    for entry, following in zip(ordered, [*ordered[1:], None], strict=False):
        offset = _supposed(entry, following.header if following else end) if file.distant else None
        if offset is None:
            offset = _located(file, entry, reached, last, end)
            confirm = None
        else:
            confirm = partial(_confirm, file, entry, (reached, last, end), offset)
        reached = offset + entry.stored
        records[entry.header] = Record(
            file,
            offset,
            entry.size,
            entry.stored,
            "little",
            None if entry.crc == 0 and entry.size else entry.crc,  # the writer computed none
            entry.method == 8,
            str(entry.name, "utf-8"),
            confirm,
        )
        last = entry
    if end - reached > 24:
        raise _bad("gap", f"{end - reached:,} bytes before the directory belong to no record")
    _check_descriptor(file.read(reached, end - reached), last, b"the directory")
    return records


def _located(file: Readable, entry: _Central, reached: int, last: _Central | None, end: int) -> int:
    """Where a record's bytes start, once its header and what is before it are found right."""
    gap = entry.header - reached
    if gap < 0:
        raise _bad("overlap", f"{_shown(entry.name)} overlaps the record before it")
    if gap > 24:
        raise _bad("gap", f"{gap:,} bytes before {_shown(entry.name)} belong to no record")
    # One read takes the descriptor before, the header, and torch's padding behind it.
    length = gap + _LOCAL.size + len(entry.name)
    block = file.read(reached, min(length + 96, end - reached))
    if gap or (last is not None and last.flags & _DEFERRED):
        _check_descriptor(block[:gap], last, entry.name)
    if len(block) < length:
        raise _bad("header", f"the local header of {_shown(entry.name)} is cut off")
    head = block[gap:length]
    said = head[6:28]
    if said[8:20] == _LATER and entry.flags & _DEFERRED:
        said = said[:8] + entry.repeated[8:20] + said[20:]
    known = entry.repeated == said and head.endswith(entry.name) and head[:4] == _HEADER
    extra_size = head[28] + 256 * head[29] if known else _check_local(block[gap:], entry)
    offset = entry.header + _LOCAL.size + len(entry.name) + extra_size
    extra = block[length : length + extra_size]
    if len(extra) < extra_size:
        extra = file.read(offset - extra_size, extra_size)
    fields = _extra_fields(extra, entry.name)
    if not known:
        _check_local_sizes(block[gap:], fields, entry)
    if offset + entry.stored > end:
        raise _bad("size", f"{_shown(entry.name)} reaches into the directory")
    return offset


def _supposed(entry: _Central, following: int) -> int | None:
    """Where a record's bytes start if it ends right before what follows; None if that is open.

    A descriptor may stand in between, in several sizes; torch aligns what it writes.
    """
    sizes = (16, 24) if entry.flags & _DEFERRED else (0,)
    offsets = [following - size - entry.stored for size in sizes]
    if len(offsets) > 1:
        offsets = [offset for offset in offsets if offset % _ALIGNED == 0]
    least = entry.header + _LOCAL.size + len(entry.name)
    return offsets[0] if len(offsets) == 1 and offsets[0] >= least else None


def _confirm(
    file: Readable, entry: _Central, place: tuple[int, _Central | None, int], supposed: int
) -> None:
    reached, last, end = place
    found = _located(file, entry, reached, last, end)
    if found != supposed:
        raise _bad("gap", f"{_shown(entry.name)} starts at {found:,}, not at {supposed:,}")


def _check_local(block: bytes, entry: _Central) -> int:
    """The size of the local header's extra field, once its fields agree with the directory."""
    signature, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack_from(block)
    if signature != _HEADER:
        raise _bad("header", f"no local header for {_shown(entry.name)} at byte {entry.header:,}")
    name = block[_LOCAL.size : _LOCAL.size + name_size]
    if name != entry.name or flags != entry.flags or method != entry.method:
        raise _bad(
            "mismatch", f"{_shown(entry.name)}: its local header differs, it says {_shown(name)}"
        )
    return int(extra_size)


def _check_local_sizes(block: bytes, extra: dict[int, bytes], entry: _Central) -> None:
    crc, stored, size = _LOCAL.unpack_from(block)[6:9]
    if entry.flags & _DEFERRED and not (crc or stored or size):
        return
    wide = extra.get(1)
    if wide is not None and _MAX32 in (size, stored):
        size, stored = _widened(wide, (size, stored), entry.name)
    wanted = (entry.crc, entry.stored, entry.size)
    if (crc, stored, size) != wanted:
        raise _bad("mismatch", f"{_shown(entry.name)}: its local header has other sizes or CRC")


def _check_descriptor(block: bytes, entry: _Central | None, following: bytes) -> None:
    """The bytes between a record and what follows are its descriptor, or nothing."""
    if not block and (entry is None or not entry.flags & _DEFERRED):
        return
    if entry is None or not entry.flags & _DEFERRED or len(block) not in _DESCRIPTORS:
        raise _bad("gap", f"{len(block)} bytes before {_shown(following)} belong to no record")
    marked = len(block) in (16, 24)
    found = _DESCRIPTORS[len(block)].unpack(block)
    if (marked and block[:4] != b"PK\x07\x08") or found != (entry.crc, entry.stored, entry.size):
        raise _bad("mismatch", f"{_shown(entry.name)}: its data descriptor disagrees")


def _bad(rule: str, what: str) -> FormatError:
    return FormatError(f"zip archive: {what}", code=f"zip.{rule}")


def _shown(name: bytes) -> str:
    return quoted(str(name[:200], "latin-1"))
