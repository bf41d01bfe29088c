"""Tensors beside the weights that come from them: moving averages, adapters."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, quoted

_ADAPTER = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")
_BASE = ".base_layer."


def ema_mirror(situation: Situation) -> list[Cause]:
    """Copies of the weights under `ema_` and their name with underscores, as mmdet 2 keeps them.

    Source: mmdet 2.28 `core/hook/ema.py`.
    """
    found = situation.found
    mirrored = {f"ema_{key.replace('.', '_')}" for key in found}
    copies = [key for key in situation.extra if key in mirrored]
    if not copies:
        return []
    return [
        Cause(
            "ema-mirror",
            f"{counted(len(copies), 'tensor is', 'tensors are')} a second copy of the weights "
            f"({quoted(copies[0])}), which mmdet 2 keeps for its moving average: after an epoch "
            "the plain names hold the average",
            "drop",
            {"drop": copies},
            exact=False,
        )
    ]


def adapters(situation: Situation) -> list[Cause]:
    """LoRA adapters, whose scale no checkpoint holds."""
    lora = [key for key in situation.found if any(part in f"{key}." for part in _ADAPTER)]
    if not lora:
        return []
    base = {key: key.replace(_BASE, ".") for key in situation.extra if _BASE in key}
    summary = (
        f"{counted(len(lora), 'tensor is a LoRA adapter', 'tensors are LoRA adapters')} "
        f"({quoted(lora[0])}); merging them needs their alpha, which is not in the file: merge "
        "them with peft first"
    )
    if len(lora) == len(situation.found):
        summary += "; the weights themselves are not in the file either"
    whole = len(lora) == len(situation.found)
    keys = (*lora, *base, *base.values())
    return [Cause("lora", summary, exact=False, whole=whole, keys=keys)]
