"""A storage in a file: its bytes in order, inflated where they are deflated, and checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ckptool.errors import FormatError, quoted
from ckptool.files import AGAIN, BLOCK, Block, Readable


class Record(NamedTuple):
    """A storage: one run of bytes in a file.

    `offset` is where the bytes start in the file, `stored` how many there are; `nbytes` is the
    size of the storage itself, larger than `stored` when it is deflated. `crc` is the CRC-32 of
    the storage, None where the file has none. `confirm` raises if the record is not at `offset`;
    None where that is known already.
    """

    file: Readable
    offset: int
    nbytes: int
    stored: int
    byteorder: str = "little"
    crc: int | None = None
    deflated: bool = False
    name: str = ""
    confirm: Callable[[], None] | None = None

    def __hash__(self) -> int:
        """What tells records apart, empty ones too: to hash all of it takes longer."""
        return hash((self.file, self.offset, self.name))

    def blocks(self, step: int = BLOCK) -> Iterator[Block]:
        """The whole storage in order; FormatError at the end if its CRC is not the stored one.

        Once it was found right, it is not computed again: the file is watched for changes.
        """
        if self.confirm is not None:
            self.confirm()
        raw = self.file.blocks(self.offset, self.stored, step)
        blocks = _inflate(raw, self.nbytes, self.name, step) if self.deflated else raw
        if self.crc is None or self.offset in self.file.verified:
            yield from blocks
            return
        crc = 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            yield block
        if crc != self.crc:
            raise FormatError(
                f"record {quoted(self.name)} at byte {self.offset:,}: found CRC {crc:08x}, "
                f"wanted {self.crc:08x}: the file is damaged",
                hint=AGAIN,
                code="zip.crc",
            )
        self.file.verified.add(self.offset)

    def check(self) -> None:
        """Read the whole storage once if its CRC was not checked yet."""
        if self.confirm is not None:
            self.confirm()
        if self.crc is not None and self.offset not in self.file.verified:
            for _ in self.blocks():
                pass


def _inflate(blocks: Iterator[Block], nbytes: int, name: str, step: int) -> Iterator[bytes]:
    """The inflated record; FormatError unless it gives exactly the declared size."""
    engine = zlib.decompressobj(-15)
    left = nbytes
    try:
        for block in blocks:
            data = block
            while data:
                piece = engine.decompress(data, min(left + 1, step))
                data = engine.unconsumed_tail
                left -= len(piece)
                if left < 0 or engine.unused_data:
                    raise FormatError(
                        f"record {quoted(name)}: inflates to more than the declared {nbytes:,} "
                        "bytes",
                        code="zip.deflate",
                    )
                if piece:
                    yield piece
        piece = engine.flush()
        left -= len(piece)
        if piece and left >= 0:
            yield piece
    except zlib.error:
        raise FormatError(
            f"record {quoted(name)}: its compressed data is damaged", code="zip.deflate"
        ) from None
    if left or not engine.eof:
        raise FormatError(
            f"record {quoted(name)}: inflates to {nbytes - left:,} bytes, wanted {nbytes:,}",
            code="zip.deflate",
        )
