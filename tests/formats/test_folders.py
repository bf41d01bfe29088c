"""Folders: which file in one is the checkpoint, and what a folder is that holds none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptool.errors import CkptError, WeightsError
from ckptool.reading import read

STATE = {"a.weight": torch.ones(2, 3)}


@pytest.mark.parametrize(
    "beside",
    [(), ("config.json", "README.md"), ("optimizer.bin", "scheduler.pt", "training_args.bin")],
    ids=["alone", "hub", "trainer"],
)
def test_the_one_weights_file_of_a_folder(beside: tuple[str, ...], tmp_path: Path) -> None:
    """As on the hub, and as trainers write theirs."""
    save_file(STATE, tmp_path / "model.safetensors")
    for name in beside:
        (tmp_path / name).write_text("{}")
    assert read(tmp_path).path == str(tmp_path / "model.safetensors")


def test_several_weights_files_ask_which(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path)
    assert caught.value.message == (
        f"`{tmp_path}`: a folder with several weights files: `model.safetensors`, "
        "`pytorch_model.bin`"
    )
    assert caught.value.hint == f"name one of them: {tmp_path / 'model.safetensors'}"


FOREIGN = {
    "shards alone": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "2 shards (`model-00001-of-00002.safetensors`, `model-00002-of-00002.safetensors`) "
        "without their index",
        "download model.safetensors.index.json too",
        "not-a-checkpoint.index",
    ),
    "DeepSpeed": (
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        "a DeepSpeed ZeRO folder, its weights split over ranks",
        "python zero_to_fp32.py FOLDER OUT  (DeepSpeed puts the script in the folder above "
        "global_step…), then ckptool on OUT",
        "unsupported.deepspeed",
    ),
    "DeepSpeed in bfloat16": (
        ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"],
        "a DeepSpeed ZeRO folder, its weights split over ranks",
        "python zero_to_fp32.py FOLDER OUT  (DeepSpeed puts the script in the folder above "
        "global_step…), then ckptool on OUT",
        "unsupported.deepspeed",
    ),
    "DeepSpeed, from above": (
        ["global_step100", "latest", "zero_to_fp32.py"],
        "a DeepSpeed ZeRO folder, its weights split over ranks",
        "python zero_to_fp32.py FOLDER OUT  (DeepSpeed puts the script in the folder above "
        "global_step…), then ckptool on OUT",
        "unsupported.deepspeed",
    ),
    "FSDP, each rank its own": (
        ["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"],
        "one file per rank (`pytorch_model_fsdp_rank0.bin`, `pytorch_model_fsdp_rank1.bin`), as "
        "FSDP saves a local state dict: flat pieces, whose shapes only the running model knows",
        "load it on as many ranks under FSDP, and save it with torch.distributed.checkpoint or "
        "StateDictType.FULL_STATE_DICT",
        "unsupported.fsdp",
    ),
    "TensorFlow checkpoint": (
        ["checkpoint", "model.ckpt-100.index", "model.ckpt-100.data-00000-of-00001"],
        "a TensorFlow checkpoint, which is not read",
        "export its variables to .npz with TensorFlow",
        "unsupported.tensorflow",
    ),
    "TensorFlow saved model": (
        ["saved_model.pb", "variables"],
        "a TensorFlow checkpoint, which is not read",
        "export its variables to .npz with TensorFlow",
        "unsupported.tensorflow",
    ),
    "a folder of others": (
        ["notes.txt"],
        "a folder without weights: it holds `notes.txt`",
        "name the checkpoint file inside it",
        "not-a-checkpoint.folder",
    ),
    "an empty folder": (
        [],
        "a folder without weights: it holds nothing",
        "name the checkpoint file inside it",
        "not-a-checkpoint.folder",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_folders_of_others(name: str, tmp_path: Path) -> None:
    files, message, hint, code = FOREIGN[name]
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(CkptError) as caught:
        read(tmp_path)
    error = caught.value
    assert error.message == f"`{tmp_path}`: {message}"
    assert (error.hint, error.code) == (hint, code)
    assert "trust" not in message + hint
    assert "unsafe" not in message + hint
