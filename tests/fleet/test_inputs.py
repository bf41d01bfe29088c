"""What is typed, the files that are meant, and what their outputs are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptool.errors import CkptError, PlanError
from ckptool.fleet.inputs import expanded, outputs

S = ".safetensors"


def named(words: list[str], root: str | None = None, suffix: str = S) -> dict[str, str]:
    found = outputs(expanded(words), "out", suffix, root)
    return {given.path: output for given, output in found}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/1/best.pth", "runs/2/best.pth", "runs/2/deep/x.ckpt", "a.pth", "[b].pth"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_pattern_keeps_the_folders_that_it_found(home: Path) -> None:
    assert named(["runs/*/best.pth"]) == {
        "runs/1/best.pth": f"out/1/best{S}",
        "runs/2/best.pth": f"out/2/best{S}",
    }
    assert named(["runs/**/*.*"])["runs/2/deep/x.ckpt"] == f"out/2/deep/x{S}"
    assert named(["*.pth"]) == {"[b].pth": f"out/[b]{S}", "a.pth": f"out/a{S}"}


def test_a_folder_is_not_meant_where_what_is_in_it_is(home: Path) -> None:
    (home / "runs" / "step_9").mkdir()
    assert list(named(["runs/**"])) == [
        "runs/1/best.pth",
        "runs/2/best.pth",
        "runs/2/deep/x.ckpt",
        "runs/step_9",
    ]
    assert list(named(["runs/*"])) == ["runs/1", "runs/2", "runs/step_9"]


def test_a_name_is_only_its_last_part(home: Path) -> None:
    assert named([f"{home}/runs/1/best.pth", "[b].pth"], suffix=".pth") == {
        f"{home}/runs/1/best.pth": "out/best.pth",
        "[b].pth": "out/[b].pth",
    }


def test_two_of_one_name_are_refused_but_for_a_root(home: Path) -> None:
    words = ["runs/1/best.pth", "runs/2/best.pth"]
    with pytest.raises(PlanError) as caught:
        named(words)
    assert caught.value.message == (
        f"`runs/1/best.pth` and `runs/2/best.pth` would both become `out/best{S}`"
    )
    assert caught.value.hint == "--root FOLDER keeps the folders below it"
    assert named(words, root=".")["runs/1/best.pth"] == f"out/runs/1/best{S}"
    with pytest.raises(PlanError, match=r"`a\.pth` is not below `runs`"):
        named(["a.pth"], root="runs")


def test_an_input_that_is_named_twice_comes_once(home: Path) -> None:
    assert len(named(["a.pth", "*.pth", "./a.pth"])) == 2
    name = "a.pth"
    assert len([*outputs(expanded([name, name]), "out", S)]) == 1


def test_a_file_of_names(home: Path) -> None:
    (home / "names.txt").write_text("# ours\nruns/1/best.pth\n\n  *.pth\ns3://bucket/x/y.bin\n")
    assert list(named(["@names.txt"])) == [
        "runs/1/best.pth",
        "[b].pth",
        "a.pth",
        "s3://bucket/x/y.bin",
    ]
    with pytest.raises(CkptError, match="no such file"):
        named(["@nothing.txt"])


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("folder/model.safetensors.index.json", f"out/model{S}"),
        ("folder/step_100", f"out/step_100{S}"),
        ("folder/step_100/", f"out/step_100{S}"),
        ("folder/v1.5", f"out/v1.5{S}"),
        ("https://host/a/w.pth", f"out/w{S}"),
    ],
)
def test_names_of_other_things(path: str, output: str) -> None:
    assert named([path])[path.rstrip("/")] == output


def test_a_shard_with_its_index_means_the_set(home: Path) -> None:
    """Named or found, with the index or without; one that has none stands for itself."""
    for name in ("m/1/model", "m/2/model", "m/1/alone"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        for number in (1, 2):
            (home / f"{name}-0000{number}-of-00002.bin").touch()
    for number in (1, 2):
        (home / f"m/{number}/model.bin.index.json").touch()
    sets = {f"m/{number}/model.bin.index.json": f"out/{number}/model{S}" for number in (1, 2)}
    assert named(["m/*/model-*.bin"]) == sets
    assert named(["m/*/model*"]) == sets
    assert named([f"m/2/model-0000{number}-of-00002.bin" for number in (1, 2)]) == {
        "m/2/model.bin.index.json": f"out/model{S}"
    }
    assert list(named(["m/1/alone*"])) == [f"m/1/alone-0000{n}-of-00002.bin" for n in (1, 2)]


def test_a_pattern_that_finds_nothing(home: Path) -> None:
    with pytest.raises(CkptError, match=r"`runs/\*\.bin`: no file has such a name"):
        named(["runs/*.bin"])


def test_a_web_server_lists_nothing() -> None:
    with pytest.raises(CkptError, match="a web server does not list its files") as caught:
        named(["https://host/*.pth"])
    assert caught.value.hint == "@FILE with a URL a line"
