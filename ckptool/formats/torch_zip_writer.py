"""Writing the zip format of torch 1.6: a bare OrderedDict of tensors, ties on shared storages.

Sizes and CRCs stand in the local headers, so no record needs a descriptor; every record starts at
a multiple of 64 bytes.

Source: `torch/serialization.py` and `caffe2/serialize/inline_container.cc` (torch 2.15); PKWARE
APPNOTE 6.3.10 for zip64.
"""

from __future__ import annotations

import zlib
from struct import pack

from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, check_keys, put_tensor, storages
from ckptool.formats.pickle_writer import dump_state_dict
from ckptool.tensors import LazyTensor

ROOT = "archive"
PROVENANCE = ".data/ckptool.json"
_ALIGNMENT = 64
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


def write(output: Output, payload: Payload) -> None:
    """The pickle, each storage once, the provenance, the directory.

    Raises: UnsupportedError for a type that has no pickled form.
    """
    check_keys(payload.tensors)
    for key, tensor in payload.tensors.items():
        if tensor.dtype == "complex32":
            raise UnsupportedError(f"{quoted(key)} is complex32", code="unsupported.dtype")
    numbers = storages(payload.tensors)
    pickle = dump_state_dict(
        ((key, tensor.spec, str(numbers[key])) for key, tensor in payload.tensors.items()),
        payload.versions,
    )
    directory: list[bytes] = []
    _record(output, directory, "data.pkl", pickle)
    _record(output, directory, "byteorder", b"little")
    written: set[int] = set()
    for key, tensor in payload.tensors.items():
        if numbers[key] not in written:
            written.add(numbers[key])
            _record(output, directory, f"data/{numbers[key]}", tensor, payload)
    _record(output, directory, "version", b"3\n")
    if payload.provenance is not None:
        _record(output, directory, PROVENANCE, payload.provenance(True).encode("utf-8"))
    _finish(output, directory)


def _record(
    output: Output,
    directory: list[bytes],
    name: str,
    content: bytes | LazyTensor,
    payload: Payload | None = None,
) -> None:
    """Append a record, stored, and its directory entry."""
    raw = f"{ROOT}/{name}".encode("ascii")
    size = len(content) if isinstance(content, bytes) else content.nbytes
    at = output.position
    large = size >= _MAX32
    wide = pack("<2H2Q", 1, 16, size, size) if large else b""
    padding = -(at + 30 + len(raw) + len(wide) + 4) % _ALIGNMENT
    extra = wide + b"FB" + pack("<H", padding) + b"Z" * padding
    short = _MAX32 if large else size
    version = 45 if large else 20
    output.write(
        pack("<4s5H3I2H", b"PK\x03\x04", version, 0, 0, 0, 0, 0, short, short, len(raw), len(extra))
        + raw
        + extra
    )
    if isinstance(content, bytes):
        output.write(content)
        crc = zlib.crc32(content)
    else:
        assert payload is not None
        crc = put_tensor(output, content, payload.progress, with_crc=True)
    output.write_at(at + 14, pack("<I", crc))
    far = at >= _MAX32
    numbers = ([size, size] if large else []) + ([at] if far else [])
    wide = pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    version = 45 if numbers else 20
    directory.append(
        pack("<4s6H3I", b"PK\x01\x02", version, version, 0, 0, 0, 0, crc, short, short)
        + pack("<5H2I", len(raw), len(wide), 0, 0, 0, 0, _MAX32 if far else at)
        + raw
        + wide
    )


def _finish(output: Output, directory: list[bytes]) -> None:
    """Append the directory and its end records."""
    start, count = output.position, len(directory)
    output.write(b"".join(directory))
    size = output.position - start
    if start >= _MAX32 or count >= _MAX16 or size >= _MAX32:
        at = output.position
        output.write(
            pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
            + pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
        )
    output.write(
        pack(
            "<4s4H2IH",
            b"PK\x05\x06",
            0,
            0,
            min(count, _MAX16),
            min(count, _MAX16),
            min(size, _MAX32),
            min(start, _MAX32),
            0,
        )
    )
