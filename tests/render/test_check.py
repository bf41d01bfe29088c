"""What `check` shows and exits with, in text, as JSON and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptool
from ckptool.cli import main
from ckptool.preflight import Finding, Report
from ckptool.preflight.summary import Category, SizeBin, Summary
from ckptool.render.check import report_json, report_text

sys.path.append(str(Path(__file__).parent.parent / "preflight"))

from cocos_made import document, write

ARCH = "tf_efficientdet_d0"


@pytest.fixture
def good(tmp_path: Path) -> str:
    return write(tmp_path / "good.json", document(30, 300))


@pytest.fixture
def bad(tmp_path: Path) -> str:
    made = document(30, 300)
    made["annotations"][0]["category_id"] = 95
    made["annotations"][1]["bbox"][2] += 700
    return write(tmp_path / "bad.json", made)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_good_data_set_exits_with_0(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--arch", ARCH, "--coco", good)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == good
    assert lines[1] == "30 images, 300 boxes, 80 categories"
    assert lines[2] == f"against {ARCH} with 90 classes"
    assert lines[4].split() == ["id", "label", "row", "of", "90", "class", "boxes"]
    assert lines[5].split()[:5] == ["1", "1", "0", "person", "4"]
    assert "  90     90         89  toothbrush" in out
    assert lines[-1] == "no findings"
    assert "of the boxes overlap no anchor (45 anchors in each place) at an IoU of 0.5" in out


def test_an_error_exits_with_1_and_stands_last(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--arch", ARCH, "--coco", bad)
    assert code == 1
    shown = out.splitlines()
    assert shown.index("  at: annotation 2 of image 2") < shown.index(
        "  at: annotation 1 of image 1"
    )
    assert shown[-6:] == [
        "error annotation-category: found 1 of 300 annotations of category `95`, wanted ids that "
        "`categories`",
        "  has",
        "  at: annotation 1 of image 1",
        "  fix: drop them, or add the categories",
        "",
        "1 error, 1 warning",
    ]


def test_only_errors_count_for_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = document(30, 300)
    made["annotations"][1]["bbox"][2] += 700
    path = write(tmp_path / "edge.json", made)
    assert run(capsys, "--arch", ARCH, "--coco", path)[0] == 0


def test_json_has_the_fields_of_the_contract(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--arch", ARCH, "--num-classes", "90", "--coco", bad, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert (found["arch"], found["num_classes"]) == (ARCH, 90)
    assert (found["errors"], found["warnings"]) == (1, 1)
    assert found["findings"][0] == {
        "code": "annotation-category",
        "severity": "error",
        "message": "found 1 of 300 annotations of category `95`, wanted ids that `categories` has",
        "where": "annotation 1 of image 1",
        "count": 1,
        "fix": "drop them, or add the categories",
    }
    summary = found["summary"]
    assert summary["categories"][10] == {
        "id": 11,
        "name": "fire hydrant",
        "label": 11,
        "row": 10,
        "boxes": 4,
    }
    assert sum(each["boxes"] for each in summary["sizes"]) == summary["boxes"]
    assert sum(each["unmatched"] for each in summary["sizes"]) == summary["unmatched"]


def test_the_size_without_end_is_a_text_in_json() -> None:
    summary = Summary("a", 1, 1, 0, None, (), (SizeBin(512, float("inf"), 1, None),))
    found = report_json(Report("x", None, (), summary))
    assert found["summary"]["sizes"][0]["high"] == "inf"
    json.loads(json.dumps(found, allow_nan=False))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--arch", ARCH], 2, "error: missing option '--coco'"),
        (["--coco", "x.json"], 2, "error: missing option '--arch'"),
        (["--arch", ARCH, "--coco", "x.json"], 2, "error: `x.json`: no such file"),
        (["--arch", "nope", "--coco", "x.json"], 2, "error: no architecture is called `nope`"),
        (["x.pth", "--arch", ARCH, "--coco", "x.json"], 2, "error: `x.pth`: no such file"),
        (["--arch", ARCH, "--coco", __file__], 2, f"error: `{__file__}`: at byte 0: found"),
    ],
    ids=["no coco", "no arch", "no json", "no such arch", "no checkpoint", "no json inside"],
)
def test_what_cannot_be_read_is_refused(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_names_from_a_file_cannot_act_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: Any = document(30, 300)
    evil = "\x1b]0;evil\x07\u202e\n"
    made["categories"][0]["name"] = evil
    made["categories"].append({"id": evil, "name": evil})
    made["annotations"][0]["image_id"] = evil
    path = write(tmp_path / "e\x1bvil.json", made)
    _, out, err = run(capsys, "--arch", ARCH, "--coco", path)
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    name = "a name that goes on and on " * 4
    many = tuple(Category(at, name, at, at, 10**at) for at in range(8))
    sizes = tuple(SizeBin(8 * at, 8 * at + 8, 10**at, at) for at in range(9))
    summary = Summary(
        "f" * 20, 1, 1, 2, 90, many, sizes, "512×512, scaled and padded", "45 anchors"
    )
    finding = Finding(
        "some-code", "error", "found one thing, wanted another " * 5, "x" * 300, 1, "y " * 99
    )
    text = report_text(Report(ARCH, 90, (finding,), summary), width)
    assert max(map(len, text.splitlines())) <= width


def test_of_many_categories_those_with_most_and_fewest_boxes_are_shown() -> None:
    many = tuple(Category(at, f"c{at}", at, at, (at * 7) % 601) for at in range(601))
    text = report_text(Report(ARCH, 601, (), Summary("f", 1, 1, 0, 601, many)), 80)
    assert text.count("\n") < 60
    assert "  … 561 more, all of them with --json" in text


def test_a_category_without_a_row_has_none_shown() -> None:
    lost = (Category("x", "lost", None, None, 3),)
    text = report_text(Report(ARCH, 1, (), Summary("f", 1, 3, 0, 1, lost)), 80)
    assert '  "x"      -         -  lost       3' in text


def test_a_bar_of_progress_on_a_terminal(good: str) -> None:
    above, below = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ckptool", "check", "--arch", ARCH, "--coco", good],
        stdout=subprocess.PIPE,
        stderr=below,
        cwd=Path(ckptool.__file__).parent.parent,
    )
    out, _ = done.communicate()
    os.close(below)
    said = os.read(above, 65536).decode()
    os.close(above)
    assert done.returncode == 0
    assert "read" in said
    assert "█" in said
    assert b"no findings" in out
