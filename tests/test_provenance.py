"""A written file says what it was made from, and can be traced back."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptool
from ckptool.checkpoint import MADE_BY
from ckptool.cli import main
from ckptool.inspection import inspect
from ckptool.plans import read_plan
from ckptool.provenance import origin
from ckptool.reading import open_file

OUTPUTS = ("out.pth", "out.safetensors")


def source(folder: Path, name: str = "weights.pth") -> Path:
    shared = torch.randn(4)
    torch.save({"m.a": shared, "m.b": torch.randn(3), "m.c": shared}, folder / name)
    return folder / name


def said_by(path: Path) -> dict[str, Any]:
    return dict(json.loads(open_file(path).contents.metadata[MADE_BY]))


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_names_version_source_hash_sizes_and_plan(name: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    result = ckptool.convert(path, tmp_path / name, dtype="fp16", strip_prefix="m.")
    said = said_by(tmp_path / name)
    summed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert said["source"] == {
        "name": "weights.pth",
        "bytes": path.stat().st_size,
        "sha256": summed.stdout.split()[0],
        "weights": ".",
    }
    assert said["version"] == ckptool.__version__
    assert said["plan"] == result.plan.to_json()
    assert said["aliases"] == [["a", "c"]]
    assert result.sha256 == said["source"]["sha256"]


def test_the_plan_in_a_file_can_be_run_again(tmp_path: Path) -> None:
    path = source(tmp_path)
    ckptool.convert(path, tmp_path / "one.safetensors", dtype="bf16", strip_prefix="m.")
    (tmp_path / "plan.json").write_text(json.dumps(said_by(tmp_path / "one.safetensors")["plan"]))
    again = read_plan(str(tmp_path / "plan.json"))
    ckptool.convert(path, tmp_path / "two.safetensors", plan=again)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_weight_set_is_named(tmp_path: Path) -> None:
    torch.save({"ema": {"a": torch.ones(2)}, "model": {"a": torch.zeros(2)}}, tmp_path / "w.pth")
    ckptool.convert(tmp_path / "w.pth", tmp_path / "out.pth", weights="ema")
    assert said_by(tmp_path / "out.pth")["source"]["weights"] == "ema"


@pytest.mark.parametrize("name", OUTPUTS)
def test_shards_and_their_index_tell_all_of_it(name: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    ckptool.convert(path, tmp_path / name, max_shard_size=20)
    index = json.loads((tmp_path / f"{name}.index.json").read_text())
    told = [json.loads(index["metadata"]["ckptool"])]
    told += [said_by(tmp_path / shard) for shard in set(index["weight_map"].values())]
    assert len(told) == 3
    assert {said["source"]["sha256"] for said in told} == {whole}
    found = inspect(tmp_path / f"{name}.index.json").origin
    assert found is not None
    assert found.sha256 == whole


def test_every_shard_of_a_source_is_named_and_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = source(folder)
    ckptool.convert(path, folder / "w.safetensors", max_shard_size=20)
    path.unlink()
    ckptool.convert(folder, tmp_path / "out.pth")
    said = said_by(tmp_path / "out.pth")["source"]
    files = [said, *said["shards"]]
    assert [item["name"] for item in files] == [
        "w.safetensors.index.json",
        "w-00001-of-00002.safetensors",
        "w-00002-of-00002.safetensors",
    ]
    for item in files:
        data = (folder / item["name"]).read_bytes()
        assert (item["bytes"], item["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_made_over_several_steps_is_traced_to_the_first(name: str, tmp_path: Path) -> None:
    path = source(tmp_path, "first.pth")
    ckptool.convert(path, tmp_path / "second.safetensors", strip_prefix="m.")
    ckptool.convert(tmp_path / "second.safetensors", tmp_path / "third.pth", dtype="fp16")
    ckptool.convert(tmp_path / "third.pth", tmp_path / name, dtype="fp64", add_prefix="x.")
    found = inspect(tmp_path / name).origin
    assert found is not None
    chain = [found, *found.earlier]
    assert [item.name for item in chain] == ["third.pth", "second.safetensors", "first.pth"]
    assert [item.edits for item in chain] == [("rename", "cast"), ("cast",), ("rename",)]
    for item in chain:
        data = (tmp_path / item.name).read_bytes()
        assert (item.nbytes, item.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_chain_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = source(tmp_path)
    for number in range(20):
        made = tmp_path / f"{number}.safetensors"
        ckptool.convert(path, made)
        path = made
    found = inspect(path).origin
    assert found is not None
    assert [item.name for item in found.earlier] == [f"{n}.safetensors" for n in range(17, 1, -1)]


# What inspect shows


def test_inspect_says_it_in_a_line_or_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = source(tmp_path)
    ckptool.convert(path, tmp_path / "a.safetensors", dtype="fp16", strip_prefix="m.")
    ckptool.convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    first, second = (
        hashlib.sha256(item.read_bytes()).hexdigest() for item in (path, tmp_path / "a.safetensors")
    )
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"made by ckptool {ckptool.__version__} from weights.pth (sha256 {first}) "
        "by 2 steps: rename, cast"
    )
    assert main(["inspect", str(tmp_path / "b.pth")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"made by ckptool {ckptool.__version__} from a.safetensors (sha256 {second}) by copying it",
        "that from weights.pth",
    ]
    assert main(["inspect", str(tmp_path / "b.pth"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["made_from"]
    assert (shown["name"], shown["sha256"], shown["edits"]) == ("a.safetensors", second, [])
    assert [item["edits"] for item in shown["earlier"]] == [["rename", "cast"]]


def test_inspect_of_a_file_that_ckptool_did_not_make_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(source(tmp_path))]) == 0
    assert "made by" not in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "weights.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_from"] is None


REAL = {
    "version": "1",
    "source": {"name": "x", "bytes": 1, "sha256": "00", "weights": "."},
    "plan": {"steps": [{"edit": "cast"}]},
}
LIES = {
    "empty": "",
    "no JSON": "by hand",
    "a number": "7",
    "a list": "[]",
    "null": "null",
    "no source": json.dumps({**REAL, "source": None}),
    "no plan": json.dumps({**REAL, "plan": "cast"}),
    "no steps": json.dumps({**REAL, "plan": {"steps": [1]}}),
    "an endless size": json.dumps({**REAL, "source": {**REAL["source"], "bytes": float("inf")}}),  # type: ignore[dict-item]
    "a size that is none": json.dumps({**REAL, "source": {**REAL["source"], "bytes": "x"}}),  # type: ignore[dict-item]
    "an endless number": json.dumps(REAL).replace(": 1,", f": {'9' * 5000},"),
    "nested too deeply": json.dumps(REAL)[:-1] + ', "earlier": ' + "[" * 9999 + "]" * 9999 + "}",
    "nested plan": json.dumps(REAL)[:-1] + ', "more": ' + '{"a":' * 9999 + "1" + "}" * 10_000,
    "earlier is a number": json.dumps({**REAL, "earlier": 7}),
    "earlier is a list of numbers": json.dumps({**REAL, "earlier": [7]}),
}


@pytest.mark.parametrize("text", LIES.values(), ids=LIES)
def test_what_ckptool_did_not_write_there_is_passed_over(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not shown, not taken over, and stops nothing."""
    assert origin({MADE_BY: text}) is None
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata={MADE_BY: text})
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert "made by" not in capsys.readouterr().out
    ckptool.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "earlier" not in said_by(tmp_path / "b.safetensors")


def test_what_a_file_says_of_itself_cannot_act_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps({**REAL, "version": "\x1b[2J", "plan": {"steps": [{"edit": "\x07\n" * 900}]}})
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata={MADE_BY: text})
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    line = next(line for line in shown.splitlines() if line.startswith("made by"))
    assert line.startswith(r"made by ckptool \x1b[2J from x (sha256 00) by 1 step: \x07\x0a")
    assert len(line) <= 400


def test_nested_history_is_read_one_level_deep(tmp_path: Path) -> None:
    value: dict[str, Any] = dict(REAL)
    for _ in range(50):
        value = {**REAL, "earlier": [value]}
    found = origin({MADE_BY: json.dumps(value)})
    assert found is not None
    assert len(found.earlier) == 1
    assert found.earlier[0].earlier == ()


def test_a_source_with_an_odd_name_is_told_as_it_is(tmp_path: Path) -> None:
    name = "épée \n\x1b.pth"
    path = source(tmp_path, name)
    ckptool.convert(path, tmp_path / "out.safetensors")
    found = inspect(tmp_path / "out.safetensors").origin
    assert found is not None
    assert found.name == name
