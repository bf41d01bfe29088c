"""What a notebook shows: small static tables, in which a name is never an element."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

import ckptool

HOSTILE = "<script>alert(1)</script>"


class Shown(HTMLParser):
    """The elements and the rows of some HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    ours = {f"m{n}.weight": numpy.ones((n + 1, 3), "f4") for n in range(40)}
    theirs = dict(ours)
    theirs[f"{HOSTILE}.weight"] = numpy.ones(3, "f4")
    theirs["m3.weight"] = numpy.ones((9, 3), "f4")
    del theirs["m5.weight"]
    paths = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    for path, made in zip(paths, (theirs, ours), strict=True):
        save_file(made, path)
    return paths


def test_a_checkpoint_shows_its_modules(files: tuple[Path, Path]) -> None:
    text = ckptool.read(files[0])._repr_html_()
    shown = Shown(text)
    assert {*shown.tags} <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert shown.rows[0] == ["module", "tensors", "parameters", "size", "dtypes"]
    assert shown.rows[-1][:2] == ["all", "40"]
    assert shown.rows[-2][0] == "and 25 more"
    assert HOSTILE not in text


def test_a_hostile_name_is_text(files: tuple[Path, Path]) -> None:
    text = ckptool.diff(files[0], like=files[1])._repr_html_()
    shown = Shown(text)
    assert "script" not in shown.tags
    assert any(HOSTILE in cell for row in shown.rows for cell in row)


def test_a_diff_shows_verdict_causes_and_differences(files: tuple[Path, Path]) -> None:
    text = ckptool.diff(files[0], like=files[1])._repr_html_()
    assert "✗ it does not load" in text
    rows = Shown(text).rows
    assert ["difference", "keys", "count", "found", "wanted"] in rows
    assert ["shape", "m3.weight", "1", "float32 9×3", "float32 4×3"] in rows
    assert ["missing", "m5.weight", "1", "", "float32 6×3"] in rows
    same = ckptool.diff(files[1], like=files[1], values=True)._repr_html_()
    assert "✓ it fits, values agree" in same
    assert "<table>" not in same


def test_a_plan_shows_its_steps(files: tuple[Path, Path]) -> None:
    text = ckptool.plan(files[1], dtype="fp16")._repr_html_()
    rows = Shown(text).rows
    assert rows[0] == ["", "edit", "keys", "class", "what"]
    assert rows[1] == ["1", "cast", "40", "lossy", "to float16"]
