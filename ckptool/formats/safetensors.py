"""The safetensors format: a JSON header, then the tensors' bytes without a gap.

A subset of what the reference implementation accepts: names and metadata keys are unique, nothing
but spaces pads the header, no field is unknown.

Source: safetensors 0.8.0, README and `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from ckptool.checkpoint import Contents, Finding, Refused, Value
from ckptool.dtypes import BY_SAFETENSORS
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable, cut_short
from ckptool.formats.flat import FlatTree
from ckptool.records import Record
from ckptool.tensors import MOST_AXES, LazyTensor, View, contiguous_strides, is_possible, spec_of

NAME = "safetensors"
LARGEST_HEADER = 100_000_000
_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # packed types, which are listed but not read
_INTEGER = {int}  # not bool
_FIELDS = {"dtype", "shape", "data_offsets"}
_ODD = b"0" * 20  # in a text whose digits are all zeros: a number of as many digits, or more


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file starts with a plausible header length and a JSON object."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= LARGEST_HEADER


def read(file: Readable) -> Contents:
    """The file's tensors; only the header is read.

    Raises: FormatError, also if the file is cut short: the message counts what is missing.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise cut_short(
            f"the file is cut short inside its header: {length + 8 - file.size:,} bytes or more "
            f"are missing (found {file.size:,}, the header alone wants {length + 8:,})"
        )
    if length > LARGEST_HEADER:
        raise _bad("size", f"the header has {length:,} bytes, wanted at most {LARGEST_HEADER:,}")
    header = parse_json(file.read(8, length), "safetensors.header")
    metadata = _metadata(header.pop("__metadata__", {}))
    entries = {name: _entry(name, fields) for name, fields in header.items()}
    del header  # it takes more memory than what is made of it
    _check_coverage(entries, file.size - 8 - length)
    values = {
        name: _tensor(file, 8 + length + start, end - start, code, shape, name)
        for name, (code, shape, start, end) in entries.items()
    }
    findings = (Finding("no-checksums", "safetensors has no checksums: damage cannot be seen"),)
    return Contents(NAME, FlatTree(values), (), findings, metadata)


def parse_json(data: bytes, code: str, fractions: bool = False) -> dict[str, Any]:
    """A JSON object without duplicate keys; FormatError otherwise, and for fractions if refused."""
    if not data.startswith(b"{") or not data.rstrip(b" ").endswith(b"}"):
        raise FormatError("the header is not a JSON object padded with spaces", code=code)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            left = dict(pairs)  # each name once: the second time it is gone
            twice = next(name for name, _ in pairs if left.pop(name, pairs) is pairs)
            raise FormatError(f"the header has {quoted(twice)} twice", code=code)
        return found

    def refuse(text: str) -> NoReturn:
        raise FormatError(f"the header has the number {quoted(text)}", code=code)

    def integer(text: str) -> int:
        return int(text) if len(text) <= 20 and text != "-0" else refuse(text)

    # Each integer is looked at only where there may be an odd one; it may also be a name's.
    odd = b"-0" in data or _ODD in data.translate(_AS_ZERO)
    try:
        value = json.loads(
            str(data, "utf-8"),
            object_pairs_hook=unique,
            parse_float=float if fractions else refuse,
            parse_constant=refuse,
            parse_int=integer if odd else int,
        )
    except (ValueError, RecursionError):
        raise FormatError("the header is not valid JSON in UTF-8", code=code) from None
    if type(value) is not dict:
        raise FormatError("the header is not a JSON object", code=code)
    return value


def _metadata(value: Any) -> Mapping[str, str]:
    if type(value) is not dict or not all(
        _is_text(part) for item in value.items() for part in item
    ):
        raise _bad("metadata", "`__metadata__` is not a map from text to text")
    return value


def _is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can hold: JSON spells half a character too."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_natural(values: list[Any]) -> bool:
    """Whether all values are integers, and none is negative."""
    return set(map(type, values)) <= _INTEGER and min(values, default=0) >= 0


def _entry(name: str, fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type code, shape, start and end of a tensor."""
    if type(fields) is not dict or fields.keys() != _FIELDS:
        raise _bad("entry", f"{quoted(name)} has not exactly dtype, shape and data_offsets")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    lists = type(shape) is list and type(offsets) is list
    if not lists or not _are_natural([*shape, *offsets]):
        raise _bad("entry", f"{quoted(name)}: a size or an offset is not a natural number")
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > MOST_AXES:
        raise _bad("entry", f"{quoted(name)}: found {len(offsets)} offsets, {len(shape)} sizes")
    if not _is_text(name):
        raise _bad("name", f"{quoted(name)} is not valid text")
    if type(code) is not str or (code not in BY_SAFETENSORS and code not in _BITS):
        shown = code if type(code) is str else type(code).__name__
        raise _bad("dtype", f"{quoted(name)} has the unknown dtype {quoted(shown)}")
    sizes = tuple(shape)
    numel = math.prod(sizes)
    if not is_possible(sizes):
        raise _bad("shape", f"{quoted(name)} declares {numel:,} elements: {shape}")
    bits = BY_SAFETENSORS[code].itemsize * 8 if code in BY_SAFETENSORS else _BITS[code]
    if (offsets[1] - offsets[0]) * 8 != numel * bits:
        raise _bad(
            "size",
            f"{quoted(name)}: shape {sizes} of {code} wants {numel * bits / 8:,g} bytes, "
            f"found {offsets[1] - offsets[0]:,}",
        )
    return code, sizes, offsets[0], offsets[1]


def _check_coverage(entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], end: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    reached = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if start != reached:
            raise _bad(
                "coverage",
                f"{quoted(name)} starts at byte {start:,} of the data, the one before it ends "
                f"at {reached:,}",
            )
        reached = stop
    if reached > end:
        raise cut_short(
            f"the file is cut short: {reached - end:,} bytes of the tensors are missing "
            f"(found {end:,} bytes of data, wanted {reached:,})"
        )
    if reached < end:
        raise _bad("coverage", f"{end - reached:,} bytes behind the last tensor belong to nothing")


def _tensor(
    file: Readable, offset: int, nbytes: int, code: str, shape: tuple[int, ...], name: str
) -> Value:
    dtype = BY_SAFETENSORS.get(code)
    if dtype is None:
        return Refused("packed", f"its elements of type {code} are smaller than a byte")
    record = Record(file, offset, nbytes, nbytes, name=name)
    return LazyTensor(spec_of(dtype.name, shape), View(record, 0, contiguous_strides(shape)))


def _bad(rule: str, what: str) -> FormatError:
    return FormatError(f"safetensors header: {what}", code=f"safetensors.{rule}")
