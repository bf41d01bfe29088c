"""Zip archives that lie: a builder that writes each header as it is told, and faults to tell it.

Source: PKWARE APPNOTE 6.3.10 §4.3; the advisories GHSA-7q5r-7gvp-wc82, GHSA-w8jq-xcqf-f792,
GHSA-769v-p64c-89pr, CVE-2024-0450, CVE-2025-8291, CVE-2025-10155 and -10156.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .case import Case
from .opcodes import (
    BINPERSID,
    EMPTY_TUPLE,
    FALSE,
    REDUCE,
    STOP,
    call,
    dict_of,
    name,
    number,
    proto,
    text,
    tuple_of,
)

DEFERRED = 0x808  # what torch sets: sizes follow the data, the name is UTF-8


@dataclass
class Item:
    """A record; None stands for what an honest writer would put there."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    stored: int | None = None
    header: int | None = None  # the offset that the directory gives
    extra: bytes = b""
    central_extra: bytes = b""
    comment: bytes = b""
    disk: int = 0
    raw: bytes | None = None  # the bytes as they are stored
    local_name: bytes | None = None
    local_flags: int | None = None
    local_method: int | None = None
    local_sizes: tuple[int, int, int] | None = None  # CRC, stored, size
    descriptor: bytes | None = None
    before: bytes = b""  # bytes between this record and the one before
    listed: bool = True
    written: bool = True


@dataclass
class Archive:
    """Records, and what the end record says of them."""

    items: list[Item]
    prefix: bytes = b""
    suffix: bytes = b""
    before_directory: bytes = b""
    after_directory: bytes = b""
    comment: bytes = b""
    disk: int = 0
    count: int | None = None
    total: int | None = None
    directory_size: int | None = None
    directory_offset: int | None = None
    zip64: bool = False
    zip64_fields: dict[str, int] = field(default_factory=dict)
    shift: int = 0  # added to every offset

    def item(self, end: bytes) -> Item:
        """The record whose name ends so."""
        return next(item for item in self.items if item.name.endswith(end))

    def build(self) -> bytes:
        """The bytes of the archive."""
        out = bytearray(self.prefix)
        central = bytearray()
        for item in self.items:
            out += item.before
            header = len(out) - len(self.prefix)
            raw = item.raw
            if raw is None:
                raw = _deflated(item.data) if item.method == 8 else item.data
            crc = zlib.crc32(item.data) if item.crc is None else item.crc
            size = len(item.data) if item.size is None else item.size
            stored = len(raw) if item.stored is None else item.stored
            deferred = item.flags & 8
            local = item.local_sizes or ((0, 0, 0) if deferred else (crc, stored, size))
            if item.written:
                out += _local(item, *local) + raw
                if deferred and item.descriptor is None:
                    out += b"PK\x07\x08" + struct.pack("<3I", crc, stored, size)
                out += item.descriptor or b""
            if item.listed:
                offset = header if item.header is None else item.header
                central += _central(item, crc, stored, size, offset + self.shift)
        out += self.before_directory
        offset = len(out) - len(self.prefix) + self.shift
        out += central + self.after_directory
        listed = sum(item.listed for item in self.items)
        out += self._end(len(out), listed, len(central), offset)
        return bytes(out) + self.suffix

    def _end(self, at: int, listed: int, central: int, offset: int) -> bytes:
        count = listed if self.count is None else self.count
        total = count if self.total is None else self.total
        size = central if self.directory_size is None else self.directory_size
        offset = offset if self.directory_offset is None else self.directory_offset
        end = b"PK\x05\x06" + struct.pack(
            "<4H2IH", self.disk, self.disk, count, total, size, offset, len(self.comment)
        )
        if not self.zip64:
            return end + self.comment
        told = {
            "length": 44,
            "count": count,
            "total": count,
            "size": size,
            "offset": offset,
            "where": at,
            "disks": 1,
            "disk": 0,
            **self.zip64_fields,
        }
        full = b"PK\x06\x06" + struct.pack(
            "<Q2H2I4Q",
            told["length"],
            45,
            45,
            told["disk"],
            0,
            told["count"],
            told["total"],
            told["size"],
            told["offset"],
        )
        locator = b"PK\x06\x07" + struct.pack("<IQI", told["disk"], told["where"], told["disks"])
        return full + locator + end + self.comment


def _deflated(data: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return engine.compress(data) + engine.flush()


def _local(item: Item, crc: int, stored: int, size: int) -> bytes:
    called = item.name if item.local_name is None else item.local_name
    flags = item.flags if item.local_flags is None else item.local_flags
    method = item.method if item.local_method is None else item.local_method
    fields = (20, flags, method, 0, 0, crc, stored, size, len(called), len(item.extra))
    return b"PK\x03\x04" + struct.pack("<5H3I2H", *fields) + called + item.extra


def _central(item: Item, crc: int, stored: int, size: int, offset: int) -> bytes:
    fields = (
        20,
        20,
        item.flags,
        item.method,
        0,
        0,
        crc,
        stored,
        size,
        len(item.name),
        len(item.central_extra),
        len(item.comment),
        item.disk,
        0,
        0,
        offset,
    )
    head = b"PK\x01\x02" + struct.pack("<6H3I5H2I", *fields)
    return head + item.name + item.central_extra + item.comment


def tensor(
    key: str,
    numel: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    storage: str = "FloatStorage",
    offset: int = 0,
) -> bytes:
    """The call that rebuilds a tensor on a storage of the archive."""
    ident = tuple_of(text("storage"), name("torch", storage), text(key), text("cpu"), number(numel))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        ident + BINPERSID,
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, stride)),
        FALSE,
        name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    )


STATE = (
    proto(2)
    + dict_of(
        (text("a.weight"), tensor("0", 6, (2, 3), (3, 1))),
        (text("a.bias"), tensor("1", 2, (2,), (1,))),
    )
    + STOP
)
EVIL = proto(2) + call(name("builtins", "exec"), text("import sys; sys.attacked = True")) + STOP
FLOATS = struct.pack("<6f", *range(6)), struct.pack("<2f", 7, 8)


def honest(pickle: bytes = STATE, root: bytes = b"archive", flags: int = 0) -> Archive:
    """An archive as torch lays it out."""
    parts = (
        (b"data.pkl", pickle),
        (b"byteorder", b"little"),
        (b"data/0", FLOATS[0]),
        (b"data/1", FLOATS[1]),
        (b"version", b"3\n"),
    )
    return Archive([Item(root + b"/" + part, data, flags=flags) for part, data in parts])


Fault = Callable[[Archive], None]
PICKLE, STORAGE = b"data.pkl", b"data/0"


def _set(end: bytes, **values: object) -> Fault:
    """A fault that sets fields of one record."""

    def apply(archive: Archive) -> None:
        item = archive.item(end)
        for key, value in values.items():
            setattr(item, key, value)

    return apply


def _end(**values: object) -> Fault:
    """A fault that sets fields of the archive."""

    def apply(archive: Archive) -> None:
        for key, value in values.items():
            setattr(archive, key, value)

    return apply


def _added(*items: Item, first: bool = False) -> Fault:
    """A fault that adds records."""

    def apply(archive: Archive) -> None:
        archive.items[:0] = items if first else ()
        archive.items += () if first else items

    return apply


def _renamed(end: bytes, new: bytes) -> Fault:
    def apply(archive: Archive) -> None:
        archive.item(end).name = new

    return apply


def _roots(new: bytes) -> Fault:
    """A fault that gives every record another root."""

    def apply(archive: Archive) -> None:
        for item in archive.items:
            item.name = new + item.name.removeprefix(b"archive")

    return apply


def _alias(archive: Archive) -> None:
    """Two entries of the directory for one record."""
    archive.items.append(Item(b"archive/data/9", FLOATS[0], header=0, written=False))


def _quoted(archive: Archive) -> None:
    """A record that lies inside another one."""
    inner = Item(b"archive/data/9", FLOATS[1])
    block = Archive([inner]).build()[: 30 + len(inner.name) + len(inner.data)]
    storage = archive.item(STORAGE)
    at = sum(30 + len(i.name) + len(i.data) for i in archive.items[:2]) + 30 + len(storage.name)
    storage.data = block
    inner.header, inner.written = at, False
    archive.items.append(inner)


# Twelve faults that can stand side by side: each alone and every pair is a case.
FAULTS: dict[str, tuple[Fault, str]] = {
    "Z01-crc": (_set(PICKLE, crc=0x12345678), "zip.crc"),
    "Z02-encrypted": (_set(STORAGE, flags=0x1), "zip.flags"),
    "Z02-local-flag": (_set(b"data/1", local_flags=0x20), "zip.mismatch"),
    "Z03-local-name": (_set(b"data/1", local_name=b"archive/data/7"), "zip.mismatch"),
    "Z04-duplicate": (_added(Item(b"archive/data.pkl", EVIL)), "zip.duplicate"),
    "Z06-comment": (_end(comment=b"hello"), "zip.end"),
    "Z07-gap": (_set(b"version", before=b"x" * 30), "zip.gap"),
    "Z07-suffix": (_end(suffix=b"x"), "zip.end"),
    "Z09-count": (_end(count=9), "zip.count"),
    "Z11-method": (_set(b"byteorder", method=12), "zip.method"),
    "Z12-two-roots": (_added(Item(b"other/data/2", b"")), "zip.root"),
    "Z05-shift": (_end(shift=4), "zip.shift"),
}


def _names() -> Iterator[tuple[str, Fault, str]]:
    for label, new in (
        ("no-root", b"data/0"[5:]),
        ("absolute", b"/archive/data/0"),
        ("up", b"archive/../data/0"),
        ("dot", b"archive/./data/0"),
        ("backslash", b"archive\\data\\0"),
        ("nul", b"archive/data\0/0"),
        ("newline", b"archive/da\nta/0"),
        ("escape", b"archive/\x1b[2J/0"),
        ("empty", b""),
        ("empty-segment", b"archive//data/0"),
        ("folder", b"archive/data/0/"),
        ("latin-1", b"archive/d\xe4ta/0"),
        ("drive", b"C:\\data\\0"),
    ):
        yield f"Z12-name-{label}", _renamed(STORAGE, new), "zip.name"
    yield "Z12-name-bad-utf8", _set(STORAGE, name=b"archive/\xff\xfe/0", flags=0x800), "zip.name"
    yield "Z12-name-of-64-KiB", _renamed(STORAGE, b"archive/" + b"x" * 65_000), "storage.missing"
    for new in (
        b"archive/data.pkl",
        b"ARCHIVE/DATA.PKL",
        b"archive/DATA.pkl",
        b"Archive/data/0",
        b"archive/Version",
        b"archive/data/0",
    ):
        for first in (False, True):
            place = "first" if first else "last"
            yield (
                f"Z04-{new.decode()}-{place}",
                _added(Item(new, EVIL), first=first),
                "zip.root" if new.startswith(b"Archive") and first else "zip.duplicate",
            )
    for root in (b"a/b", b"..", b".", b" ", b"x" * 200):
        ok = root not in (b"..", b".")
        code = "not-a-checkpoint.zip" if root == b"a/b" else "" if ok else "zip.name"
        if code or not ok:
            yield f"Z12-root-{root[:9].decode()}", _roots(root), code


def _headers() -> Iterator[tuple[str, Fault, str]]:
    for end in (PICKLE, STORAGE, b"byteorder", b"version"):
        label = end.decode()
        for bit in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15):
            if end in (PICKLE, STORAGE) or bit == 0:
                yield f"Z02-{label}-flag-{bit}", _set(end, flags=1 << bit), "zip.flags"
        late = "tensors:" if end == STORAGE else ""
        yield f"Z01-{label}-crc", _set(end, crc=1), f"{late}zip.crc"
        yield f"Z03-{label}-local-crc", _set(end, local_sizes=(1, 2, 2)), "zip.mismatch"
        yield f"Z03-{label}-local-method", _set(end, local_method=8), "zip.mismatch"
        yield f"Z03-{label}-local-name", _set(end, local_name=b"x" * (8 + len(end))), "zip.mismatch"
        yield f"Z03-{label}-local-utf8", _set(end, local_flags=0x800), "zip.mismatch"
        yield f"Z11-{label}-disk", _set(end, disk=1), "zip.comment"
        yield f"Z11-{label}-comment", _set(end, comment=b"hi"), "zip.comment"
        code = "not-a-checkpoint" if end == PICKLE else "zip.gap"
        yield f"Z07-{label}-gap", _set(end, before=b"\0" * 4), code
        yield f"Z11-{label}-offset-end", _set(end, header=1 << 31), "zip.gap"
        yield f"Z11-{label}-size", _set(end, size=1 << 30, stored=1 << 30), "zip."
        yield f"Z10-{label}-stored-lie", _set(end, stored=1), "zip.size"
    for method in (1, 6, 9, 12, 14, 93, 95, 99):
        yield f"Z11-method-{method}", _set(STORAGE, method=method, raw=FLOATS[0]), "zip.method"
    for label, extra in (
        ("cut", b"\x01"),
        ("long", b"\x01\x00\xff\xff"),
        ("twice", b"FB\0\0FB\0\0"),
        ("unicode-path", struct.pack("<2H", 0x7075, 5) + b"\x01\0\0\0\0"),
    ):
        yield f"Z03-extra-{label}", _set(STORAGE, central_extra=extra), "zip.extra"
        yield f"Z03-local-extra-{label}", _set(STORAGE, extra=extra), "zip.extra"
    wide = struct.pack("<2HQ", 1, 8, 24)
    yield "Z09-zip64-unasked", _set(STORAGE, central_extra=wide), "zip.zip64"
    yield "Z09-zip64-missing", _set(STORAGE, size=0xFFFFFFFF, stored=0xFFFFFFFF), "zip."
    yield (
        "Z09-zip64-lie",
        _set(STORAGE, size=0xFFFFFFFF, stored=24, central_extra=struct.pack("<2HQ", 1, 8, 1 << 40)),
        "zip.size",
    )
    yield (
        "Z09-zip64-short",
        _set(STORAGE, size=0xFFFFFFFF, stored=24, central_extra=struct.pack("<2HI", 1, 4, 24)),
        "zip.zip64",
    )
    yield (
        "Z03-descriptor-crc",
        _set(STORAGE, flags=8, descriptor=b"PK\x07\x08" + struct.pack("<3I", 1, 24, 24)),
        "zip.mismatch",
    )
    yield (
        "Z03-descriptor-size",
        _set(STORAGE, flags=8, descriptor=struct.pack("<3I", zlib.crc32(FLOATS[0]), 24, 25)),
        "zip.mismatch",
    )
    yield "Z07-descriptor-none", _set(STORAGE, flags=8, descriptor=b""), "zip.gap"
    yield "Z07-descriptor-long", _set(STORAGE, flags=8, descriptor=b"x" * 20), "zip.mismatch"
    yield "Z07-descriptor-odd", _set(STORAGE, flags=8, descriptor=b"x" * 14), "zip.gap"


def _layouts() -> Iterator[tuple[str, Fault, str]]:
    evil = honest(EVIL).build()
    yield "Z05-two-archives", _end(prefix=evil), "zip.shift"
    yield "Z05-two-archives-shifted", _end(prefix=evil, shift=len(evil)), "zip.gap"
    yield "Z06-end-in-comment", _end(comment=honest(EVIL).build()[-22:]), "zip."
    yield "Z06-archive-in-comment", _end(comment=evil), "zip."
    yield "Z07-prefix", _end(prefix=b"PK\x03\x04junk"), "zip.shift"
    yield "Z07-suffix-22", _end(suffix=b"\0" * 22), "zip.end"
    yield "Z07-suffix-archive", _end(suffix=evil), "zip.shift"
    yield "Z07-before-directory", _end(before_directory=b"\0" * 30), "zip.gap"
    yield "Z07-few-before-directory", _end(before_directory=b"\0" * 7), "zip.gap"
    yield "Z07-after-directory", _end(after_directory=b"\0" * 10), "zip.shift"
    yield "Z07-orphan", _added(Item(b"archive/data/5", EVIL, listed=False)), "zip.gap"
    yield (
        "Z07-orphan-first",
        _added(Item(b"archive/data.pkl", EVIL, listed=False), first=True),
        "zip.gap",
    )
    yield "Z08-alias", _alias, "zip.overlap"
    yield "Z08-quoted", _quoted, "zip.overlap"
    yield "Z08-into-directory", _set(b"version", size=40, stored=40), "zip.size"
    for label, values in (
        ("less", {"count": 4}),
        ("more", {"count": 6}),
        ("zero", {"count": 0}),
        ("max", {"count": 0xFFFF}),
        ("total", {"total": 4}),
    ):
        yield f"Z09-count-{label}", _end(**values), "zip."
    yield "Z09-size", _end(directory_size=1), "zip.shift"
    yield "Z09-offset", _end(directory_offset=0), "zip.shift"
    yield "Z09-size-max", _end(directory_size=0xFFFFFFFF), "zip.shift"
    yield "Z09-size-and-offset", _end(directory_size=0, directory_offset=0), "zip.shift"
    yield "Z11-disk", _end(disk=1), "zip.disk"
    for label, told in (
        ("count", {"count": 4, "total": 4}),
        ("counts-differ", {"total": 6}),
        ("size", {"size": 1}),
        ("offset", {"offset": 0}),
        ("where", {"where": 0}),
        ("where-far", {"where": 1 << 62}),
        ("where-max", {"where": (1 << 64) - 1}),
        ("disks", {"disks": 2}),
        ("disk", {"disk": 1}),
        ("length", {"length": 45}),
        ("size-max", {"size": (1 << 64) - 1}),
        ("offset-max", {"offset": (1 << 64) - 1}),
    ):
        yield f"Z09-zip64-{label}", _end(zip64=True, zip64_fields=told), "zip."
    yield "Z13-no-pickle", _renamed(PICKLE, b"archive/model.pkl"), "not-a-checkpoint.zip"
    yield "Z13-pickle-elsewhere", _renamed(PICKLE, b"archive/data/data.pkl"), "not-a-checkpoint.zip"
    yield "Z13-nested-archive", _renamed(PICKLE, b"archive/inner.zip"), "not-a-checkpoint.zip"
    yield "Z13-model-json", _renamed(PICKLE, b"archive/model.json"), "unsupported.torchscript"
    for label, word in (
        ("middle", b"middle"),
        ("upper", b"Little"),
        ("space", b"little "),
        ("empty", b""),
        ("long", b"little" * 100),
        ("binary", b"\xff\x1b"),
    ):
        code = "zip.record-size" if label == "long" else "zip.byteorder"
        yield f"S09-byteorder-{label}", _set(b"byteorder", data=word), code
    yield "Z01-no-version", _renamed(b"version", b"archive/no"), "zip.version"
    for label, word in (("empty", b""), ("word", b"three"), ("long", b"3" * 5_000)):
        yield f"Z01-version-{label}", _set(b"version", data=word), "zip."


def _deflations() -> Iterator[tuple[str, Fault, str]]:
    good = _deflated(FLOATS[0])
    zeros = bytes(1 << 20)
    for label, raw, size in (
        ("bomb", _deflated(bytes(1 << 26)), 24),
        ("short", _deflated(b"x"), 24),
        ("trailing", good + b"junk", 24),
        ("cut", good[:-2], 24),
        ("garbage", b"\xff" * 20, 24),
        ("empty", b"", 24),
        ("twice", good + good, 24),
    ):
        yield (
            f"Z10-storage-{label}",
            _set(STORAGE, method=8, raw=raw, size=size),
            "tensors:zip.deflate",
        )
        yield (f"Z10-pickle-{label}", _set(PICKLE, method=8, raw=raw, size=size), "zip.deflate")
    # A small record that grows to more than the file could honestly hold.
    yield "Z10-pickle-ratio", _set(PICKLE, method=8, data=bytes(1 << 24)), "zip.ratio"
    yield (
        "Z10-pickle-huge",
        _set(PICKLE, method=8, raw=_deflated(zeros), size=1 << 29),
        "zip.ratio",
    )
    big = proto(2) + dict_of((text("a"), tensor("0", 1 << 25, (1 << 25,), (1,)))) + STOP

    def bomb(archive: Archive) -> None:
        archive.item(PICKLE).data = big
        _set(
            STORAGE,
            method=8,
            raw=_deflated(bytes(1 << 27)),
            size=1 << 27,
            crc=zlib.crc32(bytes(1 << 27)),
        )(archive)

    yield "Z10-storage-bomb-128-MiB", bomb, "tensors:tensor.expansion"

    def corner(archive: Archive) -> None:
        bomb(archive)
        archive.item(PICKLE).data = (
            proto(2) + dict_of((text("a"), tensor("0", 1 << 25, (2, 2), (3, 1)))) + STOP
        )

    yield "Z10-storage-bomb-corner", corner, "tensors:tensor.expansion"


def valid() -> Iterator[tuple[str, Archive]]:
    """Forms that must be read, and read alike by every reader."""
    yield "plain", honest()
    yield "deferred", honest(flags=DEFERRED)
    yield "root", honest(root=b"my model 2")
    short = honest(flags=8)
    for item in short.items:
        item.descriptor = struct.pack("<3I", zlib.crc32(item.data), len(item.data), len(item.data))
    yield "descriptor-without-signature", short
    wide = honest(flags=8)
    for item in wide.items:
        fields = (zlib.crc32(item.data), len(item.data), len(item.data))
        item.descriptor = b"PK\x07\x08" + struct.pack("<I2Q", *fields)
    yield "descriptor-64", wide
    for end in (PICKLE, STORAGE, b"version"):
        deflated = honest()
        deflated.item(end).method = 8
        yield f"deflated-{end.decode()}", deflated
    padded = honest()
    for item in padded.items:
        item.extra = b"FB" + struct.pack("<H", 40) + b"Z" * 40
    yield "padded", padded
    large = honest()
    large.zip64 = True
    yield "zip64-end", large
    masked = honest()
    masked.zip64 = True
    fields = {"count": 5, "total": 5}
    masked.zip64_fields, masked.count = fields, 0xFFFF
    yield "zip64-masked-count", masked
    extended = honest()
    storage = extended.item(STORAGE)
    storage.size = storage.stored = 0xFFFFFFFF
    storage.central_extra = struct.pack("<2H2Q", 1, 16, 24, 24)
    storage.local_sizes = (zlib.crc32(storage.data), 24, 24)
    yield "zip64-entry", extended
    unprotected = honest()
    for item in unprotected.items:
        item.crc = 0
    yield "no-crc", unprotected
    moved = honest()
    moved.items.reverse()
    yield "reversed", moved
    bare = honest()
    bare.items = [item for item in bare.items if not item.name.endswith(b"byteorder")]
    yield "bare", bare


def cases() -> Iterator[Case]:
    """All variants."""
    for label, archive in valid():
        yield Case(f"valid-{label}", archive.build())
    singles = [(label, fault, code) for label, (fault, code) in FAULTS.items()]
    for label, fault, code in (*singles, *_names(), *_headers(), *_layouts(), *_deflations()):
        archive = honest()
        fault(archive)
        late = code.removeprefix("tensors:") if code.startswith("tensors:") else None
        yield Case(label, archive.build(), code=None if late else code, tensors_code=late)
    for (first, (one, _)), (second, (other, _)) in itertools.combinations(FAULTS.items(), 2):
        archive = honest()
        one(archive)
        other(archive)
        yield Case(f"pair-{first}-{second}", archive.build(), code="")
