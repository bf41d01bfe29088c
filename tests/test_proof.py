"""A writer that lies is caught, whatever it lies about, and nothing is left behind."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, VerificationError
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload
from ckptool.tensors import Inline, LazyTensor, TensorSpec

SUFFIXES = (".pth", ".safetensors")
Lie = Callable[[Payload], Payload]


def source(folder: Path) -> Path:
    shared = torch.randn(3, 4)
    state: OrderedDict[str, torch.Tensor] = OrderedDict(
        a=shared,
        b=torch.randn(3, 4),
        c=torch.arange(5),
        d=shared,
        e=torch.randn(2, 6),
        n=torch.tensor(7),
    )
    state._metadata = OrderedDict({"": {"version": 1}, "m": {"version": 2}})  # type: ignore[attr-defined]
    torch.save(state, folder / "source.pth")
    return folder / "source.pth"


def inline(tensor: LazyTensor, data: bytes, **spec: object) -> LazyTensor:
    return LazyTensor(replace(tensor.spec, **spec), Inline(data))  # type: ignore[arg-type]


def with_tensors(change: Callable[[dict[str, LazyTensor]], Mapping[str, LazyTensor]]) -> Lie:
    return lambda payload: replace(payload, tensors=change(dict(payload.tensors)))


def flipped(key: str, at: int, bits: int = 1) -> Lie:
    def change(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        data = bytearray(tensors[key].tobytes())
        data[at] ^= bits
        return {**tensors, key: inline(tensors[key], bytes(data))}

    return with_tensors(change)


def untied(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {**tensors, "d": inline(tensors["d"], tensors["d"].tobytes())}


LIES: dict[str, tuple[Lie, str]] = {
    "the first byte flipped": (flipped("b", 0), "`b`: its bytes differ from the source's"),
    "the last byte flipped": (flipped("e", 47), "`e`: its bytes differ from the source's"),
    "an integer changed": (flipped("c", 8), "`c`: its bytes differ from the source's"),
    "a scalar changed": (flipped("n", 0), "`n`: its bytes differ from the source's"),
    "two tensors swapped": (
        with_tensors(lambda t: {**t, "a": t["b"], "b": t["a"], "d": t["b"]}),
        "`a`: its bytes differ from the source's, from byte 0 on",
    ),
    "a key missing": (
        with_tensors(lambda t: {k: x for k, x in t.items() if k != "c"}),
        "the written file has other keys: `c`",
    ),
    "a key too many": (
        with_tensors(lambda t: {**t, "z": t["c"]}),
        "the written file has other keys: `z`",
    ),
    "a key renamed": (
        with_tensors(lambda t: {k.replace("c", "C"): x for k, x in t.items()}),
        "the written file has other keys: `c`, `C`",
    ),
    "keys in another order": (
        with_tensors(lambda t: dict(reversed(t.items()))),
        "the written file has other keys: in other order",
    ),
    "another type of the same size": (
        with_tensors(lambda t: {**t, "b": inline(t["b"], t["b"].tobytes(), dtype="int32")}),
        "`b`: found int32 (3, 4), wanted float32 (3, 4)",
    ),
    "another shape of the same size": (
        with_tensors(lambda t: {**t, "e": inline(t["e"], t["e"].tobytes(), shape=(6, 2))}),
        "`e`: found float32 (6, 2), wanted float32 (2, 6)",
    ),
    "another provenance": (
        lambda payload: replace(payload, provenance=lambda final: "{}"),
        "the written file has another `ckptool` in its metadata",
    ),
    "no provenance": (
        lambda payload: replace(payload, provenance=None),
        "the written file has another `ckptool` in its metadata",
    ),
}
TORCH_LIES: dict[str, tuple[Lie, str]] = {
    "a tie lost": (with_tensors(untied), "the written file ties other keys: `a`, `d`"),
    "a tie invented": (
        with_tensors(lambda t: {**t, "b": t["a"]}),
        "the written file ties other keys: ",
    ),
    "no module versions": (
        lambda payload: replace(payload, versions=None),
        "the written file has other module versions in its `_metadata`",
    ),
    "other module versions": (
        lambda payload: replace(payload, versions={"": 1, "m": 3}),
        "the written file has other module versions in its `_metadata`",
    ),
}
CASES = [
    *((name, suffix, *lie) for name, lie in LIES.items() for suffix in SUFFIXES),
    *((name, ".pth", *lie) for name, lie in TORCH_LIES.items()),
]


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Lie], None]:
    """Make the writer of a suffix write something else than it is given."""

    def patch(suffix: str, lie: Lie) -> None:
        module = import_module(f"ckptool.formats.{WRITERS[suffix]}")
        honest = module.write
        monkeypatch.setattr(module, "write", lambda out, payload: honest(out, lie(payload)))

    return patch


WRITERS = {".pth": "torch_zip_writer", ".safetensors": "safetensors_writer"}


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(("name", "suffix", "lie", "message"), CASES)
def test_a_lie_is_found_by_reading_back(
    name: str,
    suffix: str,
    lie: Lie,
    message: str,
    old: bytes | None,
    tmp_path: Path,
    lying: Callable[[str, Lie], None],
) -> None:
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    if old is not None:
        output.write_bytes(old)
    lying(suffix, lie)
    with pytest.raises(VerificationError) as caught:
        ckptool.convert(path, output, force=True)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"`{output}`: ")
    assert_nothing_left(tmp_path, output, old)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_writer_is_believed_when_it_does_not_lie(
    suffix: str, tmp_path: Path, lying: Callable[[str, Lie], None]
) -> None:
    lying(suffix, lambda payload: payload)
    assert ckptool.convert(source(tmp_path), tmp_path / f"out{suffix}").verified


def assert_nothing_left(folder: Path, output: Path, old: bytes | None) -> None:
    assert {path.name for path in folder.iterdir()} <= {"source.pth", output.name}
    assert output.exists() == (old is not None)
    assert old is None or output.read_bytes() == old


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp64"])
def test_a_value_that_is_not_the_cast_of_its_own_is_found(
    suffix: str, dtype: str, tmp_path: Path, lying: Callable[[str, Lie], None]
) -> None:
    """Four steps off; one step up may be as near as the right one."""
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    lying(suffix, flipped("b", 0, bits=4))
    with pytest.raises(VerificationError, match="`b`: "):
        ckptool.convert(path, output, dtype=dtype)
    assert_nothing_left(tmp_path, output, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tie_is_found_lost_after_a_cast(
    suffix: str, tmp_path: Path, lying: Callable[[str, Lie], None]
) -> None:
    """In safetensors every key has its own bytes; that they are one tensor stands beside them."""
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    result = ckptool.convert(path, output, dtype="fp16")
    assert result.verified
    if suffix == ".pth":
        assert ckptool.read(output).aliases == (("a", "d"),)
        lying(suffix, with_tensors(untied))
        with pytest.raises(VerificationError, match="ties other keys: `a`, `d`"):
            ckptool.convert(path, output, dtype="fp16", force=True)
    else:
        said = json.loads(ckptool.read(output).contents.metadata["ckptool"])
        assert said["aliases"] == [["a", "d"]]


# What does not even read


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0, 1, 9, 100, -1])
def test_a_file_cut_short_is_found(
    suffix: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    module = import_module(f"ckptool.formats.{WRITERS[suffix]}")
    honest = module.write

    def cut(out: Output, payload: Payload) -> None:
        honest(out, payload)
        os.ftruncate(out.descriptor, keep if keep >= 0 else out.position + keep)

    monkeypatch.setattr(module, "write", cut)
    with pytest.raises(VerificationError, match="the written file cannot be read: "):
        ckptool.convert(path, output)
    assert_nothing_left(tmp_path, output, None)


def test_bytes_that_the_disk_got_wrong_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of a tensor, changed behind the writer's back, in both formats."""
    path = source(tmp_path)
    for suffix, name in WRITERS.items():
        output = tmp_path / f"out{suffix}"
        module = import_module(f"ckptool.formats.{name}")
        honest = module.write
        data = ckptool.read(path)["b"].tobytes()

        for at in (0, 17, len(data) - 1):

            def damaged(out: Output, payload: Payload, at: int = at) -> None:
                honest(out, payload)  # noqa: B023
                whole = os.pread(out.descriptor, out.position, 0)
                place = whole.index(data) + at  # noqa: B023
                out.write_at(place, bytes((whole[place] ^ 0x80,)))

            monkeypatch.setattr(module, "write", damaged)
            with pytest.raises(VerificationError, match="`b`: "):
                ckptool.convert(path, output)
            assert_nothing_left(tmp_path, output, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_a_damaged_source_is_blamed_itself(suffix: str, dtype: str | None, tmp_path: Path) -> None:
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    raw = bytearray(path.read_bytes())
    raw[raw.index(ckptool.read(path)["e"].tobytes()) + 5] ^= 4
    path.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        ckptool.convert(path, output, dtype=dtype)
    assert caught.value.message.startswith(f"`{path}`: record `source/data/3` at byte ")
    assert caught.value.message.endswith("the file is damaged")
    assert_nothing_left(tmp_path, output, None)


# The second judge


def test_the_safetensors_library_has_a_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    path, output = source(tmp_path), tmp_path / "out.safetensors"

    def refusing(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("Error while deserializing header: invalid")

    monkeypatch.setattr(safetensors, "safe_open", refusing)
    with pytest.raises(VerificationError) as caught:
        ckptool.convert(path, output)
    assert caught.value.message == (
        f"`{output}`: the safetensors library does not open the written file: "
        "Error while deserializing header: invalid"
    )
    assert_nothing_left(tmp_path, output, None)


def test_what_the_safetensors_library_reads_otherwise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptool import proof

    path, output = source(tmp_path), tmp_path / "out.safetensors"

    def other(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(dtype, shape[::-1])

    monkeypatch.setattr(proof, "spec_of", other)
    with pytest.raises(VerificationError, match="the safetensors library reads other tensors: "):
        ckptool.convert(path, output)
    assert_nothing_left(tmp_path, output, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_are_proven_as_one(
    suffix: str, tmp_path: Path, lying: Callable[[str, Lie], None]
) -> None:
    path, output = source(tmp_path), tmp_path / f"out{suffix}"
    lying(suffix, lambda p: flipped("b", 3)(p) if "b" in p.tensors else p)
    with pytest.raises(VerificationError, match="`b`: its bytes differ from the source's"):
        ckptool.convert(path, output, max_shard_size=60)
    assert [item.name for item in tmp_path.iterdir()] == ["source.pth"]


def test_the_command_line_says_it_in_one_sentence(
    tmp_path: Path, lying: Callable[[str, Lie], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = source(tmp_path), tmp_path / "out.pth"
    lying(".pth", flipped("b", 0))
    assert main(["convert", str(path), "-o", str(output)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        f"error: `{output}`: `b`: its bytes differ from the source's, from byte 0 on\n"
    )
    assert not output.exists()


def test_batch_norm_counters_are_judged_by_what_was_written(tmp_path: Path) -> None:
    """A torch file says that its counters must be there; a safetensors file cannot."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "like.pth")
    state = model.state_dict()
    del state["0.num_batches_tracked"]
    torch.save(state, tmp_path / "source.pth")
    for suffix in SUFFIXES:
        result = ckptool.convert(
            tmp_path / "source.pth", tmp_path / f"out{suffix}", like=tmp_path / "like.pth"
        )
        assert result.fits_strict
        model.load_state_dict(load(tmp_path / f"out{suffix}"), strict=True)


def load(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    if path.suffix == ".pth":
        loaded: Mapping[str, torch.Tensor] = torch.load(path, weights_only=True)
        return loaded
    return load_file(path)


def test_every_error_of_a_conversion_is_ours(tmp_path: Path) -> None:
    """A defect in a third party's edit is no excuse to leave something behind."""
    from ckptool.planning import Options, make_plan
    from ckptool.reading import read
    from ckptool.writing import Prepared, carry_out

    class Failing:
        def chunks(self, spec: TensorSpec, step: int) -> object:
            raise CkptError("no")

        def extent(self, spec: TensorSpec) -> None:
            return None

    ckpt = read(source(tmp_path))
    tensors = {**ckpt.weights.tensors, "b": LazyTensor(ckpt["b"].spec, Failing())}  # type: ignore[arg-type]
    ckpt = replace(ckpt, weights=replace(ckpt.weights, tensors=tensors))
    prepared = Prepared(ckpt, make_plan(ckpt.weights, None, Options()))
    with pytest.raises(CkptError, match="no"):
        carry_out(prepared, str(tmp_path / "out.pth"))
    assert_nothing_left(tmp_path, tmp_path / "out.pth", None)
