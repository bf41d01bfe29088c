"""Several files and an index: named as others name them, ties in one file, read as one."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from huggingface_hub import load_state_dict_from_file, load_torch_model
from torch import nn

import ckptool
from ckptool.cli import main
from ckptool.errors import OutputError, PlanError
from ckptool.formats.sharded_writer import parse_size
from ckptool.reading import read


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(50, 50) for _ in range(6)), nn.BatchNorm1d(50))


def source(folder: Path, state: object = None) -> Path:
    torch.save(state or model().state_dict(), folder / "source.pth")
    return folder / "source.pth"


def sharded(folder: Path, name: str = "model.safetensors", **options: object) -> list[str]:
    options = {"max_shard_size": 25_000, **options}
    result = ckptool.convert(folder / "source.pth", folder / name, **options)
    assert result.output == str(folder / f"{name}.index.json")
    return names(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "source.pth")


def test_shards_and_index_are_named_as_others_do(tmp_path: Path) -> None:
    source(tmp_path)
    assert sharded(tmp_path) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    state = model().state_dict()
    assert list(index["weight_map"]) == list(state)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in state.values())
    assert json.loads(index["metadata"]["ckptool"])["source"]["name"] == "source.pth"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "w.x.pth"])
@pytest.mark.parametrize("size", [1, 10_000, 25_000, 60_000])
def test_it_is_read_back_as_one_checkpoint(name: str, size: int, tmp_path: Path) -> None:
    path = source(tmp_path)
    sharded(tmp_path, name, max_shard_size=size)
    wanted = read(path)
    for place in (tmp_path / f"{name}.index.json", tmp_path):
        found = read(place)
        assert list(found) == list(wanted)
        assert all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)


def test_no_shard_holds_more_than_was_asked_for_unless_one_tensor_does(tmp_path: Path) -> None:
    sizes = (10, 20, 30, 40, 500, 5, 5, 90)
    state = {f"k{n}": torch.ones(size, dtype=torch.uint8) for n, size in enumerate(sizes)}
    source(tmp_path, state)
    sharded(tmp_path, max_shard_size=100)
    found = [
        sum(x.nbytes for x in load_state_dict_from_file(tmp_path / name).values())
        for name in names(tmp_path)
        if name.endswith(".safetensors")
    ]
    assert found == [100, 500, 100]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_huggingface_hub_loads_the_index(name: str, tmp_path: Path) -> None:
    """Strictly, into the model, as transformers would."""
    source(tmp_path)
    sharded(tmp_path, name)
    (tmp_path / "source.pth").unlink()
    target = nn.Sequential(*(nn.Linear(50, 50) for _ in range(6)), nn.BatchNorm1d(50))
    load_torch_model(target, tmp_path, strict=True, safe=name.endswith("safetensors"))
    wanted = model().state_dict()
    for key, found in target.state_dict().items():
        assert torch.equal(found, wanted[key])


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_tied_tensors_are_in_one_shard(name: str, tmp_path: Path) -> None:
    first, second = torch.randn(1000), torch.randn(1000)
    state = OrderedDict(a=first, b=second, c=torch.randn(900), d=second, e=first)
    source(tmp_path, state)
    sharded(tmp_path, name, max_shard_size=5_000)
    places = json.loads((tmp_path / f"{name}.index.json").read_text())["weight_map"]
    assert places["a"] == places["e"] != places["b"] == places["d"]
    shard = load_state_dict_from_file(tmp_path / places["a"], safe=name.endswith("safetensors"))
    assert torch.equal(shard["a"], shard["e"])
    assert (shard["a"].data_ptr() == shard["e"].data_ptr()) is name.endswith("bin")
    if name.endswith("bin"):
        assert read(tmp_path / f"{name}.index.json").aliases == (("a", "e"), ("b", "d"))


def test_what_fits_one_file_becomes_one_file(tmp_path: Path) -> None:
    path = source(tmp_path)
    result = ckptool.convert(path, tmp_path / "model.safetensors", max_shard_size="1GB")
    assert result.output == str(tmp_path / "model.safetensors")
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "there",
    ["model-00002-of-00003.safetensors", "model.safetensors.index.json", "model.safetensors"],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_set_never_replaces_a_file(there: str, force: bool, tmp_path: Path) -> None:
    """Not even by force: several files cannot be replaced at once."""
    source(tmp_path)
    (tmp_path / there).write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already") as caught:
        sharded(tmp_path, force=force)
    assert caught.value.message.startswith(f"`{tmp_path / there}`: ")
    assert names(tmp_path) == [there]
    assert (tmp_path / there).read_bytes() == b"old"


def test_the_command_line_says_where_the_index_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = source(tmp_path), tmp_path / "model.safetensors"
    words = ["convert", str(path), "-o", str(output), "--max-shard-size", "25kB", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == f"{output}.index.json"
    assert found["verified"] is True
    files = [item for item in tmp_path.iterdir() if item.name != "source.pth"]
    assert found["bytes"] == sum(item.stat().st_size for item in files)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1", 1), ("500", 500), ("2GB", 2_000_000_000), ("2gb", 2_000_000_000)),
        *(("1.5 MB", 1_500_000), ("500MiB", 500 << 20), ("2k", 2000), ("1KiB", 1024)),
        *((" 3T ", 3_000_000_000_000), ("0.5GiB", 1 << 29)),
    ],
)
def test_sizes_are_decimal_or_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "-1", "GB", "1XB", "1e9", "2 G B", "inf", "9" * 400, "٣"]
)
def test_other_sizes_are_refused(text: str, tmp_path: Path) -> None:
    source(tmp_path)
    with pytest.raises(PlanError, match="wanted a size") as caught:
        sharded(tmp_path, max_shard_size=text)
    assert caught.value.hint == "2GB or 500MiB, say"
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, -1])
def test_less_than_a_byte_is_refused(size: int, tmp_path: Path) -> None:
    source(tmp_path)
    with pytest.raises(PlanError, match=f"found {size} bytes, wanted a size"):
        sharded(tmp_path, max_shard_size=size)
    assert names(tmp_path) == []
