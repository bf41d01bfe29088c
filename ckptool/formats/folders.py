"""A folder: which file in it is the checkpoint, or what the folder is instead.

Source: the names that huggingface_hub (2.4) and transformers give weights and indexes, torch 2.15
(`distributed/checkpoint/filesystem.py`), DeepSpeed 0.17 (`runtime/engine.py`), accelerate 1.10
(`utils/fsdp_utils.py`).
"""

from __future__ import annotations

import re

from ckptool.errors import (
    CkptError,
    NotACheckpointError,
    UnsupportedError,
    WeightsError,
    listed,
    quoted,
)
from ckptool.places import inside, names_in

_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pkl", ".npz", ".weights")
# What trainers put beside the weights under the same suffixes.
_BESIDE = re.compile(
    r"(?:optimizer|scheduler|scaler|training_args|random_states?_\d+|rng_state(?:_\d+)?|meta)\.\w+"
)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
_DEEPSPEED = re.compile(r"(?:bf16_)?zero_pp_rank_\d+_|mp_rank_\d+_model_states|global_step\d+$")
_RANK = re.compile(r"(?:.*[._-])?rank[_-]?\d+(?:[._-]?of[_-]?\d+)?\.(?:pt|pth|bin|ckpt)")


def checkpoint_in(folder: str) -> str:
    """The path of the one checkpoint in a folder: an index of shards, `.metadata`, a weights file.

    Raises: CkptError that says what the folder is, or between what to choose.
    """
    names = names_in(folder)
    if ".metadata" in names:
        return inside(folder, ".metadata")
    indexes = [name for name in names if name.endswith(".index.json")]
    if len(indexes) == 1:
        return inside(folder, indexes[0])
    error = _foreign(quoted(folder), names)
    if error is not None:
        raise error
    if indexes:
        raise _several(folder, "indexes of shards", indexes)
    found = [name for name in names if name.endswith(_WEIGHTS) and not _BESIDE.fullmatch(name)]
    shards = [name for name in found if _SHARD.fullmatch(name)]
    if shards:
        stem, suffix = _SHARD.fullmatch(shards[0]).groups()  # type: ignore[union-attr]
        raise NotACheckpointError(
            f"{quoted(folder)}: {len(shards):,} shards ({listed(shards, 2)}) without their index",
            hint=f"download {stem}{suffix}.index.json too",
            code="not-a-checkpoint.index",
        )
    if len(found) == 1:
        return inside(folder, found[0])
    if found:
        raise _several(folder, "weights files", found)
    raise NotACheckpointError(
        f"{quoted(folder)}: a folder without weights: it holds {listed(names, 3) or 'nothing'}",
        hint="name the checkpoint file inside it",
        code="not-a-checkpoint.folder",
    )


def _several(folder: str, what: str, names: list[str]) -> WeightsError:
    return WeightsError(
        f"{quoted(folder)}: a folder with several {what}: {listed(names)}",
        hint=f"name one of them: {inside(folder, names[0])}",
        code="weights.index",
    )


def _foreign(shown: str, names: list[str]) -> CkptError | None:
    """The error for a folder of another tool, whose own tool is named; None for any other."""
    if any(name.endswith(".distcp") for name in names):
        return NotACheckpointError(
            f"{shown}: a torch.distributed.checkpoint folder without its `.metadata`, which is "
            "written last: it was not saved to the end, or not copied in full",
            hint="copy the folder again, `.metadata` too; a shell's * leaves it out",
            code="not-a-checkpoint.dcp",
        )
    if "zero_to_fp32.py" in names or any(_DEEPSPEED.match(name) for name in names):
        return UnsupportedError(
            f"{shown}: a DeepSpeed ZeRO folder, its weights split over ranks",
            hint="python zero_to_fp32.py FOLDER OUT  (DeepSpeed puts the script in the folder "
            "above global_step…), then ckptool on OUT",
            code="unsupported.deepspeed",
        )
    ranks = [name for name in names if _RANK.fullmatch(name)]
    if ranks:
        return UnsupportedError(
            f"{shown}: one file per rank ({listed(ranks, 2)}), as FSDP saves a local state dict: "
            "flat pieces, whose shapes only the running model knows",
            hint="load it on as many ranks under FSDP, and save it with "
            "torch.distributed.checkpoint or StateDictType.FULL_STATE_DICT",
            code="unsupported.fsdp",
        )
    if "saved_model.pb" in names or any(name.endswith(".index") for name in names):
        return UnsupportedError(
            f"{shown}: a TensorFlow checkpoint, which is not read",
            hint="export its variables to .npz with TensorFlow",
            code="unsupported.tensorflow",
        )
    return None
