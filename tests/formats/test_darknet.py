"""Darknet `.weights`: known by its name and a plausible header, one flat array of floats."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import pytest

from ckptool.errors import FormatError, UnsupportedError
from ckptool.formats.darknet import KEY
from ckptool.reading import open_file, read

FLOATS = numpy.arange(1.0, 101.0, dtype="<f4")


def written(
    folder: Path,
    version: tuple[int, int, int] = (0, 2, 5),
    seen: bytes = (32_013_312).to_bytes(8, "little"),
    data: bytes = FLOATS.tobytes(),
    name: str = "yolov4.weights",
) -> Path:
    path = folder / name
    path.write_bytes(struct.pack("<3i", *version) + seen + data)
    return path


@pytest.mark.parametrize(
    ("version", "width"), [((0, 2, 5), 8), ((0, 2, 0), 8), ((1, 0, 0), 8), ((0, 1, 0), 4)]
)
def test_the_header_is_as_long_as_its_version_says(
    version: tuple[int, int, int], width: int, tmp_path: Path
) -> None:
    path = written(tmp_path, version, (64_000).to_bytes(width, "little"))
    ckpt = read(path)
    assert ckpt.contents.format == "darknet"
    assert list(ckpt) == [KEY]
    assert (ckpt[KEY].dtype, ckpt[KEY].shape) == ("float32", (100,))
    assert ckpt[KEY].numpy().tolist() == FLOATS.tolist()
    major, minor, revision = map(str, version)
    assert ckpt.contents.metadata == {
        "major": major,
        "minor": minor,
        "revision": revision,
        "seen": "64000",
    }


def test_it_says_that_it_has_no_keys_and_no_checksums(tmp_path: Path) -> None:
    findings = open_file(written(tmp_path)).contents.findings
    assert [item.code for item in findings] == ["no-keys", "no-checksums"]


def test_without_its_name_it_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, name="yolov4.bin")
    with pytest.raises(UnsupportedError) as caught:
        read(path)
    assert caught.value.message == (
        f"`{path}`: this could be a darknet file: it starts like one, but nothing in it says so"
    )
    assert caught.value.hint == ("name it something.weights, or say which network: --arch yolov4")


@pytest.mark.parametrize("left", [1, 2, 3])
def test_bytes_that_are_no_whole_floats(left: int, tmp_path: Path) -> None:
    path = written(tmp_path, data=FLOATS.tobytes() + bytes(left))
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.message == (
        f"`{path}`: {400 + left} bytes behind the darknet header are not whole float32 numbers: "
        f"{left} left over"
    )


def test_cut_inside_the_header(tmp_path: Path) -> None:
    path = written(tmp_path, data=b"", seen=bytes(6))
    with pytest.raises(FormatError, match="found 6 bytes, wanted 8: the file ends early"):
        read(path)


@pytest.mark.parametrize(
    "version", [(1000, 2, 5), (0, 1000, 0), (-1, 2, 5), (0, 0, 0), (0, 2, 900)]
)
def test_an_implausible_header_is_none(version: tuple[int, int, int], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no known format; it starts with the bytes"):
        read(written(tmp_path, version))


def test_another_format_called_weights_is_what_its_content_says(tmp_path: Path) -> None:
    import torch

    torch.save({"x": torch.ones(2)}, tmp_path / "x.weights")
    assert read(tmp_path / "x.weights").contents.format == "torch-zip"
    (tmp_path / "y.weights").write_bytes(b"<html><title>404</title></html>")
    with pytest.raises(Exception, match="this is a web page with the title `404`"):
        read(tmp_path / "y.weights")
