"""`plan` and `convert` from the command line: what is run, what is shown, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptool
from ckptool.cli import main
from ckptool.conversion import applied, prepare
from ckptool.errors import PlanError
from ckptool.planning import Options
from ckptool.render.convert import plan_text, result_text

FIXTURE = Path(__file__).parents[1] / "fixtures" / "d0.pth"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: a small file of no known network, and one of D0 in half precision."""
    monkeypatch.chdir(tmp_path)
    state = {"m.a.w": torch.rand(2, 3), "m.a.big": torch.tensor([1e5, 1.0]), "m.b.w": torch.ones(4)}
    torch.save(state, tmp_path / "small.pth")
    os.link(FIXTURE, tmp_path / "d0.pth")
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of a command line."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The dry run, the plan and the run are one


def test_the_dry_run_shows_the_plan_that_is_run(run: Run, folder: Path) -> None:
    options = ["d0.pth", "--dtype", "fp32", "--num-classes", "20", "--class-map", "coco90:voc20"]
    before = names(folder)
    _, shown, _ = run("convert", *options, "--dry-run", "--json")
    assert names(folder) == before
    _, planned, _ = run("plan", *options, "--json", "-o", "plan.json")
    code, done, _ = run("convert", *options, "--json")
    assert code == 0
    plan = json.loads(done)["plan"]
    assert plan == json.loads(shown) == json.loads(planned)
    assert plan == json.loads((folder / "plan.json").read_text())
    assert [step["class"] for step in plan["steps"]] == ["exact", "exact", "selective"]
    code, _, _ = run("convert", "d0.pth", "--plan", "plan.json", "-o", "again.safetensors")
    assert code == 0
    one, two = (load_file(n) for n in ("d0.fp32.c20.safetensors", "again.safetensors"))
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_json_of_a_conversion_has_every_field(run: Run) -> None:
    words = ("--num-classes", "20", "--drop", "*.nothing*")
    assert run("convert", "d0.pth", *words, "--dry-run")[0] == 2  # a glob that matches nothing
    _, out, err = run("convert", "d0.pth", "--num-classes", "20", "--json", "-o", "o.pth")
    assert err == ""
    value = json.loads(out)
    assert {
        **value,
        "plan": None,
        "notes": None,
        "measured": None,
        "sha256": None,
        "seconds": None,
    } == {
        "input": "d0.pth",
        "output": "o.pth",
        "arch": "tf_efficientdet_d0",
        "also_fits": ["tf_efficientdet_d0_ap"],
        "plan": None,
        "dropped": [],
        "verified": True,
        "fits_strict": True,
        "bytes": os.path.getsize("o.pth"),
        "sha256": None,
        "seconds": None,
        "notes": None,
        "measured": None,
    }
    assert list(value["seconds"]) == ["write", "verify", "flush"]
    target = {"arch": "tf_efficientdet_d0", "num_classes": 20, "dtype": None}
    assert value["plan"]["target"] == target


def test_what_is_dropped_is_listed(run: Run) -> None:
    _, out, _ = run("convert", "small.pth", "--drop", "m.b.*", "--json")
    assert json.loads(out)["dropped"] == ["m.b.w"]
    assert json.loads(out)["fits_strict"] is None
    _, out, _ = run("convert", "small.pth", "--keep", "m.b.*", "-o", "kept.pth")
    assert "left out, 2: `m.a.{w,big}`" in out or "left out, 2: " in out


def test_a_sparse_tensor_is_left_out_only_where_that_is_asked_for(run: Run, folder: Path) -> None:
    """Or where an architecture tells that nobody wants it; it is listed either way."""
    sparse = torch.eye(3).to_sparse()
    torch.save({"a.w": torch.ones(2), "b.x": sparse, "b.y": sparse}, folder / "sparse.pth")
    for command in ("plan", "convert"):
        assert run(command, "sparse.pth") == (
            2,
            "",
            "error: `b.x` is in the file as sparse, not as a dense tensor (only its non-zero "
            "values are stored), and would be left out\n\nhint: --drop 'b.*'\n",
        )
    code, shown, _ = run("convert", "sparse.pth", "--drop", "b.*", "-o", "a.pth", "--json")
    assert (code, json.loads(shown)["dropped"]) == (0, ["b.x", "b.y"])
    assert list(torch.load(folder / "a.pth")) == ["a.w"]
    assert run("convert", "sparse.pth", "--keep", "a.w", "-o", "again.pth")[0] == 0
    run("convert", "d0.pth", "-o", "bare.pth")
    torch.save({**torch.load(folder / "bare.pth"), "b.x": sparse}, folder / "more.pth")
    code, shown, _ = run("convert", "more.pth", "-o", "less.pth", "--json")
    found = json.loads(shown)
    assert (code, found["dropped"], found["fits_strict"]) == (0, ["b.x"], True)


def test_the_name_of_the_output_says_what_was_done(run: Run, folder: Path) -> None:
    for options, name in (
        (["--dtype", "bf16"], "small.bf16.safetensors"),
        (["--dtype", "float64"], "small.fp64.safetensors"),
        ([], "small.converted.safetensors"),
        (["--rename", "m.=n."], "small.converted.safetensors"),
    ):
        code, _, err = run("convert", "small.pth", *options)
        assert code == 0, err
        assert name in names(folder)
        (folder / name).unlink()
    run("convert", "d0.pth", "--dtype", "fp16", "--num-classes", "1")
    assert "d0.fp16.c1.safetensors" in names(folder)


def test_the_suffix_says_the_format(run: Run, folder: Path) -> None:
    for suffix in ("pth", "pt", "ckpt", "bin", "safetensors"):
        run("convert", "small.pth", "-o", f"out.{suffix}")
        zipped = (folder / f"out.{suffix}").read_bytes().startswith(b"PK\x03\x04")
        assert zipped is (suffix != "safetensors")


# Refused: one sentence, exit code 2, nothing written


REFUSED: dict[str, tuple[list[str], str]] = {
    "no such file": (["none.pth"], "`none.pth`: "),
    "a class map of unknown sets": (
        ["d0.pth", "--num-classes", "20", "--class-map", "coco90:nosuch"],
        "`nosuch` is neither a label set nor a file",
    ),
    "a class map that is none": (
        ["d0.pth", "--num-classes", "20", "--class-map", "coco90"],
        "coco90",
    ),
    "a class map naming an unknown class": (
        ["d0.pth", "--num-classes", "20", "--class-map", "bad.csv"],
        "`bad.csv`: line 2: `unicorn` is no old class",
    ),
    "no class at all": (["d0.pth", "--num-classes", "0"], "0 is not in the range x>=1"),
    "classes that are no number": (["d0.pth", "--num-classes", "many"], "'many' is not a valid"),
    "more channels than there are": (
        ["d0.pth", "--in-chans", "5000"],
        "found in_chans 5,000, wanted at most 4,096",
    ),
    "a name for two": (
        ["small.pth", "--rename", "m.a.w=m.b.w"],
        "`m.a.w` and `m.b.w` would both be called `m.b.w`",
    ),
    "a pattern without its hole": (["small.pth", "--rename", "m.{*}=x"], "the same holes"),
    "a plan for another file": (["small.pth", "--plan", "plan.json"], "for other weights"),
    "a plan that is none": (["small.pth", "--plan", "bad.csv"], "`bad.csv`: not a plan: "),
    "a plan beside options": (["d0.pth", "--plan", "plan.json", "--dtype", "fp16"], "`--dtype`"),
    "a dtype that is none": (["small.pth", "--dtype", "fp12"], "`fp12` is not one to cast to"),
    "values that would be infinite": (
        ["small.pth", "--dtype", "fp16"],
        "`m.a.big`: found 100000, the largest float16 is 65504: it would become infinite",
    ),
    "an architecture that is none": (["d0.pth", "--arch", "d0"], "no architecture is called `d0`"),
    "no architecture where one is needed": (["small.pth", "--num-classes", "2"], "fits no archi"),
    "another architecture": (["d0.pth", "--arch", "tf_efficientdet_d1"], "tf_efficientdet_d1"),
    "a suffix that is none": (["small.pth", "-o", "x.onnx"], "under the suffix `.onnx`"),
    "no name at all": (["small.pth", "-o", ""], "``: no format is written under the suffix"),
    "the input as the output": (["small.pth", "-o", "small.pth"], "is the input file itself"),
    "the input by another name": (
        ["small.pth", "--force", "-o", "hard.pth"],
        "`hard.pth` is the input file itself",
    ),
    "an output that is there": (["d0.pth", "-o", "old.pth"], "`old.pth`: exists already"),
    "a folder that is not there": (["small.pth", "-o", "no/x.pth"], "`no/x.pth`"),
    "a size that is none": (["small.pth", "--max-shard-size", "big"], "found `big`, wanted a size"),
    "a size that is none, for nothing to be written": (
        ["small.pth", "--dry-run", "--max-shard-size", ""],
        "found ``, wanted a size",
    ),
    "a weight set that is none": (["small.pth", "--weights", "ema"], "ema"),
    "two targets": (["d0.pth", "--arch", "yolov4", "--like", "d0.pth"], "two targets"),
    "an unknown option": (["small.pth", "--quick"], "no such option"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence(run: Run, folder: Path, case: str) -> None:
    (folder / "bad.csv").write_text("coco90,voc20\nunicorn,dog\n")
    (folder / "old.pth").write_bytes(b"old")
    os.link(folder / "small.pth", folder / "hard.pth")
    run("plan", "d0.pth", "--dtype", "fp32", "-o", "plan.json")
    before = files(folder)
    words, message = REFUSED[case]
    code, out, err = run("convert", *words)
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert lines[0].startswith("error: ")
    assert message.lower() in lines[0].lower()
    assert len(lines) == 1 or (len(lines) == 3 and lines[2].startswith("hint: "))
    assert not lines[0].endswith(".")
    assert files(folder) == before
    code, out, err = run("convert", *words, "--json")
    assert (code, err) == (2, "")
    error: dict[str, Any] = json.loads(out)["error"]
    assert list(error) == ["code", "message", "hint"]
    assert lines[0] == f"error: {error['message']}"
    assert files(folder) == before


def test_nothing_refused_is_left_to_the_library(folder: Path) -> None:
    """The same errors, raised."""
    with pytest.raises(PlanError, match="would both be called"):
        ckptool.convert("small.pth", rename="m.a.w=m.b.w")
    with pytest.raises(ckptool.CkptError, match="two targets"):
        ckptool.plan("d0.pth", arch="yolov4", like="d0.pth")


def test_a_plan_replaces_another_only_by_force(run: Run, folder: Path) -> None:
    assert run("plan", "small.pth", "--dtype", "bf16", "-o", "p.json")[0] == 0
    before = (folder / "p.json").read_text()
    assert run("plan", "small.pth", "-o", "p.json")[0] == 2
    assert (folder / "p.json").read_text() == before
    assert run("plan", "small.pth", "-o", "p.json", "--force")[0] == 0
    assert (folder / "p.json").read_text() != before


# What is shown


def test_a_dry_run_says_what_it_would_do_and_where(run: Run) -> None:
    code, out, _ = run(
        *("convert", "d0.pth", "--dry-run", "--dtype", "fp16", "--num-classes", "22"),
        *("--class-map", "first"),
    )
    assert code == 0
    assert out.splitlines()[0] == "a plan for tf_efficientdet_d0 with 22 classes: 2 steps"
    assert "rename" in out
    assert "heads" in out
    assert "from 90 classes to 22: 22 kept" in out
    assert "cast" not in out  # it is of that type already
    assert out.endswith("nothing was written; it would be `d0.fp16.c22.safetensors`\n")


def test_what_was_done_is_told_with_its_cost(run: Run) -> None:
    code, out, _ = run("convert", "small.pth", "--dtype", "fp16", "--on-overflow", "clamp")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("small.fp16.safetensors: ")
    assert lines[0].endswith(" written, read back and proven")
    assert lines[1].startswith("no architecture was named or recognised")
    assert "to float16, clamped to its range" in out
    assert "(lossy: it changes values or makes new ones)" in out
    assert "measured: 1 value was clamped; worst relative error " in out
    _, out, _ = run(
        "convert", "small.pth", "--dtype", "fp16", "--on-overflow", "keep-fp32", "--force"
    )
    assert "`m.a.big` stays float32: values too large for float16" in out


def test_classes_without_a_row_are_named(run: Run, folder: Path) -> None:
    (folder / "mine.txt").write_text("person\nwombat\nquokka\n")
    _, out, _ = run("convert", "d0.pth", "--num-classes", "3", "--class-map", "coco90:mine.txt")
    assert "1 of 3 classes kept, 2 newly initialised: `wombat`, `quokka`" in out
    assert "it fits tf_efficientdet_d0 with 3 classes: load_state_dict(strict=True) succ" in out
    _, out, _ = run("convert", "d0.pth", "--num-classes", "4")
    assert "0 of 4 classes kept, 4 newly initialised; `--class-map` keeps the rows of" in out


@pytest.mark.parametrize("width", [60, 80])
def test_lines_fit_the_terminal(folder: Path, width: int) -> None:
    """However many classes are new, and whatever they are called."""
    options: dict[str, Any] = {"num_classes": 601, "class_map": "coco90:openimages"}
    prepared = prepare("d0.pth", options=Options(**options, dtype="bf16"))
    result = ckptool.convert("d0.pth", "o.pth", **options, dtype="bf16")
    plan = plan_text(prepared.plan, applied(prepared), prepared.also_fits, width)
    shown = [*plan.splitlines(), *result_text(result, width).splitlines()]
    assert max(map(len, shown)) <= width
    assert "and 502 more" in " ".join(" ".join(shown).split())
