"""The rarer half of the pickle machine: line-based opcodes, the memo's odd cases, the errors.

Source: the opcode descriptions in `pickletools` (CPython 3.11).
"""

from __future__ import annotations

import re

from ckptool.errors import FormatError, quoted
from ckptool.formats.nodes import Global, Span

_GAP = Global("", "")  # fills the memo index 0 that Python 2 leaves out

_INTEGER = re.compile(rb"[+-]?[0-9]+")
_LONGEST_INTEGER = 40  # digits; a longer one is metadata that nobody computes with
_FLOAT = re.compile(
    rb"[+-]?(?:(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:e[+-]?[0-9]{1,5})?|inf|nan)"
)
# The escapes of a Python 2 string literal.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|[\\'\"abfnrtv])")
_ESCAPED = dict(zip(b"\\'\"abfnrtv", b"\\'\"\a\b\f\n\r\t\v", strict=True))

_REFUSED = {
    0x82: "EXT1, which names an object of the reading process",
    0x83: "EXT2, which names an object of the reading process",
    0x84: "EXT4, which names an object of the reading process",
    0x97: "NEXT_BUFFER, whose data is outside the file",
    0x98: "READONLY_BUFFER, whose data is outside the file",
}


def text_opcode(
    op: int, data: bytes, i: int, stack: list[object], memo: list[object], floor: int
) -> int:
    """One of the line-based opcodes of protocol 0; the offset behind it."""
    if op not in b"ILFSVpg":
        raise bad(i, "opcode", f"opcode 0x{op:02x} is {_REFUSED.get(op, 'unknown')}")
    text, after = line(data, i)
    if op == 0x49:  # INT, which is also how protocol 0 spells a bool
        stack.append(text == b"01" if text in (b"00", b"01") else _integer(text, i))
    elif op == 0x4C:  # LONG
        stack.append(_integer(text.removesuffix(b"L"), i))
    elif op == 0x46:  # FLOAT
        if not _FLOAT.fullmatch(text):
            raise bad(i, "operand", f"found {_shown(text)}, wanted a number")
        stack.append(float(text))
    elif op == 0x53:  # STRING, a quoted byte string of Python 2
        if len(text) < 2 or text[0] != text[-1] or text[0] not in b"\"'":
            raise bad(i, "operand", f"found {_shown(text)}, wanted a quoted string")
        stack.append(_ESCAPE.sub(_unescape, text[1:-1]))
    elif op == 0x56:  # UNICODE
        stack.append(str(text, "raw-unicode-escape"))
    else:  # PUT and GET
        index = _integer(text, i)
        if type(index) is not int or index < 0:
            raise bad(i, "memo", "the memo index is negative or has too many digits")
        if op == 0x67:
            stack.append(recall(memo, index, i))
        elif len(stack) == floor:
            raise underflow(i)
        else:
            memoise(memo, index, stack[-1], i)
    return after


def line(data: bytes, i: int) -> tuple[bytes, int]:
    """The bytes up to the next line feed and the offset behind it."""
    end = data.find(b"\n", i)
    if end < 0:
        raise IndexError
    return data[i:end], end + 1


def memoise(memo: list[object], index: int, value: object, i: int) -> None:
    """Put at an index that is not the next: an earlier one, or the one that Python 2 leaves out."""
    if index < len(memo):
        memo[index] = value
    elif index == len(memo) + 1:
        memo += (_GAP, value)
    elif index == len(memo):
        memo.append(value)
    else:
        raise bad(i, "memo", f"memo index {index:,} after {len(memo):,} entries")


def recall(memo: list[object], index: int, i: int) -> object:
    """The memo's value at an index."""
    if index >= len(memo) or memo[index] is _GAP:
        raise bad(i, "memo", f"memo index {index:,} was never set")
    return memo[index]


def bad(i: int, rule: str, what: str) -> FormatError:
    """The error for a broken rule of the pickle format."""
    return FormatError(f"the pickle breaks its rules at byte {i:,}: {what}", code=f"pickle.{rule}")


def underflow(i: int) -> FormatError:
    """The error for an opcode that finds too few values above the last mark."""
    return bad(i, "stack", "an opcode finds too few values on the stack")


def no_mark(i: int) -> FormatError:
    """The error for an opcode that takes what stands above a mark, where there is none."""
    return bad(i, "stack", "an opcode wants a mark and finds none")


def _integer(text: bytes, i: int) -> int | Span:
    if not _INTEGER.fullmatch(text):
        raise bad(i, "operand", f"found {_shown(text)}, wanted an integer")
    return int(text) if len(text) <= _LONGEST_INTEGER else Span(i, i + len(text))


def _shown(text: bytes) -> str:
    return quoted(str(text[:40], "latin-1"))


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1] == b"x":
        return bytes((int(code[1:], 16),))
    if code.isdigit():
        return bytes((int(code, 8) & 0xFF,))
    return bytes((_ESCAPED[code[0]],))
