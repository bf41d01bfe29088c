"""Writing the zip format of torch 1.6: a bare OrderedDict of tensors, ties on shared storages.

Sizes and CRCs stand in the local headers, so no record needs a descriptor; every record's data
starts at a multiple of 64 bytes.

Source: `torch/serialization.py` and `caffe2/serialize/inline_container.cc` (torch 2.15); PKWARE
APPNOTE 6.3.10 for zip64.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from struct import pack

from ckptool.dtypes import DTYPES
from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, check_keys, put_with_crc, storages
from ckptool.formats.pickle_writer import dump_state_dict
from ckptool.formats.torch_zip import PROVENANCE

_ROOT = "archive"
_ALIGNMENT = 64
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


def write(output: Output, payload: Payload) -> None:
    """Write the pickle, each storage once, the provenance, the directory.

    Raises: UnsupportedError for a type or a key that cannot be pickled.
    """
    tensors = payload.tensors
    check_keys(tensors)
    for key, tensor in tensors.items():
        if DTYPES[tensor.dtype].kind == "q":
            raise UnsupportedError(
                f"{quoted(key)} is {tensor.dtype}, which no dense tensor is",
                hint=f"--drop '{key}'",
                code="unsupported.dtype",
            )
    numbers = storages(tensors)
    entries = ((key, tensor.spec, str(numbers[key])) for key, tensor in tensors.items())
    archive = _Archive(output)
    archive.add("data.pkl", dump_state_dict(entries, payload.versions, payload.wrapper))
    archive.add("byteorder", b"little")
    data = {numbers[key]: tensor for key, tensor in tensors.items()}
    records = [archive.reserve(f"data/{n}", tensor.nbytes) for n, tensor in data.items()]
    places = [(tensor, r.offset) for tensor, r in zip(data.values(), records, strict=True)]
    crcs = put_with_crc(output, places, payload)
    for record, crc in zip(records, crcs, strict=True):
        archive.complete(record, crc)
    archive.add("version", b"3\n")
    if payload.provenance is not None:
        archive.add(PROVENANCE, payload.provenance(True).encode("utf-8"))
    archive.finish()


@dataclass(frozen=True, slots=True)
class _Place:
    """A record's name, its size, where its header starts and its data, the header's extra field."""

    name: bytes
    size: int
    header: int
    offset: int
    extra: bytes


class _Archive:
    """A zip archive being written: stored records, and the directory of those that are complete."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._directory: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        """Append a record."""
        place = self.reserve(name, len(data))
        self._output.write_at(place.offset, data)
        self.complete(place, zlib.crc32(data))

    def reserve(self, name: str, size: int) -> _Place:
        """The place of the next record, to be filled, then completed in the same order."""
        at = self._output.position
        raw = f"{_ROOT}/{name}".encode("ascii")
        wide = _zip64(size, size) if size >= _MAX32 else b""
        padding = -(at + 30 + len(raw) + len(wide) + 4) % _ALIGNMENT
        extra = wide + b"FB" + pack("<H", padding) + b"Z" * padding
        offset = at + 30 + len(raw) + len(extra)
        self._output.position = offset + size
        return _Place(raw, size, at, offset, extra)

    def complete(self, place: _Place, crc: int) -> None:
        """Write a record's header and its line of the directory, now that its CRC-32 is known."""
        wide, short = place.size >= _MAX32, min(place.size, _MAX32)
        common = pack("<5H3I", 45 if wide else 20, 0, 0, 0, 0, crc, short, short)
        lengths = pack("<2H", len(place.name), len(place.extra))
        header = b"PK\x03\x04" + common + lengths + place.name + place.extra
        self._output.write_at(place.header, header)
        at = place.header
        numbers = ([place.size, place.size] if wide else []) + ([at] if at >= _MAX32 else [])
        extra = _zip64(*numbers) if numbers else b""
        version = 45 if numbers else 20
        self._directory.append(
            pack("<4s6H3I", b"PK\x01\x02", version, version, 0, 0, 0, 0, crc, short, short)
            + pack("<5H2I", len(place.name), len(extra), 0, 0, 0, 0, min(at, _MAX32))
            + place.name
            + extra
        )

    def finish(self) -> None:
        """Append the directory and its end records."""
        output, count, start = self._output, len(self._directory), self._output.position
        output.write(b"".join(self._directory))
        end = output.position
        size = end - start
        if count >= _MAX16 or size >= _MAX32 or start >= _MAX32:
            output.write(
                pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
                + pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
            )
        count, size, start = min(count, _MAX16), min(size, _MAX32), min(start, _MAX32)
        output.write(pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, start, 0))


def _zip64(*numbers: int) -> bytes:
    """The extra field of the numbers that do not fit 32 bits."""
    return pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
