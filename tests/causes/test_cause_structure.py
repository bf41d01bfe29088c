"""Tensors that a model has more or fewer of: biases, parts of a weight, norms that were fused."""

from __future__ import annotations

import copy

import pytest
import small_models
import torch
from checkpoints_made import Held, effdet, held, write
from diffs_made import Bench, only
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune, spectral_norm, weight_norm

TF, PLAIN = "tf_efficientdet_d0", "efficientdet_d0"


def test_redundant_biases_of_d0(bench: Bench):
    """The tf_ configurations have 36 of them, the others fold them into their norms."""
    found = bench.diff(held(effdet(TF)), arch=PLAIN)
    cause = only(found, "redundant-biases")
    assert cause.summary == (
        "the file has 36 biases right before a BatchNorm and the architecture has none there: it "
        "was written with redundant_bias=True; folded into the running means they change nothing; "
        "as it is the file fits `tf_efficientdet_d0`, `tf_efficientdet_d0_ap`, which may pad "
        "otherwise"
    )
    assert cause.keys == tuple(key for key in held(effdet(TF)) if key not in held(effdet(PLAIN)))
    assert len(cause.keys) == 36
    assert cause.fix == f"--arch {PLAIN}"
    assert cause.exact
    assert found.fix == f"ckptool convert {bench.path} --arch {PLAIN}"
    made = bench.fixes(found, cause, effdet(PLAIN))
    node = "fpn.cell.0.fnode.0.after_combine.conv"
    bias, mean = (bench.values[f"{node}.{part}"] for part in ("conv_pw.bias", "bn.running_mean"))
    assert made[f"{node}.bn.running_mean"].unique().item() == pytest.approx(mean - bias)


def test_redundant_biases_that_the_file_lacks(bench: Bench):
    found = bench.diff(held(effdet(PLAIN)), arch=TF)
    cause = only(found, "redundant-biases-missing")
    assert cause.summary == (
        "the file lacks 36 biases right before a BatchNorm that the architecture has: it was "
        "written with redundant_bias=False; biases of zero change nothing; as it is the file fits "
        "`efficientdet_d0`, which may pad otherwise"
    )
    assert len(cause.keys) == 36
    assert cause.fix == f"--arch {TF}"
    made = bench.fixes(found, cause, effdet(TF))
    assert not any(made[key].any() for key in cause.keys)


def test_one_bias_that_the_file_lacks(bench: Bench):
    key = "box_net.conv_rep.1.conv_pw.bias"
    state = {name: value for name, value in held(effdet(TF)).items() if name != key}
    cause = only(bench.diff(state, arch=TF), "redundant-biases-missing")
    assert cause.summary.startswith("the file lacks 1 bias right before a BatchNorm")
    assert cause.keys == (key,)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


KINDS = {
    "weight_norm": [weight_norm, parametrizations.weight_norm],
    "spectral_norm": [spectral_norm, parametrizations.spectral_norm],
    "pruning": [lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "version"), [(kind, n) for kind, ways in KINDS.items() for n in range(len(ways))]
)
def test_weights_stored_in_parts(bench: Bench, kind: str, version: int):
    model = plain()
    for layer in model:
        KINDS[kind][version](layer)
    plainly = write(held(plain()), bench.folder / "plain.pth")
    found = bench.diff(held(model), like=plainly)
    cause = only(found, "reparametrised")
    assert cause.summary == (
        f"2 weights are stored as the parts of {kind} (`0.weight`, `1.weight`): what they stand "
        "for is computed"
    )
    assert {"0.weight", "1.weight"} < set(cause.keys)
    assert cause.fix == f"--like {plainly}"
    assert cause.exact
    with torch.device("meta"):
        bench.fixes(found, cause, plain())


def test_a_model_that_keeps_its_weights_in_parts(bench: Bench):
    """Which of many parts they were cannot be told."""
    found = bench.diff(held(plain()), arch="small_models:old_weight_norm")
    cause = only(found, "not-reparametrised")
    assert cause.summary == (
        "the architecture keeps 2 weights as the parts of weight_norm (`0.weight`, `1.weight`), "
        "the file has the weights themselves: load them before the model is reparametrised"
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused("--arch small_models:old_weight_norm")


def fused(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm right behind a convolution fused into that."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            above = before[1] if before else None
            if isinstance(child, nn.BatchNorm2d) and isinstance(above, nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(above, child))
                setattr(parent, name, nn.Identity())
            before = name, child
    return module


def test_norms_fused_into_their_convolutions(bench: Bench):
    found = bench.diff(held(fused(small_models.conv_norm())), arch="small_models:conv_norm")
    cause = only(found, "fused-norms")
    assert cause.summary == (
        "1 convolution has a bias and 2 BatchNorm layers are missing: the norms were fused into "
        "the convolutions for deployment, which cannot be undone"
    )
    assert {"1.running_mean", "3.bn.weight", "3.conv.bias"} <= set(cause.keys)
    assert (cause.fix, found.fix) == (None, None)
    assert not cause.exact
    assert cause.summary in bench.refused("--arch small_models:conv_norm")


@pytest.mark.parametrize("arch", [PLAIN, TF])
def test_a_deployed_detector(bench: Bench, arch: str):
    """Where convolutions have a bias anyway, as the tf_ configurations', it is no bias more."""
    state = held(fused(effdet(arch)))
    state = {key: value for key, value in state.items() if ".bn_rep." not in key}
    gone = [key for key in held(effdet(arch)) if key.endswith("running_mean")]
    found = bench.diff(state, arch=arch)
    cause = only(found, "fused-norms")
    assert f"{len(gone)} BatchNorm layers are missing: the norms were fused" in cause.summary
    assert found.fix is None


def test_one_norm_that_is_missing_was_not_fused(bench: Bench):
    state = held(effdet(PLAIN))
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        del state[f"fpn.cell.1.fnode.2.after_combine.conv.bn.{part}"]
    state["backbone.spare.bias"] = Held(torch.float32, (3,))
    found = bench.diff(state, arch=PLAIN)
    assert "fused-norms" not in [cause.code for cause in found.causes]
