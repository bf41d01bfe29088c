"""Faults of a COCO file, and what the loaders of pycocotools and torchvision make of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cocos_made import Document, document, write
from detectors_made import losses, pictures, torchvision_model
from torchvision.ops import box_convert

import ckptool

FASTER = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


def small() -> Document:
    """Six images of 96×80 with three boxes each, of 20 classes."""
    made = document(6, 18)
    for image in made["images"]:
        image.update(width=96, height=80)
    for at, annotation in enumerate(made["annotations"]):
        annotation["bbox"] = [5.0 + at, 6.0 + at, 20.0 + at, 30.0 + at]
        annotation["category_id"] = 1 + at
    made["categories"] = [{"id": id_, "name": f"class {id_}"} for id_ in range(1, 19)]
    return made


def loaded(path: str, image: int) -> dict[str, torch.Tensor]:
    """One image's target as torchvision's examples make it of what pycocotools reads."""
    from pycocotools.coco import COCO

    coco = COCO(path)
    (info,) = coco.loadImgs([image])
    scale = 96 / info["width"]
    entries = coco.loadAnns(coco.getAnnIds(imgIds=[image]))
    labels = [coco.loadCats([entry["category_id"]])[0]["id"] for entry in entries]
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": box_convert(boxes, "xywh", "xyxy") * torch.tensor([scale, 1.0] * 2),
        "labels": torch.tensor(labels),
    }


def loss_of(path: str, image: int) -> dict[str, float]:
    target = loaded(path, image)
    return losses(torchvision_model(), [pictures(1, 80, 96)[0]], [target])


@dataclass(frozen=True)
class Fault:
    """A change of a correct file, the finding, and what a loader or the loss makes of an image."""

    name: str
    breaks: Callable[[Document], object]
    finding: str
    proof: str
    image: int = 1


def put(key: str, value: Any, at: int = 0, of: str = "annotations") -> Any:
    return lambda made: made[of][at].update({key: value})


def gone(key: str, at: int = 0, of: str = "annotations") -> Any:
    return lambda made: made[of][at].pop(key)


def every(change: Callable[[list[float]], list[float]]) -> Any:
    def breaks(made: Document) -> None:
        for annotation in made["annotations"]:
            annotation["bbox"] = change(annotation["bbox"])

    return breaks


def too_many(made: Document) -> None:
    made["categories"] += [{"id": id_, "name": f"class {id_}"} for id_ in (19, 20, 21)]
    made["annotations"][0]["category_id"] = 21


FAULTS = [
    Fault(
        "a category that is not listed",
        put("category_id", 55),
        "error annotation-category: found 1 of 18 annotations of category `55`, wanted "
        "ids that `categories` has; drop them, or add the categories",
        "KeyError: 55",
    ),
    Fault(
        "a category as a text",
        put("category_id", "1"),
        'error annotation-category: found 1 of 18 annotations of category `"1"`, wanted '
        "ids that `categories` has; drop them, or add the categories",
        "KeyError: '1'",
    ),
    Fault(
        "no category",
        gone("category_id"),
        "error annotation-key: found 1 entry of `annotations` without `category_id`, "
        "wanted a number or a text in each; drop them, or write it",
        "KeyError: 'category_id'",
    ),
    Fault(
        "no id of an annotation",
        gone("id"),
        "error annotation-key: found 1 entry of `annotations` without `id`, wanted a "
        "number or a text in each; drop them, or write it",
        "KeyError: 'id'",
    ),
    Fault(
        "no image of an annotation",
        gone("image_id"),
        "error annotation-key: found 1 entry of `annotations` without `image_id`, wanted "
        "a number or a text in each; drop them, or write it",
        "KeyError: 'image_id'",
    ),
    Fault(
        "an image that is not listed",
        put("image_id", 77),
        "error annotation-image: found 1 of 18 annotations of image `77`, wanted ids "
        "that `images` has; drop them, or add the images",
        "KeyError: 77",
        77,
    ),
    Fault(
        "two annotations of one id",
        put("id", 2),
        "error annotation-twice: found 1 of 18 annotations with the id of another, "
        "wanted each id once: readers by id put the last in the place of the others; "
        "number the annotations anew",
        "another loss",
    ),
    Fault(
        "no box",
        gone("bbox"),
        "error annotation-box: found 1 of 18 annotations without a `bbox` of 4 numbers, "
        "wanted x, y, width, height in pixels; drop them, or write the box "
        "that a segmentation spans",
        "KeyError: 'bbox'",
    ),
    Fault(
        "a box of three",
        put("bbox", [1, 2, 3]),
        "error annotation-box: found 1 of 18 annotations without a `bbox` of 4 numbers, "
        "wanted x, y, width, height in pixels; drop them, or write the box "
        "that a segmentation spans",
        "expected sequence of length",
    ),
    Fault(
        "a box of no width",
        put("bbox", [5, 5, 0, 9]),
        "error box-empty: found 1 of 18 boxes of no width or no height, wanted an area: "
        "the first is 5, 5, 0, 9, read as x, y, width, height; drop them",
        "positive height and width",
    ),
    Fault(
        "a box of negative width",
        put("bbox", [15, 5, -9, 9]),
        "error box-negative: found 1 of 18 boxes of negative width or height, wanted "
        "positive sides: the first is 15, 5, -9, 9, read as x, y, width, height; drop "
        "them",
        "positive height and width",
    ),
    Fault(
        "a box that is NaN",
        put("bbox", [float("nan"), 5, 9, 9]),
        "error box-not-finite: found 1 of 18 boxes with NaN or infinite values, wanted "
        "finite ones: the first is nan, 5, 9, 9, read as x, y, width, height; look for a "
        "division by 0",
        "not finite",
    ),
    Fault(
        "a box outside",
        put("bbox", [5, 90, 9, 9]),
        "error box-outside: found 1 of 18 boxes outside their image, wanted them inside: "
        "the first is 5, 90, 9, 9, read as x, y, width, height; drop them after cropping",
        "another loss",
    ),
    Fault(
        "corners",
        every(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
        "error box-order: found 4 of 18 boxes that do not fit into their image as x, y, "
        "width, height, and all do as x1, y1, x2, y2; wanted x, y, width, height; x1, "
        "y1, x2 - x1, y2 - y1",
        "another loss",
    ),
    Fault(
        "shares",
        every(lambda b: [b[0] / 96, b[1] / 80, b[2] / 96, b[3] / 80]),
        "error box-relative: found all values of 18 boxes between 0.0521 and 0.588, "
        "wanted pixels; multiply x by the image's width, y by its height",
        "another loss",
    ),
    Fault(
        "no id of an image",
        gone("id", of="images"),
        "error image-key: found 1 entry of `images` without `id`, wanted a number or a "
        "text in each; drop them, or write it\n"
        "error annotation-image: found 3 of 18 annotations of image `1`, wanted ids that "
        "`images` has; drop them, or add the images",
        "KeyError: 'id'",
    ),
    Fault(
        "two images of one id",
        lambda made: made["images"].append({**made["images"][0], "width": 48}),
        "error image-twice: found 1 image with the id of another: `1`, wanted each id "
        "once: readers keep the last; give each its own id",
        "another loss",
    ),
    Fault(
        "no width",
        gone("width", of="images"),
        "error image-sides: found 1 of 6 images without their sides, such as nan×80, "
        "wanted whole pixels above 0; write the sides of each image: every loader scales "
        "by them",
        "KeyError: 'width'",
    ),
    Fault(
        "a width of 0",
        put("width", 0, of="images"),
        "error image-sides: found 1 of 6 images without their sides, such as 0×80, "
        "wanted whole pixels above 0; write the sides of each image: every loader scales "
        "by them",
        "ZeroDivisionError",
    ),
    Fault(
        "no id of a category",
        gone("id", of="categories"),
        "error category-key: found 1 entry of `categories` without `id`, wanted a number "
        "or a text in each; drop them, or write it\n"
        "error annotation-category: found 1 of 18 annotations of category `1`, wanted "
        "ids that `categories` has; drop them, or add the categories",
        "KeyError: 'id'",
    ),
    Fault(
        "more categories than classes",
        too_many,
        "error category-count: found 21 categories, wanted 20 at most, the classes of "
        "`torchvision:fasterrcnn_mobilenet_v3_large_320_fpn`: 1 of them have no row in "
        "the head; --num-classes 22, and a head of that size",
        "Target 21 is out of bounds",
    ),
]


def findings(path: str) -> str:
    found = ckptool.check_dataset(path, arch=FASTER, num_classes=21).findings
    aside = ("class-empty", "rows-unused", "image-empty")
    return "\n".join(str(finding) for finding in found if finding.code not in aside)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_is_one(fault: Fault, tmp_path: Path) -> None:
    right = write(tmp_path / "right.json", small())
    assert findings(right) == ""
    made = small()
    fault.breaks(made)
    path = write(tmp_path / "broken.json", made)
    assert findings(path) == fault.finding
    try:
        found = loss_of(path, fault.image)
    except Exception as error:
        assert fault.proof in f"{type(error).__name__}: {error}"
        return
    if fault.proof == "not finite":
        assert not all(map(math.isfinite, found.values()))
    else:
        assert fault.proof == "another loss"
        assert found != loss_of(right, fault.image)


def test_a_file_without_images_gives_a_loader_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"images": [], "annotations": [], "categories": []})
    assert findings(path) == (
        "error image-none: found no image, wanted at least 1: a loader has nothing to draw from; "
        "look at what wrote the file: a split or a filter may have left nothing"
    )
    from pycocotools.coco import COCO

    with pytest.raises(ValueError, match="num_samples should be a positive integer"):
        torch.utils.data.DataLoader(COCO(path).getImgIds(), shuffle=True)


def test_time_is_linear_in_the_ids_that_are_not_listed(tmp_path: Path) -> None:
    """The annotations of one split with the images of another: 100,000 ids that are not there."""
    made = small()
    for at in range(100_000):
        made["annotations"].append({**made["annotations"][0], "id": 1000 + at, "image_id": -at})
    path = write(tmp_path / "a.json", made)
    start = time.process_time()
    assert "100,000 of 100,018 annotations of image `0`, `-1`, `-2` and" in findings(path)
    assert time.process_time() - start < 8  # a walk to each id took 20 s
