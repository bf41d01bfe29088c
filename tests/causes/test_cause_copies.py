"""Tensors beside the weights that come from them: moving averages, adapters."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import Held, State, effdet, held, prefixed
from diffs_made import Bench, codes, only

D0 = "tf_efficientdet_d0"
LAYER = "class_net.predict.conv_pw"
PEFT = "merging them needs their alpha, which is not in the file: merge them with peft first"


def mirrored(state: State) -> State:
    """As the EMA hook of mmdet 2 registers its buffers on the model."""
    return {**state, **{f"ema_{key.replace('.', '_')}": value for key, value in state.items()}}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_moving_average_beside_the_weights(bench: Bench, prefix: str):
    found = bench.diff(prefixed(mirrored(held(effdet(D0))), prefix), arch=D0)
    assert codes(found) == ["wrapper-prefix", "ema-mirror"][not prefix :]
    cause = found.causes[-1]
    assert cause.summary == (
        "784 tensors are a second copy of the weights (`ema_backbone_conv_stem_weight`), which "
        "mmdet 2 keeps for its moving average: after an epoch the plain names hold the average"
    )
    assert len(cause.keys) == 784
    assert all(key.startswith(f"{prefix}ema_") for key in cause.keys)
    assert cause.fix == f"--drop '{prefix}ema_*'"
    assert not cause.exact
    assert found.fix == f"ckptool convert {bench.path} --arch {D0} {cause.fix}"
    made = bench.solves(found, effdet(D0))
    assert list(made) == list(held(effdet(D0)))
    assert made["backbone.conv_stem.weight"].unique().item() == 1


def adapted(state: State, prefix: str = "") -> State:
    """One layer with a LoRA adapter, as peft saves the whole model."""
    changed: State = {}
    for key, value in state.items():
        if key == f"{LAYER}.weight":
            changed[f"{LAYER}.base_layer.weight"] = value
            changed[f"{LAYER}.lora_A.default.weight"] = Held(torch.float32, (8, 64, 1, 1))
            changed[f"{LAYER}.lora_B.default.weight"] = Held(torch.float32, (810, 8, 1, 1))
        else:
            changed[key] = value
    return prefixed(changed, prefix)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_lora_adapters(bench: Bench, prefix: str):
    found = bench.diff(adapted(held(effdet(D0)), prefix), arch=D0)
    assert codes(found) == ["wrapper-prefix", "lora"][not prefix :]
    cause = found.causes[-1]
    assert cause.summary == (
        f"2 tensors are LoRA adapters (`{LAYER}.lora_A.default.weight`); {PEFT}"
    )
    assert set(cause.keys) == {
        f"{LAYER}.weight",
        f"{prefix}{LAYER}.base_layer.weight",
        f"{prefix}{LAYER}.lora_A.default.weight",
        f"{prefix}{LAYER}.lora_B.default.weight",
    }
    assert not cause.exact
    assert (cause.fix, found.fix, found.unexplained) == (None, None, ())
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_adapters_without_the_weights(bench: Bench):
    state = {key: value for key, value in adapted(held(effdet(D0))).items() if ".lora_" in key}
    found = bench.diff(state, arch=D0)
    cause = only(found, "lora")
    assert cause.summary == (
        f"2 tensors are LoRA adapters (`{LAYER}.lora_A.default.weight`); {PEFT}; the weights "
        "themselves are not in the file either"
    )
    assert (cause.fix, found.fix) == (None, None)
