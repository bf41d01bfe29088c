"""Reparametrised weights: what torch itself computes from the parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import ckptool
from ckptool.plugins import apply


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(5, 4)
    )


def old(function, **options):
    """One of torch's deprecated functions, whose checkpoints are many."""

    def wrap(layer):
        with pytest.warns(FutureWarning) if function is torch.nn.utils.weight_norm else _quiet():
            return function(layer, **options)

    return wrap


def _quiet():
    import contextlib

    return contextlib.nullcontext()


def transposed(function):
    """The function with the axis that torch takes for a transposed convolution."""
    return lambda layer: function(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)


WRAPPERS = {
    "weight_norm": old(torch.nn.utils.weight_norm),
    "weight_norm over all": old(torch.nn.utils.weight_norm, dim=None),
    "weight_norm over 1": old(torch.nn.utils.weight_norm, dim=1),
    "weight_norm parametrization": parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "spectral_norm parametrization": parametrizations.spectral_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
}


def plain(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that the layers compute with."""
    with torch.no_grad():
        model(torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
        return {
            f"{number}.{name}": getattr(layer, name).detach().clone()
            for number, layer in enumerate(model)
            for name in ("weight", "bias")
        }


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_weight_is_torchs_own(tmp_path, kind):
    """Of convolutions, transposed ones among them (on their second axis), and linear layers."""
    model = net()
    for layer in model:
        WRAPPERS[kind](layer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for _ in range(3):  # spectral_norm follows the weight while it trains
            model(torch.rand(1, 3, 5, 5))
    model.eval()
    wanted = plain(model)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    torch.save(net().state_dict(), tmp_path / "target.pth")
    result = ckptool.convert(
        tmp_path / "in.pth", tmp_path / "out.pth", like=tmp_path / "target.pth"
    )
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    net().load_state_dict(found, strict=True)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=2e-6, atol=1e-7)
    (step,) = result.plan.steps
    assert (step.edit, step.keys, step.grade) == ("materialise", 4, "exact")
    assert result.notes == ("4 weights computed from their parts",)


def test_weights_stand_where_their_parts_stood(tmp_path):
    model = net()
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.5)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    parts = {f"0.{n}": ["pruning", f"0.{n}_orig", f"0.{n}_mask"] for n in ("weight", "bias")}
    found = apply("materialise", {"weights": parts}, ckptool.read(tmp_path / "in.pth").weights)
    assert list(found.weights.tensors)[:3] == ["0.weight", "0.bias", "1.weight"]
    assert found.weights.tensors["0.bias"].torch().equal(model[0].bias)


def test_a_parametrization_of_one_s_own_is_not_guessed(tmp_path):
    """Only torch's own say by their names what they compute."""

    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    model = net()
    parametrize.register_parametrization(model[0], "weight", Doubled())
    torch.save(model.state_dict(), tmp_path / "in.pth")
    torch.save(net().state_dict(), tmp_path / "target.pth")
    with pytest.raises(ckptool.PlanError):
        ckptool.plan(tmp_path / "in.pth", like=tmp_path / "target.pth")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["pruning", "w", "gone"], "`x`: no `gone`"),
        (["folding", "w", "w"], "`x`: no `folding`"),
        (["pruning", "w", "v"], "`x`: the shapes (4, 3), (12,) are not those of the parts of prun"),
        (["pruning", "w"], "`x`: the shapes (4, 3) are not those of the parts of pruning"),
        (["spectral_norm", "w", "v", "v"], "`x`: the shapes (4, 3), (12,), (12,) are not those"),
        (["weight_norm", "v", "w"], "`x`: the shapes (12,), (4, 3) are not those of the parts of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, parts, message):
    torch.save({"w": torch.ones(4, 3), "v": torch.ones(12)}, tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError) as caught:
        apply("materialise", {"weights": {"x": parts}}, ckptool.read(tmp_path / "in.pth").weights)
    assert caught.value.message.startswith(message)


def test_adapters_are_refused(tmp_path):
    """What LoRA adds is scaled by a number that no checkpoint holds."""
    state = net().state_dict()
    state["3.lora_A.weight"] = torch.ones(2, 5)
    state["3.lora_B.weight"] = torch.ones(4, 2)
    torch.save(state, tmp_path / "in.pth")
    torch.save(net().state_dict(), tmp_path / "target.pth")
    with pytest.raises(ckptool.PlanError, match=r"LoRA adapters .*merging them needs their alpha"):
        ckptool.plan(tmp_path / "in.pth", like=tmp_path / "target.pth")
