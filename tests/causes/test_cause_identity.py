"""The file is of another network, of a part of it, of more than it, or of none that is known."""

from __future__ import annotations

import pytest
import torch
import torchvision
from checkpoints_made import Held, State, cast, effdet, held, prefixed, tensors, write
from diffs_made import Bench, codes, only

import ckptool
from ckptool import architectures

D0 = "tf_efficientdet_d0"


@pytest.mark.parametrize(
    ("name", "alike", "arch"),
    [
        ("tf_efficientdet_d2", "`tf_efficientdet_d2`, `tf_efficientdet_d2_ap`", D0),
        ("efficientdet_d1", "`efficientdet_d1`", "efficientdet_d0"),
        ("tf_efficientdet_lite0", "`tf_efficientdet_lite0`", D0),
        ("efficientdet_d4", "`efficientdet_d4`, `tf_efficientdet_d4`, `tf_efficientdet_d4_ap`", D0),
    ],
)
def test_another_size_of_the_same_family(bench: Bench, name: str, alike: str, arch: str):
    found = bench.diff(held(effdet(name)), arch=arch)
    cause = only(found, "other-size")
    assert cause.summary == (
        f"the keys and shapes say {alike} with 90 classes, you asked for `{arch}`: another size or "
        "variant of the same family"
    )
    assert cause.fix == f"--arch {name}"
    assert not cause.exact
    assert found.fix is None
    assert cause.summary in bench.refused(f"--arch {arch}")


def test_another_size_with_other_classes_behind_a_wrapper(bench: Bench):
    """The fix names the class count, which is not that of the other architecture by default."""
    state = prefixed(held(effdet("tf_efficientdet_d1", 20)), "module.")
    found = bench.diff(cast(state, torch.float16), arch=D0)
    assert codes(found) == ["wrapper-prefix", "other-size"]
    cause = found.causes[-1]
    assert cause.fix == "--arch tf_efficientdet_d1 --num-classes 20"
    assert str(found).endswith(
        "\nit does not load; this compares it with what it is of:\n"
        f"  ckptool diff {bench.path} {cause.fix}"
    )
    _, _, options = cause.fix.partition("--arch ")
    name, _, count = options.partition(" --num-classes ")
    bench.solves(bench.diff(state, arch=name, num_classes=int(count)), effdet(name, int(count)))


def test_another_family(bench: Bench):
    with torch.device("meta"):
        model = architectures.build("yolov4-tiny")
    found = bench.diff(held(model), arch=D0)
    cause = only(found, "other-family")
    assert cause.summary == (
        "the keys and shapes say `yolov4-tiny` with 80 classes, you asked for "
        f"`{D0}`: another network altogether, of whose 784 keys the file has none"
    )
    assert cause.fix == "--arch yolov4-tiny"
    assert found.fix is None


@pytest.mark.parametrize(
    ("model", "count"),
    [(torch.nn.Linear(2, 2), 2), (torchvision.models.resnet18(weights=None), 122)],
    ids=["linear", "resnet"],
)
def test_parts_that_are_called_alike_are_no_copies_of_the_wanted(
    bench: Bench, model: torch.nn.Module, count: int
):
    """Hundreds of modules have a `weight` and a `bias`, five a `bn1`: nothing is meant by it."""
    wanted = write(held(model), bench.folder / "wanted.pth")
    found = bench.diff(held(effdet(D0)), like=wanted)
    cause = only(found, "other-family")
    assert cause.summary == (
        "the keys and shapes say `tf_efficientdet_d0`, `tf_efficientdet_d0_ap` with 90 classes, "
        f"you asked for `{wanted}`: another network altogether, of whose {count} keys the file has "
        "none"
    )


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        ({"fpn_cell_repeats": 5}, "5 instead of 3 `fpn.cell`"),
        (
            {"fpn_channels": 80},
            "346 tensors of other shapes (`fpn.resample.3.conv.conv.weight` is 80×320×1×1 instead "
            "of 64×320×1×1)",
        ),
    ],
)
def test_a_size_that_has_no_name(bench: Bench, changes: dict[str, int], summary: str):
    found = bench.diff(held(effdet(D0, **changes)), arch=D0)
    cause = only(found, "other-size")
    assert cause.summary == (
        f"the file is of a network of another size, none that ckptool knows: {summary}"
    )
    assert (cause.fix, found.fix) == (None, None)


PARTS = {
    ("backbone.",): (
        "`fpn`, `class_net`, `box_net` (372 tensors) of the architecture are not in the file, "
        "which holds only its `backbone`"
    ),
    ("backbone.", "fpn."): (
        "`class_net`, `box_net` (144 tensors) of the architecture are not in the file, which holds "
        "only its `backbone`, `fpn`"
    ),
    ("backbone.", "fpn.", "class_net."): (
        "`box_net` (72 tensors) of the architecture is not in the file, which holds only its "
        "`backbone`, `fpn`, `class_net`"
    ),
}


@pytest.mark.parametrize("parts", PARTS)
def test_a_part_only(bench: Bench, parts: tuple[str, ...]):
    """A backbone only, above all; its norms need no biases that are nowhere."""
    state = {key: value for key, value in held(effdet(D0)).items() if key.startswith(parts)}
    found = bench.diff(state, arch=D0)
    cause = only(found, "part-only")
    assert cause.summary == PARTS[parts]
    assert cause.keys == tuple(
        entry.key for entry in found.entries if not entry.key.startswith(parts)
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_a_classifier_s_backbone(bench: Bench):
    """Without the name that the detector gives it, and with a classifier of its own."""
    import timm

    with torch.device("meta"):
        state = held(timm.create_model("tf_efficientnet_b0"))
    found = bench.diff(state, arch=D0)
    assert codes(found) == ["missing-prefix", "extra-modules", "part-only"]
    prefix, extra, part = found.causes
    assert prefix.summary == ("304 of 360 keys are the architecture's without `backbone.` in front")
    assert extra.summary == (
        "8 tensors are of modules that the architecture does not have: `backbone.conv_head`, "
        "`backbone.bn2`, `backbone.classifier`"
    )
    # Named as they are in the file, not as they are after the renaming.
    assert extra.fix == "--drop conv_head.weight --drop 'bn2.*' --drop 'classifier.*'"
    assert part.summary == PARTS["backbone.",]
    assert (found.fix, found.unexplained) == (None, ())


def test_modules_that_the_architecture_does_not_have(bench: Bench):
    extra = {
        "aux_head.conv.weight": Held(torch.float32, (3, 3)),
        "aux_head.conv.bias": Held(torch.float32, (3,)),
        "loss_weight": Held(torch.float32, ()),
    }
    found = bench.diff({**held(effdet(D0)), **extra}, arch=D0)
    cause = only(found, "extra-modules")
    assert cause.summary == (
        "3 tensors are of modules that the architecture does not have: `aux_head`, `loss_weight`"
    )
    assert cause.keys == tuple(extra)
    assert cause.fix == "--drop 'aux_head.*' --drop loss_weight"
    assert found.fix == f"ckptool convert {bench.path} --arch {D0} {cause.fix}"
    made = bench.fixes(found, cause, effdet(D0))
    assert not made.keys() & extra.keys()


def test_modules_too_many_behind_a_wrapper(bench: Bench):
    state = {**held(effdet(D0)), "aux_head.conv.weight": Held(torch.float32, (3, 3))}
    found = bench.diff(prefixed(state, "module."), arch=D0)
    assert codes(found) == ["wrapper-prefix", "extra-modules"]
    assert found.causes[1].fix == "--drop module.aux_head.conv.weight"
    bench.solves(found, effdet(D0))


def random_keys() -> State:
    return {f"layers.{n}.weight": Held(torch.float32, (3, n)) for n in range(100)}


def nearly_d2() -> State:
    """Not quite one of the known ones."""
    state = held(effdet("tf_efficientdet_d2"))
    for key in list(state)[:10]:
        del state[key]
    return {f"net_{key}": value for key, value in state.items()}


@pytest.mark.parametrize("made", [random_keys, nearly_d2])
def test_next_to_nothing_in_common(bench: Bench, made):
    found = bench.diff(made(), arch=D0)
    cause = only(found, "unrelated")
    assert cause.summary == (
        f"none of the keys that `{D0}` wants are in the file: it is of another network"
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--arch {D0}")


def test_little_in_common(bench: Bench):
    state = dict(list(held(effdet(D0)).items())[:40]) | random_keys()
    found = bench.diff(state, arch=D0)
    cause = only(found, "unrelated")
    assert cause.summary.startswith(f"only 5% of the keys that `{D0}` wants are in the file")


def test_the_next_command_names_the_weights_that_were_compared(bench: Bench):
    torch.save(
        {
            "model": tensors(held(effdet("tf_efficientdet_d1"))),
            "ema": tensors(held(effdet("tf_efficientdet_d1"))),
        },
        bench.path,
    )
    found = ckptool.diff(bench.path, arch=D0, weights="ema")
    assert str(found).endswith(
        f"\n  ckptool diff {bench.path} --weights ema --arch tf_efficientdet_d1"
    )


def test_modules_with_other_numbers_are_no_other_size(bench: Bench):
    """As many as are wanted, one of them under another number: nothing is known to explain it."""
    state = {
        key.replace("fpn.cell.2.", "fpn.cell.3."): value for key, value in held(effdet(D0)).items()
    }
    found = bench.diff(state, arch=D0)
    assert found.causes == ()
    assert len(found.unexplained) == found.counts["missing"] + found.counts["unexpected"]


def test_what_nothing_explains_is_listed(bench: Bench):
    """Never swallowed by a cause for the rest, and nothing is proposed."""
    gone = "fpn.cell.0.fnode.3.after_combine.conv."
    changed = "class_net.conv_rep.1.conv_dw.weight"
    state = {key: value for key, value in held(effdet(D0)).items() if not key.startswith(gone)}
    state[changed] = Held(torch.float32, (64, 1, 5, 5))
    state["backbone.blocks.2.0.conv_new.weight"] = Held(torch.float32, (3,))
    found = bench.diff(prefixed(state, "module."), arch=D0)
    assert "wrapper-prefix" in codes(found)
    left = [key for key in held(effdet(D0)) if key.startswith(gone) and "tracked" not in key]
    assert [key for key in found.unexplained if key.startswith(gone)] == left
    assert changed in found.unexplained
    assert found.fix is None
    lines = str(found).splitlines()
    assert f"not explained: {len(found.unexplained)} keys" in lines
    assert lines[-1] == (
        f"it does not load, and no conversion makes it: {len(found.unexplained)} keys are not "
        "explained"
    )
