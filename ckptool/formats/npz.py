"""numpy's `.npz`: a zip archive of arrays, one `.npy` file each, whose name is the key.

Arrays of Python objects are pickles: they are named and not read.

Source: numpy 2.4 `numpy/lib/_format_impl.py` (the format), `numpy/lib/_npyio_impl.py` (`savez`).
"""

from __future__ import annotations

import math
import re
import zlib

from ckptool.checkpoint import Contents, Refused, Value
from ckptool.dtypes import DTYPES
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable
from ckptool.formats.flat import FlatTree
from ckptool.formats.foreign import not_torch
from ckptool.formats.numpy_nodes import element_type
from ckptool.formats.zip_dir import read_directory
from ckptool.records import Record
from ckptool.tensors import LazyTensor, TensorSpec, View, contiguous_strides, is_possible

NAME = "npz"

_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LENGTH_SIZES = {1: 2, 2: 4, 3: 4}  # bytes of the header's length, by the format's version
_LARGEST_HEADER = 1 << 14
_HEADER = re.compile(
    r"\{'descr': '?(?P<descr>[^']+|\[.+\])'?, 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:[0-9]+,? ?)*)\), \} *\n"
)


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file is a zip archive that starts with an array."""
    size = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK\x03\x04") and head[30 : 30 + size].endswith(_SUFFIX.encode())


def read(file: Readable) -> Contents:
    """The arrays by name; only the directory and the headers are read.

    Raises: FormatError, NotACheckpointError for an archive with other files in it.
    """
    records = read_directory(file, rooted=False)
    if not all(name.endswith(_SUFFIX) for name in records):
        raise not_torch(list(records))
    values: dict[str, Value] = {}
    for name, record in records.items():
        key = name.removesuffix(_SUFFIX)
        try:
            values[key] = _array(record)
        except FormatError as error:
            raise error.located(quoted(key)) from None
    return Contents(NAME, FlatTree(values))


def _array(record: Record) -> LazyTensor | Refused:
    start = _start(record)
    size = _LENGTH_SIZES.get(start[6]) if start[:6] == _MAGIC and len(start) > 12 else None
    if size is None:
        raise _bad("is no array: it does not start as one")
    length = int.from_bytes(start[8 : 8 + size], "little")
    offset = 8 + size + length
    match = _HEADER.fullmatch(str(start[8 + size : offset], "utf-8", "replace"))
    if match is None or offset > len(start):
        raise _bad("has a malformed header")
    dtype, byteorder = element_type(match["descr"])
    if dtype is None:
        return Refused("array", f"its elements, {quoted(match['descr'])}, are no numbers")
    shape = tuple(int(text) for text in re.findall("[0-9]+", match["shape"]))
    itemsize = DTYPES[dtype].itemsize
    if not is_possible(shape):
        raise _bad(f"has the shape {shape}")
    wanted = math.prod(shape) * itemsize
    if record.nbytes - offset != wanted or offset % itemsize:
        raise _bad(
            f"has {record.nbytes - offset:,} bytes behind its header, shape {shape} and dtype "
            f"{dtype} want {wanted:,}"
        )
    record = record._replace(byteorder=byteorder, confirm=None)  # `_start` has asked it
    strides = contiguous_strides(shape)
    if match["fortran"] == "True":
        strides = contiguous_strides(shape[::-1])[::-1]
    return LazyTensor(TensorSpec(dtype, shape), View(record, offset // itemsize, strides))


def _start(record: Record) -> bytes:
    """The first bytes of a record, inflated."""
    if record.confirm is not None:
        record.confirm()
    stored = record.file.read(record.offset, min(record.stored, _LARGEST_HEADER))
    if not record.deflated:
        return stored
    try:
        return zlib.decompressobj(-15).decompress(stored, _LARGEST_HEADER)
    except zlib.error:
        raise FormatError("its compressed data is damaged", code="zip.deflate") from None


def _bad(what: str) -> FormatError:
    return FormatError(f"the array {what}", code="npz.array")
