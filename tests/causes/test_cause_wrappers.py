"""Prefixes and segments that wrappers put in front of keys and into them."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import Held, effdet, held, prefixed, versions, write
from diffs_made import Bench, codes, only

D0 = "tf_efficientdet_d0"
ADDED = {
    "module.": "which DistributedDataParallel or DataParallel adds",
    "model.": "which a Lightning module or an effdet bench adds",
    "model.model.": "which an effdet bench inside a Lightning module adds",
    "module.model.": "which DistributedDataParallel or DataParallel (`module.`) and a Lightning "
    "module or an effdet bench (`model.`) add",
    "module.module.": "which DistributedDataParallel or DataParallel adds",
    "net.": "the architecture's do not",
    "ema.module.": "the architecture's do not",
}


@pytest.mark.parametrize("prefix", ADDED)
def test_a_prefix_is_taken_off(bench: Bench, prefix: str):
    found = bench.diff(prefixed(held(effdet(D0)), prefix), arch=D0)
    cause = only(found, "wrapper-prefix")
    assert cause.summary == f"all 784 keys start with `{prefix}`, {ADDED[prefix]}"
    assert cause.fix == f"--strip-prefix {prefix}"
    assert cause.exact
    assert len(cause.keys) == found.counts["missing"] + found.counts["unexpected"]
    assert found.fix == f"ckptool convert {bench.path} --arch {D0}"
    made = bench.fixes(found, cause, effdet(D0))
    assert list(made) == list(held(effdet(D0)))


def test_a_prefix_on_some_keys(bench: Bench):
    state = held(effdet(D0))
    half = {f"module.{key}" if key.startswith("backbone.") else key: v for key, v in state.items()}
    found = bench.diff(half, arch=D0)
    cause = only(found, "wrapper-prefix")
    assert cause.summary == (
        "352 of 784 keys start with `module.`, which DistributedDataParallel or DataParallel adds"
    )
    bench.fixes(found, cause, effdet(D0))


COMPILED = {
    "_orig_mod.": ("", "_orig_mod.", 784, "--strip-prefix _orig_mod."),
    "backbone._orig_mod.": ("backbone.", "backbone._orig_mod.", 352, f"--arch {D0}"),
}


@pytest.mark.parametrize("place", COMPILED)
def test_segments_of_torch_compile_anywhere(bench: Bench, place: str):
    old, new, count, fix = COMPILED[place]
    state = {
        key.replace(old, new, 1) if key.startswith(old) else key: value
        for key, value in held(effdet(D0)).items()
    }
    found = bench.diff(state, arch=D0)
    cause = only(found, "wrapper-segment")
    share = "all 784 keys have" if count == 784 else f"{count} of 784 keys have"
    assert cause.summary == f"{share} `_orig_mod.` in their names, which torch.compile puts there"
    assert cause.fix == fix
    bench.fixes(found, cause, effdet(D0))


def test_a_real_compiled_model(bench: Bench):
    """torch itself writes the keys."""
    compiled = torch.compile(effdet(D0))
    found = bench.diff(held(compiled), versions(compiled), arch=D0)
    bench.fixes(found, only(found, "wrapper-segment"), effdet(D0))


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_members_that_were_parallel_by_themselves(bench: Bench, prefix: str):
    """`model.backbone = nn.DataParallel(model.backbone)`."""
    state = {
        prefix + (key.replace("backbone.", "backbone.module.", 1)): value
        for key, value in held(effdet(D0)).items()
    }
    found = bench.diff(state, arch=D0)
    cause = found.causes[0]
    share = "all 784 keys have" if prefix == "module." else "352 of 784 keys have"
    assert cause.summary == (
        f"{share} `module.` in their names, which DistributedDataParallel or DataParallel puts "
        "there"
    )
    assert cause.fix == f"--arch {D0}"
    assert codes(found)[1:] == (["wrapper-prefix"] if prefix == "model." else [])
    bench.solves(found, effdet(D0))


def test_a_parallel_model_inside_another_is_a_prefix(bench: Bench):
    """`self.model = DataParallel(model)` of a Lightning module puts one prefix in front of all."""
    found = bench.diff(prefixed(held(effdet(D0)), "model.module."), arch=D0)
    assert only(found, "wrapper-prefix").fix == "--strip-prefix model.module."


def test_a_stack_of_segments_and_prefixes(bench: Bench):
    state = prefixed(held(effdet(D0)), "_orig_mod.module.")
    found = bench.diff(state, arch=D0)
    assert codes(found) == ["wrapper-segment", "wrapper-prefix"]
    # The segment explains nothing without the prefix, and yet it has to go first.
    bench.solves(found, effdet(D0))


def test_two_kinds_of_segments(bench: Bench):
    state = prefixed(held(effdet(D0)), "_fsdp_wrapped_module._checkpoint_wrapped_module.")
    found = bench.diff(state, arch=D0)
    cause = only(found, "wrapper-segment")
    assert cause.summary == (
        "all 784 keys have `_fsdp_wrapped_module.` and `_checkpoint_wrapped_module.` in their "
        "names, which FSDP and activation checkpointing put there"
    )
    assert cause.fix == f"--arch {D0}"
    bench.fixes(found, cause, effdet(D0))


def test_a_bench_with_its_anchors(bench: Bench):
    state = prefixed(held(effdet(D0)), "model.")
    state["anchors.boxes"] = Held(torch.float32, (49104, 4))
    found = bench.diff(state, arch=D0)
    assert codes(found) == ["wrapper-prefix", "derived-buffers"]
    prefix, anchors = found.causes
    assert prefix.summary == (
        "784 of 785 keys start with `model.`, which a Lightning module or an effdet bench adds"
    )
    assert anchors.summary == (
        "`anchors.boxes` follows from the configuration: effdet's bench computes it itself"
    )
    assert anchors.keys == ("anchors.boxes",)
    assert anchors.fix == "--drop anchors.boxes"
    made = bench.solves(found, effdet(D0))
    assert "anchors.boxes" not in made


def test_a_bench_inside_a_lightning_module(bench: Bench):
    """The anchors stand one level above the network."""
    state = prefixed(held(effdet(D0)), "model.model.")
    state["model.anchors.boxes"] = Held(torch.float32, (49104, 4))
    found = bench.diff(state, arch=D0)
    assert codes(found) == ["wrapper-prefix", "derived-buffers"]
    assert found.causes[1].keys == ("model.anchors.boxes",)
    bench.solves(found, effdet(D0))


def test_the_model_is_wrapped_and_the_file_is_not(bench: Bench):
    wrapped = write(prefixed(held(effdet(D0)), "module."), bench.folder / "wrapped.pth")
    found = bench.diff(held(effdet(D0)), like=wrapped)
    cause = only(found, "missing-prefix")
    assert cause.summary == (
        "the architecture's keys start with `module.`, the file's do not: the model is wrapped, "
        "the file is not"
    )
    assert cause.fix == f"--like {wrapped}"
    assert found.fix == f"ckptool convert {bench.path} --like {wrapped}"
    wrapper = torch.nn.Module()
    wrapper.module = effdet(D0)
    bench.fixes(found, cause, wrapper)


def test_one_wrapper_in_the_place_of_another(bench: Bench):
    wrapped = write(prefixed(held(effdet(D0)), "model."), bench.folder / "wrapped.pth")
    found = bench.diff(prefixed(held(effdet(D0)), "module."), like=wrapped)
    cause = only(found, "another-prefix")
    assert cause.summary == ("all 784 keys start with `module.`, the architecture's with `model.`")
    assert cause.fix == f"--like {wrapped}"
    wrapper = torch.nn.Module()
    wrapper.model = effdet(D0)
    bench.fixes(found, cause, wrapper)


@pytest.mark.parametrize("copied", [784, 100, 1])
def test_copies_with_and_without_a_prefix_are_refused(bench: Bench, copied: int):
    state = prefixed(held(effdet(D0)), "module.")
    state |= dict(list(held(effdet(D0)).items())[:copied])
    found = bench.diff(state, arch=D0)
    cause = only(found, "mixed-copies")
    tensors = "tensor is" if copied == 1 else "tensors are"
    assert cause.summary == (
        f"{copied} {tensors} in the file twice, with and without the prefix `module.` "
        "(`module.backbone.conv_stem.weight`, `backbone.conv_stem.weight`): which of them are "
        "meant cannot be told; `--keep 'module.*'` or `--drop 'module.*'` chooses"
    )
    assert cause.fix is None
    assert not cause.exact
    assert found.fix is None
    assert cause.summary in bench.refused(f"--arch {D0}")
    made = bench.run(f"--arch {D0} --keep 'module.*'")
    assert made["backbone.conv_stem.weight"].flatten()[0] == 1
    if copied == 784:
        made = bench.run(f"--arch {D0} --drop 'module.*'")
        assert made["backbone.conv_stem.weight"].flatten()[0] == 785


def test_a_student_and_a_teacher_are_refused(bench: Bench):
    state = prefixed(held(effdet(D0)), "student.") | prefixed(held(effdet(D0)), "teacher.")
    found = bench.diff(state, arch=D0)
    cause = only(found, "mixed-copies")
    assert cause.summary == (
        "784 tensors are in the file twice, under `student.` and under `teacher.` "
        "(`student.backbone.conv_stem.weight`, `teacher.backbone.conv_stem.weight`): which of "
        "them are meant cannot be told; `--keep 'student.*'` or `--drop 'student.*'` chooses"
    )
    bench.run(f"--arch {D0} --keep 'teacher.*'")


def test_names_that_agree_by_accident_are_no_prefix(bench: Bench):
    """One key in a hundred that ends like a wanted one is no wrapper."""
    state = {f"layers.{n}.weight": Held(torch.float32, (3,)) for n in range(100)}
    state["net.backbone.conv_stem.weight"] = Held(torch.float32, (32, 3, 3, 3))
    assert codes(bench.diff(state, arch=D0)) == ["unrelated"]
