"""Several causes at once: each explains its own, and one command removes them all."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import Held, State, cast, effdet, held, prefixed, versions, write
from diffs_made import Bench, codes
from torch import nn

from ckptool import architectures

TF, PLAIN = "tf_efficientdet_d0", "efficientdet_d0"


def yolov4_tiny(num_classes: int = 80) -> nn.Module:
    with torch.device("meta"):
        return architectures.build("yolov4-tiny", num_classes)


def bench_of(state: State) -> State:
    return {**prefixed(state, "model."), "anchors.boxes": Held(torch.float32, (49104, 4))}


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


def level_first(num_classes: int = 90) -> State:
    return held(effdet(TF, num_classes, head_bn_level_first=True))


def in_channels(state: State) -> State:
    return {**state, "backbone.conv_stem.weight": Held(torch.float32, (32, 1, 3, 3))}


def extra(state: State) -> State:
    return {
        **state,
        "aux.weight": Held(torch.float32, (3,)),
        "aux.bias": Held(torch.float32, (3,)),
    }


STACKS = {
    "DDP, 20 classes": (
        prefixed(held(effdet(TF, 20)), "module."),
        ["wrapper-prefix", "class-count"],
        "--num-classes 90",
    ),
    "a bench of the other padding in half precision without counters": (
        cast(bench_of(without_counters(held(effdet(PLAIN, 20)))), torch.float16),
        [
            "wrapper-prefix",
            "derived-buffers",
            "redundant-biases-missing",
            "bn-counters-missing",
            "class-count",
            "dtype",
        ],
        "--num-classes 90",
    ),
    "compiled, level first, one channel": (
        prefixed(in_channels(level_first()), "_orig_mod."),
        ["wrapper-segment", "head-norms", "input-channels"],
        "--in-chans 3",
    ),
    "everything around it": (
        prefixed(extra({**level_first(5), "total_ops": Held(torch.float64, (1,))}), "module."),
        [
            "wrapper-prefix",
            "profiler-counters",
            "head-norms",
            "class-count",
            "extra-modules",
        ],
        "--num-classes 90 --drop 'module.aux.*'",
    ),
}


@pytest.mark.parametrize("stack", STACKS)
def test_one_command_removes_several_causes(bench: Bench, stack: str, count):
    state, wanted, options = STACKS[stack]
    found = bench.diff(state, arch=TF)
    assert codes(found) == wanted
    assert found.unexplained == ()
    explained = [key for cause in found.causes if not cause.harmless for key in cause.keys]
    assert set(explained) == {entry.key for entry in found.entries if entry.kind != "dtype"}
    assert found.fix == f"ckptool convert {bench.path} --arch {TF} {options}"
    made = bench.solves(found, effdet(TF))
    assert sorted(made) == sorted(held(effdet(TF)))
    count("stacks of causes removed by one command", 1)


def test_what_cannot_be_fixed_spoils_the_command(bench: Bench):
    """The rest is explained all the same."""
    state = prefixed(held(effdet(TF, 20, aspect_ratios=(1.0,))), "module.")
    found = bench.diff(state, arch=TF)
    assert codes(found) == ["wrapper-prefix", "anchor-count"]
    assert found.fix is None
    assert str(found).endswith("\nit does not load, and no conversion makes it: see 2")


def test_a_yolo_behind_a_wrapper_with_other_classes(bench: Bench):
    found = bench.diff(prefixed(held(yolov4_tiny(3)), "module."), arch="yolov4-tiny")
    assert codes(found) == ["wrapper-prefix", "class-count"]
    bench.solves(found, yolov4_tiny())


def test_a_stack_against_another_checkpoint(bench: Bench):
    """Without an architecture's name: the other file tells what is wanted."""
    target = write(held(effdet(PLAIN)), bench.folder / "other.safetensors")
    state = prefixed(level_first(), "model.")
    found = bench.diff(state, versions(effdet(TF)), like=target)
    assert codes(found) == ["wrapper-prefix", "head-norms", "redundant-biases"]
    assert found.fix == f"ckptool convert {bench.path} --like {target}"
    bench.solves(found, effdet(PLAIN))
