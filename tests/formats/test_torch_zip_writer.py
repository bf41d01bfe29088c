"""A torch file written here is what torch itself would have written, and torch reads it back."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensors_made import DTYPES, LAYOUTS, SHAPES, bits, filled
from torch import nn

import ckptool
from ckptool.errors import UnsupportedError
from ckptool.files import ByteFile
from ckptool.formats.atomic import Output, replace_file
from ckptool.formats.payload import Payload
from ckptool.formats.torch_zip_writer import write
from ckptool.formats.zip_dir import read_directory
from ckptool.reading import open_file, read
from ckptool.records import Record
from ckptool.tensors import Inline, LazyTensor, TensorSpec, View

State = Mapping[str, torch.Tensor]


def rewritten(folder: Path, state: object, name: str = "out.pth") -> Path:
    """The state saved by torch, read and written by ckptool."""
    torch.save(state, folder / "source.pth")
    ckptool.write(read(folder / "source.pth"), folder / name)
    return folder / name


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("archive/data.pkl")


def as_torch_pickles(state: object) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        return archive.read("archive/data.pkl")


def assert_equal(path: Path, state: State) -> None:
    """Torch loads the same, by weights_only, mapped into memory and not."""
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert type(loaded) is OrderedDict
        assert list(loaded) == list(state)
        for key, wanted in state.items():
            found = loaded[key]
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), key
            assert found.is_contiguous(), key
            assert bits(found) == bits(wanted), key
        assert getattr(loaded, "_metadata", None) == getattr(state, "_metadata", None)


def assert_clean(path: Path) -> None:
    """Every reader of zip archives finds the checksums right."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(zlib.crc32(archive.read(info)) == info.CRC for info in archive.infolist())
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def plain(state: State) -> OrderedDict[str, torch.Tensor]:
    """The same values contiguous, ties kept: what a state dict of such tensors would be."""
    made: dict[int, torch.Tensor] = {}
    return OrderedDict(
        (key, made.setdefault(id(x), x.detach().resolve_conj().resolve_neg().clone().contiguous()))
        for key, x in state.items()
    )


# The pickle


def test_every_dtype_is_pickled_as_torch_does(tmp_path: Path) -> None:
    state = OrderedDict(
        (f"{dtype}/{shape}", filled(dtype, shape, seed).clone())
        for seed, (dtype, shape) in enumerate((d, s) for d in DTYPES for s in ((), (3,), (2, 0)))
    )
    path = rewritten(tmp_path, state)
    assert pickle_of(path) == as_torch_pickles(state)
    assert_equal(path, state)
    assert_clean(path)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_complex_halves_are_pickled_as_torch_does(tmp_path: Path) -> None:
    state = OrderedDict(x=torch.arange(12, dtype=torch.float16).view(torch.complex32))
    path = rewritten(tmp_path, state)
    assert pickle_of(path) == as_torch_pickles(state)
    loaded = torch.load(path, weights_only=True)
    assert bits(loaded["x"].view(torch.float16)) == bits(state["x"].view(torch.float16))


@pytest.mark.parametrize("keys", [0, 1, 2, 255, 256, 999, 1000, 1001, 1002, 2000, 2001])
@pytest.mark.parametrize("modules", [None, 0, 1, 1000, 1001])
def test_any_number_of_keys_is_pickled_as_torch_does(keys: int, modules: int | None) -> None:
    """Batches of a thousand, the last one of one item, long and short memo indices."""
    from ckptool.formats.pickle_writer import dump_state_dict

    state = OrderedDict((f"k.{number}", torch.empty(2, 3)) for number in range(keys))
    versions = None
    if modules is not None:
        versions = {f"m.{number}": 1 + number % 3 for number in range(modules)}
        state._metadata = OrderedDict((m, {"version": n}) for m, n in versions.items())  # type: ignore[attr-defined]
    spec = TensorSpec("float32", (2, 3))
    entries = [(key, spec, str(number)) for number, key in enumerate(state)]
    assert dump_state_dict(entries, versions) == as_torch_pickles(state)


@pytest.mark.parametrize(
    "shape",
    [
        *((), (0,), (1,), (255,), (256,), (65_535,), (65_536,), (3, 0, 2)),
        *((2, 3), (2, 3, 4), (1, 2, 3, 4), (1,) * 9, (300, 1, 70_000, 0)),
    ],
)
def test_any_shape_is_pickled_as_torch_does(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = OrderedDict(x=torch.zeros(shape, dtype=torch.uint8))
    assert pickle_of(rewritten(tmp_path, state)) == as_torch_pickles(state)


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**32, 2**40 + 1])
def test_sizes_of_many_bytes_are_pickled_as_torch_does(size: int) -> None:
    from ckptool.formats.pickle_writer import dump_state_dict

    state = {"x": torch.empty((size, 0))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = as_torch_pickles(OrderedDict(state))
    assert dump_state_dict([("x", TensorSpec("float32", (size, 0)), "0")]) == wanted


class Odd(nn.Module):
    """Keys that are words of the pickle itself, shared constants, and unlike any other."""

    def __init__(self) -> None:
        super().__init__()
        self.version = nn.Parameter(torch.ones(2))
        self.storage = nn.Parameter(torch.ones(3))
        self.épée = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)
        self.list = nn.ParameterList([torch.ones(1) for _ in range(12)])
        self.tied = self.list[3]
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("step", torch.tensor(7))


@pytest.mark.parametrize(
    "model",
    [
        Odd,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)),
        lambda: nn.ParameterList([torch.ones(1) for _ in range(11)]),
        lambda: nn.LSTM(4, 5, 2, bidirectional=True),
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    ],
)
def test_a_state_dict_is_pickled_byte_for_byte_as_torch_does(
    model: Callable[[], nn.Module], tmp_path: Path
) -> None:
    state = model().state_dict()
    assert hasattr(state, "_metadata")
    path = rewritten(tmp_path, state)
    assert pickle_of(path) == as_torch_pickles(state)
    assert_equal(path, state)


def test_the_fixture_of_1818_tensors_would_be_saved_alike(tmp_path: Path) -> None:
    """A real detector: 1,818 tensors, module versions, int64 counters."""
    from effdet import EfficientDet, get_efficientdet_config

    config = get_efficientdet_config("tf_efficientdet_d0")
    state = EfficientDet(config, pretrained_backbone=False).state_dict()
    path = rewritten(tmp_path, state)
    assert pickle_of(path) == as_torch_pickles(state)
    assert_equal(path, state)
    assert_clean(path)


# Values, ties, metadata


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_written_contiguous(layout: str, tmp_path: Path) -> None:
    state = {}
    for seed, dtype in enumerate(DTYPES):
        for shape in SHAPES:
            state[f"{dtype}/{shape}"] = LAYOUTS[layout](filled(dtype, shape, seed))
    path = rewritten(tmp_path, state)
    assert_equal(path, state)


def test_tied_tensors_share_a_storage(tmp_path: Path) -> None:
    shared = torch.randn(5, 4)
    state = OrderedDict(a=shared, b=torch.randn(3), c=shared, d=shared.view(5, 4), e=shared.t())
    path = rewritten(tmp_path, state)
    loaded = torch.load(path, weights_only=True)
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr() == loaded["d"].data_ptr()
    assert loaded["a"].data_ptr() != loaded["e"].data_ptr()
    assert read(path).aliases == (("a", "c", "d"),)
    with zipfile.ZipFile(path) as archive:
        assert [n for n in archive.namelist() if "/data/" in n] == [
            "archive/data/0",
            "archive/data/1",
            "archive/data/2",
        ]


def test_module_versions_are_kept_and_none_are_invented(tmp_path: Path) -> None:
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    found = torch.load(rewritten(tmp_path, state), weights_only=True)
    assert found._metadata == state._metadata == {"": {"version": 1}, "0": {"version": 2}}
    found = torch.load(rewritten(tmp_path, dict(state), "bare.pth"), weights_only=True)
    assert not hasattr(found, "_metadata")


def test_what_a_wrapped_checkpoint_holds_besides_is_left_out(tmp_path: Path) -> None:
    """A bare OrderedDict of tensors comes out."""
    state = nn.Linear(2, 2).state_dict()
    path = rewritten(tmp_path, {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}})
    assert pickle_of(path) == as_torch_pickles(state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
def test_every_torch_suffix_gets_the_same_file(suffix: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path, {"x": torch.ones(3)}, f"out{suffix}")
    assert open_file(path).contents.format == "torch-zip"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_state_dict_comes_back(data: st.DataObject, tmp_path: Path) -> None:
    """Random keys, types, shapes, layouts and ties; twice written is the same as once."""
    state: dict[str, torch.Tensor] = {}
    pool: list[torch.Tensor] = []
    key = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    for name in data.draw(st.lists(key, min_size=1, max_size=8, unique=True)):
        if pool and data.draw(st.booleans()):
            state[name] = data.draw(st.sampled_from(pool))
            continue
        shape = data.draw(st.sampled_from([*SHAPES, (), (0,)]))
        x = filled(data.draw(st.sampled_from(DTYPES)), shape, data.draw(st.integers(0, 99)))
        layout = data.draw(st.sampled_from(sorted(LAYOUTS))) if x.numel() else "contiguous"
        state[name] = LAYOUTS[layout](x)
        pool.append(state[name])
    torch.save(state, tmp_path / "source.pth")
    ckpt = read(tmp_path / "source.pth", weights=".")
    ckptool.write(ckpt, tmp_path / "once.pth", force=True)
    ckptool.write(read(tmp_path / "once.pth", weights="."), tmp_path / "twice.pth", force=True)
    assert_equal(tmp_path / "once.pth", plain(state))
    assert pickle_of(tmp_path / "once.pth") == pickle_of(tmp_path / "twice.pth")
    assert read(tmp_path / "once.pth", weights=".").aliases == ckpt.aliases


# Bytes and records


def test_every_record_starts_at_a_multiple_of_64_bytes(tmp_path: Path) -> None:
    path = rewritten(tmp_path, {f"k{n}": torch.ones(n, dtype=torch.uint8) for n in range(150)})
    entries = read_directory(ByteFile(path))
    assert {entry.offset % 64 for entry in entries.values()} == {0}
    assert all(entry.crc is not None or not entry.nbytes for entry in entries.values())


def test_unzip_finds_nothing_wrong(tmp_path: Path) -> None:
    """By Info-ZIP, where it is installed; else by the zipfile of the standard library."""
    path = rewritten(tmp_path, {f"k{n}": torch.ones(n) for n in range(50)})
    assert_clean(path)
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tq", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("No errors detected")


def test_untouched_bytes_never_pass_through_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the tensors are written, nothing is read of a file that has their checksums."""
    torch.save({f"k{n}": torch.randn(1000) for n in range(20)}, tmp_path / "source.pth")
    weights = read(tmp_path / "source.pth").weights

    def forbidden(*_: object) -> bytes:
        raise AssertionError("read by Python")

    def fill(output: Output) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(ByteFile, "read", forbidden)
            write(output, Payload(weights.tensors))

    replace_file(str(tmp_path / "out.pth"), fill, lambda _: None)
    assert_clean(tmp_path / "out.pth")
    assert_equal(tmp_path / "out.pth", torch.load(tmp_path / "source.pth", weights_only=True))


def test_checksums_that_the_source_lacks_are_computed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"a": torch.randn(300), "b": torch.arange(7), "c": torch.empty(0)}
    save_file(state, tmp_path / "source.safetensors")
    ckptool.write(read(tmp_path / "source.safetensors"), tmp_path / "out.pth")
    assert_clean(tmp_path / "out.pth")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


# What cannot be written


def lazy(spec: TensorSpec, data: bytes = b"") -> LazyTensor:
    return LazyTensor(spec, Inline(data))


def refusal(tensors: Mapping[str, LazyTensor], folder: Path) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        replace_file(
            str(folder / "out.pth"), lambda output: write(output, Payload(tensors)), lambda _: None
        )
    assert not list(folder.iterdir())
    return caught.value


def test_quantised_integers_are_refused(tmp_path: Path) -> None:
    error = refusal({"q": lazy(TensorSpec("qint8", (2,)), b"12")}, tmp_path)
    assert error.message == "`q` is qint8, which no dense tensor is"
    assert error.hint == "--drop 'q'"


def test_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    error = refusal({"a\ud800": lazy(TensorSpec("uint8", (1,)), b"1")}, tmp_path)
    assert error.message == r"the key `a\ud800` is not valid text"


# Beyond 32 and 16 bits


class Holes(Output):
    """Leaves holes where data would be copied."""

    __slots__ = ()

    def copy_at(self, at: int, source: object, offset: int, length: int) -> None:
        pass


class Zeros:
    """A file of nothing but zeros, of which nobody reads."""

    path, verified = "zeros", set[int]()
    size = 1 << 60

    def blocks(self, offset: int, length: int, step: int = 0) -> Iterator[bytes]:
        raise AssertionError("read by Python")


def zeros(nbytes: int, crc: int = 1) -> LazyTensor:
    record = Record(Zeros(), 0, nbytes, nbytes, crc=crc)  # type: ignore[arg-type]
    return LazyTensor(TensorSpec("uint8", (nbytes,)), View(record, 0, (1,)))


GIGA = 1 << 30
LIMIT = 0xFFFFFFFF


@pytest.mark.parametrize(
    "sizes",
    [
        (LIMIT - 1, 5),
        (LIMIT, 5),
        (LIMIT + 1, 5),
        (5 * GIGA, 3, 2 * GIGA, 6 * GIGA, 1),
        (GIGA, GIGA, GIGA, GIGA - 4096, 4096, 64, 1),
        (LIMIT - 1000,),
    ],
)
def test_records_and_offsets_beyond_4_gib(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """The data are holes in a sparse file; sizes and places are read by both readers."""
    path = tmp_path / "out.pth"
    tensors = {f"k{number}": zeros(size, crc=number + 1) for number, size in enumerate(sizes)}
    tensors["last"] = lazy(TensorSpec("uint8", (3,)), b"end")
    with open(path, "wb") as file:
        write(Holes(file.fileno(), str(path)), Payload(tensors))
    entries = read_directory(ByteFile(path))
    stored = {name: entry for name, entry in entries.items() if "/data/" in name}
    assert [entry.nbytes for entry in stored.values()] == [*sizes, 3]
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            entry = entries[info.filename]
            assert (info.file_size, info.CRC) == (entry.nbytes, entry.crc)
            assert entry.offset % 64 == 0
        assert archive.read(f"archive/data/{len(sizes)}") == b"end"
    assert {key: x.shape for key, x in read(path).items()} == {
        **{f"k{number}": (size,) for number, size in enumerate(sizes)},
        "last": (3,),
    }
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert bytes(loaded["last"].tolist()) == b"end"
    assert [x.numel() for x in loaded.values()] == [*sizes, 3]


@pytest.mark.parametrize(
    "entries",
    [65_535, *(pytest.param(n, marks=pytest.mark.sweep) for n in (65_534, 65_536, 70_000))],
)
def test_more_records_than_16_bits_count(entries: int, tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    spec = TensorSpec("uint8", (1,))
    tensors = {f"k{n}": LazyTensor(spec, Own(n)) for n in range(entries - 3)}
    with open(path, "wb") as file:
        write(Output(file.fileno(), str(path)), Payload(tensors))
    source = ByteFile(path)
    ours = read_directory(source)
    with zipfile.ZipFile(path) as archive:
        theirs = archive.infolist()
        assert len(ours) == len(theirs) == entries
        for info in theirs[2:-1:997]:
            wanted = bytes((int(info.filename.rpartition("/")[2]) & 255,))
            assert archive.read(info) == source.read(ours[info.filename].offset, 1) == wanted


class Own:
    """One byte of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        yield memoryview(bytes((self.number & 255,)))

    def extent(self, spec: TensorSpec) -> None:
        return None


@pytest.mark.sweep
def test_a_real_archive_beyond_all_limits(tmp_path: Path) -> None:
    """9 GiB in two storages and 70,000 small ones, converted, proven, and loaded by torch."""
    state: dict[str, Any] = {f"k{n}": torch.tensor([n]) for n in range(70_000)}
    source = tmp_path / "source.pth"
    big = tmp_path / "big.bin"
    with open(big, "wb") as file:
        os.truncate(file.fileno(), 9 * GIGA)
    state["a"] = torch.from_file(str(big), size=5 * GIGA, dtype=torch.uint8)
    state["b"] = torch.from_file(str(big), size=GIGA, dtype=torch.float32)
    torch.save(state, source)
    ckptool.write(read(source), tmp_path / "out.pth")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True, mmap=True)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[f"k{n}"], state[f"k{n}"]) for n in range(0, 70_000, 999))
    assert not loaded["a"].any()
    assert loaded["b"].shape == (GIGA,)
