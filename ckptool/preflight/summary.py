"""What a data set holds, counted against an architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """A category, the row of the head that learns it, and how many boxes it has.

    `label` is what a loader should give the loss for it; `row` counts from 0 inside the rows of one
    anchor. Both are None where there is no row for it.
    """

    id: int | str
    name: str
    label: int | None
    row: int | None
    boxes: int


@dataclass(frozen=True, slots=True)
class SizeBin:
    """Boxes whose side of equal area is in [low, high) pixels of the network's input.

    `unmatched` are those that no anchor overlaps with an IoU of 0.5, None where there are no
    anchors, or none that are known.
    """

    low: float
    high: float
    boxes: int
    unmatched: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The counts of a data set.

    `boxes` are those with a place in an image, without the crowds; `rows` the rows of a head for
    one anchor, the background's among them, None where that is not known. `input` says what the
    images are scaled to, `anchors` what the boxes are compared with.
    """

    file: str
    images: int
    boxes: int
    crowds: int
    rows: int | None
    categories: tuple[Category, ...] = ()
    sizes: tuple[SizeBin, ...] = ()
    input: str = ""
    anchors: str = ""

    @property
    def unmatched(self) -> int | None:
        """How many boxes no anchor matches, None where that is not known."""
        counts = [each.unmatched for each in self.sizes if each.unmatched is not None]
        return sum(counts) if counts else None
