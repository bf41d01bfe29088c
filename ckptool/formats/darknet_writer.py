"""Writing darknet's `.weights`: a header, then the tensors' float32 numbers one after another.

Source: AlexeyAB/darknet `src/parser.c` (`save_weights_upto`), which writes version 0.2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import pack

from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.darknet import wide_seen
from ckptool.formats.payload import Payload, put_tensors

HEADER = {"major": "0", "minor": "2", "revision": "5", "seen": "0"}
_MOST = {"major": 9, "minor": 99, "revision": 99, "seen": (1 << 64) - 1}


def write(output: Output, payload: Payload) -> None:
    """The header that the payload's metadata say, and the tensors in the payload's order.

    Raises: UnsupportedError for a type other than float32.
    """
    tensors = payload.tensors
    for key, tensor in tensors.items():
        if tensor.dtype != "float32":
            raise UnsupportedError(
                f"{quoted(key)} is {tensor.dtype}, a darknet file holds float32 only",
                hint="--dtype fp32",
                code="unsupported.dtype",
            )
    output.write(_header(header(payload.metadata) or HEADER))
    places = []
    for tensor in tensors.values():
        places.append((tensor, output.position))
        output.position += tensor.nbytes
    put_tensors(output, places, payload)


def header(values: Mapping[str, object]) -> dict[str, str] | None:
    """The four numbers of a header as texts, None unless a file can have them."""
    try:
        numbers = {name: int(str(values[name])) for name in HEADER}
    except (KeyError, ValueError):
        return None
    if not all(0 <= number <= _MOST[name] for name, number in numbers.items()):
        return None
    if not (numbers["major"] or numbers["minor"]):
        return None
    if not wide_seen(numbers["major"], numbers["minor"]) and numbers["seen"] >= 1 << 32:
        return None
    return {name: str(number) for name, number in numbers.items()}


def _header(values: Mapping[str, str]) -> bytes:
    major, minor, revision, seen = (int(values[name]) for name in HEADER)
    return pack("<3iQ" if wide_seen(major, minor) else "<3iI", major, minor, revision, seen)
