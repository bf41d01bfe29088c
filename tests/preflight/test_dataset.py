"""`check_dataset`: a correct data set, planted faults, and what real loaders make of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cocos_made import Document, annotations, document, write, write_large

import ckptool
from ckptool.preflight import Report

HOME = Path(ckptool.__file__).parent.parent
ARCH = "tf_efficientdet_d0"


def told(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings]


def checked(path: Path, made: Document, **options: Any) -> Report:
    return ckptool.check_dataset(write(path / "coco.json", made), **{"arch": ARCH, **options})


def test_a_correct_data_set_has_no_findings(tmp_path: Path) -> None:
    report = checked(tmp_path, document())
    assert report.findings == ()
    assert (report.arch, report.num_classes, report.errors) == (ARCH, 90, 0)
    summary = report.summary
    assert summary is not None
    assert (summary.images, summary.boxes, summary.crowds) == (40, 400, 0)
    assert sum(each.boxes for each in summary.sizes) == 400
    assert [(c.id, c.row) for c in summary.categories[:12]][-2:] == [(11, 10), (13, 12)]


def plant(made: Document) -> None:
    """One fault of every kind, each in its own image."""
    images, boxes, categories = made["images"], made["annotations"], made["categories"]
    count = len(images)

    def box(image: int, nth: int = 0) -> dict[str, Any]:
        return boxes[image - 1 + nth * count]

    width, height = images[4]["width"], images[4]["height"]
    box(1)["category_id"] = 91
    box(2)["image_id"] = box(2, 1)["image_id"] = 10_000_000
    box(3)["id"] = box(4)["id"]
    box(5)["bbox"] = [width + 10, 10, 20, 20]
    box(5, 1)["bbox"] = [10, height - 10, 20, 30]
    box(6)["bbox"] = [50, 50, -20, 30]
    box(7)["bbox"] = [50, 50, 0, 30]
    box(8)["bbox"] = [float("nan"), 50, 10, 30]
    box(9)["bbox"] = [50, 50, 10]
    del box(9, 1)["bbox"]
    del box(10)["category_id"]
    boxes.append({**box(11), "id": len(boxes) + 1})
    images[11]["width"] = 0
    del images[12]["height"]
    del images[13]["file_name"]
    images[15]["file_name"] = images[14]["file_name"]
    images.append({**images[16]})
    box(18)["category_id"] = 26
    for number, extra in enumerate(annotations(120, 1, seed=5), len(boxes) + 1):
        corner = [value / 2 for value in extra["bbox"]]
        boxes.append({**extra, "id": number, "image_id": 20, "bbox": corner})
    images.append({"id": 20_000_000, "file_name": "empty.jpg", "width": 640, "height": 480})
    images.append({"file_name": "nameless.jpg", "width": 640, "height": 480})
    categories.append({"id": 12, "name": "street sign"})
    categories.append({"id": 26, "name": "cat"})
    categories.append({**categories[0]})


def planted(count: int, boxes: int) -> dict[str, tuple[str, str, int]]:
    """Severity, place and number of what `plant` did to so many images and boxes."""
    return {
        "image-key": ("error", f"images[{count + 2}]", 1),
        "image-twice": ("error", "image 17", 1),
        "image-sides": ("error", "image 12", 2),
        "image-name": ("error", "image 14", 1),
        "category-twice": ("warning", "category 1", 1),
        "annotation-key": ("error", "annotations[9]", 1),
        "annotation-twice": ("error", "annotation 4 of image 4", 1),
        "annotation-image": ("error", "annotation 2 of image 10000000", 2),
        "annotation-category": ("error", "annotation 1 of image 1", 1),
        "annotation-box": ("error", "annotation 9 of image 9", 2),
        "box-not-finite": ("error", "annotation 8 of image 8", 1),
        "box-negative": ("error", "annotation 6 of image 6", 1),
        "box-empty": ("error", "annotation 7 of image 7", 1),
        "box-outside": ("error", "annotation 5 of image 5", 1),
        "class-empty": ("warning", "category 12", 1),
        "image-file-twice": ("warning", "image 16", 1),
        "category-name": ("warning", "category 26", 1),
        "image-crowded": ("warning", "image 20", 1),
        "box-edge": ("warning", f"annotation {count + 5} of image 5", 1),
        "box-twice": ("warning", f"annotation {boxes + 1} of image 11", 1),
        "image-empty": ("note", "image 20000000", 1),
    }


def found_in(findings: list[dict[str, Any]]) -> dict[str, tuple[str, str, int]]:
    found = {f["code"]: (f["severity"], f["where"], f["count"]) for f in findings}
    assert len(found) == len(findings)
    return found


# The system's own count of a child starts with the size of the process that made it.
CHILD = """
import sys
from ckptool.cli import main
code = main(sys.argv[1:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], file=sys.stderr)
sys.exit(code)
"""


def check_large(folder: Path, count: int, boxes: int) -> tuple[dict[str, Any], float, int]:
    """The command in a process of its own: its JSON, its seconds, its largest size in MiB.

    It has one thread, so that its CPU seconds are those of an idle machine.
    """
    path = write_large(folder / "large.json", count, boxes, plant)
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "check", "--arch", ARCH, "--coco", path, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HOME,
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout), seconds, int(done.stderr) >> 10


def test_all_planted_faults_are_found_and_no_others(tmp_path: Path) -> None:
    """A tenth of the size that the sweep takes."""
    report, _, mebibytes = check_large(tmp_path, 10_000, 50_000)
    assert found_in(report["findings"]) == planted(10_000, 50_000)
    assert (report["errors"], report["warnings"]) == (13, 7)
    assert mebibytes <= 300


@pytest.mark.sweep
def test_half_a_million_boxes_take_seconds_and_no_memory(tmp_path: Path) -> None:
    report, seconds, mebibytes = check_large(tmp_path, 100_000, 500_000)
    assert found_in(report["findings"]) == planted(100_000, 500_000)
    assert (seconds <= 20, mebibytes <= 1024) == (True, True), f"{seconds:.1f} s, {mebibytes} MiB"
