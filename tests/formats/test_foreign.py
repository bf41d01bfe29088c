"""What is not a checkpoint: one sentence on what it is, and what to do."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptool.errors import CkptError
from ckptool.reading import read

UNPACK = "unpack it, then try the file inside"
AGAIN = "download the file again"
READS = "ckptool reads .pth .pt .ckpt .bin .safetensors .pkl and darknet .weights"
PAGE = "download it again; a page that asks for a login or a confirmation was saved instead"
JSON = "if a server answered with an error, download the file again"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 207884672\n"
)

EXPORTED = "name the checkpoint that it was exported from"
ITSELF = "name the checkpoint itself"

# The bytes; the sentence behind the file's name; the hint; the code behind `not-a-checkpoint.`.
BYTES: dict[str, tuple[bytes, str, str | None, str]] = {
    "empty": (b"", "the file is empty", "download or save it again", "empty"),
    "web page": (
        b"<!DOCTYPE html>\n<html><head><title>\n Google Drive - Virus scan warning</title>",
        "this is a web page with the title `Google Drive - Virus scan warning`: the download went "
        "wrong",
        PAGE,
        "html",
    ),
    "web page behind a line feed": (
        b"\n\n<html><body>403</body></html>",
        "this is a web page: the download went wrong",
        PAGE,
        "html",
    ),
    "XML error": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "this is a web page: the download went wrong",
        PAGE,
        "html",
    ),
    "a title with terminal codes": (
        b"<html><TITLE>\x1b[31mred</TITLE>",
        r"this is a web page with the title `\x1b[31mred`: the download went wrong",
        PAGE,
        "html",
    ),
    "git-lfs pointer": (
        POINTER,
        "this is a git-lfs pointer, not the file: it points to "
        "`sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393` of `207884672` "
        "bytes",
        "git lfs pull",
        "git-lfs",
    ),
    "JSON error body": (
        b'{"error":"Repository not found"}',
        'this is JSON text: `{"error":"Repository not found"}`',
        JSON,
        "json",
    ),
    "JSON list": (b"[1, 2, 3]", "this is JSON text: `[1, 2, 3]`", JSON, "json"),
    "darknet cfg": (
        b"[net]\nbatch=64\n",
        "this is a darknet cfg, the description of a network and not its weights",
        "name the .weights file; the cfg goes with it: --arch darknet:FILE.cfg",
        "cfg",
    ),
    "gzip": (
        gzip.compress(b"x"),
        "this is gzip data",
        "gunzip it, then try the file inside",
        "foreign",
    ),
    "bzip2": (
        bz2.compress(b"x"),
        "this is bzip2 data",
        "bunzip2 it, then try the file inside",
        "foreign",
    ),
    "xz": (lzma.compress(b"x"), "this is xz data", "unxz it, then try the file inside", "foreign"),
    "zstd": (
        b"\x28\xb5\x2f\xfd" + bytes(9),
        "this is zstd data",
        "unzstd it, then try the file inside",
        "foreign",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "this is a 7z archive", UNPACK, "foreign"),
    "rar": (b"Rar!\x1a\7\0", "this is a rar archive", UNPACK, "foreign"),
    "HDF5": (
        b"\x89HDF\r\n\x1a\n" + bytes(90),
        "this is an HDF5 file, such as Keras writes",
        "convert it with the framework it is from",
        "foreign",
    ),
    "ONNX": (
        b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:",
        "this is an ONNX model, a graph and not a checkpoint",
        EXPORTED,
        "foreign",
    ),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3", "this is a TensorFlow Lite model", EXPORTED, "foreign"),
    "GGUF": (b"GGUF\3\0\0\0", "this is a GGUF file of llama.cpp", EXPORTED, "foreign"),
    "npy": (
        b"\x93NUMPY\1\0",
        "this is a single numpy array",
        "numpy.savez writes arrays under their keys",
        "foreign",
    ),
    "PDF": (b"%PDF-1.7\n", "this is a PDF", ITSELF, "foreign"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "this is a PNG picture", ITSELF, "foreign"),
    "JPEG": (b"\xff\xd8\xff\xe0", "this is a JPEG picture", ITSELF, "foreign"),
    "ELF": (b"\x7fELF\2\1", "this is a program or shared library", ITSELF, "foreign"),
    "text": (b"Not Found\nline 2", "this is text: `Not Found`", AGAIN, "text"),
    "text in another alphabet": ("不存在\n".encode(), "this is text: `不存在`", AGAIN, "text"),
    "a sentence in brackets": (
        b"(see the page).",
        "this is text: `(see the page).`",
        AGAIN,
        "text",
    ),
    "an error message": (
        b"cannot find the file.",
        "this is text: `cannot find the file.`",
        AGAIN,
        "text",
    ),
    "python source": (b"import torch\n", "this is text: `import torch`", AGAIN, "text"),
    "noise": (
        b"\xfe\xdc\xba\x98" * 9,
        "no known format; it starts with the bytes fe dc ba 98 fe dc ba 98",
        READS,
        "unknown",
    ),
    "zeros": (
        bytes(100),
        "no known format; it starts with the bytes 00 00 00 00 00 00 00 00",
        READS,
        "unknown",
    ),
    "one byte": (b"\x80", "no known format; it starts with the bytes 80", READS, "unknown"),
}


def refusal(path: Path) -> CkptError:
    with pytest.raises(CkptError) as caught:
        read(path)
    return caught.value


def assert_says(error: CkptError, path: Path, message: str, hint: str | None, code: str) -> None:
    assert (error.message, error.hint, error.code) == (f"`{path}`: {message}", hint, code)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".weights", ".pkl"])
@pytest.mark.parametrize("name", BYTES)
def test_one_sentence_whatever_the_suffix(name: str, suffix: str, tmp_path: Path) -> None:
    data, message, hint, code = BYTES[name]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert_says(refusal(path), path, message, hint, f"not-a-checkpoint.{code}")


def _zip(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"data")

    return write


PACKED = (
    "a checkpoint written by torch.save has data.pkl; was it packed together with other files? "
    "Then unpack it first"
)


@pytest.mark.parametrize(
    ("write", "message", "hint", "code"),
    [
        (
            _zip("best.pth"),
            "a zip archive without `data.pkl`: it holds `best.pth`",
            PACKED,
            "not-a-checkpoint.zip",
        ),
        (
            _zip("__MACOSX/._x", "run/best.pth", "run/last.pth", "run/log.txt"),
            "a zip archive without `data.pkl`: it holds `__MACOSX/._x`, `run/best.pth`, "
            "`run/last.pth` and 1 more",
            PACKED,
            "not-a-checkpoint.zip",
        ),
        (
            _zip("metadata.json", "config.json", "model.weights.h5"),
            "a zip archive without `data.pkl`: it holds `metadata.json`, `config.json`, "
            "`model.weights.h5`",
            PACKED,
            "not-a-checkpoint.zip",
        ),
    ],
    ids=["zipped checkpoint", "zipped folder", "keras"],
)
def test_zip_archives_of_other_kinds(
    write: Callable[[Path], None], message: str, hint: str, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    write(path)
    assert_says(refusal(path), path, message, hint, code)


def test_an_empty_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    _zip()(path)
    message = "a zip archive without `data.pkl`: it holds nothing"
    assert_says(refusal(path), path, message, PACKED, "not-a-checkpoint.zip")


def test_a_save_that_was_broken_off(tmp_path: Path) -> None:
    """torch.save that meets what it cannot pickle leaves an archive without the pickle."""
    path = tmp_path / "x.pth"
    with pytest.raises(AttributeError):
        torch.save({"w": torch.ones(3), "hook": lambda: None}, path)
    error = refusal(path)
    assert error.message == (
        f"`{path}`: a zip archive as torch.save begins it, without `data.pkl`: the saving was "
        "broken off"
    )
    assert error.hint == "save it again, or take the checkpoint before it"


@pytest.mark.parametrize("cut", [1, 30, 5_000])
def test_a_zip_that_is_cut_short(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(10_000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    error = refusal(path)
    assert error.code == "format.truncated"
    assert error.hint == "download or copy the file again"
    assert error.message.startswith(f"`{path}`: the zip archive is cut short: it has no end record")


def test_onnx_as_torch_writes_it(tmp_path: Path) -> None:
    """The start of a real file: ir_version, then the producer."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0:\x80\x01\n" + bytes(50))
    assert refusal(path).message == (
        f"`{path}`: this is an ONNX model, a graph and not a checkpoint"
    )


def test_no_sentence_advises_to_run_the_file(tmp_path: Path) -> None:
    """torch.load answers most of these with advice to load unsafely."""
    said = [text for _, message, hint, _ in BYTES.values() for text in (message, hint or "")]
    for text in (*said, PACKED, READS, json.dumps(sorted(BYTES))):
        assert "weights_only" not in text
        assert "unsafe" not in text.lower()
        assert "trust" not in text.lower()


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "x.pt2")
    with pytest.raises(CkptError) as caught:
        read(tmp_path / "x.pt2")
    assert caught.value.code == "unsupported.export"
    assert caught.value.message.endswith(
        "this is a program of torch.export, a graph with weights of its own"
    )
    assert caught.value.hint is not None
    assert "torch.save(model.state_dict()" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "end"),
    [("m.ckpt.index", "57fb808b247547db"), ("m.ckpt.data-00000-of-00001", "0000000000000000")],
)
def test_the_files_of_a_tensorflow_checkpoint(name: str, end: str, tmp_path: Path) -> None:
    """Its index is a table of LevelDB, which ends with a magic number; its values have none."""
    (tmp_path / name).write_bytes(bytes(100) + bytes.fromhex(end)[::-1])
    with pytest.raises(CkptError, match="part of a TensorFlow checkpoint, which is not read"):
        read(tmp_path / name)
