"""Values that are no usable weights, and what is said of them."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import Held, State, cast, effdet, held, prefixed
from diffs_made import Bench, codes, only

D0 = "tf_efficientdet_d0"
ZERO3 = (
    "DeepSpeed ZeRO-3 saved the empty shell of the model; its zero_to_fp32.py collects the weights "
    "from the files of all ranks"
)


def shell(state: State) -> State:
    """As ZeRO-3 leaves a model: parameters empty, buffers whole."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return {
        key: value if key.endswith(buffers) else Held(value.dtype, (0,))
        for key, value in state.items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_empty_shell_of_zero3(bench: Bench, prefix: str):
    found = bench.diff(prefixed(shell(held(effdet(D0))), prefix), arch=D0)
    cause = found.causes[-1]
    empty = sum(value.shape == (0,) for value in shell(held(effdet(D0))).values())
    assert codes(found) == ["wrapper-prefix", "zero3-shell"][not prefix :]
    assert cause.summary == f"{empty} tensors have the shape (0,): {ZERO3}"
    assert len(cause.keys) == empty
    assert not cause.exact
    assert (cause.fix, found.fix, found.unexplained) == (None, None, ())
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_a_tensor_that_is_rightly_empty(bench: Bench):
    """A model may want a tensor without elements."""
    found = bench.diff({"empty": Held(torch.float32, (0,))}, like=bench.path)
    assert found.fits_strict
    assert found.causes == ()


def test_flat_parameters_of_fsdp(bench: Bench):
    state = {
        "_fsdp_wrapped_module._flat_param": Held(torch.float32, (3_000_000,)),
        "_fsdp_wrapped_module.backbone._fsdp_wrapped_module._flat_param": Held(
            torch.float32, (800_000,)
        ),
    }
    found = bench.diff(state, arch=D0)
    cause = only(found, "flat-parameters")
    assert cause.summary == (
        "2 tensors are FSDP's flattened parameters (`_fsdp_wrapped_module._flat_param`): the file "
        "is one rank's part of the model; save with FULL_STATE_DICT instead"
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_entries_beside_the_weights_that_are_no_tensors(bench: Bench):
    state = {**held(effdet(D0)), "epoch": 3, "arch": "d0"}
    found = bench.diff(state, arch=D0)
    cause = only(found, "not-tensors")
    assert cause.summary == (
        "2 entries beside the weights are no tensors: `epoch`, `arch`; a strict load stumbles over "
        "them, a conversion leaves them out"
    )
    assert cause.keys == ("epoch", "arch")
    assert cause.fix == f"--arch {D0}"
    assert [(e.key, e.kind, e.found) for e in found.entries] == [
        ("epoch", "unexpected", None),
        ("arch", "unexpected", None),
    ]
    bench.fixes(found, cause, effdet(D0))


def test_a_text_in_the_place_of_a_tensor(bench: Bench):
    """Left out by a conversion, it is missing still."""
    state = held(effdet(D0))
    state["backbone.conv_stem.weight"] = "lost"
    found = bench.diff(state, arch=D0)
    cause = only(found, "not-tensors")
    assert cause.summary == (
        "1 entry that the architecture wants is no tensor: `backbone.conv_stem.weight`"
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_sparse_tensors(bench: Bench):
    key = "backbone.conv_stem.weight"
    found = bench.diff(
        held(effdet(D0)), arch=D0, values={key: torch.zeros(32, 3, 3, 3).to_sparse()}
    )
    cause = only(found, "not-dense")
    assert cause.summary == (
        f"`{key}` is in the file as sparse, not as a dense tensor (only its non-zero values are "
        "stored)"
    )
    assert cause.keys == (key,)
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_sparse_tensors_under_a_prefix(bench: Bench):
    key = "module.backbone.conv_stem.weight"
    state = prefixed(held(effdet(D0)), "module.")
    found = bench.diff(state, arch=D0, values={key: torch.zeros(32, 3, 3, 3).to_sparse()})
    assert codes(found) == ["wrapper-prefix", "not-dense"]
    assert found.causes[1].keys == ("backbone.conv_stem.weight", key)
    assert found.unexplained == ()


def test_sparse_tensors_that_nothing_wants_are_left_out(bench: Bench):
    state = {**held(effdet(D0)), "adjacency": Held(torch.float32, (4, 4))}
    found = bench.diff(state, arch=D0, values={"adjacency": torch.eye(4).to_sparse()})
    cause = only(found, "not-dense")
    assert cause.keys == ("adjacency",)
    assert cause.summary == (
        "`adjacency` is in the file as sparse, not as a dense tensor (only its non-zero values are "
        "stored): a conversion leaves it out, which the architecture does not want"
    )
    made = bench.fixes(found, cause, effdet(D0))
    assert "adjacency" not in made


def test_a_shell_in_half_precision_is_still_a_shell(bench: Bench):
    found = bench.diff(cast(shell(held(effdet(D0))), torch.float16), arch=D0)
    assert codes(found) == ["zero3-shell", "dtype"]
