"""The same network under other names: renamed members, swapped indices, axes of length 1."""

from __future__ import annotations

import warnings

import pytest
import small_models
import torch
from checkpoints_made import Held, State, effdet, held, loads, write
from diffs_made import Bench, codes, only
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from ckptool import architectures

D0 = "tf_efficientdet_d0"
NORM = "class_net.bn_rep"


def yolov4() -> nn.Module:
    with torch.device("meta"):
        return architectures.build("yolov4")


def neek(state: State) -> State:
    """As the published files of Tianxiaomo/pytorch-YOLOv4 have it."""
    return {key.replace("neck.", "neek.", 1): value for key, value in state.items()}


def test_neek_is_neck(bench: Bench):
    found = bench.diff(neek(held(yolov4())), arch="yolov4")
    cause = only(found, "renamed-member")
    assert cause.summary == (
        "120 keys start with `neek.`, which newer code of the same repository calls `neck.`"
    )
    assert len(cause.keys) == found.counts["missing"] + found.counts["unexpected"] == 220
    assert cause.fix == "--rename 'neek.=neck.'"
    assert cause.exact
    assert found.fix == f"ckptool convert {bench.path} --arch yolov4"


def test_neck_is_neek(bench: Bench):
    """The other way round, for a small part of the network; the result is loaded."""

    def network(neck: str) -> nn.Module:
        return nn.ModuleDict({"down": nn.Conv2d(3, 4, 3), neck: nn.Conv2d(4, 4, 3)}).to("meta")

    target = write(held(network("neek")), bench.folder / "old.pth")
    found = bench.diff(held(network("neck")), like=target)
    cause = only(found, "renamed-member")
    assert cause.summary == (
        "2 keys start with `neck.`, which older code of the same repository calls `neek.`"
    )
    assert cause.fix == "--rename 'neck.=neek.'"
    bench.fixes(found, cause, network("neek"))


def test_head_norms_level_first(bench: Bench):
    """The norm of repeat 1 and level 4 stands under 4, 1."""
    found = bench.diff(held(effdet(D0, head_bn_level_first=True)), arch=D0)
    cause = only(found, "head-norms")
    assert cause.summary == (
        "150 tensors of the heads' norms are ordered level first, the architecture orders them "
        "repeat first"
    )
    assert len(cause.keys) == 270
    assert cause.fix == f"--arch {D0}"
    assert cause.exact
    made = bench.fixes(found, cause, effdet(D0))
    norm = made[f"{NORM}.1.4.bn.weight"]
    assert norm.unique().item() == bench.values[f"{NORM}.4.1.weight"]


def test_head_norms_repeat_first(bench: Bench):
    level_first = effdet(D0, head_bn_level_first=True)
    target = write(held(level_first), bench.folder / "other.pth")
    found = bench.diff(held(effdet(D0)), like=target)
    cause = only(found, "head-norms")
    assert cause.summary == (
        "150 tensors of the heads' norms are ordered repeat first, the architecture orders them "
        "level first"
    )
    made = bench.fixes(found, cause, level_first)
    assert made[f"{NORM}.4.1.weight"].unique().item() == bench.values[f"{NORM}.1.4.bn.weight"]


TRAP = (
    "; with 5 levels and 5 repeats only the missing `.bn.` says so: if somebody cut it out of the "
    "keys, they are repeat first already, which nothing in the file can tell"
)


@pytest.mark.parametrize("arch", ["tf_efficientdet_d6", "tf_efficientdet_d7"])
def test_the_trap_of_five_levels_and_five_repeats(bench: Bench, arch: str):
    """Both orders have the same shapes: to cut out `.bn.` would transpose the norms."""
    found = bench.diff(held(effdet(arch, head_bn_level_first=True)), arch=arch)
    cause = only(found, "head-norms")
    assert cause.summary == (
        "250 tensors of the heads' norms are ordered level first, the architecture orders them "
        f"repeat first{TRAP}"
    )
    assert len(cause.keys) == 450
    assert found.fix == f"ckptool convert {bench.path} --arch {arch}"


def test_the_trap_s_norms_get_their_places(bench: Bench):
    """A small network with five repeats, whose converted norms are looked at one by one."""
    target = write(held(effdet(D0, box_class_repeats=5)), bench.folder / "other.pth")
    state = held(effdet(D0, box_class_repeats=5, head_bn_level_first=True))
    found = bench.diff(state, like=target)
    cause = only(found, "head-norms")
    assert cause.summary.endswith(TRAP)
    made = bench.fixes(found, cause, effdet(D0, box_class_repeats=5))
    for repeat in range(5):
        for level in range(5):
            norm = made[f"{NORM}.{repeat}.{level}.bn.running_var"]
            assert norm.unique().item() == bench.values[f"{NORM}.{level}.{repeat}.running_var"]


def test_a_bn_that_was_cut_out_of_the_keys(bench: Bench):
    """With three repeats and five levels the order shows; only the name is missing."""
    state = {
        key.replace(".bn.", ".") if "bn_rep" in key else key: value
        for key, value in held(effdet(D0)).items()
    }
    found = bench.diff(state, arch=D0)
    cause = only(found, "head-norms")
    assert cause.summary == (
        "150 tensors of the heads' norms have no `.bn.` in their keys, against the architecture's: "
        "`bn_rep.{a}.{b}.{*}` is `bn_rep.{a}.{b}.bn.{*}`"
    )
    made = bench.fixes(found, cause, effdet(D0))
    assert made[f"{NORM}.1.4.bn.weight"].unique().item() == bench.values[f"{NORM}.1.4.weight"]


def spectral(newer: bool) -> nn.Module:
    make = small_models.new_spectral_norm if newer else small_models.old_spectral_norm
    return make().to("meta")


@pytest.mark.parametrize("newer", [False, True])
def test_spectral_norm_as_another_torch_spells_it(bench: Bench, newer: bool):
    names = {False: "0.weight_orig", True: "0.parametrizations.weight.original"}
    target = write(held(spectral(newer)), bench.folder / "other.pth")
    found = bench.diff(held(spectral(not newer)), like=target)
    cause = only(found, "norm-spelling")
    assert cause.summary == (
        f"6 parts of spectral_norm are spelled as {'older' if newer else 'newer'} torch spells "
        f"them: `{names[not newer]}` is `{names[newer]}`"
    )
    assert len(cause.keys) == 12
    assert cause.fix == f"--like {target}"
    bench.fixes(found, cause, spectral(newer))


OLD, NEW = "0.weight_g", "0.parametrizations.weight.original0"


def weight_normed(newer: bool) -> nn.Module:
    layers = [nn.Linear(3, 3) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still met in files
        make = parametrizations.weight_norm if newer else weight_norm
        return nn.Sequential(*map(make, layers)).to("meta")


def test_weight_norm_as_older_torch_wants_it(bench: Bench):
    target = write(held(weight_normed(False)), bench.folder / "other.pth")
    found = bench.diff(held(weight_normed(True)), like=target)
    cause = only(found, "norm-spelling")
    assert cause.summary == (
        f"4 parts of weight_norm are spelled as newer torch spells them: `{NEW}` is `{OLD}`"
    )
    assert len(cause.keys) == 8
    bench.fixes(found, cause, weight_normed(False))


def test_weight_norm_as_older_torch_wrote_it(bench: Bench):
    """torch renames it as it loads: no difference, and worth a word only if there are others."""
    state = held(weight_normed(False))
    found = bench.diff(state, arch="small_models:new_weight_norm")
    assert found.fits_strict
    assert loads(weight_normed(True), state)
    assert found.causes == ()
    state["loss.scale"] = Held(torch.float32, ())
    found = bench.diff(state, arch="small_models:new_weight_norm")
    assert codes(found) == ["norm-spelling", "extra-modules"]
    cause = found.causes[0]
    assert cause.harmless
    assert cause.summary == (
        f"4 parts of weight_norm are spelled as older torch spells them: `{OLD}` is `{NEW}`, which "
        "torch puts right by itself"
    )
    bench.solves(found, weight_normed(True))


def test_counters_with_an_axis_load_all_the_same(bench: Bench):
    """BatchNorm's counters as some exporters write them: (1,) for ()."""
    state = {
        key: Held(value.dtype, (1,)) if key.endswith("num_batches_tracked") else value
        for key, value in held(effdet(D0)).items()
    }
    found = bench.diff(state, arch=D0)
    assert found.fits_strict
    assert loads(effdet(D0), state)
    assert codes(found) == ["unit-axes"]
    cause = found.causes[0]
    assert cause.harmless
    assert cause.summary == (
        "108 BatchNorm counters with the same elements in another shape: "
        "`backbone.bn1.num_batches_tracked` is (1,), wanted is (), which torch puts right by itself"
    )
    assert len(cause.keys) == 108
    made = bench.run(cause.fix or "")
    assert made["backbone.bn1.num_batches_tracked"].shape == ()


def test_an_axis_of_length_1_too_few(bench: Bench):
    with torch.device("meta"):
        model = small_models.Mixed()
    state = {**held(model), "blocks.1.gain": Held(torch.float32, ())}
    found = bench.diff(state, arch="small_models:Mixed")
    cause = only(found, "unit-axes")
    assert cause.summary == (
        "1 tensor with the same elements in another shape: `blocks.1.gain` is (), wanted is (1,)"
    )
    assert cause.keys == ("blocks.1.gain",)
    assert cause.exact
    bench.fixes(found, cause, model)
