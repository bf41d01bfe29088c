"""A JSON object whose lists are too long to hold: their entries one after another.

The json module decodes the entries; what is added is a window over the file that moves on.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

from ckptool.errors import FormatError, printable
from ckptool.files import ByteFile

Progress = Callable[[str, int, int], None]

_BLOCK = 1 << 20
# The longest entry: a mask as run lengths takes some hundred kilobytes.
_LONGEST = 1 << 26
_BLANK = re.compile(r"[ \t\n\r]*")
_BEHIND = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
_RESULTS = re.compile(r"\[[ \t\n\r]*[\[{\]]")
_GZIP = b"\x1f\x8b"


class JsonStream:
    """A file with one JSON object, whose members that are lists can be gone through."""

    def __init__(self, file: ByteFile, progress: Progress | None = None) -> None:
        self._file = file
        self._blocks = file.blocks(0, file.size, _BLOCK)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = JSONDecoder().raw_decode
        self._progress = progress
        self._read = 0
        # The window, the byte at which it starts, and where in it the next value is.
        self._text, self._start, self._at = "", 0, 0
        self._ended = False

    def lists(self) -> Iterator[tuple[str, Iterator[Any]]]:
        """The name of each list of the object, and its entries, which must be gone through.

        Raises: FormatError with the byte where the text is no JSON object.
        """
        if self._file.size >= 2 and self._file.read(0, 2) == _GZIP:
            raise FormatError(
                "this is a gzip file, wanted JSON", hint="gunzip it first", code="coco.json"
            )
        if self._next() != "{":
            results = _RESULTS.match(self._text, self._at)
            hint = "results of a detector are a list; wanted are annotations" if results else None
            raise self._wrong("wanted a JSON object", hint)
        self._at += 1
        if self._next() == "}":
            self._at += 1
        else:
            yield from self._members()
        if self._next():
            raise self._wrong("found more text behind the JSON object")

    def _members(self) -> Iterator[tuple[str, Iterator[Any]]]:
        while True:
            if self._next() != '"':
                raise self._wrong("wanted the name of a member")
            name = self._value()
            if self._next() != ":":
                raise self._wrong("wanted `:`")
            self._at += 1
            if self._next() == "[":
                self._at += 1
                yield name, self._entries()
            else:
                self._value()
            mark = self._next()
            if mark not in (",", "}") or not mark:
                raise self._wrong("wanted `,` or `}`")
            self._at += 1
            if mark == "}":
                return

    def _entries(self) -> Iterator[Any]:
        """The entries of a list whose bracket was read."""
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            behind = _BEHIND.match(self._text, self._at)
            # Blanks up to the end of the window may go on in the next block.
            if behind is None or behind.end() == len(self._text):
                mark = self._next()
                if mark not in (",", "]") or not mark:
                    raise self._wrong("wanted `,` or `]`")
                self._at += 1
                self._next()
            else:
                mark = behind[1]
                self._at = behind.end()
            if mark == "]":
                return

    def _next(self) -> str:
        """The next character that is not blank, which is not taken; empty at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        """The value that starts here."""
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except JSONDecodeError as error:
                reason, where = error.msg[:1].lower() + error.msg[1:], error.pos
            except (ValueError, RecursionError) as error:
                raise self._wrong(printable(f"cannot be decoded: {error}")) from None
            else:
                # A number that ends with the window may go on behind it.
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value
                continue
            too_long = len(self._text) - self._at > _LONGEST
            if too_long or not self._more():
                self._at = min(where, len(self._text))
                raise self._wrong("an entry is too long" if too_long else reason)

    def _more(self) -> bool:
        """Add a block to the window and let go what was read; False at the end of the file."""
        if self._ended:
            return False
        gone = self._text[: self._at]
        parts = [self._text[self._at :]]
        self._start += len(gone) if gone.isascii() else len(gone.encode())
        self._at = 0
        # As much again as is there: an entry is then decoded anew a few times at most.
        wanted = max(len(parts[0]), 1)
        while wanted > 0 and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            self._read += len(block)
            try:
                parts.append(self._decoder.decode(block, self._ended))
            except UnicodeDecodeError as error:
                raise FormatError(
                    f"before byte {self._read:,}: found bytes that are not UTF-8 text: "
                    f"{error.reason}",
                    code="coco.json",
                ) from None
            wanted -= len(parts[-1])
        self._text = "".join(parts)
        if self._progress is not None:
            self._progress("read", self._read, self._file.size)
        return True

    def _wrong(self, reason: str, hint: str | None = None) -> FormatError:
        before = self._text[: self._at]
        byte = self._start + len(before.encode("utf-8", "surrogatepass"))
        found = self._text[self._at : self._at + 20]
        shown = f"found `{printable(found, 40)}`" if found else "the text ends"
        return FormatError(f"at byte {byte:,}: {shown}: {reason}", hint=hint, code="coco.json")
