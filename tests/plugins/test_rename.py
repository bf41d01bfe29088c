"""Renaming: prefixes, globs, patterns, lists; the order of keys and `_metadata` go with it."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

import ckptool

KEYS = (
    "module.neek.conv1.weight",
    "module.neek.conv1.bias",
    "module.head.0.1.bn.weight",
    "module.head.1.0.bn.weight",
    "module.total",
)


def renamed(tmp_path, keys, **options):
    """Old key to new, told by the values, in the order of the written file."""
    state = OrderedDict((key, torch.tensor([float(number)])) for number, key in enumerate(keys))
    torch.save(state, tmp_path / "in.pth")
    result = ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", **options)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert result.plan.steps[-1].grade == "exact"
    return {keys[int(value)]: key for key, value in found.items()}


def refused(tmp_path, keys, **options):
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError) as caught:
        ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", **options)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".pth"] == ["in.pth"]
    return caught.value


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"strip_prefix": "module."}, {KEYS[0]: "neek.conv1.weight", KEYS[4]: "total"}),
        ({"add_prefix": "model."}, {KEYS[4]: "model.module.total"}),
        ({"rename": ["module.neek.=neck."]}, {KEYS[1]: "neck.conv1.bias", KEYS[4]: KEYS[4]}),
        ({"rename": ["module.total=sum"]}, {KEYS[4]: "sum", KEYS[0]: KEYS[0]}),
        ({"rename": ["module.*.bias=*.b"]}, {KEYS[1]: "neek.conv1.b"}),
        (
            {"rename": ["module.head.{i}.{j}.bn.{*}=head.{j}.{i}.{*}"]},
            {KEYS[2]: "head.1.0.weight", KEYS[3]: "head.0.1.weight"},
        ),
        (
            {"rename": ["module.neek.=a.", "module.head.=b."]},
            {KEYS[0]: "a.conv1.weight", KEYS[2]: "b.0.1.bn.weight"},
        ),
        (
            {"strip_prefix": "module.", "rename": ["neek.=neck."]},
            {KEYS[0]: "neck.conv1.weight"},
        ),
    ],
    ids=lambda value: str(next(iter(value.values()))) if isinstance(value, dict) else "",
)
def test_keys_get_their_new_names_in_the_same_order(tmp_path, options, wanted):
    found = renamed(tmp_path, KEYS, **options)
    assert list(found) == list(KEYS)
    assert wanted.items() <= found.items()


def test_a_file_of_names_renames(tmp_path):
    """`@FILE` is a JSON object; what it names in vain is said, and the rest stays."""
    names = tmp_path / "map.json"
    names.write_text(json.dumps({KEYS[4]: "sum", "gone.weight": "x"}))
    found = renamed(tmp_path, KEYS, rename=[f"@{names}"])
    assert found[KEYS[4]] == "sum"
    assert found[KEYS[0]] == KEYS[0]
    result = ckptool.convert(tmp_path / "in.pth", tmp_path / "x.pth", rename=[f"@{names}"])
    assert result.notes == ("not in the file, and so not renamed: `gone.weight`",)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "null"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "map.json").write_text(text)
    error = refused(tmp_path, ["a"], rename=[f"@{tmp_path}/map.json"])
    assert "map.json`: not" in error.message
    assert error.code == "plan.map"


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        (
            ["module.a", "a"],
            {"strip_prefix": "module."},
            "`module.a` and `a` would both be called `a`",
        ),
        (["a.w", "b.w"], {"rename": ["*.w=w", "a=b"]}, "both sides must have the same holes"),
        (
            ["a.w", "b.w"],
            {"rename": ["a.=c.", "b.=c."]},
            "`a.w` and `b.w` would both be called `c.w`",
        ),
        (["a", "b"], {"rename": ["a=b"]}, "`a` and `b` would both be called `b`"),
        (["module."], {"strip_prefix": "module."}, "`module.` would be left without a name"),
        (["a.w"], {"strip_prefix": "module."}, "`module.` matches no key"),
        (["a.w"], {"rename": ["x.=y."]}, "`x.{*}` matches no key"),
        (["a.w"], {"rename": ["a.=b.", "c.=d."]}, "`c.{*}` matches no key"),
        (["a.w"], {"rename": ["a.w"]}, "found `a.w`, wanted OLD=NEW"),
        (["a.w", "b"], {"rename": ["a.w="]}, "`a.w` would be left without a name"),
        (["a.w"], {"rename": ["a.w=a.w"]}, "`a.w` to `a.w`: every name stays as it is"),
    ],
)
def test_what_collides_or_matches_nothing_is_refused(tmp_path, keys, options, message):
    assert message in refused(tmp_path, keys, **options).message


def test_near_keys_are_offered(tmp_path):
    error = refused(tmp_path, ["backbone.conv1.weight"], strip_prefix="bakbone.conv1.weight")
    assert error.hint == "the closest are `backbone.conv1.weight`"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.norms = nn.ModuleList([nn.ModuleList([nn.BatchNorm2d(4)]) for _ in range(2)])


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"strip_prefix": "module."}, "stem.1"),
        ({"add_prefix": "net."}, "net.module.stem.1"),
        ({"rename": ["module.stem.=trunk."]}, "trunk.1"),
        ({"rename": ["module.norms.{i}.{j}.{*}=heads.{j}.{i}.bn.{*}"]}, "heads.0.1.bn"),
    ],
    ids=str,
)
def test_metadata_is_renamed_with_the_keys(tmp_path, options, path):
    """Every BatchNorm's version is found under its new path, and nowhere else."""
    torch.save(nn.ModuleDict({"module": Net()}).state_dict(), tmp_path / "in.pth")
    ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", **options)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    versions = {name: local["version"] for name, local in found._metadata.items()}
    norms = {key.rpartition(".")[0] for key in found if key.endswith("running_mean")}
    assert path in norms
    assert {name for name, version in versions.items() if version == 2} == norms


def test_segments_are_left_out_wherever_they_stand(tmp_path):
    """`torch.compile` puts `_orig_mod` into the middle of keys, too."""
    from nets import effdet

    model = effdet("tf_efficientdet_d0", 3)
    model.backbone = torch.compile(model.backbone)
    model = torch.compile(model)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    result = ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", arch="tf_efficientdet_d0")
    assert [step.options for step in result.plan.steps] == [{"remove": ["_orig_mod"]}]
    effdet("tf_efficientdet_d0", 3).load_state_dict(
        torch.load(tmp_path / "out.pth", weights_only=True), strict=True
    )
