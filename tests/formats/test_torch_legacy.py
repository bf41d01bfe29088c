"""The stream of torch before 1.6, and the same stream inside other pickles."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors_made import bits
from torch import nn

from ckptool.errors import CkptError, FormatError
from ckptool.formats.legacy_stream import MAGIC
from ckptool.reading import open_file, read

X = OrderedDict(
    w=torch.arange(6.0).reshape(2, 3).t(), b=torch.tensor([True, False]), n=torch.tensor(7)
)


def saved(folder: Path, value: object = X, protocol: int = 2) -> Path:
    path = folder / "x.pth"
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_recognised_and_read(protocol: int, tmp_path: Path) -> None:
    path = saved(tmp_path, protocol=protocol)
    file = open_file(path)
    assert file.contents.format == "torch-legacy"
    assert [item.code for item in file.contents.findings] == ["no-checksums"]
    ckpt = read(path)
    for key, wanted in torch.load(path, weights_only=False).items():
        assert (ckpt[key].shape, ckpt[key].tobytes()) == (tuple(wanted.shape), bits(wanted))


def test_bytes_behind_the_end_are_mentioned(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with path.open("ab") as stream:
        stream.write(bytes(13))
    findings = {item.code: item.message for item in open_file(path).contents.findings}
    assert findings["trailing-bytes"] == "13 bytes behind the last storage belong to nothing"


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(CkptError):
            read(tmp_path / "cut")


@pytest.mark.parametrize("missing", [1, 100, 3_999, 4_001])
def test_cut_short_says_how_many_bytes_are_missing(missing: int, tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.ones(1000), "v": torch.ones(1000)}).read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(data[:-missing])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.code == "format.truncated"
    assert caught.value.message == (
        f"`{path}`: the file is cut short: {missing:,} bytes of the storages are missing "
        f"(found {len(data) - missing:,} bytes, wanted {len(data):,})"
    )


def test_a_pickle_longer_than_the_first_read(tmp_path: Path) -> None:
    """The five pickles have no length; they are read until they end."""
    value = {
        "model": X,
        "notes": ["a line of notes that makes the pickle long"] * 1 + [*range(90_000)],
    }
    path = saved(tmp_path, value)
    assert path.stat().st_size > 1 << 18
    assert read(path)["w"].tobytes() == bits(X["w"])


class BlindReader(pickle.Unpickler):
    """Passes over a pickle, whatever it refers to."""

    def persistent_load(self, _: Any) -> None:
        return None

    def find_class(self, *_: str) -> Any:
        return lambda *_: {}


def parts(path: Path) -> list[Any]:
    """The four plain pickles of a stream and, in the middle, the object's as bytes."""
    stream = io.BytesIO(path.read_bytes())
    head = [pickle.load(stream) for _ in range(3)]
    start = stream.tell()
    BlindReader(stream).load()
    body = stream.getvalue()[start : stream.tell()]
    return [*head, body, pickle.load(stream), stream.read()]


def joined(found: list[Any]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else pickle.dumps(part, 2) for part in found)


def test_the_parts_can_be_taken_apart_and_joined(tmp_path: Path) -> None:
    path = saved(tmp_path)
    found = parts(path)
    assert found[:2] == [MAGIC, 1001]
    path.write_bytes(joined(found))
    assert read(path)["n"].numpy().item() == 7


@pytest.mark.parametrize(
    ("part", "value", "code", "message"),
    [
        (1, 1000, "legacy.magic", "the legacy stream lacks its protocol number 1001"),
        (
            4,
            ["none"],
            "legacy.keys",
            "storage `none` is listed, but no tensor says how large it is",
        ),
        (4, 5, "legacy.keys", "the legacy stream has no list of storage keys"),
        (4, [], "storage.missing", "is not in the file"),
        (5, struct.pack("<q", 99) + bytes(2_000), "storage.size", "found 99 elements"),
    ],
)
def test_parts_that_contradict_each_other(
    part: int, value: Any, code: str, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    found = parts(path)
    found[part] = value
    path.write_bytes(joined(found))
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.code == code
    assert message in caught.value.message


class OldPickler(pickle.Pickler):
    """Persistent ids as torch 0.4 and before wrote them: a view is a window of a root storage."""

    def persistent_id(self, value: object) -> Any:
        if isinstance(value, Window):
            return ("storage", torch.FloatStorage, "root", "cpu", 10, value.metadata)
        return None


class Window:
    """Stands for a storage that is a view of ten floats."""

    def __init__(self, metadata: tuple[str, int, int] | None) -> None:
        self.metadata = metadata


class Rebuilt:
    """Pickles as the call that makes a tensor of four elements, from the third on."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, (self.window, 2, (4,), (1,))


def test_storage_views_of_old_files_shift_the_offset(tmp_path: Path) -> None:
    """Judged by torch.load, which still reads them."""
    body = io.BytesIO()
    views = {"root": None, "shifted": ("v", 3, 6)}
    OldPickler(body, 2).dump({name: Rebuilt(Window(view)) for name, view in views.items()})
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    data = b"".join(
        (
            pickle.dumps(MAGIC, 2),
            pickle.dumps(1001, 2),
            pickle.dumps(system, 2),
            body.getvalue(),
            pickle.dumps(["root"], 2),
            struct.pack("<q10f", 10, *range(10)),
        )
    )
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    wanted = torch.load(path, weights_only=False)
    ckpt = read(path)
    assert {key: x.numpy().tolist() for key, x in ckpt.items()} == {
        key: x.tolist() for key, x in wanted.items()
    }
    assert ckpt["shifted"].numpy().tolist() == [5, 6, 7, 8]


def test_a_dumped_module_keeps_each_storage_in_a_stream_of_its_own(tmp_path: Path) -> None:
    """`pickle.dump(model)`: torch pickles every storage by torch.save, inside the pickle."""
    model = nn.Linear(300, 10)
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(model, protocol))
        ckpt = read(path)
        assert ckpt.contents.format == "pickle"
        assert list(ckpt) == ["weight", "bias"]
        assert ckpt["weight"].tobytes() == bits(model.weight)


def test_a_nested_storage_that_is_none_is_an_error(tmp_path: Path) -> None:
    data = pickle.dumps({"w": torch.ones(3)}, 4)
    inner = pickle.dumps(MAGIC, 2)
    path = tmp_path / "x.pkl"
    path.write_bytes(data.replace(inner, inner.replace(b"\x6c\xfc", b"\x6c\xfd"), 1))
    with pytest.raises(FormatError, match="the legacy stream lacks its magic number"):
        read(path)
