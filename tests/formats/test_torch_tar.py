"""The tar format of torch before 0.1.10, written here as that torch did, judged by torch.load."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors_made import bits, dtype_name

from ckptool.errors import CkptError, FormatError, NotACheckpointError
from ckptool.reading import open_file, read

SYSTEM = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4, "long": 4}}


class TensorPickler(pickle.Pickler):
    """Tensors are numbers that refer to the other members of the archive."""

    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self.tensors: dict[int, torch.Tensor] = {}

    def persistent_id(self, value: object) -> str | None:
        if isinstance(value, torch.Tensor):
            self.tensors[id(value)] = value
            return str(id(value))
        return None


def members(value: object, protocol: int = 2, views: bool = False) -> dict[str, bytes]:
    """What the archive holds; with `views`, tensors look at storages through storage views."""
    body = io.BytesIO()
    pickler = TensorPickler(body, protocol)
    pickler.dump(value)
    storages: dict[int, tuple[type, torch.UntypedStorage, int]] = {}
    tensors = io.BytesIO()
    pickle.dump(len(pickler.tensors), tensors, protocol)
    windows = []
    for key, x in pickler.tensors.items():
        storage = x.untyped_storage()
        number = storage.data_ptr()
        kind = getattr(torch, x._typed_storage()._pickle_storage_type())
        storages[number] = (kind, storage, storage.nbytes() // x.element_size())
        offset = x.storage_offset()
        if views:
            number, offset = number + 1 + offset, 0
            windows.append((number, storage.data_ptr(), x.storage_offset(), _reach(x)))
        pickle.dump((key, number, torch.FloatTensor), tensors, protocol)
        tensors.write(struct.pack("<ii", x.dim(), 0))
        tensors.write(struct.pack(f"<{2 * x.dim() + 1}q", *x.shape, *x.stride(), offset))
    stored = io.BytesIO()
    pickle.dump(len(storages), stored, protocol)
    for number, (kind, storage, numel) in storages.items():
        pickle.dump((number, "cpu", kind), stored, protocol)
        stored.write(struct.pack("<q", numel) + bytes(storage))  # type: ignore[arg-type]
    pickle.dump(windows, stored, protocol)
    return {
        "sys_info": pickle.dumps(SYSTEM, protocol),
        "pickle": body.getvalue(),
        "tensors": tensors.getvalue(),
        "storages": stored.getvalue(),
    }


def _reach(x: torch.Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))


def packed(
    folder: Path, parts: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT, **fields: Any
) -> Path:
    """The archive as `tarfile.add` of a fresh temporary file writes it: with a fractional mtime."""
    path = folder / "x.pth.tar"
    with tarfile.open(path, "w:", format=form) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), fields.get("mtime", time.time())
            info.pax_headers = fields.get("pax_headers", {})
            archive.addfile(info, io.BytesIO(data))
    return path


WHOLE = torch.arange(24.0).reshape(2, 3, 4)
X = OrderedDict(
    whole=WHOLE,
    window=WHOLE[1, :, 1:3],
    transposed=WHOLE.permute(2, 0, 1),
    longs=torch.tensor([1, -2, 1 << 40]),
    half=torch.tensor([1.5, 2.5]).half(),
    byte=torch.tensor([0, 255], dtype=torch.uint8),
)


@pytest.mark.parametrize("views", [False, True], ids=["direct", "storage views"])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_read_as_torch_load_reads_it(form: int, protocol: int, views: bool, tmp_path: Path) -> None:
    value = {"state_dict": X, "epoch": 3}
    path = packed(tmp_path, members(value, protocol, views), form)
    wanted = torch.load(path, weights_only=False)["state_dict"]
    assert open_file(path).contents.format == "torch-tar"
    ckpt = read(path)
    assert list(ckpt) == list(wanted) == list(X)
    for key, x in wanted.items():
        assert (ckpt[key].dtype, ckpt[key].shape) == (dtype_name(x), tuple(x.shape))
        assert ckpt[key].tobytes() == bits(x) == bits(X[key])


def test_a_tensor_under_two_names_is_an_alias(tmp_path: Path) -> None:
    path = packed(tmp_path, members({"a": WHOLE, "b": WHOLE, "c": WHOLE[0]}))
    assert read(path).aliases == (("a", "b"),)


def test_a_parameter_is_its_tensor(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))

    class Old:
        """A Variable pickled itself as a call with its tensor."""

        def __reduce__(self) -> Any:
            return torch.nn.Parameter, (parameter.data,)

    path = packed(tmp_path, members({"w": Old()}))
    assert read(path)["w"].numpy().tolist() == [1, 1, 1]


def test_a_whole_module(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    for module in model.modules():
        module._parameters = OrderedDict((key, x.data) for key, x in module._parameters.items())  # type: ignore[assignment]
    path = packed(tmp_path, members(model))
    assert list(read(path)) == ["0.weight", "0.bias"]


def test_there_are_no_checksums_and_that_is_said(tmp_path: Path) -> None:
    contents = open_file(packed(tmp_path, members(X))).contents
    assert [item.message for item in contents.findings] == [
        "a tar file has no checksums: damage cannot be seen"
    ]


def test_cut_short_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    path = packed(tmp_path, members({"w": torch.ones(1000)}), tarfile.USTAR_FORMAT)
    with tarfile.open(path) as archive:
        storages = archive.getmember("storages")
    end = storages.offset_data + storages.size
    path.write_bytes(path.read_bytes()[: end - 100])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert (caught.value.code, caught.value.message) == (
        "format.truncated",
        f"`{path}`: the file is cut short: {100 + -storages.size % 512} bytes are missing",
    )


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = packed(tmp_path, members({"w": torch.ones(30)}))
    data = path.read_bytes().rstrip(b"\0")
    for size in range(0, len(data) - 1, 7):
        path.write_bytes(data[:size])
        with pytest.raises(CkptError):
            read(path)


def test_a_damaged_header_is_noticed(tmp_path: Path) -> None:
    path = packed(tmp_path, members(X), tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[130] ^= 1  # the size of the first member
    path.write_bytes(data)
    with pytest.raises(FormatError, match="the header of `sys_info` at byte 0 is damaged"):
        read(path)


@pytest.mark.parametrize("left_out", ["sys_info", "pickle", "tensors", "storages"])
def test_a_missing_member_is_named(left_out: str, tmp_path: Path) -> None:
    parts = members(X)
    del parts[left_out]
    with pytest.raises(FormatError, match=f"torch tar: the archive has no member `{left_out}`"):
        read(packed(tmp_path, parts))


@pytest.mark.parametrize("headers", [{"path": "pickle"}, {"size": "5"}, {"linkpath": "/etc"}])
def test_an_extended_header_may_not_redefine_a_member(
    headers: dict[str, str], tmp_path: Path
) -> None:
    """Readers disagree on such archives: some take the header's word, some the extension's."""
    path = packed(tmp_path, members(X), pax_headers=headers)
    with pytest.raises(FormatError, match="torch tar: "):
        read(path)


def test_another_member_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, members(X) | {"../evil": b"x"})
    with pytest.raises(FormatError, match=r"member `\.\./evil` is not one that torch writes"):
        read(path)


def test_a_tar_of_other_files_is_an_archive_and_no_checkpoint(tmp_path: Path) -> None:
    path = packed(tmp_path, {"weights/a.pth": b"x"})
    with pytest.raises(NotACheckpointError) as caught:
        read(path)
    assert caught.value.message == f"`{path}`: this is a tar archive"
    assert caught.value.hint == "unpack it, then try the file inside"
