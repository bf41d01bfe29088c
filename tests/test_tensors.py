"""A LazyTensor: what it says without reading, and the bytes it gives, block by block."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tensors_made import LAYOUTS, bits, filled

from ckptool.errors import CkptError, FormatError, UnsupportedError
from ckptool.files import ByteFile, MemoryFile
from ckptool.reading import read
from ckptool.records import Record
from ckptool.tensors import (
    Extent,
    Inline,
    LazyTensor,
    TensorSpec,
    View,
    contiguous_strides,
    is_contiguous,
    rechunk,
)

MEBIBYTE = 1 << 20


def saved(folder: Path, **tensors: torch.Tensor) -> Any:
    torch.save(tensors, folder / "x.pth")
    return read(folder / "x.pth")


def test_a_spec_counts_elements_and_bytes() -> None:
    assert (TensorSpec("float32", (2, 3)).numel, TensorSpec("float32", (2, 3)).nbytes) == (6, 24)
    assert (TensorSpec("complex128", ()).numel, TensorSpec("complex128", ()).nbytes) == (1, 16)
    assert (TensorSpec("int8", (4, 0)).numel, TensorSpec("int8", (4, 0)).nbytes) == (0, 0)


def test_spec_and_sizes_need_no_bytes(tmp_path: Path) -> None:
    x = saved(tmp_path, x=torch.ones(2, 3, dtype=torch.bfloat16).t())["x"]
    (tmp_path / "x.pth").unlink()
    assert (x.dtype, x.shape, x.numel, x.nbytes) == ("bfloat16", (3, 2), 6, 12)


def test_numpy_gives_ml_dtypes_and_a_fresh_writable_array(tmp_path: Path) -> None:
    import ml_dtypes

    ckpt = saved(
        tmp_path,
        half=torch.tensor([1.5, -2.0]).bfloat16(),
        small=torch.ones(2).to(torch.float8_e5m2),
    )
    half = ckpt["half"].numpy()
    assert half.dtype == ml_dtypes.bfloat16
    assert half.tolist() == [1.5, -2.0]
    assert ckpt["small"].numpy().dtype == ml_dtypes.float8_e5m2
    half[0] = 9
    assert ckpt["half"].numpy().tolist() == [1.5, -2.0]


def test_torch_gives_a_fresh_contiguous_tensor(tmp_path: Path) -> None:
    ckpt = saved(
        tmp_path, t=torch.arange(6.0).reshape(2, 3).t(), s=torch.tensor(4), e=torch.ones(0, 3)
    )
    live = ckpt["t"].torch()
    assert live.is_contiguous()
    live.zero_()
    assert ckpt["t"].torch().tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert (ckpt["s"].torch().shape, ckpt["s"].torch().item()) == ((), 4)
    assert ckpt["e"].torch().shape == (0, 3)


@pytest.mark.parametrize("step", [1, 3, 8, 64, 1000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_blocks_are_the_same_bytes(layout: str, step: int, tmp_path: Path) -> None:
    """About `step` bytes each: never more than `step` or one element, whichever is larger."""
    for number, dtype in enumerate((torch.float32, torch.complex128, torch.uint8, torch.bfloat16)):
        x = LAYOUTS[layout](filled(dtype, (4, 3, 6, 5), number))
        found = saved(tmp_path, x=x)["x"]
        blocks = [bytes(block) for block in found.chunks(step)]
        assert b"".join(blocks) == bits(x)
        assert all(0 < len(block) <= max(step, x.element_size()) for block in blocks)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("contiguous", lambda x: x),
        ("window", lambda x: x[1000:]),
        ("channels last", lambda x: x.reshape(64, -1, 8, 8).to(memory_format=torch.channels_last)),
        ("rows of a matrix", lambda x: x.reshape(2048, -1)[:, 1:]),
        ("every other row", lambda x: x.reshape(2048, -1)[::2]),
        ("one long row", lambda x: x.reshape(1, -1)[:, ::2]),
        ("a column", lambda x: x.reshape(-1, 1024)[:, 3]),
    ],
)
def test_memory_is_bounded_by_the_block_not_by_the_tensor(
    name: str, make: Any, tmp_path: Path
) -> None:
    x = make(torch.arange(8 * MEBIBYTE, dtype=torch.float32))
    found = saved(tmp_path, x=x)["x"]
    wanted = zlib.crc32(bits(x))
    for _ in found.chunks(MEBIBYTE):  # imports numpy, checks the CRC
        break
    tracemalloc.start()
    crc = 0
    for block in found.chunks(MEBIBYTE):
        crc = zlib.crc32(block, crc)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert crc == wanted
    assert peak < 8 * MEBIBYTE, name


def test_an_expanded_tensor_is_given_without_being_in_memory(tmp_path: Path) -> None:
    x = torch.arange(256.0).expand(50_000, 256)  # 51 MB from 1 KB
    found = saved(tmp_path, x=x)["x"]
    tracemalloc.start()
    total = sum(len(block) for block in found.chunks(MEBIBYTE))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == found.nbytes == 51_200_000
    assert peak < 8 * MEBIBYTE


def test_an_expansion_out_of_proportion_is_refused_when_it_is_read(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, x=torch.ones(1).expand(1 << 40), y=torch.ones(2))
    assert ckpt["x"].shape == (1 << 40,)
    for reading in (ckpt["x"].tobytes, ckpt["x"].torch, lambda: next(ckpt["x"].chunks())):
        with pytest.raises(UnsupportedError) as caught:
            reading()
        assert caught.value.code == "tensor.expansion"
        assert caught.value.message == (
            "shape (1099511627776,) expands 4 stored bytes to 4,398,046,511,104; that is out of "
            "all proportion to the file"
        )
    assert ckpt["y"].numpy().tolist() == [1.0, 1.0]


def test_numpy_does_not_allocate_what_an_expansion_declares(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, x=torch.ones(1).expand(1 << 30))
    tracemalloc.start()
    with pytest.raises(UnsupportedError, match="out of all proportion"):
        ckpt["x"].numpy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEBIBYTE


@pytest.mark.parametrize("view", ["whole", "window", "strided"])
def test_a_flipped_bit_is_found_whatever_part_is_read(view: str, tmp_path: Path) -> None:
    x = torch.arange(1000.0)
    parts = {"whole": x, "window": x[10:20], "strided": x[::7]}
    file = tmp_path / "x.pth"
    torch.save(parts, file)
    record = read(file)["whole"].source.record
    data = bytearray(file.read_bytes())
    data[record.offset + 3_999] ^= 0x10  # the last element: no part of `window`
    file.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read(file)[view].tobytes()
    assert caught.value.code == "zip.crc"
    assert caught.value.message == (
        f"record `x/data/0` at byte {record.offset:,}: found CRC "
        f"{zlib.crc32(data[record.offset : record.offset + 4000]):08x}, wanted "
        f"{record.crc:08x}: the file is damaged"
    )


def test_a_record_is_checked_once(tmp_path: Path) -> None:
    x = torch.arange(1000.0)
    torch.save({"a": x[:10], "b": x[20:30]}, tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    record = ckpt["b"].source.record
    assert record.offset not in record.file.verified
    ckpt["a"].tobytes()
    assert record.offset in record.file.verified
    assert ckpt["b"].numpy().tolist() == list(range(20, 30))


def test_a_file_that_changes_under_way_is_not_read_as_something_else(tmp_path: Path) -> None:
    """Safetensors has no checksums: the file's identity is what tells."""
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1000)}, path)
    ckpt = read(path)
    os.utime(path, ns=(1, 1))
    with path.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\1\2\3\4")
    with pytest.raises(CkptError) as caught:
        ckpt["x"].tobytes()
    assert (caught.value.code, caught.value.message) == (
        "file.changed",
        f"`{path}`: the file changed while it was read",
    )


def test_a_file_that_is_cut_under_way_gives_an_error_not_a_crash(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, x=torch.ones(10_000))
    offset = ckpt["x"].source.record.offset
    os.truncate(tmp_path / "x.pth", 9_000)
    with pytest.raises(FormatError) as caught:
        ckpt["x"].numpy()
    assert caught.value.message == (
        f"at byte {offset:,}: found {9_000 - offset:,} bytes, wanted 40,000: the file ends early"
    )


def test_the_old_file_is_still_read_after_it_was_replaced(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, x=torch.ones(3))
    torch.save({"x": torch.zeros(3)}, tmp_path / "y.pth")
    (tmp_path / "y.pth").replace(tmp_path / "x.pth")
    assert ckpt["x"].numpy().tolist() == [1, 1, 1]


def test_extent_is_where_the_data_lies_as_it_is(tmp_path: Path) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    ckpt = saved(tmp_path, x=x, row=x[1], t=x.t(), conj=torch.ones(2, dtype=torch.complex64).conj())
    whole, row = ckpt["x"].extent(), ckpt["row"].extent()
    assert isinstance(whole, Extent)
    assert isinstance(row, Extent)
    assert (row.offset, row.nbytes) == (whole.offset + 16, 16)
    assert whole.file.read(whole.offset, whole.nbytes) == bits(x)
    assert ckpt["t"].extent() is None
    assert ckpt["conj"].extent() is None


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (b"", "inflates to 0 bytes, wanted 10"),
        (zlib.compress(b"123456789", wbits=-15), "inflates to 9 bytes, wanted 10"),
        (zlib.compress(b"12345678901", wbits=-15), "inflates to more than the declared 10 bytes"),
        (
            zlib.compress(b"1234567890", wbits=-15) + b"x",
            "inflates to more than the declared 10 bytes",
        ),
        (b"\xff\xff\xff\xff", "its compressed data is damaged"),
    ],
)
def test_deflated_data_gives_exactly_what_is_declared(
    found: bytes, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(found)
    record = Record(ByteFile(path), 0, 10, len(found), deflated=True, name="d")
    with pytest.raises(FormatError) as caught:
        b"".join(record.blocks(4))
    assert caught.value.message == f"record `d`: {wanted}"


def test_deflated_data_comes_in_blocks(tmp_path: Path) -> None:
    data = numpy.random.default_rng(1).bytes(100_000) + bytes(300_000)
    stored = zlib.compress(data, wbits=-15)
    (tmp_path / "x").write_bytes(stored)
    record = Record(ByteFile(tmp_path / "x"), 0, len(data), len(stored), deflated=True, name="d")
    for step in (1_000, 65_536, 1 << 22):
        blocks = list(record.blocks(step))
        assert b"".join(blocks) == data
        assert max(map(len, blocks)) <= step
    x = LazyTensor(TensorSpec("float32", (100_000,)), View(record, 0, (1,)))
    assert x.extent() is None
    assert max(len(block) for block in x.chunks(1_000)) <= 1_000


def test_deflated_data_without_its_last_block_is_incomplete(tmp_path: Path) -> None:
    """All bytes are there, but the stream does not say that they are all."""
    engine = zlib.compressobj(wbits=-15)
    data = engine.compress(b"1234567890") + engine.flush(zlib.Z_SYNC_FLUSH)
    (tmp_path / "x").write_bytes(data)
    record = Record(ByteFile(tmp_path / "x"), 0, 10, len(data), deflated=True, name="d")
    with pytest.raises(FormatError, match="inflates to 10 bytes, wanted 10"):
        b"".join(record.blocks())


def test_a_transposed_matrix_is_read_from_the_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of it spans the whole storage; reading each anew would be quadratic."""
    found = saved(tmp_path, x=torch.arange(250_000.0).reshape(500, 500).t())["x"]
    found.source.record.check()
    lengths = []
    plain = ByteFile.read

    def counted(self: ByteFile, offset: int, length: int) -> bytes:
        lengths.append(length)
        return plain(self, offset, length)

    monkeypatch.setattr(ByteFile, "read", counted)
    assert len(b"".join(found.chunks(10_000))) == 1_000_000
    assert sum(lengths) == 1_000_000


def test_inline_data_has_no_place_in_a_file() -> None:
    x = LazyTensor(TensorSpec("int16", (2,)), Inline(b"\1\0\2\0"))
    assert x.numpy().tolist() == [1, 2]
    assert x.extent() is None
    assert LazyTensor(TensorSpec("int16", (0,)), Inline(b"")).numpy().shape == (0,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0, 3), (1, 5, 1), (4, 1, 2)])
def test_contiguous_strides_are_torchs(shape: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == torch.empty(shape).stride()
    assert is_contiguous(shape, contiguous_strides(shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_contiguous_agrees_with_torch(layout: str) -> None:
    x = LAYOUTS[layout](filled(torch.float32, (2, 3, 4, 5), 0))
    assert is_contiguous(tuple(x.shape), x.stride()) == x.is_contiguous()


def test_the_stride_of_an_axis_of_one_element_is_free() -> None:
    assert is_contiguous((3, 1, 2), (2, 99, 1))
    assert torch.empty(9).as_strided((3, 1, 2), (2, 99, 1)).is_contiguous()
    assert not is_contiguous((3, 2, 2), (4, 99, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_rechunk_gives_equal_blocks_and_a_rest(size: int) -> None:
    data = bytes(range(40))
    parts = [data[:1], data[1:1], data[1:13], data[13:14], data[14:]]
    blocks = [bytes(block) for block in rechunk((memoryview(part) for part in parts), size)]
    assert b"".join(blocks) == data
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size


@pytest.mark.parametrize("empty", [False, True])
def test_tensors_that_begin_at_one_place_are_told_apart_by_their_hash(empty: bool) -> None:
    """A file may have any number of them: to look one up must not mean to compare with each."""
    file = MemoryFile(b"", "x")

    def tensor(number: int) -> LazyTensor:
        if empty:
            record = Record(file, 64, 0, 0, name=str(number))
            return LazyTensor(TensorSpec("float32", (0,)), View(record, 0, (1,)))
        record = Record(file, 64, 1 << 20, 1 << 20, name="0")
        return LazyTensor(TensorSpec("float32", (1, number + 1)), View(record, 0, (1, 1)))

    tensors = [tensor(number) for number in range(1000)]
    assert len({hash(one) for one in tensors}) > 990
    assert hash(tensor(7)) == hash(tensors[7])
    assert tensor(7) == tensors[7]
