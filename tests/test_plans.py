"""A plan is data: it becomes JSON and comes back, and fits the weights that it was made for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptool
from ckptool.errors import PlanError
from ckptool.plans import execute, read_plan, signature

STATE = {"a.w": torch.ones(2, 3), "a.n": torch.tensor(3), "b.w": torch.ones(4)}


def file_of(folder: Path, state: dict[str, torch.Tensor], name: str = "w.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return file_of(tmp_path, STATE)


@pytest.fixture
def plan(path: Path) -> ckptool.Plan:
    return ckptool.plan(path, rename="a.=c.", drop="b.*", dtype="fp16")


def stored(value: object, folder: Path) -> Path:
    (folder / "plan.json").write_text(json.dumps(value))
    return folder / "plan.json"


def test_a_plan_says_what_each_step_does_and_costs(plan: ckptool.Plan) -> None:
    value = plan.to_json()
    assert list(value) == ["version", "signature", "target", "steps"]
    assert value["version"] == 1
    assert value["target"] == {"arch": None, "num_classes": None, "dtype": "float16"}
    assert value["steps"] == [
        {"edit": "drop", "options": {"drop": ["b.*"]}, "keys": 1, "class": "selective"},
        {"edit": "rename", "options": {"rules": [["a.{*}", "c.{*}"]]}, "keys": 2, "class": "exact"},
        {
            "edit": "cast",
            "options": {"dtype": "float16", "overflow": "error"},
            "keys": 1,
            "class": "lossy",
        },
    ]


def test_what_is_stored_is_read_again(plan: ckptool.Plan, tmp_path: Path) -> None:
    assert read_plan(stored(plan.to_json(), tmp_path)) == plan


def test_a_stored_plan_does_what_the_options_do(
    plan: ckptool.Plan, path: Path, tmp_path: Path
) -> None:
    ckptool.convert(path, tmp_path / "a.pth", rename="a.=c.", drop="b.*", dtype="fp16")
    ckptool.convert(path, tmp_path / "b.pth", plan=stored(plan.to_json(), tmp_path))
    ckptool.convert(path, tmp_path / "c.pth", plan=plan)
    written = {(tmp_path / f"{name}.pth").read_bytes() for name in "abc"}
    assert len(written) == 1


def test_counts_and_grades_are_those_of_the_run_not_of_the_stored_plan(
    plan: ckptool.Plan, path: Path, tmp_path: Path
) -> None:
    value = plan.to_json()
    for step in value["steps"]:
        step["keys"], step["class"] = 99, "exact"
    result = ckptool.convert(path, tmp_path / "out.pth", plan=stored(value, tmp_path))
    assert result.plan.to_json() == plan.to_json()


# What it is bound to


@pytest.mark.parametrize(
    "change",
    [
        {"d": torch.ones(1)},
        {"b.w": torch.ones(5)},
        {"b.w": torch.ones(4, 1)},
        {"b.w": torch.ones(4).half()},
    ],
    ids=["key", "size", "shape", "dtype"],
)
def test_a_plan_for_other_weights_is_refused(
    plan: ckptool.Plan, change: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    other = ckptool.read(file_of(tmp_path, {**STATE, **change}, "other.pth"))
    with pytest.raises(PlanError, match="the plan was made for other weights: found sha256:"):
        execute(plan, other.weights)


def test_neither_values_nor_order_nor_format_count(plan: ckptool.Plan, tmp_path: Path) -> None:
    turned = {key: STATE[key] * 2 for key in reversed(STATE)}
    path = file_of(tmp_path, turned, "turned.pth")
    ckptool.convert(path, tmp_path / "turned.safetensors")
    for name in ("turned.pth", "turned.safetensors"):
        weights = ckptool.read(tmp_path / name).weights
        assert signature(weights) == plan.signature
        assert list(execute(plan, weights)[0].tensors) == [
            key.replace("a.", "c.") for key in weights.tensors if key != "b.w"
        ]


def test_keys_that_could_run_together_have_signatures_of_their_own(tmp_path: Path) -> None:
    found = [
        signature(ckptool.read(file_of(tmp_path, dict.fromkeys(keys, torch.ones(1)))).weights)
        for keys in (["a", "b"], ["a\nb"], ["a' float32 (1,)\n'b"], ["ab"])
    ]
    assert len(set(found)) == 4


# Plans from elsewhere


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan: "),
        ("{", "not a plan: "),
        ("[]", "not a plan: found no JSON object"),
        ("null", "not a plan: found no JSON object"),
        ('{"version": 1, "steps": [3]}', "not a plan: a field is not of its kind"),
        ("{}", "not a plan: no 'version'"),
        ('{"version": 2}', "found plan version 2, wanted 1"),
        ('{"version": "1"}', "found plan version '1', wanted 1"),
        ("[" * 100_000, "not a plan: nested too deeply"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError) as caught:
        read_plan(tmp_path / "plan.json")
    assert f"plan.json`: {message}" in caught.value.message


@pytest.mark.parametrize(
    ("edit", "options"),
    [
        ("cast", {"dtype": "float16", "overflow": "error", "except": [3]}),
        ("rename", {"map": {"a.w": "c.w", "b.w": None}}),
        ("rename", {"map": {"a.w": ["c.w"]}}),
        ("reshape", {"shapes": {}}),
    ],
)
def test_options_that_could_not_be_told_are_refused(
    plan: ckptool.Plan, path: Path, tmp_path: Path, edit: str, options: dict[str, Any]
) -> None:
    """The edit could be carried out, and the screen would stumble over it."""
    step = {"edit": edit, "options": options, "keys": 1, "class": "exact"}
    read = read_plan(stored({**plan.to_json(), "steps": [step]}, tmp_path))
    with pytest.raises(PlanError) as caught:
        ckptool.convert(path, tmp_path / "out.pth", plan=read)
    assert caught.value.code == "plan.options"


def damaged(value: Any, draw: Any) -> Any:
    """A copy of a plan in which something is gone, or something else."""
    changed = copy.deepcopy(value)
    place = changed
    while True:
        name = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        inner = place[name]
        if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
            place = inner
            continue
        if draw(st.booleans()) and isinstance(place, dict):
            del place[name]
        else:
            place[name] = draw(st.sampled_from([None, [], {}, 1.5, "x", -1, [[]], True]))
        return changed


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_plan_runs_or_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is wrong with it is told in one sentence of ours, and nothing is written."""
    folder = tmp_path_factory.mktemp("plan")
    path = file_of(folder, STATE)
    plan = ckptool.plan(path, rename="a.=c.", drop="b.*", dtype="fp16").to_json()
    changed = stored(damaged(plan, data.draw), folder)
    try:
        ckptool.convert(path, folder / "out.pth", plan=changed)
    except ckptool.CkptError as error:
        assert "\n" not in error.message
        assert not (folder / "out.pth").exists()


def test_a_plan_names_no_code(path: Path, plan: ckptool.Plan, tmp_path: Path) -> None:
    """A callable is taken from the command line only: in a plan it is a name and nothing else."""
    value = plan.to_json()
    value["target"]["arch"] = "small_models:raising"
    result = ckptool.convert(path, tmp_path / "out.pth", plan=stored(value, tmp_path))
    assert (result.plan.arch, result.fits_strict) == ("small_models:raising", None)
