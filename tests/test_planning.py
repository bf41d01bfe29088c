"""From weights, a target and options to a plan: its steps, their order, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints_made import (
    Held,
    State,
    cast,
    effdet,
    held,
    loads,
    numbered,
    prefixed,
    versions,
    write,
)
from nets import effdet as network
from nets import image, outputs

import ckptool
from ckptool import architectures
from ckptool.errors import PlanError
from ckptool.planning import Options, make_plan
from ckptool.plans import execute

D7 = "tf_efficientdet_d7"


def steps(plan: ckptool.Plan) -> list[tuple[str, str]]:
    return [(step.edit, step.grade) for step in plan.steps]


def fits(plan: ckptool.Plan, path: Path, module: torch.nn.Module) -> bool:
    """Whether the planned weights, computed by nobody yet, load strictly into the real class."""
    edited, _ = execute(plan, ckptool.read(path).weights)
    state: State = {
        key: Held(getattr(torch, tensor.dtype), tensor.shape)
        for key, tensor in edited.tensors.items()
    }
    return loads(module, state)


# The steps and their order


def test_every_exact_edit_that_the_diff_asks_for_is_planned_by_itself(tmp_path: Path) -> None:
    """Wrappers off, anchors out, biases folded, counters added: the function is preserved."""
    source = effdet("tf_efficientdet_d0", 90)
    state = {**held(source), "anchors.boxes": Held(torch.float32, (49104, 4))}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = write(prefixed(state, "module.model."), tmp_path / "w.pth")
    plan = ckptool.plan(path, arch="efficientdet_d0")
    grades = {"rename": "exact", "drop": "selective", "fold": "exact", "fill": "exact"}
    assert dict(steps(plan)) == grades
    assert fits(plan, path, effdet("efficientdet_d0", 90))


def test_what_is_asked_for_comes_first_and_the_cast_last(tmp_path: Path) -> None:
    path = write(prefixed(held(effdet("tf_efficientdet_d0")), "x.module."), tmp_path / "w.pth")
    plan = ckptool.plan(
        path, arch="tf_efficientdet_d0", strip_prefix="x.", num_classes=20, dtype="bf16"
    )
    assert [edit for edit, _ in steps(plan)] == ["rename", "rename", "heads", "cast"]
    assert plan.steps[0].options == {"strip": "x."}


@pytest.mark.parametrize(
    ("found", "dtype", "order"),
    [
        (torch.float16, "fp32", ["cast", "fold"]),
        (torch.float32, "fp16", ["fold", "cast"]),
        (torch.float32, "fp32", ["fold"]),
    ],
    ids=["widened", "narrowed", "the same"],
)
def test_edits_compute_in_the_wider_type(
    found: torch.dtype, dtype: str, order: list[str], tmp_path: Path
) -> None:
    state = cast(held(effdet("tf_efficientdet_d0")), found)
    plan = ckptool.plan(write(state, tmp_path / "w.pth"), arch="efficientdet_d0", dtype=dtype)
    assert [edit for edit, _ in steps(plan)] == order


def test_keys_keep_the_order_of_the_file(tmp_path: Path) -> None:
    state = prefixed(held(effdet("tf_efficientdet_d0")), "module.")
    path = write(dict(sorted(state.items(), key=lambda item: item[0][::-1])), tmp_path / "w.pth")
    plan = ckptool.plan(path, arch="tf_efficientdet_d0", num_classes=3, dtype="fp16")
    weights = ckptool.read(path).weights
    edited, _ = execute(plan, weights)
    assert list(edited.tensors) == [key.removeprefix("module.") for key in weights.tensors]


def test_planning_does_not_change_its_arguments(tmp_path: Path) -> None:
    path = write(prefixed(held(effdet("tf_efficientdet_d0")), "module."), tmp_path / "w.pth")
    weights = ckptool.read(path).weights
    before = dict(weights.tensors)
    plan = make_plan(weights, None, Options(strip_prefix="module.", dtype="fp16"))
    execute(plan, weights)
    assert dict(weights.tensors) == before


# D7: five levels and five repeats, and a twin


@pytest.mark.parametrize("level_first", [True, False], ids=["level first", "repeat first"])
def test_the_norms_of_d7_change_places_with_their_order(level_first: bool, tmp_path: Path) -> None:
    """Five levels and five repeats: without `.bn.` alone the keys would fit, transposed."""
    there, back = effdet(D7), effdet(D7, head_bn_level_first=True)
    source, target = (back, there) if level_first else (there, back)
    path = write(held(source), tmp_path / "in.pth", made=numbered(held(source)))
    like = write(held(target), tmp_path / "like.pth")
    plan = ckptool.plan(path, like=like)
    assert steps(plan) == [("rename", "exact")]
    weights = ckptool.read(path).weights
    old = {tensor: key for key, tensor in weights.tensors.items()}
    edited, _ = execute(plan, weights)
    assert fits(plan, path, target)
    moved = 0
    for key, tensor in edited.tensors.items():
        inner = re.fullmatch(r"(\w+\.bn_rep)\.(\d)\.(\d)\.(?:bn\.)?(\w+)", key)
        if inner is None:
            assert old[tensor] == key
        else:
            net, first, second, norm = inner.groups()
            bn = "" if level_first else "bn."
            assert old[tensor] == f"{net}.{second}.{first}.{bn}{norm}"
            moved += first != second
    assert moved == 2 * 20 * 5


def test_a_network_of_five_levels_and_five_repeats_computes_what_it_did(tmp_path: Path) -> None:
    """And what cutting `.bn.` out of the keys gives also loads strictly, and is wrong."""
    before, after = (network("tf_efficientdet_d0", 5, box_class_repeats=5) for _ in range(2))
    after.toggle_head_bn_level_first()
    wanted = outputs(before, image())
    torch.save(before.state_dict(), tmp_path / "in.pth")
    torch.save(after.state_dict(), tmp_path / "like.pth")
    ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", like=tmp_path / "like.pth")
    after.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert all(map(torch.equal, outputs(after, image()), wanted))
    cut = {re.sub(r"(bn_rep\.\d\.\d)\.bn\.", r"\1.", k): v for k, v in before.state_dict().items()}
    after.load_state_dict(cut, strict=True)
    assert not all(map(torch.equal, outputs(after, image()), wanted))


def test_d7_needs_no_name_though_d6_has_the_same_keys(tmp_path: Path) -> None:
    """Both get the same plan: it is not ambiguous, and the twin is named."""
    path = write(prefixed(held(effdet(D7)), "model."), tmp_path / "w.pth")
    result = ckptool.convert(path, num_classes=20, dtype="fp16")
    assert result.output == str(tmp_path / "w.fp16.c20.safetensors")
    assert {result.plan.arch, *result.also_fits} == {D7, "tf_efficientdet_d6"}
    assert result.plan.num_classes == 20
    assert result.fits_strict
    written = ckptool.read(result.output)
    state: State = {key: Held(getattr(torch, t.dtype), t.shape) for key, t in written.items()}
    assert loads(effdet(D7, 20), state)
    Path(result.output).unlink()


# Names


def test_neek_becomes_neck_by_itself(tmp_path: Path) -> None:
    """The neck of Tianxiaomo's YOLOv4 is spelled `neek` in his files."""
    with torch.device("meta"):
        model = architectures.build("yolov4")
    state = {re.sub(r"^neck\.", "neek.", key): value for key, value in held(model).items()}
    path = write(state, tmp_path / "w.pth")
    found = sum(key.startswith("neek.") for key in state)
    if not found:  # the architecture itself is spelled so
        state = {re.sub(r"^neek\.", "neck.", key): value for key, value in held(model).items()}
        path = write(state, tmp_path / "w.pth")
    assert state.keys() != held(model).keys()
    plan = ckptool.plan(path, arch="yolov4")
    assert {grade for _, grade in steps(plan)} == {"exact"}
    assert fits(plan, path, model)


# Metadata and counters


@pytest.mark.parametrize("metadata", ["kept", "dropped"])
@pytest.mark.parametrize("counters", ["there", "missing"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_metadata_and_counters(metadata: str, counters: str, suffix: str, tmp_path: Path) -> None:
    """Whatever the source says of its versions and counts, torch takes what is written."""
    model = effdet("tf_efficientdet_d0", 3)
    state = held(model)
    if counters == "missing":
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = write(state, tmp_path / "in.pth", versions(model) if metadata == "kept" else None)
    output = tmp_path / f"out{suffix}"
    result = ckptool.convert(path, output, arch="tf_efficientdet_d0", dtype="fp16")
    assert result.fits_strict
    assert [step.edit for step in result.plan.steps] == ["fill"] * (counters == "missing") + [
        "cast"
    ]
    written = ckptool.read(output)
    assert (written.weights.versions is not None) == (metadata == "kept" and suffix == ".pth")
    if suffix == ".pth":
        found = torch.load(output, weights_only=True)
        network("tf_efficientdet_d0", 3).load_state_dict(found, strict=True)
        assert hasattr(found, "_metadata") == (metadata == "kept")
    counts = [tensor.dtype for key, tensor in written.items() if key.endswith("_tracked")]
    assert counts == ["int64"] * 108


# What is refused


@pytest.fixture(scope="module")
def d0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(held(effdet("tf_efficientdet_d0")), tmp_path_factory.mktemp("d0") / "w.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`tf_efficientdet_d0` cannot have 0 classes"),
        ({"num_classes": -3}, "`tf_efficientdet_d0` cannot have -3 classes"),
        ({"in_chans": 0}, "found in_chans 0, wanted at least 1"),
        ({"seed": -1}, "found seed -1, wanted 0 or more"),
        ({"on_overflow": "ignore"}, "found on_overflow `ignore`, wanted one of"),
        ({"keep_fp32": ("*",)}, "makes no sense without a dtype"),
        ({"on_overflow": "clamp"}, "makes no sense without a dtype"),
        ({"dtype": "int8"}, "int8"),
        ({"class_map": "coco90:voc20"}, "`voc20` has 20 names, the target has 90 classes"),
        ({"num_classes": 20, "class_map": "coco80:voc20"}, "`coco80` has 80 names"),
        ({"to_dialect": "klingon"}, "klingon"),
        ({"rename": "nothing.=x."}, "nothing."),
        ({"rename": ("class_net.=x.", "box_net.=x.")}, "would both be called `x."),
        ({"drop": "backbone.*"}, "is not in the file, which holds only its `fpn`"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant(
    options: dict[str, object], message: str, d0: Path, tmp_path: Path
) -> None:
    with pytest.raises(ckptool.CkptError) as caught:
        ckptool.convert(d0, tmp_path / "out.pth", arch="tf_efficientdet_d0", **options)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: {"num_classes": 20, "like": path}, "has 90 classes, 20 are asked for"),
        (lambda path: {"arch": "yolov4", "like": path}, "are two targets"),
        (lambda path: {"arch": "yolov4"}, ""),
    ],
)
def test_targets_that_cannot_be_met(
    call: Callable[[Path], dict[str, object]], message: str, d0: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        ckptool.plan(d0, **call(d0))
    assert message in caught.value.message


def test_what_needs_an_architecture_says_so(tmp_path: Path) -> None:
    path = write({"a": Held(torch.float32, (3, 3))}, tmp_path / "w.pth")
    with pytest.raises(PlanError, match="fits no architecture that ckptool knows") as caught:
        ckptool.plan(path, num_classes=20)
    assert caught.value.hint == "--arch NAME"


def test_weights_that_would_be_planned_differently_are_ambiguous(d0: Path) -> None:
    """With one plan for all that fit, their number does not matter."""
    plan = ckptool.plan(d0, num_classes=20)
    assert plan.arch == "tf_efficientdet_d0"
    assert steps(plan) == [("heads", "lossy")]
