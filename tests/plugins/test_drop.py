"""Leaving tensors out: by globs, by name, never more than was meant."""

from __future__ import annotations

import pytest
import torch

import ckptool
from ckptool.plugins import apply

KEYS = ("backbone.conv.weight", "backbone.conv.bias", "head.weight", "head[0].weight", "total_ops")


@pytest.fixture
def source(tmp_path):
    torch.save({key: torch.ones(2) for key in KEYS}, tmp_path / "in.pth")
    return tmp_path / "in.pth"


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"drop": ["head*"]}, [KEYS[0], KEYS[1], KEYS[4]]),
        ({"drop": ["*.bias", "total_ops"]}, [KEYS[0], KEYS[2], KEYS[3]]),
        ({"keep": ["backbone.*"]}, [KEYS[0], KEYS[1]]),
        ({"keep": ["backbone.*"], "drop": ["*.bias"]}, [KEYS[0]]),
        ({"drop": ["head[0].weight"]}, [KEYS[0], KEYS[1], KEYS[2], KEYS[4]]),
        ({"keep": ["backbone.*"], "strip_prefix": "backbone."}, ["conv.weight", "conv.bias"]),
    ],
    ids=str,
)
def test_what_is_left_is_what_was_meant(source, tmp_path, options, left):
    """What is dropped is listed; the globs are those of the file's own keys."""
    result = ckptool.convert(source, tmp_path / "out.safetensors", **options)
    assert list(ckptool.read(tmp_path / "out.safetensors")) == left
    assert len(result.dropped) == len(KEYS) - len(left)
    assert {step.grade for step in result.plan.steps if step.edit == "drop"} == {"selective"}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"drop": ["heads.*"]}, "`heads.*` matches no key", "the closest are `head.weight`"),
        ({"keep": ["Backbone.*"]}, "`Backbone.*` matches no key", "the closest are `backbone.conv"),
        ({"drop": ["*"]}, "nothing is left after --drop `*`", None),
        ({"keep": ["zzzz"]}, "`zzzz` matches no key", "`ckptool inspect --keys` lists them"),
    ],
    ids=str,
)
def test_what_matches_nothing_or_leaves_nothing_is_refused(source, options, message, hint):
    with pytest.raises(ckptool.PlanError) as caught:
        ckptool.plan(source, **options)
    assert caught.value.message == message
    assert (caught.value.hint or "").startswith(hint or "")


@pytest.mark.parametrize("options", [{}, {"drop": ["a"], "keep": ["b"]}, {"leave": ["a"]}])
def test_other_options_of_the_step_are_refused(source, options):
    with pytest.raises(ckptool.PlanError):
        apply("drop", options, ckptool.read(source).weights)


def test_twenty_thousand_keys_are_dropped():
    """They are looked up, not compared with each other, which would take minutes."""
    from ckptool.checkpoint import WeightSet
    from ckptool.tensors import Inline, LazyTensor, TensorSpec

    tensor = LazyTensor(TensorSpec("uint8", ()), Inline(b"\0"))
    weights = WeightSet(".", {f"module.{number}.weight": tensor for number in range(20_001)})
    keys = [f"module.{number}.weight" for number in range(20_000)]
    assert len(apply("drop", {"drop": keys}, weights).dropped) == 20_000
