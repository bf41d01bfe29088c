"""Casting: torch's own values, floating tensors only, nothing that is lost unsaid."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from tensors_made import FLOAT8, FLOATS, filled

import ckptool
from ckptool.dtypes import numpy_dtype

NAMES = [str(dtype).removeprefix("torch.") for dtype in FLOATS]
ODD = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 5e-324, 6e-8, 2.0**-25, 2.0**-24, 1e-9)


def between(dtype: str, wanted: str) -> torch.Tensor:
    """Every value of a 16-bit type, the ties between its neighbours, what lies beside those."""
    if wanted not in ("float16", "bfloat16"):
        return torch.tensor(ODD, dtype=getattr(torch, dtype))
    with numpy.errstate(all="ignore"):
        exact = numpy.arange(65536).astype("<u2").view(numpy_dtype(wanted)).astype("f8")
        ties = (exact[:-1] + exact[1:]) / 2
        beside = [ties * (1 + sign * 2.0**-step) for sign in (1, -1) for step in (20, 40)]
        values = numpy.concatenate([ODD, exact, ties, *beside])
        return torch.from_numpy(values).to(getattr(torch, dtype))


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal bits but for the payload of NaN, in which torch's vector and scalar code differ."""
    assert found.dtype == wanted.dtype
    nan = wanted.isnan()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.dtype.itemsize]
    equal = found.view(bits)[~nan].equal(wanted.view(bits)[~nan])
    return equal and found.isnan().equal(nan)


def converted(tmp_path, state, **options):
    """The converted state dict and the result."""
    torch.save(state, tmp_path / "in.pth")
    result = ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", **options)
    return torch.load(tmp_path / "out.pth", weights_only=True), result


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(NAMES, 2)))
def test_values_are_torchs_own(tmp_path, source, target):
    """Random bits and every tie, from every floating type to every other, as `.to` casts them."""
    wanted = getattr(torch, target)
    values = torch.cat([filled(getattr(torch, source), (20_003,), 1), between(source, target)])
    large = values.to(wanted).isinf() & values.isfinite()
    state, _ = converted(tmp_path, {"x": values[~large]}, dtype=target)
    assert same(state["x"], values[~large].to(wanted))


@pytest.mark.parametrize("source", FLOAT8, ids=str)
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_float8_becomes_wider(tmp_path, source, target):
    """All 256 values, as torch widens them."""
    values = torch.arange(256, dtype=torch.uint8).view(source)
    wanted = values.to(getattr(torch, target))
    keep = ~(wanted.isinf() & values.to(torch.float32).isfinite())
    state, _ = converted(tmp_path, {"x": values[keep]}, dtype=target)
    assert same(state["x"], wanted[keep])


def test_only_floating_tensors_are_cast(tmp_path):
    """Counters of 100,000 stay, as do bools, bytes and complex numbers."""
    state = {
        "bn.weight": torch.ones(3),
        "bn.num_batches_tracked": torch.tensor(100_000),
        "mask": torch.tensor([True, False]),
        "raw": torch.arange(3, dtype=torch.uint8),
        "rotary": torch.tensor([1 + 2j]),
    }
    found, result = converted(tmp_path, state, dtype="fp16")
    assert found["bn.weight"].dtype == torch.float16
    for key in list(state)[1:]:
        assert found[key].dtype == state[key].dtype
        assert found[key].equal(state[key])
    assert result.plan.steps[0].keys == 1


def test_derived_buffers_are_never_cast(tmp_path):
    """`anchors.boxes` of D7 in float16 would be off by up to 0.84 pixels."""
    boxes = torch.rand(8, 4) * 1536
    state = {"model.fc.weight": torch.ones(3), "anchors.boxes": boxes}
    found, result = converted(tmp_path, state, dtype="bf16")
    assert found["anchors.boxes"].equal(boxes)
    assert found["model.fc.weight"].dtype == torch.bfloat16
    assert result.plan.steps[0].options["except"] == ["anchors.boxes"]


def test_tied_tensors_are_cast_once_and_stay_tied(tmp_path):
    tied = torch.randn(5, 3)
    found, _ = converted(
        tmp_path, {"embed": tied, "decode": tied, "own": tied.clone()}, dtype="fp16"
    )
    assert found["embed"].data_ptr() == found["decode"].data_ptr()
    assert found["own"].data_ptr() != found["embed"].data_ptr()


@pytest.mark.parametrize("options", [{"keep_fp32": ["embed"]}, {"on_overflow": "keep-fp32"}])
def test_one_of_two_tied_keys_means_both(tmp_path, options):
    tied = torch.tensor([1.0, 7e4])
    state = {"decode": tied, "embed": tied, "fc": torch.ones(2)}
    found, _ = converted(tmp_path, state, dtype="fp16", **options)
    assert [x.dtype for x in found.values()] == [torch.float32, torch.float32, torch.float16]
    assert found["embed"].data_ptr() == found["decode"].data_ptr()


def test_a_value_that_would_become_infinite_stops_the_conversion(tmp_path):
    """The message has the key and the worst value; nothing is written."""
    state = {"bn.running_var": torch.tensor([1.0, 1e5, -3e5])}
    with pytest.raises(ckptool.LossError) as caught:
        converted(tmp_path, state, dtype="fp16")
    assert "`bn.running_var`: found -300000, the largest float16 is 65504" in caught.value.message
    assert "--on-overflow keep-fp32" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_what_is_too_large_can_stay_float32(tmp_path):
    """The plan names the keys, so that a dry run says what the run does."""
    state = {"bn.running_var": torch.tensor([1.0, 1e5]), "fc.weight": torch.tensor([2.0])}
    found, result = converted(tmp_path, state, dtype="fp16", on_overflow="keep-fp32")
    assert found["bn.running_var"].equal(state["bn.running_var"])
    assert found["fc.weight"].dtype == torch.float16
    assert result.plan.steps[0].options["large"] == ["bn.running_var"]
    assert result.notes == ("`bn.running_var` stays float32: values too large for float16",)


def test_what_is_too_large_can_be_clamped(tmp_path):
    """What rounds to the largest value is not clamped; what does not, is counted."""
    values = torch.tensor([65504.0, 65519.0, 65520.0, -1e6, math.inf, math.nan, 1.0])
    found, result = converted(tmp_path, {"x": values}, dtype="fp16", on_overflow="clamp")
    wanted = torch.tensor([65504.0, 65504.0, 65504.0, -65504.0, math.inf, math.nan, 1.0])
    assert same(found["x"], wanted.half())
    assert result.measured["x"]["clamped"] == 2


def test_what_a_cast_costs_is_counted(tmp_path):
    """Values flushed to zero are counted, and are not part of the worst relative error."""
    values = torch.tensor([1e-9, -1e-12, 0.0, 1.0, 1.0 + 2.0**-11, 65504.0])
    _, result = converted(tmp_path, {"x": values}, dtype="fp16")
    assert result.measured["x"]["flushed"] == 2
    assert result.measured["x"]["relative_error"] == pytest.approx(2.0**-11 / (1 + 2.0**-11))
    assert result.plan.steps[0].grade == "lossy"


def test_what_widens_costs_nothing(tmp_path):
    state, result = converted(tmp_path, {"x": torch.randn(9).half()}, dtype="fp64")
    assert state["x"].dtype == torch.float64
    assert result.plan.steps[0].grade == "exact"
    assert result.measured == {"x": {}}


def test_globs_keep_tensors_in_float32(tmp_path):
    """Of whatever type they were; the globs are those of the output's keys."""
    state = {"module.a.bias": torch.ones(2), "module.b.bias": torch.ones(2).double()}
    options = {"dtype": "fp16", "strip_prefix": "module.", "keep_fp32": ["b.*"]}
    found, _ = converted(tmp_path, state, **options)
    assert [x.dtype for x in found.values()] == [torch.float16, torch.float32]


def test_a_glob_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(ckptool.PlanError) as caught:
        converted(tmp_path, {"head.bias": torch.ones(2)}, dtype="fp16", keep_fp32=["heads.*"])
    assert caught.value.message == "`heads.*` matches no key"
    assert caught.value.hint == "the closest are `head.bias`"


def test_there_and_back_is_the_same_where_nothing_was_lost(tmp_path):
    """fp32 → fp64 → fp32 gives the same bytes, NaN and all."""
    values = filled(torch.float32, (5_000,), 3)
    values = values[~values.isnan()]
    wide, _ = converted(tmp_path, {"x": values}, dtype="fp64")
    torch.save(wide, tmp_path / "wide.pth")
    ckptool.convert(tmp_path / "wide.pth", tmp_path / "back.pth", dtype="fp32")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert same(back["x"], values)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_a_wrong_cast_does_not_pass_the_proof(tmp_path, monkeypatch, source, dtype):
    """One value in a hundred thousand that became the second nearest is found."""
    from ckptool.plugins import cast

    right = cast.rounded

    def wrong(values, dtype):
        made = right(values, dtype).copy()
        if made.size:
            made.view("u2")[len(made) // 2] += 1
        return made

    monkeypatch.setattr(cast, "rounded", wrong)
    values = torch.rand(100_000, dtype=source) + 1
    values[50_000] = 1.75 + 0.4 * {"fp16": 2.0**-10, "bf16": 2.0**-7}[dtype]
    with pytest.raises(ckptool.VerificationError, match="`x`: a value is not the cast of its own"):
        converted(tmp_path, {"x": values}, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-44, -1e-44, 1.0, -2.0, 0.3], ids=str)
@pytest.mark.parametrize("change", ["sign", "up", "down"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_the_neighbours_and_the_other_sign_do_not_pass(
    tmp_path, monkeypatch, value, change, dtype, source
):
    """Below a power of two the neighbour is as near as half a step above it; zeros have a sign."""
    from ckptool.plugins import cast

    right = cast.rounded

    def wrong(values, dtype):
        made = right(values, dtype).copy()
        word = int(made.view("u2")[600])
        found = {"sign": word ^ 0x8000, "up": word + 1, "down": word - 1}[change]
        made.view("u2")[600] = found % (1 << 16)
        return made

    monkeypatch.setattr(cast, "rounded", wrong)
    values = torch.full((1000,), value, dtype=source)
    with pytest.raises(ckptool.VerificationError, match="`x`: a value is not the cast of its own"):
        converted(tmp_path, {"x": values}, dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "fp8", "float", "bogus"])
def test_other_types_are_refused(tmp_path, dtype):
    torch.save({"x": torch.ones(2)}, tmp_path / "in.pth")
    if dtype == "float":
        ckptool.plan(tmp_path / "in.pth", dtype=dtype)
        return
    with pytest.raises(ckptool.PlanError, match=f"dtype `{dtype}` is not one to cast to"):
        ckptool.plan(tmp_path / "in.pth", dtype=dtype)
