"""A safetensors file written here is opened by the safetensors library, with equal tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensors_made import COMPLEX, DTYPES, LAYOUTS, SHAPES, bits, filled

import ckptool
from ckptool.errors import UnsupportedError
from ckptool.files import ByteFile
from ckptool.formats import safetensors_writer
from ckptool.formats.atomic import Output, replace_file
from ckptool.formats.payload import Payload
from ckptool.reading import read
from ckptool.tensors import Inline, LazyTensor, TensorSpec

HELD = tuple(dtype for dtype in DTYPES if dtype is not torch.complex128)


def rewritten(folder: Path, state: object, name: str = "out.safetensors") -> Path:
    """The state saved by torch, read and written by ckptool."""
    torch.save(state, folder / "source.pth")
    ckptool.write(read(folder / "source.pth", weights="."), folder / name, force=True)
    return folder / name


def header_of(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return dict(json.loads(file.read(length)))


def assert_equal(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    loaded = load_file(path)
    assert set(loaded) == set(state)
    for key, wanted in state.items():
        assert (loaded[key].dtype, loaded[key].shape) == (wanted.dtype, wanted.shape), key
        assert bits(loaded[key]) == bits(wanted), key


def test_every_dtype_and_shape_is_opened_by_the_library(tmp_path: Path) -> None:
    state = {
        f"{dtype}/{shape}": filled(dtype, shape, seed)
        for seed, dtype in enumerate(HELD)
        for shape in (*SHAPES, (), (0,), (3, 0, 2))
    }
    assert_equal(rewritten(tmp_path, state), state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_written_contiguous(layout: str, tmp_path: Path) -> None:
    """Conj and neg bits are carried out, which the library itself would drop."""
    state = {
        f"{dtype}/{shape}": LAYOUTS[layout](filled(dtype, shape, seed))
        for seed, dtype in enumerate(HELD)
        for shape in SHAPES
    }
    assert_equal(rewritten(tmp_path, state), state)


def test_the_header_has_the_order_of_the_keys_and_the_data_are_aligned(tmp_path: Path) -> None:
    """Types of every width with odd counts, in an order that no alignment would choose."""
    state = {f"{n}.{dtype}": filled(dtype, (2 * n + 1,), n) for n, dtype in enumerate(HELD[::-1])}
    path = rewritten(tmp_path, state)
    header = header_of(path)
    assert list(header) == ["__metadata__", *state]
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert start % 8 == 0
    for key, wanted in state.items():
        assert (start + header[key]["data_offsets"][0]) % wanted.dtype.itemsize == 0
    with safe_open(path, framework="pt") as file:
        assert {key: file.get_tensor(key).dtype for key in file.keys()} == {  # noqa: SIM118
            key: x.dtype for key, x in state.items()
        }


def test_tied_tensors_stand_in_full_under_each_key_and_are_recorded(tmp_path: Path) -> None:
    shared, other = torch.randn(5), torch.randn(2, 2)
    state = {"a": shared, "b": other, "c": shared, "d": shared.view(5), "e": other, "f": shared[:3]}
    path = rewritten(tmp_path, state)
    assert_equal(path, state)
    offsets = {tuple(header_of(path)[key]["data_offsets"]) for key in state}
    assert len(offsets) == len(state)
    said = json.loads(header_of(path)["__metadata__"]["ckptool"])
    assert said["aliases"] == [["a", "c", "d"], ["b", "e"]]


def test_the_metadata_of_a_source_are_kept(tmp_path: Path) -> None:
    """But for what says who made the file: that is told anew."""
    metadata = {
        "format": "pt",
        "license": "Apache-2.0",
        "épée": '{"a": "\n\x00\U0001f600"}',
        "": "",
    }
    save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors", metadata=metadata)
    ckptool.write(read(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    ckptool.write(read(tmp_path / "b.safetensors"), tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        found = file.metadata()
    said = json.loads(found.pop("ckptool"))
    assert found == metadata
    assert said["source"]["name"] == "b.safetensors"
    assert [item["source"]["name"] for item in said["earlier"]] == ["a.safetensors"]


def test_metadata_of_other_formats_do_not_become_the_files_own(tmp_path: Path) -> None:
    path = rewritten(tmp_path, {"x": torch.ones(3)})
    assert set(header_of(path)["__metadata__"]) == {"format", "ckptool"}


def test_written_twice_it_is_the_same_but_for_where_it_came_from(tmp_path: Path) -> None:
    state = {f"{dtype}": filled(dtype, (3, 5), n) for n, dtype in enumerate(HELD)}
    first = rewritten(tmp_path, state)
    ckptool.write(read(first), tmp_path / "second.safetensors")
    one, other = header_of(first), header_of(tmp_path / "second.safetensors")
    del one["__metadata__"], other["__metadata__"]
    assert one == other
    assert_equal(tmp_path / "second.safetensors", state)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_state_dict_is_opened_by_the_library(data: st.DataObject, tmp_path: Path) -> None:
    key = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    names = data.draw(st.lists(key.filter("__metadata__".__ne__), min_size=1, unique=True))
    state = {}
    for name in names:
        shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
        state[name] = filled(data.draw(st.sampled_from(HELD)), shape, data.draw(st.integers(0, 99)))
    assert_equal(rewritten(tmp_path, state), state)


# What cannot be written


def refusal(folder: Path, state: object) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        rewritten(folder, state)
    assert [path.name for path in folder.iterdir()] == ["source.pth"]
    return caught.value


def test_complex128_is_refused_with_the_way_out(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"a": torch.ones(2), "z": torch.ones(2, dtype=COMPLEX[1])})
    assert error.message == "`z` is complex128, which safetensors does not have"
    assert error.hint == "-o OUT.pth"
    assert error.code == "unsupported.dtype"


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_complex_halves_are_refused_with_the_way_out(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"z": torch.ones(4).half().view(torch.complex32)})
    assert error.message == "`z` is complex32, which safetensors does not have"


def test_a_tensor_called_like_the_metadata_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"__metadata__": torch.ones(2)})
    assert error.message == "safetensors cannot hold a tensor called `__metadata__`"
    assert error.hint == "--rename __metadata__=NEW, or -o OUT.pth"


def test_a_header_that_the_library_would_refuse_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_writer, "LARGEST_HEADER", 1_000)
    error = refusal(tmp_path, {f"key.{n}": torch.ones(1) for n in range(20)})
    assert error.message.endswith("safetensors allows 1,000")
    assert error.hint == "--max-shard-size 2GB, or -o OUT.pth"


def test_untouched_bytes_never_pass_through_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those of tensors so small that many of them are written at once."""
    state = {f"k{n}": torch.randn(1000) for n in range(20)}
    torch.save(state, tmp_path / "source.pth")
    weights = read(tmp_path / "source.pth").weights

    def forbidden(*_: object) -> bytes:
        raise AssertionError("read by Python")

    def fill(output: Output) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(ByteFile, "read", forbidden)
            safetensors_writer.write(output, Payload(weights.tensors))

    replace_file(str(tmp_path / "out.safetensors"), fill, lambda _: None)
    assert_equal(tmp_path / "out.safetensors", state)


def test_small_tensors_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"k{n}": torch.randn(n % 17, 2) for n in range(1000)} | {"large": torch.randn(9000)}
    torch.save(state, tmp_path / "source.pth")
    written = []
    real = Output.write_at

    def counted(output: Output, offset: int, data: bytes | memoryview) -> None:
        written.append(len(data))
        real(output, offset, data)

    monkeypatch.setattr(Output, "write_at", counted)
    ckptool.convert(tmp_path / "source.pth", tmp_path / "out.safetensors")
    assert_equal(tmp_path / "out.safetensors", state)
    assert len(written) < 50  # 64 kB of small tensors, and the header


def test_only_the_header_is_written_again_when_the_provenance_is_known(tmp_path: Path) -> None:
    """A draft of the same length holds its place while the source is hashed."""
    asked = []

    def text(final: bool) -> str:
        asked.append(final)
        return "final" if final else "draft"

    tensors = {"x": LazyTensor(TensorSpec("uint8", (3,)), Inline(b"abc"))}
    path = tmp_path / "out.safetensors"
    replace_file(
        str(path),
        lambda output: safetensors_writer.write(output, Payload(tensors, provenance=text)),
        lambda _: None,
    )
    assert asked == [False, True]
    assert header_of(path)["__metadata__"]["ckptool"] == "final"
    assert path.read_bytes().endswith(b"abc")
