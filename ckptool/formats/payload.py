"""What a writer is given, and how one tensor's bytes get into a file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.tensors import LazyTensor, View
from ckptool.threads import for_each

if TYPE_CHECKING:
    from concurrent.futures import Executor

Place = tuple[LazyTensor, int]  # and the offset of its data in the file

_RUN = 1 << 11  # bytes of small tensors that are written at once
_COPY = 1 << 26  # bytes that are copied at once, between two reports of progress


def _nothing(count: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The tensors to write, in order, and what goes beside them.

    `versions` is torch's `_metadata`; `metadata` are texts of the format's own. `provenance` gives
    the provenance's text: a draft before the tensors are written, the final one, of the same
    length, after. `progress` is told how many bytes were just written; where there is a `pool`,
    its threads write side by side. `wrapper` is the key of the mapping that the tensors go into,
    None where they are the file's own.
    """

    tensors: Mapping[str, LazyTensor]
    versions: Mapping[str, int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    provenance: Callable[[bool], str] | None = None
    progress: Callable[[int], None] = _nothing
    pool: Executor | None = None
    wrapper: str | None = None


def put_tensors(output: Output, places: Sequence[Place], payload: Payload) -> None:
    """Put each tensor's data at its offset."""
    runs = list(_runs(places))

    def put(number: int) -> None:
        (tensor, at), *more = runs[number]
        if more:
            pieces = [_raw(tensor) for tensor, _ in runs[number]]
            output.write_at(at, b"".join(pieces))
            for piece in pieces:
                payload.progress(len(piece))
        else:
            _put(output, tensor, at, payload.progress, with_crc=False)

    for_each(put, [sum(tensor.nbytes for tensor, _ in run) for run in runs], payload.pool)


def put_with_crc(output: Output, places: Sequence[Place], payload: Payload) -> list[int]:
    """Put each tensor's data at its offset; the CRC-32 of each."""

    def put(number: int) -> int:
        return _put(output, *places[number], payload.progress, with_crc=True)

    return for_each(put, [tensor.nbytes for tensor, _ in places], payload.pool)


def _runs(places: Iterable[Place]) -> Iterator[list[Place]]:
    """The places in groups that are written at once: small tensors that follow on each other."""
    run: list[Place] = []
    start = end = 0
    for tensor, at in places:
        after = at + tensor.nbytes
        if run and (at != end or after - start > _RUN):
            yield run
            run = []
        if not run:
            start = at
        run.append((tensor, at))
        end = after
    if run:
        yield run


def _raw(tensor: LazyTensor) -> bytes:
    """A small tensor's data."""
    extent = tensor.extent()
    if extent is None:
        return tensor.tobytes()
    return extent.file.read(extent.offset, extent.nbytes)


def _put(
    output: Output, tensor: LazyTensor, at: int, progress: Callable[[int], None], with_crc: bool
) -> int:
    """Put a tensor's data at an offset.

    Bytes that stay as they are never pass through Python, unless their CRC is not known.
    """
    extent = tensor.extent()
    if extent is not None:
        for done in range(0, extent.nbytes, _COPY):
            size = min(extent.nbytes - done, _COPY)
            output.copy_at(at + done, extent.file, extent.offset + done, size)
            progress(size)
        return _crc(tensor) if with_crc else 0
    crc = 0
    for chunk in tensor.chunks():
        output.write_at(at, chunk)
        at += len(chunk)
        crc = zlib.crc32(chunk, crc) if with_crc else 0
        progress(len(chunk))
    return crc


def storages(tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """The number of the storage of each key; keys of one and the same tensor share theirs."""
    numbers: dict[object, int] = {}
    return {
        key: numbers.setdefault((tensor.spec, tensor.source) if tensor.numel else key, len(numbers))
        for key, tensor in tensors.items()
    }


def check_keys(tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse keys that other readers could not read back."""
    for key in tensors:
        try:
            key.encode("utf-8")
        except UnicodeEncodeError:
            raise UnsupportedError(
                f"the key {quoted(key)} is not valid text",
                hint="--drop GLOB",
                code="unsupported.key",
            ) from None


def _crc(tensor: LazyTensor) -> int:
    """The CRC-32 of data that was copied: the stored one of its record, or computed."""
    source = tensor.source
    if (
        isinstance(source, View)
        and source.record.crc is not None
        and source.record.nbytes == tensor.nbytes
    ):
        return source.record.crc
    crc = 0
    for chunk in tensor.chunks():
        crc = zlib.crc32(chunk, crc)
    return crc
