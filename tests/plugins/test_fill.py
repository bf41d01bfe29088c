"""Adding zeros: counters and biases that change nothing, each a tensor of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ckptool
from ckptool.plugins import apply


def source(tmp_path, state):
    torch.save(state, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_counters_are_added_where_torch_keeps_them(tmp_path):
    """A file of version 2 in `_metadata` and without counters loads once it is converted."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state, strict=True)
    torch.save(model.state_dict(), tmp_path / "target.pth")
    result = ckptool.convert(
        source(tmp_path, state), tmp_path / "out.pth", like=tmp_path / "target.pth"
    )
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(found) == list(model.state_dict())
    assert found["1.num_batches_tracked"].equal(torch.tensor(0))
    model.load_state_dict(found, strict=True)
    (step,) = result.plan.steps
    assert (step.edit, step.keys, step.grade) == ("fill", 1, "exact")


def test_without_metadata_they_are_added_too(tmp_path):
    """torch would fill them in itself; a file with them loads everywhere."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("tracked")}
    model.load_state_dict(state, strict=True)
    torch.save(model.state_dict(), tmp_path / "target.pth")
    ckptool.convert(source(tmp_path, state), tmp_path / "out.pth", like=tmp_path / "target.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(found) == list(model.state_dict())
    model.load_state_dict(found, strict=True)


@pytest.mark.parametrize(
    ("zeros", "message"),
    [
        ({"a": ["float32", [1]]}, "`a` would be added twice"),
        ({"b": ["float32", [1 << 40]]}, "`b`: not the shapes of small tensors"),
        ({"b": ["float32", [-1]]}, "`b`: not the shapes of small tensors"),
        (
            {"b": ["floaty", [1]]},
            "the edit `fill` cannot be carried out with its options: KeyError",
        ),
        ({"b": 3}, "the edit `fill` cannot be carried out with its options: TypeError"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused(tmp_path, zeros, message):
    weights = ckptool.read(source(tmp_path, {"a": torch.ones(1)})).weights
    with pytest.raises(ckptool.PlanError) as caught:
        apply("fill", {"zeros": zeros}, weights)
    assert caught.value.message.startswith(message)


def test_several_zeros_are_several_tensors(tmp_path):
    weights = ckptool.read(source(tmp_path, {"a.w": torch.ones(1)})).weights
    zeros = {key: ["int64", []] for key in ("a.n", "b.n")}
    found = apply("fill", {"zeros": zeros}, weights).weights
    assert list(found.tensors) == ["a.w", "a.n", "b.n"]
    assert found.aliases == ()
