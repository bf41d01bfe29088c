"""`diff --like --values`: numpy says how far the values of two files are apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from safetensors.numpy import save_file

from ckptool import CkptError, diff, read
from ckptool.changes import Change, Values
from ckptool.cli import main
from ckptool.tensors import Inline, LazyTensor, TensorSpec
from ckptool.values import compare_values

RANDOM = numpy.random.default_rng(0)

Arrays = Mapping[str, Any]


def lazy(array: Any) -> LazyTensor:
    return LazyTensor(TensorSpec(array.dtype.name, array.shape), Inline(array.tobytes()))


def compared(found: Any, wanted: Any, **tolerance: float) -> Change:
    """The change of one tensor."""
    return compare_values({"a": lazy(found)}, {"a": lazy(wanted)}, **tolerance).tensors[0]


def save(path: Path, arrays: Arrays) -> Path:
    save_file({key: numpy.ascontiguousarray(array) for key, array in arrays.items()}, path)
    return path


@pytest.fixture
def weights() -> dict[str, Any]:
    """Two modules; one tensor is of several ranges, as the threads divide them."""
    random = numpy.random.default_rng(1)
    made: dict[str, Any] = {
        f"{module}.{layer}.{name}": random.standard_normal(64).astype("f4")
        for module in ("backbone", "head")
        for layer in range(2)
        for name in ("weight", "bias")
    }
    made["backbone.big"] = random.standard_normal((9 << 20,)).astype("f4")
    made["backbone.num_batches_tracked"] = numpy.array(7)
    return made


KINDS = [
    numpy.dtype(name)
    for name in ("f8", "f4", "f2", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "c8", "c16")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_numbers_are_those_of_numpy(kind: Any) -> None:
    wanted = RANDOM.standard_normal((70, 400)).astype(kind)
    wide = numpy.complex128 if kind.kind == "c" else numpy.float64
    moved = wanted.astype(wide)
    moved[::3] *= 1.25
    found = moved.astype(kind)
    change = compared(found, wanted)
    a, b = found.astype(wide).ravel(), wanted.astype(wide).ravel()
    assert change.changed == (a != b).sum() > 0
    assert change.relative_l2 == pytest.approx(numpy.linalg.norm(a - b) / numpy.linalg.norm(b))
    product = numpy.vdot(a, b).real / numpy.linalg.norm(a) / numpy.linalg.norm(b)
    assert change.cosine == pytest.approx(product)
    parts = numpy.abs((a - b).view("f8"))
    assert change.max_abs == parts.max()
    assert not change.identical


@pytest.mark.parametrize("kind", KINDS[1:5], ids=lambda kind: kind.name)
def test_a_file_in_another_type_is_compared_by_its_values(kind: Any) -> None:
    wanted = RANDOM.standard_normal(5000).astype("f4")
    found = wanted.astype(kind)
    change = compared(found, wanted)
    delta = numpy.abs(found.astype("f8") - wanted.astype("f8"))
    assert change.changed == numpy.count_nonzero(delta)
    assert change.max_abs == delta.max()
    assert change.identical == (kind == numpy.float32)


def test_whole_numbers_beyond_float64_are_told_apart() -> None:
    wanted = numpy.array([2**60, 5, -(2**62)])
    change = compared(wanted + numpy.array([1, 0, 0]), wanted)
    assert (change.changed, change.outside, change.identical) == (1, 1, False)


def test_zeros_of_either_sign_are_equal_but_not_bit_equal() -> None:
    change = compared(numpy.array([-0.0, 1], "f4"), numpy.array([0.0, 1], "f4"))
    assert (change.changed, change.identical) == (0, False)
    values = Values(0, 0, (change,))
    assert values.within
    assert values.identical == 0


@pytest.mark.filterwarnings("error")
def test_what_is_no_number_on_one_side_only_is_counted_apart() -> None:
    nan, inf = numpy.nan, numpy.inf
    wanted = numpy.array([nan, inf, -inf, 1, 1, 1, 3], "f4")
    found = numpy.array([nan, inf, inf, nan, inf, 1, 2], "f4")
    change = compared(found, wanted, rtol=1, atol=1e9)
    assert change.non_finite == 3
    assert change.changed == 4
    assert change.outside == 3
    assert change.max_abs == 1


def test_lengths_beyond_float64_are_infinite_and_no_nan() -> None:
    wanted = numpy.full(9, 1e200)
    change = compared(-wanted, wanted)
    assert (change.changed, change.max_abs, change.non_finite) == (9, 2e200, 0)
    assert (change.relative_l2, change.cosine) == (numpy.inf, None)


def test_nan_that_signal_are_nan() -> None:
    wanted = numpy.full(600_000, 0x7FA00000, "u4").view("f4")
    found = wanted.copy()
    found[3] = 1
    change = compared(found, wanted)
    assert (change.changed, change.non_finite) == (1, 1)


def test_equal_nan_are_equal_within_a_tensor_that_changed() -> None:
    wanted = numpy.full(600_000, numpy.nan, "f4")
    wanted[-1] = 1
    found = wanted.copy()
    found[-1] = 2
    change = compared(found, wanted)
    assert (change.changed, change.non_finite, change.relative_l2) == (1, 0, 1.0)


@pytest.mark.parametrize(("rtol", "atol"), [(0, 0), (1e-3, 0), (0, 1e-3), (1e-3, 1e-4), (0.1, 0)])
def test_the_tolerances_are_numpys(rtol: float, atol: float) -> None:
    wanted = RANDOM.standard_normal(30_000)
    found = wanted + 1e-3 * RANDOM.standard_normal(30_000)
    change = compared(found, wanted, rtol=rtol, atol=atol)
    assert change.outside == (~numpy.isclose(found, wanted, rtol=rtol, atol=atol)).sum()


def test_a_tensor_of_zeros_has_no_cosine_and_is_infinitely_far() -> None:
    zeros, ones = numpy.zeros(4, "f4"), numpy.ones(4, "f4")
    assert compared(ones, zeros).relative_l2 == numpy.inf
    assert compared(ones, zeros).cosine is None
    assert compared(zeros, ones).relative_l2 == 1


def test_tensors_that_cannot_be_computed_with_are_compared_by_their_bits() -> None:
    spec = TensorSpec("complex32", (3,))
    sides = [{"a": LazyTensor(spec, Inline(data))} for data in (b"abcdefghijkl", b"abcdefghijkm")]
    change = compare_values(*sides).tensors[0]
    assert (change.changed, change.max_abs, change.relative_l2) == (1, None, None)
    assert compare_values(sides[0], sides[0]).tensors[0].identical


def test_only_the_changed_parts_of_a_large_tensor_change_and_the_rest_counts(
    tmp_path: Path, weights: dict[str, Any]
) -> None:
    """Blocks that are equal are skipped, and yet the lengths are those of the whole tensor."""
    one = save(tmp_path / "one.safetensors", weights)
    big = weights["backbone.big"].copy()
    big[[5, 1_000_000, -1]] += 1
    two = save(tmp_path / "two.safetensors", {**weights, "backbone.big": big})
    change = compare_values(read(two), read(one)).tensors[0]
    old = weights["backbone.big"].astype("f8")
    assert (change.key, change.changed) == ("backbone.big", 3)
    assert change.relative_l2 == pytest.approx(
        numpy.linalg.norm(big.astype("f8") - old) / numpy.linalg.norm(old)
    )
    cosine = big.astype("f8") @ old / numpy.linalg.norm(big.astype("f8")) / numpy.linalg.norm(old)
    assert change.cosine == pytest.approx(cosine, abs=1e-12)


def test_modules_are_sorted_by_what_changed_most_and_counters_stand_apart(
    tmp_path: Path, weights: dict[str, Any]
) -> None:
    tuned = {
        key: value * 2 if key.startswith("head.1") else value for key, value in weights.items()
    }
    tuned["backbone.0.bias"] = weights["backbone.0.bias"] * numpy.float32(1.001)
    tuned["backbone.num_batches_tracked"] = numpy.array(5000)
    one, two = save(tmp_path / "a.safetensors", weights), save(tmp_path / "b.safetensors", tuned)
    values = diff(two, like=one, values=True).values
    assert values is not None
    assert [c.key for c in values.tensors[:4]] == [
        "head.1.bias",
        "head.1.weight",
        "backbone.0.bias",
        "backbone.num_batches_tracked",
    ]
    found = [(module.total.key, module.changed, module.tensors) for module in values.modules()]
    assert found[:2] == [("head.1", 2, 2), ("backbone.0", 1, 2)]
    assert [module.total.key for module in values.modules(most=2)] == ["head", "backbone"]
    assert values.counters.changed == 1


def test_the_tolerances_decide_the_exit_code(
    tmp_path: Path, weights: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one = save(tmp_path / "a.safetensors", weights)
    near = {k: v * numpy.float32(1.0001) if v.dtype == "f4" else v for k, v in weights.items()}
    two = save(tmp_path / "b.safetensors", near)
    like = ["--like", str(one), "--values"]
    assert main(["diff", str(one), *like]) == 0
    assert capsys.readouterr().out.endswith("all 10 tensors are bit-equal\n")
    assert main(["diff", str(two), *like]) == 1
    assert "values in 9 tensors differ\n" in capsys.readouterr().out
    assert main(["diff", str(two), *like, "--rtol", "1e-3"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("all values are equal within rtol 0.001 and atol 0\n")
    assert main(["diff", str(two), *like, "--rtol", "1e-5"]) == 1
    assert "differ by more than rtol 1e-05 and atol 0 allow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--values", "--rtol", "nan"], "rtol is nan, wanted a number from 0 up"),
        (["--atol", "0.1"], "a tolerance is for values, which are not compared"),
    ],
)
def test_a_tolerance_that_decides_nothing_is_refused(
    words: list[str],
    said: str,
    tmp_path: Path,
    weights: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is more than NaN, which would make all files equal."""
    path = str(save(tmp_path / "a.safetensors", weights))
    assert main(["diff", path, "--like", path, *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}\n")


def test_infinity_that_became_nan_is_said_to_be_neither_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        str(save(tmp_path / f"{kind}.safetensors", {"a": numpy.full(3, float(kind), "f4")}))
        for kind in ("inf", "nan")
    ]
    assert main(["diff", paths[0], "--like", paths[1], "--values"]) == 1
    assert "1 changed, 3 values to or from NaN or infinity\n" in capsys.readouterr().out
    assert main(["diff", paths[1], "--like", paths[1], "--values"]) == 0
    assert capsys.readouterr().out.endswith("the tensor is bit-equal\n")


def test_json_has_every_tensor_and_module(
    tmp_path: Path, weights: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one = save(tmp_path / "a.safetensors", weights)
    two = save(tmp_path / "b.safetensors", {**weights, "head.0.bias": weights["head.0.bias"] * 0})
    assert main(["diff", str(two), "--like", str(one), "--values", "--json"]) == 1
    values = json.loads(capsys.readouterr().out)["values"]
    assert values["identical"] == 9
    assert not values["within"]
    assert values["tensors"][0] == {
        "key": "head.0.bias",
        "dtypes": ["float32", "float32"],
        "elements": 64,
        "identical": False,
        "changed": 64,
        "outside": 64,
        "non_finite": 0,
        "max_abs": pytest.approx(float(numpy.abs(weights["head.0.bias"]).max())),
        "relative_l2": 1.0,
        "cosine": None,
    }
    assert values["modules"][0]["module"] == "head.0"


def test_other_names_for_the_same_values_are_undone_first(
    tmp_path: Path, weights: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one = save(tmp_path / "a.safetensors", weights)
    two = save(tmp_path / "b.safetensors", {f"module.{k}": v for k, v in weights.items()})
    found = diff(two, like=one, values=True)
    assert found.values is not None
    assert (found.values.identical, len(found.values.edits)) == (10, 1)
    assert not found.agrees  # it does not load as it is
    assert "  after: all 10 keys start with `module.`" in str(found)


def test_what_cannot_be_compared_is_named(tmp_path: Path, weights: dict[str, Any]) -> None:
    one = save(tmp_path / "a.safetensors", {**weights, "count": numpy.array(3)})
    other = {key: value for key, value in weights.items() if key != "head.0.bias"}
    other |= {"head.0.weight": numpy.ones(3, "f4"), "extra": numpy.ones(3, "f4")}
    two = save(tmp_path / "b.safetensors", {**other, "count": numpy.array([4])})
    values = compare_values(read(two), read(one))
    assert sorted(values.left_out) == ["extra", "head.0.bias", "head.0.weight"]
    assert [c.key for c in values.tensors if c.changed] == ["count"]
    said = str(diff(two, like=one, values=True))
    assert "  not compared, as only one file has them, or in another shape: `head.0." in said


def test_an_architecture_has_no_values(tmp_path: Path, weights: dict[str, Any]) -> None:
    one = save(tmp_path / "a.safetensors", weights)
    with pytest.raises(CkptError, match="an architecture has no values to compare with") as caught:
        diff(one, arch="tf_efficientdet_d0", values=True)
    assert caught.value.hint == "--like FILE2 instead of --arch"


def test_the_set_of_the_other_file_can_be_chosen(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    raw = {"head.weight": torch.ones(8), "head.bias": torch.ones(2)}
    ema = {key: value * 0.5 for key, value in raw.items()}
    path = tmp_path / "training.pth"
    torch.save({"state_dict": raw, "state_dict_ema": ema}, path)
    torch.save(ema, tmp_path / "ema.pth")
    same = diff(tmp_path / "ema.pth", like=path, like_weights="state_dict_ema", values=True)
    other = diff(tmp_path / "ema.pth", like=path, like_weights="state_dict", values=True)
    assert same.agrees
    assert other.values is not None
    assert [c.cosine for c in other.values.tensors] == [pytest.approx(1.0)] * 2
    assert not other.agrees


def test_a_damaged_file_is_called_so_and_not_a_difference(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"weight": torch.arange(100_000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    other.write_bytes(data)
    with pytest.raises(CkptError, match=rf"^`{other}`: record `.*`.*the file is damaged\n"):
        diff(other, like=path, values=True)


_MEASURE = """
import re, sys, time
from pathlib import Path
from ckptool import diff
start = time.perf_counter()
found = diff(sys.argv[1], like=sys.argv[2], values=True)
taken = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
print(found.values.identical, peak // 1024, taken)
"""


@pytest.mark.parametrize("changed", [False, True], ids=["equal", "different"])
def test_memory_stays_flat(tmp_path: Path, changed: bool) -> None:
    """Files of 256 MiB take less than 100 MiB."""
    paths = []
    for name, value in (("a", 0), ("b", 1)):
        paths.append(tmp_path / f"{name}.safetensors")
        head = json.dumps(
            {"weight": {"dtype": "F32", "shape": [1 << 26], "data_offsets": [0, 1 << 28]}}
        ).encode()
        with paths[-1].open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + (1 << 28))
            if changed:
                file.seek(8 + len(head) + (1 << 27))
                file.write(bytes([value]) * (1 << 22))
    command = [sys.executable, "-c", _MEASURE, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == ("0" if changed else "1")
    assert int(said[1]) < 100


@pytest.mark.sweep
@pytest.mark.skipif(not shutil.which("cmp"), reason="no cmp to compare with")
def test_two_files_of_2_gib_take_less_than_three_times_cmp(tmp_path: Path) -> None:
    """Each the best of three runs, files in memory; equal files and such that differ everywhere."""
    random = numpy.random.default_rng(0)
    block = random.standard_normal(1 << 23).astype("f4")
    specs = {f"layer.{n}.weight": 64 for n in range(64)}
    head = json.dumps(
        {
            key: {"dtype": "F32", "shape": [1 << 23], "data_offsets": [n << 25, (n + 1) << 25]}
            for n, key in enumerate(specs)
        }
    ).encode()
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("one", "same", "other")}
    for name, path in paths.items():
        data = (block * numpy.float32(1 + 1e-3 * (name == "other"))).tobytes()
        with path.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for _ in specs:
                file.write(data)

    def least(command: list[str]) -> tuple[float, list[str]]:
        times, said = [], ""
        for _ in range(3):
            start = time.perf_counter()
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            times.append(time.perf_counter() - start)
        return min(times), said.split()

    limit = 3 * least(["cmp", str(paths["one"]), str(paths["same"])])[0]
    for name, identical in (("same", "64"), ("other", "0")):
        command = [sys.executable, "-c", _MEASURE, str(paths[name]), str(paths["one"])]
        taken, said = least(command)
        assert said[0] == identical
        assert int(said[1]) <= 150
        assert taken <= limit
    for path in paths.values():
        path.unlink()
