"""Redundant biases, both ways: the network computes what it computed before."""

from __future__ import annotations

import pytest
import torch
from nets import effdet, furthest, image, outputs

import ckptool


def pair(name, redundant, dtype):
    """A network with and one without redundant biases, alike but for the weights."""
    return [
        effdet(name, 5, redundant_bias=wanted).to(dtype) for wanted in (redundant, not redundant)
    ]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)
@pytest.mark.parametrize("redundant", [True, False], ids=["fold", "zeros"])
def test_outputs_agree(tmp_path, dtype, bound, redundant):
    """Biases before a BatchNorm are folded into its mean; biases of zero are added."""
    before, after = pair("tf_efficientdet_d0", redundant, dtype)
    wanted = outputs(before, image(dtype=dtype))
    torch.save(before.state_dict(), tmp_path / "in.pth")
    torch.save(after.state_dict(), tmp_path / "target.pth")
    result = ckptool.convert(
        tmp_path / "in.pth", tmp_path / "out.pth", like=tmp_path / "target.pth"
    )
    after.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert furthest(outputs(after, image(dtype=dtype)), wanted) < bound
    (step,) = result.plan.steps
    assert (step.edit, step.grade) == ("fold" if redundant else "fill", "exact")
    assert result.fits_strict
    if redundant:
        assert len(result.dropped) == 36
        assert max(cost["rounding"] for cost in result.measured.values()) < bound
    else:
        assert step.keys == 36


def test_dropping_the_biases_instead_would_change_the_outputs():
    """What the edit is for, and that the bounds above are no accident."""
    before, after = pair("tf_efficientdet_d0", True, torch.float32)
    wanted = outputs(before, image())
    state = {k: v for k, v in before.state_dict().items() if k in after.state_dict()}
    after.load_state_dict(state, strict=True)
    assert furthest(outputs(after, image()), wanted) > 1e-3


def test_half_precision_is_widened_before_the_fold(tmp_path):
    """Asked for float32, the sum is computed in it: it is not rounded to float16 in between."""
    before, after = pair("tf_efficientdet_d0", True, torch.float32)
    halved = before.half().float()
    wanted = outputs(halved, image())
    torch.save(halved.half().state_dict(), tmp_path / "in.pth")
    ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", arch="efficientdet_d0", dtype="fp32")
    after.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert furthest(outputs(after, image()), wanted) < 1e-5


def test_added_biases_have_the_type_of_their_norm(tmp_path):
    """A file in half precision stays in half precision."""
    torch.save(effdet("efficientdet_d0").half().state_dict(), tmp_path / "in.pth")
    ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", arch="tf_efficientdet_d0")
    written = ckptool.read(tmp_path / "out.pth")
    assert {tensor.dtype for tensor in written.values()} == {"float16", "int64"}


def test_added_biases_are_tensors_of_their_own(tmp_path):
    """Equal zeros do not make them one: in training they would move together."""
    torch.save(effdet("efficientdet_d0").state_dict(), tmp_path / "in.pth")
    ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", arch="tf_efficientdet_d0")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert ckptool.read(tmp_path / "out.pth").aliases == ()


def test_a_norm_under_two_keys_stays_one(tmp_path):
    """And its mean is lowered once for the bias that it has twice."""
    from ckptool.plugins import apply

    bias, mean = torch.ones(3), torch.full((3,), 5.0)
    state = {"a.bias": bias, "b.bias": bias, "a.mean": mean, "b.mean": mean}
    torch.save(state, tmp_path / "in.pth")
    weights = ckptool.read(tmp_path / "in.pth").weights
    found = apply("fold", {"biases": {"a.bias": ["a.mean"], "b.bias": ["b.mean"]}}, weights)
    assert found.weights.aliases == (("a.mean", "b.mean"),)
    assert found.weights.tensors["b.mean"].torch().tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        ({"gone": ["mean"]}, "`gone` is not a vector in the file"),
        ({"bias": ["weight"]}, "`weight` is not a vector in the file"),
        ({"bias": ["long"]}, "`bias` has 3 values, `long` 4"),
        ({"bias": 1}, "the edit `fold` cannot be carried out with its options: TypeError"),
    ],
    ids=str,
)
def test_what_cannot_be_folded_is_refused(tmp_path, biases, message):
    from ckptool.plugins import apply

    state = {"bias": torch.ones(3), "long": torch.ones(4), "weight": torch.ones(3, 3)}
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError) as caught:
        apply("fold", {"biases": biases}, ckptool.read(tmp_path / "in.pth").weights)
    assert caught.value.message.startswith(message)
