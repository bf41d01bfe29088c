"""A tensor cut into boxes, each stored as `torch.save` writes it, joined when it is read.

Source: `torch/distributed/checkpoint/filesystem.py` (torch 2.15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckptool.dtypes import DTYPES
from ckptool.errors import CkptError, FormatError, quoted
from ckptool.files import BLOCK, Block, Readable
from ckptool.formats import torch_zip
from ckptool.tensors import Extent, LazyTensor, TensorSpec, View

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


@dataclass(frozen=True, slots=True)
class Item:
    """What `torch.save` wrote for one box: a run of bytes in a file of the folder."""

    file: Readable
    offset: int
    nbytes: int

    def tensor(self, spec: TensorSpec) -> LazyTensor:
        """The tensor in it.

        Raises: FormatError unless it is one of that type and shape.
        """
        part = Part(self.file, self.offset, self.nbytes)
        try:
            found = torch_zip.read(part).root
        except CkptError as error:
            where = f"{quoted(self.file.path)} at byte {self.offset:,}"
            raise error.located(where) from None
        if not isinstance(found, LazyTensor) or not isinstance(found.source, View):
            raise _bad(f"at byte {self.offset:,} of {quoted(self.file.path)} is no dense tensor")
        if found.spec != spec:
            raise _bad(
                f"at byte {self.offset:,} of {quoted(self.file.path)}: found {found.dtype} "
                f"{found.shape}, wanted {spec.dtype} {spec.shape}"
            )
        return found


@dataclass(slots=True)
class Part:
    """A range of a file, read like a file of its own."""

    file: Readable
    start: int
    size: int
    path: str = ""
    verified: set[int] = field(default_factory=set)
    distant: bool = False  # its headers are few

    def __post_init__(self) -> None:
        self.path = self.file.path

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the range ends before."""
        if not 0 <= offset <= offset + length <= self.size:
            raise FormatError(
                f"at byte {offset:,}: wanted {length:,} bytes of {self.size:,}",
                code="format.truncated",
            )
        return self.file.read(self.start + offset, length)

    def blocks(self, offset: int, length: int, step: int = BLOCK) -> Iterator[Block]:
        """The bytes of a range, in order, at most `step` at a time."""
        self.read(offset + length, 0)
        return self.file.blocks(self.start + offset, length, step)

    def check_unchanged(self) -> None:
        """Raise if the file is no longer what was opened."""
        self.file.check_unchanged()


@dataclass(frozen=True, slots=True, eq=False)
class Tiled:
    """A tensor cut into boxes: along the first axis into bands, each of one box or of several."""

    items: Mapping[Box, Item]

    @property
    def files(self) -> tuple[Readable, ...]:
        """The files that the boxes are in."""
        return tuple(item.file for item in self.items.values())

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The data, a few rows at a time where several boxes share them."""
        if not spec.numel:
            return
        bands: dict[tuple[int, int], list[Box]] = {}
        for box in self.items:
            bands.setdefault((box[0][0], box[1][0]) if spec.shape else (0, 0), []).append(box)
        for start, size in sorted(bands):
            boxes = bands[start, size]
            opened = [
                (box, self.items[box].tensor(TensorSpec(spec.dtype, box[1]))) for box in boxes
            ]
            if len(opened) == 1:
                yield from opened[0][1].chunks(step)
            else:
                yield from _joined(opened, (size, *spec.shape[1:]), step)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: where the data lies is not known before the boxes are opened."""
        return None


def _joined(
    tiles: list[tuple[Box, LazyTensor]], shape: tuple[int, ...], step: int
) -> Iterator[memoryview]:
    """The rows of a band whose boxes lie side by side."""
    import numpy

    spec = TensorSpec(tiles[0][1].dtype, shape)
    width = spec.nbytes // shape[0]
    rows = max(1, step // width)
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        band = numpy.empty((count, *shape[1:], DTYPES[spec.dtype].itemsize), numpy.uint8)
        for (offsets, sizes), tensor in tiles:
            place = tuple(slice(o, o + n) for o, n in zip(offsets[1:], sizes[1:], strict=True))
            data = numpy.frombuffer(_rows(tensor, first, count).tobytes(), numpy.uint8)
            band[(slice(None), *place)] = data.reshape(count, *sizes[1:], -1)
        yield memoryview(band.reshape(-1))  # type: ignore[arg-type]


def _rows(tensor: LazyTensor, first: int, count: int) -> LazyTensor:
    view = tensor.source
    assert isinstance(view, View)
    offset = view.offset + first * view.stride[0]
    spec = TensorSpec(tensor.dtype, (count, *tensor.shape[1:]))
    return LazyTensor(spec, View(view.record, offset, view.stride, view.conj, view.negative))


def _bad(what: str) -> FormatError:
    return FormatError(f"a piece {what}", code="dcp.piece")
