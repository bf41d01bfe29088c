"""Category ids against the labels of each family, and the row that each category is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cocos_made import document, write
from detectors_made import bench, bench_of_losses, effdet_batch, losses

import ckptool
from ckptool.preflight import Report

FASTER = "torchvision:fasterrcnn_resnet50_fpn"


def numbered(
    tmp_path: Path, ids: list[Any], arch: str, num_classes: int | None, **changes: Any
) -> Report:
    """The report on a data set with these category ids, each with boxes."""
    made = document(60, 40 * len(ids))
    made["categories"] = [{"id": id_, "name": f"class {id_}"} for id_ in ids] + [
        {"id": id_, "name": name} for id_, name in changes.items()
    ]
    for at, annotation in enumerate(made["annotations"]):
        annotation["category_id"] = ids[at % len(ids)]
    path = write(tmp_path / "coco.json", made)
    return ckptool.check_dataset(path, arch=arch, num_classes=num_classes)


def rows(report: Report) -> list[int | None]:
    assert report.summary is not None
    return [category.row for category in report.summary.categories]


def coco_ids() -> list[int]:
    return [category["id"] for category in document(1, 1)["categories"]]


@pytest.mark.parametrize(
    ("arch", "num_classes", "ids", "wanted"),
    [
        ("tf_efficientdet_d0", 3, [1, 2, 3], [0, 1, 2]),
        (FASTER, 4, [1, 2, 3], [1, 2, 3]),
        ("yolov4", 3, [0, 1, 2], [0, 1, 2]),
        ("detectron2:retinanet_R_50_FPN_3x", 3, [5, 7, 9], [0, 1, 2]),
    ],
    ids=["effdet", "torchvision", "yolo", "detectron2"],
)
def test_each_family_has_its_own_ids(
    arch: str, num_classes: int, ids: list[int], wanted: list[int], tmp_path: Path
) -> None:
    report = numbered(tmp_path, ids, arch, num_classes)
    assert report.findings == ()
    assert rows(report) == wanted


def test_the_ids_of_coco_are_the_labels_of_published_weights(tmp_path: Path) -> None:
    """90 classes of effdet, 91 with the background of torchvision: the holes are no fault."""
    for arch, first in (("tf_efficientdet_d0", 1), (FASTER, 0)):
        report = numbered(tmp_path, coco_ids(), arch, None)
        assert report.findings == ()
        assert rows(report) == [id_ - first for id_ in coco_ids()]


def test_coco_ids_up_to_90_against_80_classes(tmp_path: Path) -> None:
    report = numbered(tmp_path, coco_ids(), "tf_efficientdet_d0", 80)
    (finding,) = report.findings
    assert str(finding) == (
        "error category-range: found category ids 1 … 90 with 10 holes of 80 categories, "
        "wanted 1 … 80: 9 of these ids have no row in the head of `tf_efficientdet_d0`; "
        "number the classes in the order of their ids, as listed, or a head for all ids: "
        "--num-classes 90"
    )
    assert (finding.where, finding.count) == ("category 81", 9)
    assert rows(report) == list(range(80))


def test_a_label_of_such_an_id_has_no_row() -> None:
    """Class 90 in a head of 80 raises; the listed label of the same category does not."""
    images, targets = effdet_batch()
    targets["cls"][0, 0] = 90
    assert [f.code for f in ckptool.check(bench(), images, targets).findings] == ["label-range"]
    with pytest.raises(RuntimeError, match="index 89 is out of bounds"):
        losses(bench_of_losses(), images, targets)
    targets["cls"][0, 0] = 80
    assert losses(bench_of_losses(), images, targets)


@pytest.mark.parametrize(("arch", "num_classes"), [("yolov4", 80), (FASTER, 81)])
def test_coco_ids_are_out_of_range_for_80_classes_of_any_family(
    arch: str, num_classes: int, tmp_path: Path
) -> None:
    (finding,) = numbered(tmp_path, coco_ids(), arch, num_classes).findings
    assert (finding.code, finding.severity) == ("category-range", "error")


def test_ids_from_0_where_0_is_the_background(tmp_path: Path) -> None:
    report = numbered(tmp_path, [0, 1, 2], "tf_efficientdet_d0", 3)
    (finding,) = report.findings
    assert str(finding) == (
        "error category-base: found category ids 0 … 2, wanted 1 … 3: as a label, id 0 "
        "is the background; label = id + 1, as listed"
    )
    assert rows(report) == [0, 1, 2]


def test_labels_from_0_are_trained_as_another_class() -> None:
    images, targets = effdet_batch()
    shifted = {**targets, "cls": torch.where(targets["cls"] > 0, targets["cls"] - 1, -1.0)}
    assert losses(bench_of_losses(), images, shifted) != losses(bench_of_losses(), images, targets)


def test_ids_from_1_for_yolo_are_a_warning(tmp_path: Path) -> None:
    report = numbered(tmp_path, [1, 2, 3], "yolov4", 3)
    (finding,) = report.findings
    assert str(finding) == (
        "warning category-base: found category ids 1 … 3, wanted 0 … 2: these ids count "
        "from 1; label = id - 1, as listed"
    )
    assert rows(report) == [0, 1, 2]


def test_more_categories_than_classes(tmp_path: Path) -> None:
    report = numbered(tmp_path, [1, 2, 3, 4, 5], "tf_efficientdet_d0", 3)
    (finding,) = report.findings
    assert str(finding) == (
        "error category-count: found 5 categories, wanted 3 at most, the classes of "
        "`tf_efficientdet_d0`: 2 of them have no row in the head; --num-classes 5, and "
        "a head of that size"
    )
    assert rows(report) == [0, 1, 2, None, None]


def test_ids_that_are_texts(tmp_path: Path) -> None:
    report = numbered(tmp_path, ["b", "a"], "tf_efficientdet_d0", 2)
    (finding,) = report.findings
    assert str(finding) == (
        'error category-range: found category ids `"a"`, `"b"` of 2 categories, wanted 1 … '
        "2: 2 of these ids have no row in the head of `tf_efficientdet_d0`; number the "
        "classes in the order of their ids, as listed"
    )
    assert rows(report) == [0, 1]


def test_a_category_0_without_a_box_is_the_background(tmp_path: Path) -> None:
    """Exports of labelling tools put a category 0 in front."""
    report = numbered(tmp_path, [1, 2], "tf_efficientdet_d0", 2)
    made = document(20, 80)
    made["categories"] = [{"id": id_, "name": str(id_)} for id_ in (0, 1, 2)]
    for at, annotation in enumerate(made["annotations"]):
        annotation["category_id"] = 1 + at % 2
    path = write(tmp_path / "coco.json", made)
    report = ckptool.check_dataset(path, arch="tf_efficientdet_d0", num_classes=2)
    assert report.findings == ()
    assert rows(report) == [None, 0, 1]


def test_rows_that_no_category_has_are_a_note(tmp_path: Path) -> None:
    (finding,) = numbered(tmp_path, [1, 2, 3], "tf_efficientdet_d0", None).findings
    assert str(finding) == (
        "note rows-unused: found 3 categories for 90 classes: 87 have no box to learn "
        "from; --num-classes 3, and a head of that size"
    )


def test_an_architecture_of_unknown_labels_is_a_note(tmp_path: Path) -> None:
    (finding,) = numbered(tmp_path, [4, 9], "timm:resnet18", 2).findings
    assert str(finding) == (
        "note labels-unknown: how `timm:resnet18` counts its labels is not known, wanted "
        "an architecture of effdet, torchvision, YOLO or Detectron2: ids are not compared"
    )


def test_the_default_class_count_of_torchvision_counts_the_background(tmp_path: Path) -> None:
    report = numbered(tmp_path, list(range(1, 91)), FASTER, None)
    assert (report.num_classes, report.findings) == (91, ())
    assert report.summary is not None
    assert report.summary.rows == 91
