"""A writer for the tar format of torch before 0.1.10, which lies where it is told to.

Source: POSIX ustar; `torch/serialization.py` (`legacy_load`; torch 2.15) for the members.
"""

from __future__ import annotations

from collections.abc import Mapping


def header(
    name: str, size: int | bytes, kind: bytes = b"0", link: bytes = b"", checksum: int | None = None
) -> bytes:
    """A member's header block."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = digits, b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157], block[157 : 157 + len(link)] = kind, link
    block[257:265] = b"ustar\x0000"
    total = sum(block) if checksum is None else checksum
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def member(name: str, data: bytes, **fields: object) -> bytes:
    """A header and its data, padded."""
    told = {"size": len(data), **fields}
    return header(name, **told) + data + bytes(-len(data) % 512)  # type: ignore[arg-type]


def tar(members: Mapping[str, bytes]) -> bytes:
    """An archive of regular members."""
    return b"".join(member(*item) for item in members.items()) + bytes(1024)
