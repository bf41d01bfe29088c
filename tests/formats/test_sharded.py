"""Checkpoints in several files with an index, as huggingface_hub writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from tensors_made import bits

from ckptool.errors import CkptError, FormatError, NotACheckpointError, WeightsError
from ckptool.reading import open_file, read

STATE = {f"layer.{n}.weight": torch.randn(16, 16) for n in range(9)} | {
    "step": torch.tensor(7),
    "half": torch.randn(5).half(),
}


def sharded(folder: Path, state: dict[str, torch.Tensor], safe: bool) -> Path:
    save_torch_state_dict(state, folder, safe_serialization=safe, max_shard_size="3KB")
    (index,) = folder.glob("*.index.json")
    return index


def edited(index: Path, **fields: Any) -> None:
    value = json.loads(index.read_text())
    index.write_text(json.dumps(value | fields))


def places(index: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return found


@pytest.mark.parametrize("by_folder", [False, True])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_all_shards_are_one_checkpoint(safe: bool, by_folder: bool, tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe)
    assert len(set(places(index).values())) > 2
    ckpt = read(tmp_path if by_folder else index)
    assert ckpt.path == str(index)
    assert ckpt.contents.format == ("sharded safetensors" if safe else "sharded torch-zip")
    assert list(ckpt) == list(places(index))
    assert {key: x.tobytes() for key, x in ckpt.items()} == {
        key: bits(x) for key, x in STATE.items()
    }
    findings = {item.code: item.message for item in ckpt.contents.findings}
    assert findings["shards"] == f"{len(set(places(index).values()))} shards"
    assert ckpt.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_tied_tensors_and_windows_are_counted_as_the_writer_counts(tmp_path: Path) -> None:
    """In `.bin` shards a storage is written, and counted in `total_size`, once and in full."""
    big = torch.randn(20, 20)
    state = STATE | {
        "tied.a": big,
        "tied.b": big,
        "row": big[3],
        "only a row": torch.randn(9, 9)[2],
    }
    index = sharded(tmp_path, state, safe=False)
    ckpt = read(index)
    assert {key: x.tobytes() for key, x in ckpt.items()} == {
        key: bits(x) for key, x in state.items()
    }
    assert ("tied.a", "tied.b") in ckpt.aliases


def test_an_index_without_a_size(tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    edited(index, metadata={})
    assert len(read(index)) == len(STATE)


def test_an_index_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    assert open_file(tmp_path / "x.index.json").sets == ()


def test_globals_of_all_shards_are_listed(tmp_path: Path) -> None:
    contents = open_file(sharded(tmp_path, STATE, safe=False)).contents
    assert {item.name for item in contents.globals} >= {"torch.FloatStorage", "torch.HalfStorage"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_map": {"step": 1}}, "`weight_map` is not a map from keys to file names"),
        ({"weight_map": ["step"]}, "`weight_map` is not a map from keys to file names"),
        ({"metadata": {"total_size": 5}}, "bytes, the index says 5"),
    ],
)
def test_an_index_that_is_wrong(fields: Any, message: str, tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    edited(index, **fields)
    with pytest.raises(FormatError) as caught:
        read(index)
    assert caught.value.code == "index.format"
    assert message in caught.value.message


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    found = places(index)
    shards = list(dict.fromkeys(found.values()))
    moved = next(key for key, shard in found.items() if shard == shards[0])
    edited(index, weight_map=found | {moved: shards[1]})
    with pytest.raises(FormatError) as caught:
        read(index)
    assert caught.value.message == (
        f"`{index}`: shard index: `{moved}` is not in the shard `{shards[1]}`"
    )


def test_a_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    found = places(index)
    shard = found.pop("layer.0.weight")
    edited(index, weight_map=found, metadata={})
    with pytest.raises(FormatError) as caught:
        read(index)
    assert caught.value.message == (
        f"`{index}`: shard index: the shard `{shard}` holds `layer.0.weight`, not in the index"
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    shard = tmp_path / places(index)["step"]
    shard.unlink()
    with pytest.raises(CkptError) as caught:
        read(index)
    assert caught.value.message == f"`{index}`: shard `{shard.name}`: `{shard}`: no such file"
    assert caught.value.hint == "put all files that the index names beside it"


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path, STATE, safe=True)
    shard = tmp_path / places(index)["step"]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(FormatError, match=r"shard `.*`: the file is cut short: 5 bytes of the"):
        read(index)


def test_a_name_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "x.index.json").write_text('{"weight_map": {"a": "../outside"}}')
    with pytest.raises(FormatError, match=r"`\.\./outside` is not a plain file name"):
        read(inside / "x.index.json")


def test_a_folder_with_two_indexes_asks_which(tmp_path: Path) -> None:
    """As many repositories on the hub have: the same weights in both formats."""
    sharded(tmp_path, STATE, safe=True)
    save_torch_state_dict(STATE, tmp_path, safe_serialization=False, max_shard_size="3KB")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path)
    assert caught.value.message == (
        f"`{tmp_path}`: a folder with several indexes of shards: `model.safetensors.index.json`, "
        "`pytorch_model.bin.index.json`"
    )
    assert caught.value.hint == f"name one of them: {tmp_path / 'model.safetensors.index.json'}"
    assert len(read(tmp_path / "pytorch_model.bin.index.json")) == len(STATE)


def test_json_without_a_weight_map_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text('{"model_type": "detr"}')
    with pytest.raises(NotACheckpointError, match="this is JSON text"):
        read(tmp_path / "x.index.json")
