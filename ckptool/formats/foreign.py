"""What is not a checkpoint, recognised by its first bytes: one sentence on what it is, what to do.

Source: the magic numbers of each format; the git-lfs pointer specification v1.
"""

from __future__ import annotations

import re
from struct import Struct

from ckptool.errors import (
    CkptError,
    FormatError,
    NotACheckpointError,
    UnsupportedError,
    listed,
    quoted,
)
from ckptool.files import Readable, cut_short
from ckptool.formats.darknet import plausible
from ckptool.formats.nodes import PersistentId
from ckptool.formats.pickle_vm import load
from ckptool.formats.rebuild import storage_reference

# What torch writes before the pickle.
_BEGINNING = re.compile(r"(?:[^/]+/)?(?:version|byteorder|\.\w.*)")
_SIZE_AND_START = Struct("<II")
_LENGTHS = Struct("<3H")
# A TensorFlow checkpoint is a table of keys, `NAME.index`, and files of values without a magic.
_TF_TABLE = bytes.fromhex("57fb808b247547db")[::-1]
_TF_VALUES = re.compile(r"\.data-\d{5}-of-\d{5}$")
_UNPACK = "unpack it, then try the file inside"
_FROM = "name the checkpoint that it was exported from"
_NAME = "name the checkpoint itself"
_MAGIC: tuple[tuple[bytes, str, str | None], ...] = (
    (b"\x1f\x8b", "gzip data", "gunzip it, then try the file inside"),
    (b"BZh", "bzip2 data", "bunzip2 it, then try the file inside"),
    (b"\xfd7zXZ\0", "xz data", "unxz it, then try the file inside"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unzstd it, then try the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, such as Keras writes", "convert it with the framework it is from"),
    (b"GGUF", "a GGUF file of llama.cpp", _FROM),
    (
        b"\x93NUMPY",
        "a single numpy array",
        "numpy.savez writes arrays under their keys",
    ),
    (b"%PDF", "a PDF", _NAME),
    (b"\x89PNG", "a PNG picture", _NAME),
    (b"\xff\xd8\xff", "a JPEG picture", _NAME),
    (b"\x7fELF", "a program or shared library", _NAME),
)


def explain(head: bytes, file: Readable) -> CkptError:
    """The error that says what a file is which no reader recognises."""
    if not file.size:
        return _not("the file is empty", "download or save it again", "empty")
    if head.startswith(b"version https://git-lfs"):
        return _lfs_pointer(head)
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return _not(f"this is {what}", hint, "foreign")
    end = file.read(max(0, file.size - 8), min(file.size, 8))
    if end == _TF_TABLE or _TF_VALUES.search(file.path):
        return _not(
            "this is part of a TensorFlow checkpoint, which is not read",
            "export its variables to .npz with TensorFlow",
            "tensorflow",
        )
    if head[4:8] == b"TFL3":
        return _not("this is a TensorFlow Lite model", _FROM, "foreign")
    if head[257:262] == b"ustar":
        return _not("this is a tar archive", _UNPACK, "foreign")
    if head[:1] == b"\x08" and re.search(rb"onnx|pytorch|\x12.{0,40}(?:ir_version|graph)", head):
        return _not("this is an ONNX model, a graph and not a checkpoint", _FROM, "foreign")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return _web_page(text)
    if re.match(rb"\[(?:net|network)\]", text):
        return _not(
            "this is a darknet cfg, the description of a network and not its weights",
            "name the .weights file; the cfg goes with it: --arch darknet:FILE.cfg",
            "cfg",
        )
    if text.startswith((b"{", b"[")):
        return _json(text)
    if plausible(head, file) and file.size % 4 == 0:
        return UnsupportedError(
            "this could be a darknet file: it starts like one, but nothing in it says so",
            hint="name it something.weights, or say which network: --arch yolov4",
            code="unsupported.darknet",
        )
    if _is_text(head):
        line = str(head.split(b"\n", 1)[0], "utf-8", "replace")
        return _not(f"this is text: {quoted(line, 80)}", "download the file again", "text")
    return _not(
        f"no known format; it starts with the bytes {head[:8].hex(' ')}",
        "ckptool reads .pth .pt .ckpt .bin .safetensors .pkl and darknet .weights",
        "unknown",
    )


def explain_zip(file: Readable) -> CkptError | None:
    """For a zip archive that is not laid out as torch does: cut short, or of another kind.

    None for what could be a checkpoint all the same.
    """
    tail = file.read(max(0, file.size - 65_600), min(file.size, 65_600))
    end = tail.rfind(b"PK\x05\x06")
    if 0 <= end <= len(tail) - 22:
        size, start = _SIZE_AND_START.unpack_from(tail, end + 12)
        if start + size > file.size or size > 1 << 22:
            return None
        names = _names_in(file.read(start, size))
        if any("data.pkl" in name for name in names) or (not names and file.size > 22):
            return None
        return not_torch(names)
    missing = _missing_storages(file)
    return cut_short(
        "the zip archive is cut short: it has no end record"
        + (f", and at least {missing:,} bytes of its storages are missing" if missing > 0 else "")
    )


def not_torch(names: list[str]) -> CkptError:
    """The error for a zip archive without `data.pkl`, from the names in it."""
    if names and all(map(_BEGINNING.fullmatch, names)):
        return FormatError(
            "a zip archive as torch.save begins it, without `data.pkl`: the saving was broken off",
            hint="save it again, or take the checkpoint before it",
            code="format.unfinished",
        )
    if "model.json" in names:
        return UnsupportedError(
            "a TorchScript archive of torch 1.0 to 1.3 (`model.json`), which is not read",
            hint="load it with torch 1.4 or later and save it again",
            code="unsupported.torchscript",
        )
    if any(name.endswith("archive_format") for name in names):
        return UnsupportedError(
            "this is a program of torch.export, a graph with weights of its own",
            hint="save the weights where it was exported: torch.save(model.state_dict(), …)",
            code="unsupported.export",
        )
    return NotACheckpointError(
        f"a zip archive without `data.pkl`: it holds {listed(names, 3) or 'nothing'}",
        hint="a checkpoint written by torch.save has data.pkl; was it packed together with "
        "other files? Then unpack it first",
        code="not-a-checkpoint.zip",
    )


def _names_in(directory: bytes) -> list[str]:
    """The names in a zip directory, as far as it is one."""
    names = []
    at = 0
    while directory[at : at + 4] == b"PK\x01\x02" and at + 46 <= len(directory):
        name, extra, comment = _LENGTHS.unpack_from(directory, at + 28)
        names.append(str(directory[at + 46 : at + 46 + name], "utf-8", "replace"))
        at += 46 + name + extra + comment
    return names


def _missing_storages(file: Readable) -> int:
    """The bytes of the storages that the pickle at the archive's start wants and the file lacks."""
    head = file.read(0, min(file.size, 1 << 24))
    name_size, extra_size = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    start = 30 + name_size + extra_size
    if not head[30 : 30 + name_size].endswith(b"/data.pkl"):
        return 0
    try:
        pickle = load(head, start)
        storages = {}
        for node in pickle.persistent:
            if isinstance(node, PersistentId):
                key, dtype, numel, _ = storage_reference(node)
                storages[key] = numel * (dtype.itemsize if dtype else 1)
    except FormatError:
        return 0
    return pickle.end + sum(storages.values()) - file.size


def _lfs_pointer(head: bytes) -> NotACheckpointError:
    fields = dict(line.split(" ", 1) for line in str(head, "latin-1").splitlines() if " " in line)
    return _not(
        f"this is a git-lfs pointer, not the file: it points to {quoted(fields.get('oid', '?'))} "
        f"of {quoted(fields.get('size', '?'))} bytes",
        "git lfs pull",
        "git-lfs",
    )


def _web_page(text: bytes) -> NotACheckpointError:
    match = re.search(rb"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    title = f" with the title {quoted(str(match[1].strip(), 'utf-8', 'replace'))}" if match else ""
    return _not(
        f"this is a web page{title}: the download went wrong",
        "download it again; a page that asks for a login or a confirmation was saved instead",
        "html",
    )


def _json(text: bytes) -> NotACheckpointError:
    line = str(text[:80], "utf-8", "replace")
    return _not(
        f"this is JSON text: {quoted(line)}",
        "if a server answered with an error, download the file again",
        "json",
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _not(message: str, hint: str | None, kind: str) -> NotACheckpointError:
    return NotACheckpointError(message, hint=hint, code=f"not-a-checkpoint.{kind}")
