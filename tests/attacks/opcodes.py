"""An assembler for pickles: each function gives the bytes of a few opcodes.

Source: the opcode descriptions in `pickletools` (CPython 3.11).
"""

from __future__ import annotations

import struct

STOP, MARK, POP, POP_MARK, DUP = b".", b"(", b"0", b"1", b"2"
REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, OBJ = b"R", b"b", b"\x81", b"\x92", b"o"
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, EMPTY_SET = b")", b"}", b"]", b"\x8f"
TUPLE, TUPLE1, TUPLE2, TUPLE3 = b"t", b"\x85", b"\x86", b"\x87"
SETITEM, SETITEMS, APPEND, APPENDS, ADDITEMS, FROZENSET = b"s", b"u", b"a", b"e", b"\x90", b"\x91"
BINPERSID, STACK_GLOBAL, MEMOIZE = b"Q", b"\x93", b"\x94"


def proto(number: int) -> bytes:
    return b"\x80" + bytes((number,))


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def stack_name(module: str, attribute: str) -> bytes:
    """Two strings and STACK_GLOBAL."""
    return text(module) + text(attribute) + STACK_GLOBAL


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def data(value: bytes) -> bytes:
    """BINBYTES."""
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    """BININT, or LONG4 for what does not fit."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8b" + struct.pack("<i", size) + value.to_bytes(size, "little", signed=True)


def tuple_of(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + TUPLE


def list_of(*parts: bytes) -> bytes:
    return EMPTY_LIST + MARK + b"".join(parts) + APPENDS


def dict_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(key + value for key, value in pairs) + SETITEMS


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + REDUCE


def put(index: int) -> bytes:
    """BINPUT, or LONG_BINPUT."""
    return b"q" + bytes((index,)) if index < 256 else b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """BINGET, or LONG_BINGET."""
    return b"h" + bytes((index,)) if index < 256 else b"j" + struct.pack("<I", index)


def frame(body: bytes, size: int | None = None) -> bytes:
    """FRAME, which may lie about its size."""
    return b"\x95" + struct.pack("<Q", len(body) if size is None else size) + body
