"""The entries of a COCO file against each other: ids, images, categories, boxes.

Source: pycocotools 2.0 `coco.py` (`createIndex`: a later entry of the same id takes the place of an
earlier one; a key that is missing raises).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.architectures.spec import Architecture
from ckptool.errors import counted, listed, quoted
from ckptool.preflight.boxes import XYWH, Boxes, check_boxes
from ckptool.preflight.coco import Coco, id_text
from ckptool.preflight.findings import Finding, error, note, warning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Source: effdet 0.4.1 `data/loader.py` (`MAX_NUM_INSTANCES`).
_MOST_BOXES = 100


@dataclass(frozen=True, slots=True)
class Table:
    """The columns as arrays, and what they say of each other.

    Of every annotation: `image`, `category` (numbers of the ids), `boxes` (n, 4: x, y, width,
    height), `sides` (n, 2: width and height of its image, NaN where they are not known). `listed`
    says of each image's number, `known` of each category's, whether the file has it. `crowd` are
    the annotations of whole crowds, `usable` those with a box that has a place.
    """

    image: Array
    category: Array
    boxes: Array
    sides: Array
    listed: Array
    known: Array
    crowd: Array
    usable: Array


def table_of(coco: Coco) -> Table:
    """The columns of a file of annotations, joined."""
    import numpy as np

    image, category = _column(coco.of_image), _column(coco.of_category)
    images, categories = _column(coco.images), _column(coco.categories)
    listed_ = np.zeros(len(coco.image_ids), bool)
    listed_[images] = True
    known = np.zeros(len(coco.category_ids), bool)
    known[categories] = True
    sides = np.full((len(coco.image_ids), 2), np.nan)
    own = np.array(coco.sides, float).reshape(-1, 2)
    sides[images] = np.where(_sound(own)[:, None], own, np.nan)
    boxes = np.array(coco.boxes, float).reshape(-1, 4)
    crowd = np.zeros(len(image), bool)
    crowd[coco.crowds] = True
    sound = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
    usable = sound & ~crowd & known[category] & np.isfinite(sides[image]).all(1)
    return Table(image, category, boxes, sides[image], listed_, known, crowd, usable)


def check_images(coco: Coco, table: Table) -> Iterator[Finding]:
    """The findings about the entries of `images`."""
    import numpy as np

    images = _column(coco.images)
    if not len(images) and not coco.broken:
        yield error(
            "image-none",
            "found no image, wanted at least 1: a loader has nothing to draw from",
            where="images",
            fix="look at what wrote the file: a split or a filter may have left nothing",
        )
    yield from _broken(coco, "images")
    yield from _twice(images, "image-twice", "image", "images", coco.image_id)
    own = np.array(coco.sides, float).reshape(-1, 2)
    wrong = np.flatnonzero(~_sound(own))
    if len(wrong):
        width, height = own[wrong[0]]
        yield error(
            "image-sides",
            f"found {len(wrong):,} of {counted(len(images), 'image')} without their sides, such as "
            f"{width:g}×{height:g}, wanted whole pixels above 0",
            where=_image(coco, images[wrong[0]]),
            count=len(wrong),
            fix="write the sides of each image: every loader scales by them",
        )
    nameless = [at for at, name in enumerate(coco.files) if not name]
    if nameless:
        yield error(
            "image-name",
            f"found {len(nameless):,} of {counted(len(images), 'image')} without `file_name`, "
            "wanted one for each",
            where=_image(coco, images[nameless[0]]),
            count=len(nameless),
            fix="write `file_name`, relative to the folder of the images",
        )
    seen: dict[str, int] = {}
    again = [at for at, name in enumerate(coco.files) if name and seen.setdefault(name, at) != at]
    again = [at for at in again if images[at] != images[seen[coco.files[at] or ""]]]
    if again:
        yield warning(
            "image-file-twice",
            f"found {counted(len(again), 'image')} with the file of another, such as "
            f"{quoted(coco.files[again[0]] or '')}, wanted one entry for each file",
            where=_image(coco, images[again[0]]),
            count=len(again),
            fix="join the entries: each of them is trained without the boxes of the other",
        )
    bare = table.listed.copy()
    bare[table.image] = False
    if bare.any():
        yield note(
            "image-empty",
            f"found {int(bare.sum()):,} of {counted(len(images), 'image')} without an annotation: "
            "they are trained as background, or left out",
            where=_image(coco, int(np.flatnonzero(bare)[0])),
            count=int(bare.sum()),
        )


def check_entries(coco: Coco, table: Table, architecture: Architecture) -> Iterator[Finding]:
    """The findings about the entries of `annotations` and `categories`."""
    import numpy as np

    yield from _broken(coco, "categories")
    categories = _column(coco.categories)
    yield from _twice(
        categories, "category-twice", "category", "categories", coco.category_id, made=warning
    )
    by_name: dict[str, int] = {}
    alike = [
        at for at, name in enumerate(coco.names) if name and by_name.setdefault(name, at) != at
    ]
    alike = [at for at in alike if categories[at] != categories[by_name[coco.names[at]]]]
    if alike:
        yield warning(
            "category-name",
            f"found {counted(len(alike), 'category', 'categories')} with the name of another, such "
            f"as {quoted(coco.names[alike[0]])}, wanted one category for each name",
            where=f"category {id_text(coco.category_id(categories[alike[0]]))}",
            count=len(alike),
            fix="join the categories, or tell their names apart",
        )
    yield from _broken(coco, "annotations")
    yield from _annotation_twice(coco)
    yield from _dangling(coco, ~table.listed[table.image], "annotation-image", "image")
    yield from _dangling(coco, ~table.known[table.category], "annotation-category", "category")
    if coco.boxless:
        yield error(
            "annotation-box",
            f"found {len(coco.boxless):,} of {counted(len(coco.ids), 'annotation')} without a "
            "`bbox` of 4 numbers, wanted x, y, width, height in pixels",
            where=_annotation(coco, coco.boxless[0]),
            count=len(coco.boxless),
            fix="drop them, or write the box that a segmentation spans",
        )
    if architecture.family == "effdet":
        counts = np.bincount(table.image[table.usable], minlength=1)
        full = np.flatnonzero(counts > _MOST_BOXES)
        if len(full):
            yield warning(
                "image-crowded",
                f"found {counted(len(full), 'image')} with up to {int(counts.max()):,} boxes, "
                f"wanted {_MOST_BOXES} at most: effdet's loader drops the rest",
                where=_image(coco, int(full[0])),
                count=len(full),
                fix="DetectionFastCollate(max_instances=…), or cut the images in tiles",
            )


def check_places(coco: Coco, table: Table) -> Iterator[Finding]:
    """The findings about the boxes themselves."""
    import numpy as np

    boxless = np.zeros(len(table.boxes), bool)
    boxless[coco.boxless] = True
    placed = np.flatnonzero(~boxless & np.isfinite(table.sides).all(1))
    found = Boxes(
        table.boxes[placed],
        table.sides[placed],
        XYWH,
        lambda at: _annotation(coco, int(placed[at])),
    )
    yield from check_boxes(found)
    rows = np.flatnonzero(table.usable)
    keys = np.column_stack((table.image[rows], table.category[rows], table.boxes[rows]))
    order = np.lexsort(keys.T)
    same = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(1))
    if len(same):
        again = rows[order[same + 1]]
        yield warning(
            "box-twice",
            f"found {len(again):,} of {counted(len(table.boxes), 'box', 'boxes')} twice in one "
            "image and category, wanted once",
            where=_annotation(coco, int(again.min())),
            count=len(again),
            fix="drop the copies",
        )


def _broken(coco: Coco, name: str) -> Iterator[Finding]:
    """Entries that lack what the format demands."""
    for (where, key), places in coco.broken.items():
        if where == name:
            yield error(
                f"{_SINGULAR[name]}-key",
                f"found {counted(len(places), 'entry', 'entries')} of {quoted(name)} without "
                f"{quoted(key)}, wanted a number or a text in each",
                where=f"{name}[{places[0]}]",
                count=len(places),
                fix="drop them, or write it",
            )


def _twice(
    numbers: Array,
    code: str,
    one: str,
    many: str,
    id_of: Callable[[int], Any],
    made: Callable[..., Finding] = error,
) -> Iterator[Finding]:
    """Entries with an id that an earlier one has."""
    import numpy as np

    values, counts = np.unique(numbers, return_counts=True)
    more = values[counts > 1]
    if len(more):
        count = int((counts[counts > 1] - 1).sum())
        yield made(
            code,
            f"found {counted(count, one, many)} with the id of another: "
            f"{listed(id_text(id_of(int(number))) for number in more)}, wanted each id once: "
            "readers keep the last",
            where=f"{one} {id_text(id_of(int(more[0])))}",
            count=count,
            fix="give each its own id",
        )


def _annotation_twice(coco: Coco) -> Iterator[Finding]:
    """Annotations with an id that an earlier one has."""
    import numpy as np

    ids = _column(coco.ids)
    _, firsts = np.unique(ids, return_index=True)
    again = np.ones(len(ids), bool)
    again[firsts] = False
    rows = np.flatnonzero(again)
    if len(rows):
        yield error(
            "annotation-twice",
            f"found {len(rows):,} of {counted(len(ids), 'annotation')} with the id of another, "
            "wanted each id once: readers by id put the last in the place of the others",
            where=_annotation(coco, int(rows[0])),
            count=len(rows),
            fix="number the annotations anew",
        )


def _dangling(coco: Coco, mask: Array, code: str, what: str) -> Iterator[Finding]:
    """Annotations that name an image or a category which is not listed."""
    rows = mask.nonzero()[0]
    if len(rows):
        id_of = coco.image_id if what == "image" else coco.category_id
        column = coco.of_image if what == "image" else coco.of_category
        missing = [id_text(id_of(number)) for number in dict.fromkeys(column[int(r)] for r in rows)]
        many = "images" if what == "image" else "categories"
        yield error(
            code,
            f"found {len(rows):,} of {counted(len(coco.ids), 'annotation')} of {what} "
            f"{listed(missing, 3)}, wanted ids that {quoted(many)} has",
            where=_annotation(coco, int(rows[0])),
            count=len(rows),
            fix=f"drop them, or add the {many}",
        )


_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def _annotation(coco: Coco, at: int) -> str:
    """An annotation by its id and its image's."""
    return f"annotation {id_text(coco.annotation_id(at))} of {_image(coco, coco.of_image[at])}"


def _image(coco: Coco, number: int) -> str:
    """An image by its id."""
    return f"image {id_text(coco.image_id(number))}"


def _sound(sides: Array) -> Array:
    """Whether a width and a height can be those of an image."""
    import numpy as np

    return np.asarray(((sides > 0) & np.isfinite(sides)).all(1))


def _column(values: Any) -> Array:
    import numpy as np

    return np.frombuffer(values, np.int64) if len(values) else np.zeros(0, np.int64)
