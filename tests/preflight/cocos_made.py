"""COCO annotations of any size, correct or with planted faults, written as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

from ckptool.labels import label_set

Document = dict[str, list[dict[str, Any]]]
SIDES = ((640, 480), (480, 640), (640, 427), (500, 375))


def categories() -> list[dict[str, Any]]:
    """The 80 categories of COCO with their ids, 1 to 90."""
    names = label_set("coco90")
    return [{"id": at, "name": name} for at, name in enumerate(names, 1) if name]


def images(count: int) -> list[dict[str, Any]]:
    """Images with ids from 1."""
    return [
        {
            "id": at,
            "file_name": f"{at:012d}.jpg",
            "width": SIDES[at % 4][0],
            "height": SIDES[at % 4][1],
        }
        for at in range(1, count + 1)
    ]


def annotations(count: int, of: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Boxes inside their images, of every size, with ids from 1; every category has some."""
    random = numpy.random.default_rng(seed)
    ids = [category["id"] for category in categories()]
    image = numpy.arange(count) % of + 1
    sides = numpy.array(SIDES, float)[image % 4]
    longest = 8 * 60 ** random.random(count)
    ratio = random.choice([0.5, 0.8, 1.0, 1.25, 2.0], count)
    size = numpy.minimum(numpy.stack((longest, longest * ratio), 1), sides)
    corner = random.random((count, 2)) * (sides - size)
    boxes = numpy.concatenate((corner, size), 1).round(2)
    # Rounding must not push a box over the edge.
    boxes[:, 2:] = numpy.minimum(boxes[:, 2:], (sides - boxes[:, :2]).round(2))
    for at, (number, box) in enumerate(zip(image.tolist(), boxes.tolist(), strict=True)):
        yield {
            "id": at + 1,
            "image_id": number,
            "category_id": ids[at % len(ids)],
            "bbox": box,
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]],
        }


def document(count: int = 40, boxes: int = 400, seed: int = 0) -> Document:
    """A small correct data set in memory."""
    return {
        "images": images(count),
        "annotations": list(annotations(boxes, count, seed)),
        "categories": categories(),
    }


def write(path: Path, made: Document) -> str:
    path.write_text(json.dumps(made))
    return str(path)


def write_large(path: Path, count: int, boxes: int, plant: Callable[[Document], None]) -> str:
    """A data set as a stream of entries; `plant` changes the lists before they are written."""
    made = document(count, boxes)
    plant(made)
    with path.open("w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [{"id": 1}]')
        for name, entries in made.items():
            file.write(f',\n"{name}": [')
            for at, entry in enumerate(entries):
                file.write((",\n" if at else "") + json.dumps(entry))
            file.write("]")
        file.write("}\n")
    return str(path)
