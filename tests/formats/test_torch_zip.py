"""The zip format: recognised by content, read whatever it is called, cut anywhere is an error."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors_made import bits
from torch import nn

from ckptool.containers import choose
from ckptool.errors import CkptError, FormatError, UnsupportedError
from ckptool.reading import open_file, read

X = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "n": torch.tensor(7)}


def saved(folder: Path, value: object = X, name: str = "x.pth") -> Path:
    torch.save(value, folder / name)
    return folder / name


def assert_is_x(path: Path) -> None:
    ckpt = read(path)
    assert list(ckpt) == list(X)
    for key, wanted in torch.load(io.BytesIO(path.read_bytes()), weights_only=False).items():
        assert (ckpt[key].shape, ckpt[key].tobytes()) == (tuple(wanted.shape), bits(wanted))


def rezipped(path: Path, **options: Any) -> Path:
    """The archive written anew by zipfile, its records edited: name to bytes, None to leave out."""
    method = options.pop("method", zipfile.ZIP_STORED)
    root = options.pop("root", "archive")
    with zipfile.ZipFile(path) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    records.update(options.pop("records", {}))
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in records.items():
            if data is not None:
                new.writestr(f"{root}/{name}", data)
    return path


@pytest.mark.parametrize(
    "name",
    ["x.pth", "x.pt", "x.ckpt", "x.bin", "x", "x.safetensors", "x.weights", "épée v1.0 .pth"],
)
def test_recognised_by_content_whatever_the_name(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name=name)
    assert open_file(path).contents.format == "torch-zip"
    assert_is_x(path)


@pytest.mark.parametrize("root", ["archive", "x", "deeply.dotted.v1", "ünïcode", "with space"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_root_folder_and_deflated_records(root: str, method: int, tmp_path: Path) -> None:
    assert_is_x(rezipped(saved(tmp_path), root=root, method=method))


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with 8 MB of storages, opening reads a few kilobytes."""
    from ckptool.files import ByteFile

    path = saved(tmp_path, {f"layer.{n}": torch.ones(100_000) for n in range(20)})
    lengths = []
    plain = ByteFile.read

    def counted(self: ByteFile, offset: int, length: int) -> bytes:
        lengths.append(length)
        return plain(self, offset, length)

    monkeypatch.setattr(ByteFile, "read", counted)
    assert len(read(path)) == 20
    assert sum(lengths) < 30_000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    torch.save(X, tmp_path / "x.pth", pickle_protocol=protocol)
    assert_is_x(tmp_path / "x.pth")


def test_versions_come_from_metadata(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).state_dict())
    assert read(path).weights.versions == {"": 1, "0": 1, "1": 2}
    assert read(saved(tmp_path, dict(X))).weights.versions is None


def test_what_the_file_itself_has_to_say(tmp_path: Path) -> None:
    """A file as torch writes it has no findings; missing checksums and stray records are some."""

    def findings(path: Path) -> dict[str, str]:
        return {item.code: item.message for item in open_file(path).contents.findings}

    assert findings(saved(tmp_path)) == {}
    rezipped(saved(tmp_path), records={"data/9": bytes(100), "notes/readme.txt": b"hello"})
    assert findings(tmp_path / "x.pth") == {
        "unused-records": "1 records of 100 bytes belong to no tensor: `data/9`",
        "foreign-records": "records that torch does not write: `notes/readme.txt`",
    }


def test_globals_are_listed_in_order(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Linear(2, 2).state_dict())
    assert [(item.name, item.danger) for item in open_file(path).contents.globals] == [
        ("collections.OrderedDict", None),
        ("torch._utils._rebuild_tensor_v2", None),
        ("torch.FloatStorage", None),
    ]


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CkptError):
            read(path)


def test_cut_short_says_how_much_of_the_storages_is_missing(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.ones(10_000)}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[:20_000])
    with pytest.raises(FormatError) as caught:
        read(tmp_path / "cut.pth")
    missing = int(caught.value.message.split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert 20_000 <= missing <= len(data) - 20_000
    assert caught.value.message == (
        f"`{tmp_path / 'cut.pth'}`: the zip archive is cut short: it has no end record, and at "
        f"least {missing:,} bytes of its storages are missing"
    )
    assert caught.value.hint == "download or copy the file again"
    assert caught.value.code == "format.truncated"


@pytest.mark.parametrize(
    ("records", "code", "message"),
    [
        ({"data/0": None}, "storage.missing", "storage `0` is not in the archive"),
        (
            {"data/0": bytes(23)},
            "storage.size",
            "storage `0`: found a record of 23 bytes, the pickle wants 24",
        ),
        (
            {"byteorder": b"middle"},
            "zip.byteorder",
            "`byteorder` is `middle`, wanted `little` or `big`",
        ),
        (
            {"data.pkl": b"\x80\x02N.N."},
            "pickle.trailing",
            "`data.pkl`: 2 bytes after the pickle's end",
        ),
        (
            {"data.pkl": b""},
            "pickle.truncated",
            "the pickle ends at byte 0 without its STOP opcode",
        ),
    ],
)
def test_records_that_contradict_each_other(
    records: dict[str, Any], code: str, message: str, tmp_path: Path
) -> None:
    path = rezipped(saved(tmp_path), records=records)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert (caught.value.code, caught.value.message) == (code, f"`{path}`: {message}")


def test_a_missing_byteorder_is_little(tmp_path: Path) -> None:
    """As files of torch before 2.1 have it."""
    assert_is_x(
        rezipped(saved(tmp_path), records={"byteorder": None, ".data/serialization_id": None})
    )


def test_a_damaged_pickle_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    at = data.index(b"FloatStorage")
    (tmp_path / "x.pth").write_bytes(data[:at] + b"f" + data[at + 1 :])
    with pytest.raises(FormatError, match=r"found CRC .* the file is damaged") as caught:
        read(tmp_path / "x.pth")
    assert caught.value.code == "zip.crc"


@pytest.mark.skipif(not shutil.which("zip"), reason="needs Info-ZIP")
def test_zipped_again_by_hand(tmp_path: Path) -> None:
    """People unpack a checkpoint and pack it again: folder entries, time stamps, deflated."""
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    path.unlink()
    subprocess.run(["zip", "-qr", "x.pth", "x"], cwd=tmp_path, check=True)
    assert_is_x(path)


def test_folder_entries_are_no_records(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for folder in ("x/", "x/data/", "x/.data/"):
            new.writestr(folder, b"")
        for name, data in records.items():
            new.writestr(name, data)
    assert_is_x(path)


def test_a_folder_entry_that_holds_data_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data/", b"hidden")
    with pytest.raises(FormatError, match="`x/data/` is not a relative name under one root"):
        read(path)


class Scripted(nn.Module):
    """Parameters, buffers, a submodule twice, an attribute that is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.again = self.blocks
        self.register_buffer("anchors", torch.arange(8.0).reshape(4, 2).t())
        self.origin = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).mean((2, 3))
        return self.again(y) + self.blocks(y) + self.anchors.sum() + self.origin


@pytest.fixture(params=["script", "trace"])
def scripted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Scripted().half().float().eval()
        if request.param == "script":
            torch.jit.script(model).save(path)
        else:
            torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(path)
    return path


def test_a_torchscript_archive_gives_its_state_dict(scripted: Path) -> None:
    """And a tensor that is an attribute: only the code, which is not read, tells it apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.jit.load(scripted).state_dict()
    file = open_file(scripted)
    assert file.contents.format == "torchscript"
    chosen = choose(file.sets)
    assert (chosen.name, chosen.refused) == (".", {})
    assert set(chosen.tensors) - {"origin"} == set(state)
    for key, wanted in state.items():
        assert chosen.tensors[key].dtype == str(wanted.dtype).removeprefix("torch.")
        assert chosen.tensors[key].shape == tuple(wanted.shape)
        assert chosen.tensors[key].tobytes() == bits(wanted)
    assert str(chosen.origin).startswith("__torch__.")


def test_the_code_of_a_torchscript_archive_is_counted_and_not_read(scripted: Path) -> None:
    with zipfile.ZipFile(scripted) as archive:
        code = [name for name in archive.namelist() if "/code/" in name]
    findings = {item.code: item.message for item in open_file(scripted).contents.findings}
    assert findings["torchscript"] == (
        f"a TorchScript archive: its tensors are read, its code ({len(code):,} files) is not"
    )


def test_a_torchscript_model_in_half_and_channels_last(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last).half()
        torch.jit.script(model).save(tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")["0.weight"]
    assert (found.dtype, found.tobytes()) == ("float16", bits(model[0].weight))


def test_an_archive_of_the_first_torchscript_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/model.json", b"{}")
        archive.writestr("x/tensors/0", bytes(4))
    with pytest.raises(UnsupportedError) as caught:
        read(tmp_path / "x.pt")
    assert caught.value.message.endswith(
        "a TorchScript archive of torch 1.0 to 1.3 (`model.json`), which is not read"
    )
    assert caught.value.hint == "load it with torch 1.4 or later and save it again"


def test_an_exported_program_is_no_checkpoint(tmp_path: Path) -> None:
    """torch.export writes zip archives, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "x.pt2"
        )
    with pytest.raises(UnsupportedError, match=r"this is a program of torch\.export, a graph with"):
        read(tmp_path / "x.pt2")


def test_a_large_bytes_value_in_the_pickle_is_weighed(tmp_path: Path) -> None:
    from ckptool.containers import left_aside

    file = open_file(saved(tmp_path, {"state_dict": X, "blob": bytes(10_000)}))
    (aside,) = left_aside(file.contents.root, choose(file.sets))
    assert aside.name == "blob"
    assert aside.nbytes >= 0


def test_crc_is_known_for_every_storage(tmp_path: Path) -> None:
    found = read(saved(tmp_path))["w"].source.record  # type: ignore[attr-defined]
    assert found.crc == zlib.crc32(bits(X["w"]))


@pytest.mark.sweep
def test_a_storage_of_more_than_four_gibibytes(tmp_path: Path) -> None:
    """Sizes and offsets that only the 64-bit fields of the directory can hold."""
    big = torch.empty((1 << 30) + (1 << 27))  # memory that is not touched is not taken
    big[-3:] = torch.arange(3.0)
    path = saved(tmp_path, {"big": big, "after": torch.arange(5)})
    ckpt = read(path)
    extent = ckpt["big"].extent()
    assert extent is not None
    assert extent.nbytes == ckpt["big"].nbytes == 4_831_838_208
    assert extent.file.read(extent.offset + extent.nbytes - 12, 12) == bits(big[-3:])
    assert ckpt["after"].numpy().tolist() == [0, 1, 2, 3, 4]
    path.unlink()


@pytest.mark.sweep
def test_more_records_than_the_short_count_of_a_directory_holds(tmp_path: Path) -> None:
    state = {f"layer.{number}": torch.tensor(number) for number in range(70_000)}
    ckpt = read(saved(tmp_path, state))
    assert list(ckpt) == list(state)
    assert all(ckpt[f"layer.{n}"].numpy().item() == n for n in range(0, 70_000, 777))
