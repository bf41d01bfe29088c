"""Annotations in COCO's form, read as a stream: one entry in memory at a time.

What is kept of 500,000 boxes are some 40 MB of numbers. The entries of a list that is not asked for
are read and let go.

Source: the data format of COCO 2014 and 2017 (`images`, `annotations`, `categories`; a box is x, y,
width, height in pixels).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptool.errors import FormatError, quoted
from ckptool.files import ByteFile
from ckptool.preflight.json_stream import JsonStream, Progress

Id = int | str

_LISTS = ("images", "annotations", "categories")
_LARGEST_ID = 1 << 62
_NUMBERS = (int, float)
_NAN = math.nan
_NO_BOX = (_NAN, _NAN, _NAN, _NAN)


@dataclass(slots=True)
class Coco:
    """The columns of an annotation file.

    Ids are numbered in the order in which they are first seen, wherever that is: `image_ids` and
    `category_ids` give the number of an id, and the columns hold numbers. `sides` are width and
    height (NaN where there is none), `boxes` four values each. `boxless` are the annotations that
    have no box, `crowds` those of a whole crowd. `broken` are the entries that lack what the format
    demands, by list and key: they are in no column.
    """

    path: str
    image_ids: dict[Id, int] = field(default_factory=dict)
    category_ids: dict[Id, int] = field(default_factory=dict)
    images: array[int] = field(default_factory=lambda: array("q"))
    sides: array[float] = field(default_factory=lambda: array("d"))
    files: list[str | None] = field(default_factory=list)
    categories: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    ids: array[int] = field(default_factory=lambda: array("q"))
    of_image: array[int] = field(default_factory=lambda: array("q"))
    of_category: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    boxless: list[int] = field(default_factory=list)
    crowds: list[int] = field(default_factory=list)
    broken: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    _listed: dict[int, list[Any]] = field(default_factory=dict, repr=False)

    def image_id(self, number: int) -> Id:
        """The id of an image's number."""
        return self._key(self.image_ids, number)

    def category_id(self, number: int) -> Id:
        """The id of a category's number."""
        return self._key(self.category_ids, number)

    def annotation_id(self, at: int) -> Id:
        """The id of an annotation's row."""
        number = self.ids[at]
        if number < _LARGEST_ID:
            return number
        return self._key(self.texts, number - _LARGEST_ID)

    def _key(self, numbers: Mapping[Any, int], number: int) -> Id:
        """The key that was numbered so: keys are numbered in the order in which they stand."""
        keys = self._listed.get(id(numbers), [])
        if len(keys) != len(numbers):
            keys = self._listed[id(numbers)] = list(numbers)
        found: Id = keys[number]
        return found


def read_coco(path: str, progress: Progress | None = None) -> Coco:
    """The columns of a file of COCO annotations.

    Raises: FormatError with the byte where the file is no JSON, or lacks one of the three lists;
    CkptError if it cannot be read.
    """
    file = ByteFile(path)
    found, seen = Coco(path), set()
    takers: Mapping[str, Callable[[Coco, int, Any], None]] = {
        "images": _image,
        "annotations": _annotation,
        "categories": _category,
    }
    try:
        for name, entries in JsonStream(file, progress).lists():
            take = takers.get(name, _nothing)
            if name in takers and name in seen:
                raise FormatError(
                    f"found a second list {quoted(name)}, wanted one: readers of JSON keep the "
                    "last and lose the others",
                    hint="join the lists",
                    code="coco.lists",
                )
            seen.add(name)
            for at, entry in enumerate(entries):
                take(found, at, entry)
    except FormatError as error:
        raise error.located(quoted(path)) from None
    missing = [name for name in _LISTS if name not in seen]
    if missing:
        lacks = " and ".join(map(quoted, missing))
        raise FormatError(
            f"{quoted(path)}: found no list {lacks}, wanted COCO annotations with "
            f"{', '.join(map(quoted, _LISTS))}",
            hint="instances_train2017.json is one; results and image lists are not",
            code="coco.lists",
        )
    return found


def id_text(id_: Id) -> str:
    """An id for people: a text in double quotes, since `"1"` is not 1."""
    return f'"{id_}"' if type(id_) is str else str(id_)


def _nothing(found: Coco, at: int, entry: Any) -> None:
    """What is done with the entries of other lists."""


def _image(found: Coco, at: int, entry: Any) -> None:
    number = _number(entry, "id", found.image_ids)
    if number is None:
        found.broken.setdefault(("images", "id"), []).append(at)
        return
    name = entry.get("file_name")
    found.images.append(number)
    found.sides.append(_value(entry.get("width")))
    found.sides.append(_value(entry.get("height")))
    found.files.append(name if type(name) is str else None)


def _category(found: Coco, at: int, entry: Any) -> None:
    number = _number(entry, "id", found.category_ids)
    if number is None:
        found.broken.setdefault(("categories", "id"), []).append(at)
        return
    found.categories.append(number)
    name = entry.get("name")
    found.names.append("" if name is None else str(name))


def _annotation(found: Coco, at: int, entry: Any) -> None:
    image = _number(entry, "image_id", found.image_ids)
    category = _number(entry, "category_id", found.category_ids)
    number = _own_number(entry, found.texts)
    if image is None or category is None or number is None:
        key = "image_id" if image is None else "category_id" if category is None else "id"
        found.broken.setdefault(("annotations", key), []).append(at)
        return
    box = entry.get("bbox")
    if type(box) is not list or len(box) != 4 or not all(type(v) in _NUMBERS for v in box):
        found.boxless.append(len(found.ids))
        box = _NO_BOX
    if entry.get("iscrowd") == 1:
        found.crowds.append(len(found.ids))
    found.ids.append(number)
    found.of_image.append(image)
    found.of_category.append(category)
    found.boxes.extend(map(_value, box))


def _number(entry: Any, key: str, numbers: dict[Id, int]) -> int | None:
    """The number of an entry's id, None if it has none that can be one."""
    if type(entry) is not dict:
        return None
    value = entry.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int and type(value) is not str:
        return None
    return numbers.setdefault(value, len(numbers))


def _own_number(entry: Any, texts: dict[str, int]) -> int | None:
    """An annotation's id as a number: itself if it is one of 62 bits, else one above these."""
    if type(entry) is not dict:
        return None
    value = entry.get("id")
    if type(value) is int and -_LARGEST_ID < value < _LARGEST_ID:
        return value
    if type(value) is not int and type(value) is not str:
        return None
    return _LARGEST_ID + texts.setdefault(str(value), len(texts))


def _value(value: Any) -> float:
    """A number of JSON as a float, NaN for anything else."""
    if type(value) is not int and type(value) is not float:
        return _NAN
    try:
        return float(value)
    except OverflowError:
        return _NAN
