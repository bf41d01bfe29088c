"""What `inspect` tells of a file, in words and as JSON, and what it costs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import sparse_made
import torch
from torch import nn

from ckptool.architectures import frozen
from ckptool.cli import main
from ckptool.errors import CkptError
from ckptool.inspection import inspect

MOST_SECONDS, MOST_MIB = 0.4, 60
ROUNDS = 15

# The contract: these fields, whatever else there is.
FIELDS = {
    "file": str,
    "format": str,
    "bytes": int,
    "weights": list,
    "left_aside": list,
    "globals": list,
    "dangerous": list,
    "findings": list,
    "tensors": list,
}


class Shell:
    """What a pickle can do that nobody wants."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def trained() -> OrderedDict[str, torch.Tensor]:
    """A small state dict with known values."""
    return OrderedDict(
        {
            "conv.weight": torch.arange(6.0).reshape(2, 3),
            "conv.bias": torch.zeros(2, dtype=torch.float16),
            "bn.weight": torch.ones(2),
            "bn.running_mean": torch.tensor([0.5, -0.5]),
            "bn.running_var": torch.tensor([1.0, 2.0]),
            "bn.num_batches_tracked": torch.tensor(7),
        }
    )


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A checkpoint of a training: weights, an optimizer's state, and a call of the shell."""
    path = tmp_path / "run.pth"
    state = {0: {"exp_avg": torch.zeros(25)}}
    aside = {
        "epoch": 3,
        "optimizer": {"state": state, "param_groups": [{"params": [0]}]},
        "args": argparse.Namespace(lr=0.1),
        "hook": Shell(),
    }
    torch.save({"state_dict": trained(), **aside}, path)
    return path


def found_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def screen(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_json_has_the_fields_of_the_contract(
    training: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = found_json(capsys, training)
    assert {name: type(found[name]) for name in FIELDS} == FIELDS
    assert (found["format"], found["bytes"]) == ("torch-zip", training.stat().st_size)
    assert found["chosen"] == "state_dict"
    (weights,) = found["weights"]
    assert {key: weights[key] for key in ("name", "tensors", "parameters", "bytes", "dtypes")} == {
        "name": "state_dict",
        "tensors": 6,
        "parameters": 15,
        "bytes": 60,
        "dtypes": {"float32": 4, "float16": 1, "int64": 1},
    }
    assert found["left_aside"] == [
        {"name": "epoch", "what": "int 3", "bytes": 0},
        {"name": "optimizer", "what": "dict, 2 entries", "bytes": 100},
        {"name": "args", "what": "argparse.Namespace, 1 entry", "bytes": 0},
        {"name": "hook", "what": "posix.system, 1 entry", "bytes": 0},
    ]
    assert set(found["globals"]) > {"argparse.Namespace", "torch.FloatStorage"}
    assert found["dangerous"] == ["posix.system"]
    assert found["tensors"][:2] == [
        {"key": "conv.weight", "dtype": "float32", "shape": [2, 3]},
        {"key": "conv.bias", "dtype": "float16", "shape": [2]},
    ]
    assert found["by_dtype"]["float16"] == {"tensors": 1, "parameters": 2, "bytes": 4}
    assert found["by_module"] == {
        "conv": {"tensors": 2, "parameters": 8, "bytes": 28},
        "bn": {"tensors": 4, "parameters": 7, "bytes": 32},
    }


def test_the_screen_names_weights_what_is_beside_them_and_what_would_have_run(
    training: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = screen(capsys, training)
    assert lines[0].startswith(f"{training}: torch zip, ")
    assert (
        "state_dict (chosen)        6          15  60 B  float32 ×4, float16 ×1, int64 ×1" in lines
    )
    assert "optimizer   100 B  dict, 2 entries" in lines
    assert "float16        1           2   4 B" in lines
    assert "conv          2           8  28 B  float32 ×1, float16 ×1" in lines
    assert (
        "loading it with plain pickle would have run something: posix.system "
        "(reaches files or other processes)"
    ) in " ".join(line.strip() for line in lines)
    assert "conv.weight  float32 2×3" not in lines
    assert all(line or lines[at - 1] for at, line in enumerate(lines))  # no two empty ones


def test_keys_lists_every_tensor(training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = screen(capsys, training, "--keys")
    for key, x in trained().items():
        shape = "×".join(map(str, x.shape)) or "scalar"
        assert f"{key:22}  {str(x.dtype).removeprefix('torch.')} {shape}" in lines


def test_tree_adds_up_the_bytes_below_each_prefix(
    training: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = screen(capsys, training, "--tree")
    sizes = {line[:22].rstrip(): line[22:].split("B")[0].strip() for line in lines}
    assert (sizes["conv"], sizes["  weight"], sizes["bn"]) == ("28", "8", "32")


def test_stats_reads_every_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Extremes and mean of the finite values; complex ones by their modulus."""
    state = trained()
    state["conv.bias"] = torch.tensor([float("inf"), 2.0], dtype=torch.float16)
    state["bn.running_var"] = torch.tensor([0.0, float("nan")])
    state["all"] = torch.full((3,), float("-inf"))
    state["phase"] = torch.tensor([3 + 4j, 0])
    state["mask"] = torch.tensor([True, False, False, False])
    state["tiny"] = torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "x.pth")
    found = found_json(capsys, tmp_path / "x.pth", "--stats")
    stats = {item.pop("key"): tuple(item.values()) for item in found["stats"]}
    assert stats["conv.weight"] == (0, 5, 2.5, 0, 1 / 6)
    assert stats["conv.bias"] == (2, 2, 2, 1, 0)
    assert stats["all"] == (None, None, None, 3, 0)
    assert stats["phase"] == (0, 5, 2.5, 0, 0.5)
    assert stats["mask"] == (0, 1, 0.25, 0, 0.75)
    assert stats["tiny"] == (-2, 0.5, -0.75, 0, 0)
    messages = {item["code"]: item for item in found["findings"]}
    assert messages["non-finite"]["message"] == (
        "5 values in 3 tensors are not finite: `conv.bias`, `bn.running_var`, `all`"
    )
    assert messages["non-finite"]["keys"] == ["conv.bias", "bn.running_var", "all"]
    assert messages["variance"]["keys"] == ["bn.running_var"]


def test_a_batchnorm_that_was_never_trained_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    torch.save(model.state_dict(), tmp_path / "all.pth")
    model[1].running_mean.fill_(0.25)  # type: ignore[operator]
    torch.save(model.state_dict(), tmp_path / "one.pth")
    told = {
        name: {x.code: x for x in inspect(tmp_path / name, stats=True).findings}
        for name in ("all.pth", "one.pth")
    }
    assert "was this model ever trained?" in told["all.pth"]["untrained-batchnorm"].message
    assert told["one.pth"]["untrained-batchnorm"].keys == ("0.running_var",)


def test_what_is_odd_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tied tensors, storages larger than what is used of them, tensors without elements."""
    state = trained()
    state["tied"] = state["conv.weight"]
    state["view"] = torch.zeros(1000)[10:20]
    state["empty"] = torch.zeros(0, 3)
    torch.save(state, tmp_path / "x.pth")
    lines = screen(capsys, tmp_path / "x.pth")
    at = lines.index("findings")
    assert lines[at + 1 : at + 4] == [
        "  1 group of tied keys, one tensor under several names: `conv.weight`, `tied`",
        "  3,960 bytes of the storages belong to no tensor: views were saved with their whole "
        "storages",
        "  1 tensor without elements: `empty`",
    ]


def test_what_is_no_dense_tensor_is_listed_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = trained()
    state["sparse"] = torch.eye(2).to_sparse()
    state["meta"] = torch.zeros(2, device="meta")
    torch.save(state, tmp_path / "x.pth")
    found = found_json(capsys, tmp_path / "x.pth")
    assert [(item["key"], item["kind"]) for item in found["refused"]] == [
        ("sparse", "sparse"),
        ("meta", "meta"),
    ]
    assert all(item["reason"] for item in found["refused"])
    text = "\n".join(screen(capsys, tmp_path / "x.pth", "--keys"))
    assert "sparse                  sparse, not read" in text
    assert "1 meta tensor listed but not read (the file holds no data for it): `meta`" in text


def test_sets_that_only_the_user_can_choose_from_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is readable, so the exit code is 0; nothing is chosen."""
    other = OrderedDict((key, x + 1) for key, x in trained().items())
    torch.save({"state_dict": trained(), "state_dict_ema": other}, tmp_path / "x.pth")
    found = found_json(capsys, tmp_path / "x.pth")
    assert [item["name"] for item in found["weights"]] == ["state_dict", "state_dict_ema"]
    assert [item["averaged"] for item in found["weights"]] == [False, True]
    assert (found["chosen"], found["tensors"]) == (None, [])
    lines = screen(capsys, tmp_path / "x.pth")
    assert any("choose with --weights state_dict or --weights state_dict_ema" in x for x in lines)
    chosen = found_json(capsys, tmp_path / "x.pth", "--weights", "state_dict_ema")
    assert (chosen["chosen"], len(chosen["tensors"])) == ("state_dict_ema", 6)


def test_while_nothing_is_chosen_only_what_is_no_weight_set_is_left_aside(tmp_path: Path) -> None:
    other = OrderedDict((key, x + 1) for key, x in trained().items())
    path = tmp_path / "x.pth"
    torch.save({"epoch": 3, "g": {"net": trained()}, "d": other}, path)
    assert [item.name for item in inspect(path).left_aside] == ["epoch"]
    assert [item.name for item in inspect(path, weights="d").left_aside] == ["epoch", "g"]


def test_the_header_of_an_array_is_no_waste(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", **{key: x.numpy() for key, x in trained().items()})
    assert "wasted-bytes" not in {item.code for item in inspect(tmp_path / "x.npz").findings}


def test_a_file_without_weights_is_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    lines = screen(capsys, tmp_path / "x.pth")
    assert "no weights" in lines
    assert "  the file holds no tensors that look like weights" in lines


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_that_is_none_is_an_error_of_two_lines(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "x.pth"
    page.write_text("<html><title>Sign in</title>", encoding="utf-8")
    assert main(["inspect", str(page), *options]) == 2
    shown = capsys.readouterr()
    message = f"`{page}`: this is a web page with the title `Sign in`: the download went wrong"
    if options:
        error = json.loads(shown.out)["error"]
        assert (error["code"], error["message"]) == ("not-a-checkpoint.html", message)
        assert not shown.err
    else:
        first, empty, hint = shown.err.splitlines()
        assert (first, empty, hint[:6]) == (f"error: {message}", "", "hint: ")
        assert not shown.out


def test_damage_that_shows_when_values_are_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.full((100,), 1.5)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\0\0\xc0\x3f" * 8)] ^= 1
    path.write_bytes(data)
    assert inspect(path).chosen is not None
    with pytest.raises(CkptError, match=r"`.*x\.pth`: record `x/data/0` at byte") as caught:
        inspect(path, stats=True)
    assert caught.value.hint == "download or copy the file again"


def test_non_finite_numbers_are_text_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums of large finite values may overflow; JSON has no word for what comes out."""
    torch.save({"a": torch.full((4,), 1.7e308, dtype=torch.float64)}, tmp_path / "x.pth")
    found = found_json(capsys, tmp_path / "x.pth", "--stats")
    assert found["stats"][0]["mean"] == "inf"


def specs_of(arch: str) -> dict[str, sparse_made.Spec]:
    """The manifest of a frozen architecture, as torch says it."""
    known = frozen.find(arch)
    assert known is not None
    return {key: (getattr(torch, spec.dtype), spec.shape) for key, spec in known.specs.items()}


# The peak since the process began to run this program: that of rusage has the parent's in it.
MEASURED = """
import sys
from ckptool.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
sys.exit(code or "torch" in sys.modules)
"""
LARGE = {
    "tf_efficientdet_d7, 1,818 tensors": (lambda: specs_of("tf_efficientdet_d7"), 1_818),
    "10 GB, 2,000 tensors": (
        lambda: {
            f"blocks.{n // 10}.layers.{n % 10}.weight": (torch.float32, (1280, 1024))
            for n in range(2_000)
        },
        2_000,
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", LARGE)
def test_inspect_is_quick_and_small(name: str, suffix: str, tmp_path: Path) -> None:
    """The whole process; CPU seconds, since other tests run beside it, and the best of several."""
    make, tensors = LARGE[name]
    specs = make()
    assert len(specs) == tensors
    path = tmp_path / f"x{suffix}"
    (sparse_made.write_torch if suffix == ".pth" else sparse_made.write_safetensors)(path, specs)
    best = float("inf")
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURED, "inspect", str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        shown = process.stdout.read().decode()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert f"{tensors:,}" in shown
        assert int(shown.split()[-1]) <= MOST_MIB << 10
        best = min(best, usage.ru_utime + usage.ru_stime)
        if best <= MOST_SECONDS:
            break
    assert best <= MOST_SECONDS


def test_a_dtype_that_is_not_read_is_no_danger(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.empty(4, dtype=torch.bits8), "b": torch.zeros(2)}, path)
    found = inspect(path)
    assert [(item.code, item.message) for item in found.findings] == [
        (
            "refused-dtype",
            "1 tensor listed but not read (its element type `torch.bits8` is not known here): `w`",
        )
    ]


def test_one_norm_that_is_as_it_starts(tmp_path: Path) -> None:
    torch.save(nn.BatchNorm2d(2).state_dict(), tmp_path / "x.pth")
    (found,) = inspect(tmp_path / "x.pth", stats=True).findings
    assert found.message == (
        "the BatchNorm layer is as it starts (mean 0, variance 1): was this model ever trained?"
    )


def test_a_wrapper_of_torch_is_not_suspected_of_other_keys(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(nn.Linear(2, 2)), tmp_path / "x.pth")
    (found,) = inspect(tmp_path / "x.pth").findings
    assert found.message == (
        "rebuilt from the pickled module `torch.nn.parallel.data_parallel.DataParallel` without "
        "its class"
    )
