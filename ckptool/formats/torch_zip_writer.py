"""Writing the zip format of torch 1.6: a bare OrderedDict of tensors, ties on shared storages.

Sizes and CRCs stand in the local headers, so no record needs a descriptor; every record's data
starts at a multiple of 64 bytes.

Source: `torch/serialization.py` and `caffe2/serialize/inline_container.cc` (torch 2.15); PKWARE
APPNOTE 6.3.10 for zip64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from struct import pack

from ckptool.dtypes import DTYPES
from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, check_keys, put_tensor, storages
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
    archive.add("data.pkl", dump_state_dict(entries, payload.versions))
    archive.add("byteorder", b"little")
    for number, tensor in {numbers[key]: tensor for key, tensor in tensors.items()}.items():
        put = partial(put_tensor, output, tensor, payload.progress, with_crc=True)
        archive.add_record(f"data/{number}", tensor.nbytes, put)
    archive.add("version", b"3\n")
    if payload.provenance is not None:
        archive.add(PROVENANCE, payload.provenance(True).encode("utf-8"))
    archive.finish()


class _Archive:
    """A zip archive being written: stored records, and the directory of those so far."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._directory: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        """Append a record."""

        def put() -> int:
            self._output.write(data)
            return zlib.crc32(data)

        self.add_record(name, len(data), put)

    def add_record(self, name: str, size: int, put: Callable[[], int]) -> None:
        """Append a record of `size` bytes that `put` writes; it returns their CRC-32."""
        output, at = self._output, self._output.position
        raw = f"{_ROOT}/{name}".encode("ascii")
        wide = _zip64(size, size) if size >= _MAX32 else b""
        padding = -(at + 30 + len(raw) + len(wide) + 4) % _ALIGNMENT
        extra = wide + b"FB" + pack("<H", padding) + b"Z" * padding
        output.position += 30 + len(raw) + len(extra)
        crc = put()
        short = min(size, _MAX32)
        common = pack("<5H3I", 45 if wide else 20, 0, 0, 0, 0, crc, short, short)
        lengths = pack("<2H", len(raw), len(extra))
        output.write_at(at, b"PK\x03\x04" + common + lengths + raw + extra)
        numbers = ([size, size] if wide else []) + ([at] if at >= _MAX32 else [])
        extra = _zip64(*numbers) if numbers else b""
        version = 45 if numbers else 20
        self._directory.append(
            pack("<4s6H3I", b"PK\x01\x02", version, version, 0, 0, 0, 0, crc, short, short)
            + pack("<5H2I", len(raw), len(extra), 0, 0, 0, 0, min(at, _MAX32))
            + raw
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
