"""Which row of a head learns which category, and whether the ids of a data set say the same.

Three conventions are known. effdet's loader and torchvision's examples take the id of a category
for its label, and labels count from 1. The labels of the YOLO family count from 0. Detectron2's
loader numbers the categories by itself, in the order of their ids.

Source: effdet 0.4.1 `data/parsers/parser_coco.py` (`cat_ids_as_labels`), `anchors.py` (a label less
1 is a row); torchvision 0.29 `references/detection/coco_utils.py`; AlexeyAB/darknet `src/data.c`;
Detectron2 0.6 `data/datasets/coco.py` (`thing_dataset_id_to_contiguous_id`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptool.architectures.spec import Architecture
from ckptool.errors import counted, listed, quoted
from ckptool.preflight.coco import Id, id_text
from ckptool.preflight.findings import Finding, error, note, warning
from ckptool.preflight.summary import Category

_BACKGROUND = ("background", "__background__")
# Ids beyond it are no counting, and nobody wants a row for each of the holes.
_LARGEST_HEAD = 10_000


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a head's classes: from `first` on, `count` of them; row = label - `offset`.

    `ids` says whether a loader takes an id for the label, as far as the family has such a loader.
    """

    first: int
    count: int
    offset: int
    ids: bool = True

    @property
    def last(self) -> int:
        """The largest label."""
        return self.first + self.count - 1


def labels_of(architecture: Architecture, num_classes: int | None) -> Labels | None:
    """How the labels of an architecture count, None if the class count is not known."""
    if num_classes is None:
        return None
    backgrounds = [layout.background for layout in architecture.layouts.values() if layout.counted]
    if architecture.family == "torchvision" or backgrounds:
        return Labels(1, num_classes - 1, 0)
    if architecture.family == "effdet":
        return Labels(1, num_classes, 1)
    if architecture.family in ("yolov4", "darknet"):
        return Labels(0, num_classes, 0)
    return Labels(0, num_classes, 0, ids=False)


def rows_of(labels: Labels) -> int:
    """The rows of a head for one anchor."""
    return labels.last - labels.offset + 1


def mapped(
    names: Mapping[Id, str], boxes: Mapping[Id, int], labels: Labels | None
) -> tuple[Category, ...]:
    """The categories in the order of their ids, each with the label that it should have."""
    ids = sorted(names, key=_order)
    given = _labels(ids, names, boxes, labels) if labels else {}
    return tuple(
        Category(
            id_,
            names[id_],
            given.get(id_),
            given[id_] - labels.offset if labels and id_ in given else None,
            boxes.get(id_, 0),
        )
        for id_ in ids
    )


def check_categories(
    categories: Sequence[Category],
    labels: Labels | None,
    architecture: Architecture,
    num_classes: int | None,
) -> Iterator[Finding]:
    """The findings about ids that are no labels, and about classes without a box."""
    arch = architecture.name
    real = [c for c in categories if not _is_background(c.id, c.name, c.boxes, labels)]
    if labels is None or not (labels.ids or architecture.family == "detectron2"):
        yield note(
            "labels-unknown",
            f"how {quoted(arch)} counts its labels is not known, wanted an architecture of effdet, "
            "torchvision, YOLO or Detectron2: ids are not compared",
            where="categories",
        )
    if labels is not None:
        yield from _ids(real, labels, arch, num_classes)
    empty = [category for category in real if not category.boxes]
    if empty:
        yield warning(
            "class-empty",
            f"found {len(empty):,} of {counted(len(real), 'category', 'categories')} without a "
            f"box: {listed(_told(category) for category in empty)}, wanted some for each",
            where=_place(empty[0]),
            count=len(empty),
            fix="leave the categories out, or look where their boxes are",
        )
    unused = labels.count - len(real) if labels else 0
    holes = _holes(real)
    if labels and real and unused > 0 and unused != holes:
        yield note(
            "rows-unused",
            f"found {counted(len(real), 'category', 'categories')} for "
            f"{counted(labels.count, 'class', 'classes')}: {unused:,} have no box to learn from",
            where="categories",
            count=unused,
            fix=f"--num-classes {(num_classes or 0) - unused}, and a head of that size",
        )


def _ids(
    real: Sequence[Category], labels: Labels, arch: str, num_classes: int | None
) -> Iterator[Finding]:
    if len(real) > labels.count:
        beyond = [category for category in real if category.row is None]
        made = error if any(category.boxes for category in beyond) else warning
        yield made(
            "category-count",
            f"found {counted(len(real), 'category', 'categories')}, wanted {labels.count:,} at "
            f"most, the classes of {quoted(arch)}: {len(beyond):,} of them have no row in "
            "the head",
            where=_place(beyond[0]),
            count=len(beyond),
            fix=f"--num-classes {(num_classes or 0) + len(beyond)}, and a head of that size",
        )
        return
    other = [category for category in real if category.label != category.id]
    if not other or not labels.ids:
        return
    shifts = {c.label - c.id for c in real if type(c.id) is int and c.label is not None}
    wanted = f"wanted {labels.first} … {labels.last}"
    ids = _range(real)
    if len(shifts) == 1 and abs(next(iter(shifts))) == 1 and len(other) == len(real):
        up = next(iter(shifts)) == 1
        # A loader of COCO for YOLO has to number the classes anyhow, and most do it so.
        made = error if up else warning
        why = "as a label, id 0 is the background" if up else "these ids count from 1"
        yield made(
            "category-base",
            f"found category ids {ids}, {wanted}: {why}",
            where=_place(real[0]),
            count=len(real),
            fix=f"label = id {'+' if up else '-'} 1, as listed",
        )
        return
    outside = [c for c in real if not _inside(c.id, labels)]
    fix = "number the classes in the order of their ids, as listed"
    largest = max((c.id for c in real if type(c.id) is int), default=0)
    if labels.first and labels.last < largest <= _LARGEST_HEAD and num_classes:
        fix += f", or a head for all ids: --num-classes {num_classes + largest - labels.last}"
    made = error if any(category.boxes for category in outside) else warning
    yield made(
        "category-range",
        f"found category ids {ids} of {counted(len(real), 'category', 'categories')}, {wanted}: "
        f"{len(outside):,} of these ids have no row in the head of {quoted(arch)}",
        where=_place(outside[0] if outside else real[0]),
        count=len(outside),
        fix=fix,
    )


def _labels(
    ids: Sequence[Id], names: Mapping[Id, str], boxes: Mapping[Id, int], labels: Labels
) -> dict[Id, int]:
    """The label of each category: its id if all can be, else one less or more, else its place."""
    real = [i for i in ids if not _is_background(i, names[i], boxes.get(i, 0), labels)]
    whole = [i for i in real if type(i) is int]
    if labels.ids and whole and len(whole) == len(real) and min(whole) >= 0:
        zero = min(whole) == 0
        shift = int(zero) if labels.first else int(zero) - 1
        if max(whole) + shift <= labels.last:
            return {i: i + shift for i in whole}
    return dict(zip(real, range(labels.first, labels.last + 1), strict=False))


def _is_background(id_: Id, name: str, boxes: int, labels: Labels | None) -> bool:
    """Whether a category stands for the background: no box is of it."""
    named = name.strip().casefold() in _BACKGROUND
    return not boxes and (named or (id_ == 0 and labels is not None and labels.first == 1))


def _inside(id_: Id, labels: Labels) -> bool:
    return type(id_) is int and labels.first <= id_ <= labels.last


def _holes(real: Sequence[Category]) -> int:
    """How many ids are left out between the first and the last."""
    ids = [c.id for c in real if type(c.id) is int]
    return max(ids) - min(ids) + 1 - len(ids) if ids and len(ids) == len(real) else 0


def _range(real: Sequence[Category]) -> str:
    first, last = real[0].id, real[-1].id
    if type(first) is not int or type(last) is not int:
        return listed([id_text(c.id) for c in real], 3)
    holes = _holes(real)
    return f"{first} … {last}" + (f" with {counted(holes, 'hole')}" if holes else "")


def _order(id_: Id) -> tuple[bool, int, str]:
    return type(id_) is str, id_ if type(id_) is int else 0, str(id_)


def _told(category: Category) -> str:
    return f"{id_text(category.id)} {category.name}".strip()


def _place(category: Category) -> str:
    return f"category {id_text(category.id)}"
