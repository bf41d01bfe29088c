"""Differences of dtype: which groups have another one, and that they stop no load."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from checkpoints_made import Held, State, effdet, held
from diffs_made import Bench, codes

import ckptool

D0 = "tf_efficientdet_d0"


@cache
def plain() -> State:
    return held(effdet(D0))


def recast(chosen: Callable[[str], bool], dtype: torch.dtype = torch.float16) -> State:
    """D0 with the chosen ones of its floating tensors in another dtype."""
    return {
        key: Held(dtype, value.shape) if value.dtype.is_floating_point and chosen(key) else value
        for key, value in plain().items()
    }


def is_norm(key: str) -> bool:
    module = key.rpartition(".")[0]
    return f"{module}.running_mean" in plain()


GROUPS: dict[str, tuple[Callable[[str], bool], torch.dtype, str, int, bool]] = {
    "all": (lambda key: True, torch.float16, "all 676 floating tensors are float16", 676, True),
    "norms": (is_norm, torch.float16, "the 432 tensors of BatchNorm are float16", 432, True),
    "all but norms": (
        lambda key: not is_norm(key),
        torch.bfloat16,
        "all floating tensors but those of BatchNorm, 244, are bfloat16",
        244,
        True,
    ),
    "one module": (
        lambda key: key.startswith("class_net."),
        torch.float16,
        "the 72 tensors of `class_net` are float16",
        72,
        True,
    ),
    "two modules": (
        lambda key: "_net." in key,
        torch.float64,
        "the 144 tensors of `class_net`, `box_net` are float64",
        144,
        False,
    ),
    "one tensor": (
        lambda key: key == "backbone.conv_stem.weight",
        torch.float16,
        "1 of 676 floating tensors (`backbone.conv_stem.weight`) is float16",
        1,
        True,
    ),
}


@pytest.mark.parametrize("group", GROUPS)
def test_which_group_has_another_dtype(bench: Bench, group: str):
    chosen, dtype, summary, count, exact = GROUPS[group]
    state = recast(chosen, dtype)
    found = bench.diff(state, arch=D0)
    assert found.fits_strict
    assert codes(found) == ["dtype"]
    cause = found.causes[0]
    assert cause.summary == (
        f"{summary} in the file and float32 in the architecture; load_state_dict casts without a "
        "word"
    )
    assert cause.keys == tuple(key for key in state if state[key] != plain()[key])
    assert len(cause.keys) == count
    assert (cause.fix, cause.harmless, cause.exact) == ("--dtype fp32", True, exact)


def test_two_groups_with_two_dtypes(bench: Bench):
    state = recast(lambda key: key.startswith("fpn."))
    state |= {k: v for k, v in recast(is_norm, torch.bfloat16).items() if k.startswith("backbone.")}
    found = bench.diff(state, arch=D0)
    assert codes(found) == ["dtype", "dtype"]
    assert "are bfloat16 in the file" in found.causes[0].summary
    assert "the 228 tensors of `fpn` are float16" in found.causes[1].summary


def test_counters_of_another_integer_type(bench: Bench):
    """No option casts what is no floating tensor."""
    state = {
        key: Held(torch.int32, value.shape) if not value.dtype.is_floating_point else value
        for key, value in plain().items()
    }
    found = bench.diff(state, arch=D0)
    cause = found.causes[0]
    assert cause.summary == (
        "108 tensors (`backbone.bn1.num_batches_tracked`, "
        "`backbone.blocks.0.0.bn1.num_batches_tracked` and 106 more) are int32 in the file and "
        "int64 in the architecture; load_state_dict casts without a word"
    )
    assert cause.fix is None
    assert found.fits_strict


def test_strict_dtype_counts_them_and_proposes_the_cast(bench: Bench):
    found = bench.diff(recast(lambda key: True), arch=D0, strict_dtype=True)
    assert not found.fits_strict
    assert found.fix == f"ckptool convert {bench.path} --arch {D0} --dtype fp32"
    made = bench.solves(found, effdet(D0))
    assert {value.dtype for value in made.values()} == {torch.float32, torch.int64}
    again = ckptool.diff(bench.folder / "out.pth", arch=D0, strict_dtype=True)
    assert again.fits_strict


def test_a_dtype_that_no_option_casts_keeps_no_command_back(bench: Bench):
    state = {
        f"module.{key}": Held(
            torch.float16 if value.dtype.is_floating_point else torch.int32, value.shape
        )
        for key, value in plain().items()
    }
    found = bench.diff(state, arch=D0, strict_dtype=True)
    assert codes(found) == ["wrapper-prefix", "dtype", "dtype"]
    assert found.fix == f"ckptool convert {bench.path} --arch {D0} --dtype fp32"
    bench.solves(found, effdet(D0))
    # Where nothing but dtypes is left, a command that leaves some of them would be no answer.
    again = ckptool.diff(bench.folder / "out.pth", arch=D0, strict_dtype=True)
    assert codes(again) == ["dtype"]
    assert again.fix is None
    assert "it loads, but not every dtype is as wanted" in str(again)
