"""The text of the pages: what is in them, escaped, and what they may do."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pytest
from pages_made import HOSTILE, QUOTES
from safetensors.numpy import save_file

from ckptool import architectures
from ckptool.cli import main

COMMANDS = ("diff", "values", "inspect", "convert", "check")


class Elements(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts.append(data)


def data_of(path: Path) -> dict[str, Any]:
    made = Elements(path.read_text())
    value: dict[str, Any] = json.loads(made.scripts[0])
    return value


@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_of_a_file_becomes_an_element(name: str, pages: dict[str, Path]) -> None:
    text = pages[name].read_text()
    elements = Elements(text)
    assert [tag for tag, _ in elements.found].count("script") == 2
    assert not [tag for tag, _ in elements.found if tag in ("img", "iframe", "object", "link")]
    assert not [a for _, attributes in elements.found for a in attributes if a.startswith("on")]
    assert HOSTILE not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_names_no_other_place(name: str, pages: dict[str, Path]) -> None:
    """Nothing to load, and a policy that would not let it."""
    elements = Elements(pages[name].read_text())
    for _, attributes in elements.found:
        assert not {"src", "href", "action"} & set(attributes)
    urls = set(re.findall(r"[a-z]+://[^\"'\s]*", pages[name].read_text()))
    assert urls <= {"http://www.w3.org/2000/svg"}
    policy = next(
        a["content"]
        for tag, a in elements.found
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)


def test_hostile_keys_are_in_the_data_as_they_are(pages: dict[str, Path]) -> None:
    keys = [row[0] for row in data_of(pages["diff"])["rows"]]
    assert f"{HOSTILE}.weight" in keys
    assert f"head.{QUOTES}" in keys
    assert "head.bidi\\u202e.weight" in keys


def test_every_tensor_of_both_sides_has_its_status(pages: dict[str, Path]) -> None:
    found = data_of(pages["diff"])
    labels = [label for _, _, label in found["statuses"]]
    by_key = {row[0]: labels[row[1]] for row in found["rows"]}
    assert by_key["backbone.0.conv.weight"] == "fits"
    assert by_key["neck.2.conv.bias"] == "missing"
    assert by_key["head.weight"] == "shape"
    assert by_key["neck.0.conv.weight"] == "dtype"
    assert by_key[f"{HOSTILE}.weight"] == "unexpected"


def test_values_and_costs_are_beside_the_tensors(pages: dict[str, Path]) -> None:
    found = data_of(pages["values"])
    column = 3 + [name for name, _ in found["columns"]].index("relative L2")
    rows = {row[0]: row for row in found["rows"]}
    assert rows["neck.0.conv.weight"][column] == pytest.approx(0.01, rel=1e-3)
    assert rows["backbone.0.conv.weight"][column] == 0
    found = data_of(pages["convert"])
    column = 3 + [name for name, _ in found["columns"]].index("relative error")
    errors = [row[column] for row in found["rows"] if "conv.weight" in row[0]]
    assert all(0 < error < 0.01 for error in errors)
    assert found["chart"] == "relative error"


def test_magnitudes_and_numbers_that_are_none(pages: dict[str, Path]) -> None:
    found = data_of(pages["inspect"])
    names = [name for name, _ in found["columns"]]
    rows = {row[0]: row for row in found["rows"]}
    row = rows["neck.0.conv.weight"]
    octaves = row[3 + names.index("magnitudes")]
    assert row[3 + names.index("not finite")] == 7
    assert sum(octaves[1:]) == 16 * 16 * 9 - 7
    assert rows["backbone.bn.running_var"][3 + names.index("magnitudes")] == [0, 16]
    text = pages["inspect"].read_text()
    assert "1 running variance has values of 0 or less" in text
    assert "infinite in float16" in text


def test_nan_that_signal_are_counted_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": numpy.full(9, 0x7FA00000, "u4").view("f4")}, file)
    assert main(["inspect", str(file), "--stats"]) == 0
    assert "9 values in 1 tensor are not finite: `a`" in capsys.readouterr().out


def test_a_page_of_d7_is_less_than_a_megabyte(tmp_path: Path) -> None:
    """With the statistics of every of its 1,818 tensors, of which each has all magnitudes."""
    specs = architectures.find("tf_efficientdet_d7").manifest()
    random = numpy.random.default_rng(0)
    few = random.standard_normal(4096).astype("f4") * numpy.exp(random.normal(size=4096) * 9)
    arrays = {key: numpy.resize(few, spec.shape).astype(spec.dtype) for key, spec in specs.items()}
    save_file(arrays, tmp_path / "d7.safetensors")
    page = tmp_path / "d7.html"
    command = ["inspect", str(tmp_path / "d7.safetensors"), "--stats", "--html", str(page)]
    assert main(command) == 0
    assert len(data_of(page)["rows"]) == 1818
    assert page.stat().st_size < 1_000_000


def test_only_a_page_is_replaced_by_a_page(
    tmp_path: Path, pages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pages["diff"].with_name("found.safetensors")
    assert main(["inspect", str(file), "--html", str(file)]) == 2
    assert "found `.safetensors`, wanted the suffix .html" in capsys.readouterr().err
    other = tmp_path / "mine.html"
    other.write_text("<html>mine")
    assert main(["inspect", str(file), "--html", str(other)]) == 2
    assert "there already, and not a page that ckptool wrote" in capsys.readouterr().err
    assert other.read_text() == "<html>mine"
    nowhere = tmp_path / "none" / "page.html"
    assert main(["inspect", str(file), "--html", str(nowhere)]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: `{nowhere}`: there is no folder `{nowhere.parent}`\n",
    )
    page = tmp_path / "page.html"
    assert main(["inspect", str(file), "--html", str(page)]) == 0
    assert capsys.readouterr().err == f"page: {page}\n"
    assert main(["inspect", str(file), "--stats", "--html", str(page)]) == 0
    assert "magnitudes" in page.read_text()


def test_without_jinja2_nothing_is_done(
    tmp_path: Path,
    pages: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "ckptool.report.html.find_spec",
        lambda name: None if name == "jinja2" else find_spec(name),
    )
    file = pages["diff"].with_name("wanted.safetensors")
    page, output = tmp_path / "page.html", tmp_path / "out.safetensors"
    assert main(["convert", str(file), "-o", str(output), "--html", str(page)]) == 2
    assert capsys.readouterr().err == (
        "error: an HTML page needs Jinja2, which is not installed\n\n"
        "hint: pip install 'ckptool[html]'\n"
    )
    assert not output.exists()


def test_jinja2_is_imported_only_for_a_page(
    pages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def watched(name: str, *rest: Any, **more: Any) -> Any:
        assert name.partition(".")[0] not in ("jinja2", "markupsafe")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    assert main(["inspect", str(pages["diff"].with_name("wanted.safetensors"))]) == 0


def test_a_dry_run_has_a_page_of_the_plan(tmp_path: Path, pages: dict[str, Path]) -> None:
    file, page = pages["diff"].with_name("wanted.safetensors"), tmp_path / "plan.html"
    assert main(["convert", str(file), "--dtype", "fp16", "--dry-run", "--html", str(page)]) == 0
    assert "a plan: nothing was written" in page.read_text()
    assert "to float16" in page.read_text()


def test_a_file_without_weights_that_are_chosen_has_a_page(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"a.weight": torch.ones(4), "a.bias": torch.ones(4)}
    other = {"a.weight": torch.ones(4), "b.bias": torch.ones(4)}
    file, page = tmp_path / "many.pth", tmp_path / "page.html"
    torch.save({"generator": state, "discriminator": other}, file)
    assert main(["inspect", str(file), "--html", str(page)]) == 0
    assert "generator" in page.read_text()
    assert "discriminator" in page.read_text()


def test_a_page_says_the_same_each_time(tmp_path: Path, pages: dict[str, Path]) -> None:
    file = pages["diff"].with_name("found.safetensors")
    for name in ("a", "b"):
        assert main(["inspect", str(file), "--html", str(tmp_path / f"{name}.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
