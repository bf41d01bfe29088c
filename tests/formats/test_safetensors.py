"""Safetensors, with the reference implementation as writer and as judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tensors_made import DTYPES, SHAPES, bits, dtype_name, filled

from ckptool.checkpoint import Refused
from ckptool.errors import CkptError, FormatError
from ckptool.reading import open_file, read

X = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "n": torch.tensor(7)}


def written(folder: Path, header: Any, data: bytes = b"", pad: bytes = b"") -> Path:
    """A file with exactly this header (an object, or text) and these bytes behind it."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode() + pad
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x", "x.weights"])
def test_every_dtype_and_shape_equals_the_reference(name: str, tmp_path: Path) -> None:
    """complex128 is the only type that torch has and the format has not."""
    tensors = {
        f"{dtype_name(x)}.{number}": x
        for number, x in enumerate(
            filled(dtype, shape, 5)
            for dtype in DTYPES
            if dtype is not torch.complex128
            for shape in (*SHAPES, (), (0,), (2, 0, 3))
        )
    }
    save_file(tensors, tmp_path / name)
    ckpt = read(tmp_path / name)
    assert ckpt.contents.format == "safetensors"
    with safe_open(tmp_path / name, "pt") as reference:
        assert set(ckpt) == set(reference.keys())
    for key, x in load_file(tmp_path / name).items():
        assert (ckpt[key].dtype, ckpt[key].shape) == (dtype_name(x), tuple(x.shape))
        assert ckpt[key].tobytes() == bits(x)
        assert bits(ckpt[key].torch()) == bits(x)


def test_metadata_is_kept(tmp_path: Path) -> None:
    save_file(X, tmp_path / "x", metadata={"format": "pt", "épée": "line\nbreak"})
    assert open_file(tmp_path / "x").contents.metadata == {"format": "pt", "épée": "line\nbreak"}
    save_file(X, tmp_path / "x")
    assert open_file(tmp_path / "x").contents.metadata == {}


def test_the_keys_are_in_the_headers_order(tmp_path: Path) -> None:
    header = {"z": entry("U8", [1], 1, 2), "a": entry("U8", [1], 0, 1)}
    ckpt = read(written(tmp_path, header, b"\1\2"))
    assert [(key, x.numpy().tolist()) for key, x in ckpt.items()] == [("z", [2]), ("a", [1])]


def test_a_header_of_123_bytes_is_not_taken_for_json(tmp_path: Path) -> None:
    """Its length starts with a brace, as an index of shards does."""
    text = json.dumps({"x": entry("U8", [1], 0, 1)})
    path = written(tmp_path, text, b"\7", pad=b" " * (123 - len(text)))
    assert path.read_bytes()[:1] == b"{"
    assert read(path)["x"].numpy().tolist() == [7]


def test_an_empty_file_of_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "x")
    assert open_file(tmp_path / "x").sets == ()


def test_types_smaller_than_a_byte_are_listed(tmp_path: Path) -> None:
    header = {"p": entry("F4", [2, 2], 0, 2), "x": entry("I16", [1], 2, 4)}
    ckpt = read(written(tmp_path, header, b"\x12\x34\5\0"))
    assert dict(ckpt.weights.refused) == {
        "p": Refused("packed", "its elements of type F4 are smaller than a byte")
    }
    assert ckpt["x"].numpy().tolist() == [5]


def test_cut_in_the_data_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-123])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert (caught.value.code, caught.value.message) == (
        "format.truncated",
        f"`{path}`: the file is cut short: 123 bytes of the tensors are missing "
        "(found 3,877 bytes of data, wanted 4,000)",
    )


def test_cut_in_the_header_says_at_least_how_many(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.message == (
        f"`{path}`: the file is cut short inside its header: {header + 8 - 30:,} bytes or more "
        f"are missing (found 30, the header alone wants {header + 8:,})"
    )


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    save_file(X, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for size in range(len(data)):
        (tmp_path / "x").write_bytes(data[:size])
        with pytest.raises(CkptError):
            read(tmp_path / "x")


ONE = entry("U8", [1], 0, 1)


@pytest.mark.parametrize(
    ("header", "code", "message"),
    [
        ('{"a":1', "header", "the header is not a JSON object padded with spaces"),
        ('{"a":}', "header", "the header is not valid JSON in UTF-8"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1.0]}}', "header", "the number `1.0`"),
        (f'{{"a":{json.dumps(ONE)},"a":{json.dumps(ONE)}}}', "header", "the header has `a` twice"),
        ({"__metadata__": {"a": 1}}, "metadata", "`__metadata__` is not a map from text to text"),
        ({"__metadata__": None}, "metadata", "`__metadata__` is not a map from text to text"),
        ({"a": {**ONE, "x": 1}}, "entry", "`a` has not exactly dtype, shape and data_offsets"),
        ({"a": [1]}, "entry", "`a` has not exactly dtype, shape and data_offsets"),
        ({"a": entry("U8", [True], 0, 1)}, "entry", "a size or an offset is not a natural number"),
        ({"a": entry("U8", [-1], 0, 1)}, "entry", "a size or an offset is not a natural number"),
        ({"a": entry("U8", [0], 1, 0)}, "entry", "`a`: found 2 offsets, 1 sizes"),
        ({"a": entry("X9", [1], 0, 1)}, "dtype", "`a` has the unknown dtype `X9`"),
        ({"a": entry("F32", [1], 0, 1)}, "size", "shape (1,) of F32 wants 4 bytes, found 1"),
        ({"a": entry("U8", [1 << 24, 1 << 24], 0, 1)}, "shape", "declares 281,474,976,710,656"),
        ({"a": entry("U8", [1], 1, 2)}, "coverage", "`a` starts at byte 1 of the data"),
        ({"a": ONE, "b": ONE}, "coverage", "`b` starts at byte 0 of the data, the one before it"),
        ({}, "coverage", "1 bytes behind the last tensor belong to nothing"),
    ],
)
def test_a_header_that_breaks_the_rules(
    header: Any, code: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError) as caught:
        read(written(tmp_path, header, b"\0"))
    assert caught.value.code == f"safetensors.{code}"
    assert message in caught.value.message


@pytest.mark.parametrize(
    "header",
    [{"a": ONE}, {"a": ONE, "e": entry("F32", [0, 3], 1, 1)}, {"a": ONE, "__metadata__": {}}],
)
def test_what_is_read_here_the_reference_reads_too(header: Any, tmp_path: Path) -> None:
    path = written(tmp_path, header, b"\7", pad=b"   ")
    assert read(path)["a"].numpy().tolist() == [7]
    assert load_file(path)["a"].tolist() == [7]


def test_the_reference_refuses_a_hole_as_well(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError):
        load_file(written(tmp_path, {"a": entry("U8", [1], 1, 2)}, b"\0\0"))
