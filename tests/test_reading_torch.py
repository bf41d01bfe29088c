"""Whatever torch can save, ckptool reads as torch.load does: every key, dtype, shape and bit."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies
from tensors_made import (
    COMPLEX,
    DTYPES,
    FLOAT8,
    FLOATS,
    LAYOUTS,
    SHAPES,
    UNTYPED,
    bits,
    dtype_name,
    filled,
)

from ckptool.checkpoint import Checkpoint
from ckptool.reading import read

EXAMPLES, SWEEP = 300, 5_000


class Marked(torch.Tensor):
    """A subclass without a storage of its own kind, as `torch.Tensor._make_subclass` makes them."""


@dataclass(frozen=True)
class Case:
    """A generated checkpoint: its tensors by key, the object around them, how it is stored."""

    tensors: Mapping[str, torch.Tensor]
    container: str
    storing: str
    protocol: int


# Where the tensors are in what torch.load gives.
CONTAINERS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "bare dict": (dict, ()),
    "bare OrderedDict": (OrderedDict, ()),
    "state_dict": (lambda d: {"state_dict": OrderedDict(d)}, ("state_dict",)),
    "training": (
        lambda d: {
            "epoch": 12,
            "model": OrderedDict(d),
            "optimizer": {
                "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
            },
            "best": None,
        },
        ("model",),
    ),
    "nested": (lambda d: {"model": {"model": d, "names": ["a", "b"]}}, ("model", "model")),
    "metadata": (lambda d: _with_metadata(d), ()),
}


def _with_metadata(tensors: dict[str, Any]) -> OrderedDict[str, Any]:
    ordered = OrderedDict(tensors)
    ordered._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})  # type: ignore[attr-defined]
    return ordered


def _zip(path: Path, value: object, protocol: int) -> None:
    torch.save(value, path, pickle_protocol=protocol)


def _zip_renamed(path: Path, value: object, protocol: int) -> None:
    """The folder inside keeps the file's first name."""
    first = path.with_name("a first.name.v2.pth")
    torch.save(value, first, pickle_protocol=protocol)
    first.rename(path)


def _zip_stream(path: Path, value: object, protocol: int) -> None:
    """Saved to an open file, the folder inside is called `archive`."""
    with path.open("wb") as stream:
        torch.save(value, stream, pickle_protocol=protocol)


def _legacy(path: Path, value: object, protocol: int) -> None:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def _deflated(path: Path, value: object, protocol: int) -> None:
    _zip(path, value, protocol)
    _rewrite(path, zipfile.ZIP_DEFLATED, "some/root"[:4])


def _no_crc(path: Path, value: object, protocol: int) -> None:
    from torch.utils.serialization import config

    before = config.save.compute_crc32
    config.save.compute_crc32 = False
    try:
        _zip(path, value, protocol)
    finally:
        config.save.compute_crc32 = before


def _wide_alignment(path: Path, value: object, protocol: int) -> None:
    from torch.utils.serialization import config

    before = config.save.storage_alignment
    config.save.storage_alignment = 4096
    try:
        _zip(path, value, protocol)
    finally:
        config.save.storage_alignment = before


def _big_endian(path: Path, value: object, protocol: int) -> None:
    """What a big-endian machine would have written: swapped storages and the word that says so."""
    _zip(path, value, protocol)
    words = _word_sizes(path)

    def swapped(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        word = words.get(name.removeprefix("data/"), 1)
        return b"".join(data[at : at + word][::-1] for at in range(0, len(data), word))

    _rewrite(path, zipfile.ZIP_STORED, "archive", swapped)


def _plain_pickle(path: Path, value: object, protocol: int) -> None:
    path.write_bytes(pickle.dumps(value, protocol))


def _rewrite(
    path: Path,
    method: int,
    root: str,
    edit: Callable[[str, bytes], bytes] = lambda name, data: data,
) -> None:
    """Write the archive anew with zipfile: another folder, another compression, edited records."""
    with zipfile.ZipFile(path) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in records.items():
            new.writestr(f"{root}/{name}", edit(name, data))


def _word_sizes(path: Path) -> dict[str, int]:
    """For each storage the size of the numbers that a machine of the other byte order swaps."""
    found = {}

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> torch.storage.TypedStorage:
            _, kind, key, _, numel = pid
            dtype = getattr(kind, "_dtype", torch.uint8)
            found[key] = dtype.itemsize // (2 if dtype.is_complex else 1)
            return torch.storage.TypedStorage(
                wrap_storage=torch.UntypedStorage(numel * dtype.itemsize),
                dtype=dtype,
                _internal=True,
            )

    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as stream:
            Reader(stream).load()
    return found


STORING = {
    "zip": _zip,
    "zip, renamed": _zip_renamed,
    "zip, from a stream": _zip_stream,
    "zip, deflated": _deflated,
    "zip, without CRC": _no_crc,
    "zip, aligned to 4096": _wide_alignment,
    "zip, big-endian": _big_endian,
    "legacy": _legacy,
    "pickle": _plain_pickle,
}
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", "")
# torch 2.15 writes these and cannot read them back, or not rightly.
NOT_READ_BY_TORCH = {
    "legacy": frozenset(UNTYPED),
    "pickle": frozenset(UNTYPED),
    "zip, big-endian": frozenset(UNTYPED) - {*FLOAT8},
}


@strategies.composite
def cases(draw: strategies.DrawFn) -> Case:
    storing = draw(strategies.sampled_from(sorted(STORING)))
    usable = [d for d in DTYPES if d not in NOT_READ_BY_TORCH.get(storing, ())]
    made: list[torch.Tensor] = []
    for _ in range(draw(strategies.integers(1, 6))):
        made.append(_draw_tensor(draw, usable, made))
    keys = draw(strategies.permutations(KEYS[: len(made)]))
    return Case(
        dict(zip(keys, made, strict=True)),
        draw(strategies.sampled_from(sorted(CONTAINERS))),
        storing,
        draw(strategies.integers(2, 5)),
    )


KEYS = ("conv.weight", "conv.bias", "bn.running_var", "épaule.0", "a key\twith\nspaces", "_")


def _draw_tensor(
    draw: strategies.DrawFn, usable: list[torch.dtype], before: list[torch.Tensor]
) -> torch.Tensor:
    """A new tensor, or one that shares its storage with an earlier one."""
    layout = LAYOUTS[draw(strategies.sampled_from(sorted(LAYOUTS)))]
    sharing = draw(strategies.sampled_from(("new", "new", "tied", "view", "retyped")))
    if before and sharing != "new":
        other = draw(strategies.sampled_from(before))
        if sharing == "tied":
            return other
        if sharing == "retyped" and other.dtype in FLOAT8:
            return other.detach().view(draw(strategies.sampled_from(FLOAT8)))
        if other.numel():
            return layout(other.detach())
    dtype = draw(strategies.sampled_from(usable))
    made = layout(
        filled(dtype, draw(strategies.sampled_from(SHAPES)), draw(strategies.integers(0, 99)))
    )
    wrapping = draw(
        strategies.sampled_from(("plain", "plain", "parameter", "attribute", "subclass"))
    )
    if wrapping == "parameter":
        return torch.nn.Parameter(made, requires_grad=dtype in FLOATS + COMPLEX)
    if wrapping == "attribute":
        made.note = "an attribute of the tensor object"  # type: ignore[attr-defined]
    if wrapping == "subclass" and not (made.is_conj() or made.is_neg()):
        return made.as_subclass(Marked)
    return made


def check_case(folder: Path, case: Case) -> None:
    wrap, place = CONTAINERS[case.container]
    path = folder / f"case{SUFFIXES[case.protocol % len(SUFFIXES)]}"
    STORING[case.storing](path, wrap(dict(case.tensors)), case.protocol)
    loaded: Any = _load(path, case.storing)
    for step in place:
        loaded = loaded[step]
    ckpt = read(path)
    assert ckpt.weights.name == (".".join(place) or ".")
    assert list(ckpt) == list(loaded) == list(case.tensors)
    assert not ckpt.weights.refused
    for key, wanted in loaded.items():
        _check_same(ckpt, key, wanted.detach())
    if case.storing != "pickle":
        assert _groups(ckpt.aliases) == _groups(_ties(loaded))
    if case.container == "metadata":
        assert ckpt.weights.versions == {"": 1, "bn": 2}


def _load(path: Path, storing: str) -> Any:
    if storing == "pickle":
        return pickle.loads(path.read_bytes())
    return torch.load(path, weights_only=False)


def _check_same(ckpt: Checkpoint, key: str, wanted: torch.Tensor) -> None:
    found, data = ckpt[key], bits(wanted)
    assert (found.dtype, found.shape) == (dtype_name(wanted), tuple(wanted.shape))
    assert found.nbytes == len(data)
    assert found.tobytes() == data
    assert b"".join(found.chunks(5)) == data
    array = found.numpy()
    assert (array.dtype.name, array.shape, array.tobytes()) == (found.dtype, found.shape, data)
    live = found.torch()
    assert (live.dtype, live.shape, bits(live)) == (wanted.dtype, wanted.shape, data)


def _ties(loaded: Mapping[str, torch.Tensor]) -> Iterable[list[str]]:
    """The keys whose tensors are one storage, seen the same way."""
    groups: dict[object, list[str]] = {}
    for key, x in loaded.items():
        if x.numel():
            seen = (x.dtype, x.shape, x.stride(), x.storage_offset(), x.is_conj(), x.is_neg())
            groups.setdefault((x.untyped_storage().data_ptr(), *seen), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def _groups(groups: Iterable[Iterable[str]]) -> set[frozenset[str]]:
    return {frozenset(keys) for keys in groups}


def _settings(examples: int, *, repeatable: bool) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        derandomize=repeatable,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.mark.parametrize(
    "settings",
    [
        _settings(EXAMPLES, repeatable=True),
        pytest.param(_settings(SWEEP, repeatable=False), marks=pytest.mark.sweep),
    ],
    ids=["generated", "sweep"],
)
def test_every_tensor_is_what_torch_load_gives(
    settings: hypothesis.settings,
    tmp_path_factory: pytest.TempPathFactory,
    count: Callable[[str, int], None],
) -> None:
    folder = tmp_path_factory.mktemp("generated")
    passed = 0

    @settings
    @hypothesis.given(case=cases())
    def check(case: Case) -> None:
        nonlocal passed
        check_case(folder, case)
        passed += 1

    check()
    count("generated checkpoints read as torch.load reads them", passed)


@pytest.mark.parametrize("storing", sorted(STORING))
def test_every_dtype_in_every_layout(storing: str, tmp_path: Path) -> None:
    usable = [d for d in DTYPES if d not in NOT_READ_BY_TORCH.get(storing, ())]
    tensors = {
        f"{dtype_name(x)} {name} {number}": layout(x)
        for number, x in enumerate(filled(d, shape, 7) for d in usable for shape in SHAPES)
        for name, layout in LAYOUTS.items()
    }
    check_case(tmp_path, Case(tensors, "bare dict", storing, 2))


@pytest.mark.parametrize("dtype", UNTYPED, ids=str)
def test_types_that_torch_cannot_read_back_from_its_legacy_format(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """torch 2.15 fails with an AttributeError on its own file; the bytes are right."""
    x = filled(dtype, (3, 5), 3)
    _legacy(tmp_path / "x.pth", {"x": x, "t": x.t()}, 2)
    with pytest.raises(AttributeError, match="UntypedStorage"):
        torch.load(tmp_path / "x.pth", weights_only=False)
    ckpt = read(tmp_path / "x.pth")
    _check_same(ckpt, "x", x)
    _check_same(ckpt, "t", x.t())


def test_unsigned_storages_of_a_big_endian_file_are_swapped(tmp_path: Path) -> None:
    """torch 2.15 swaps no untyped storage; the numbers that were saved are the right ones."""
    path = tmp_path / "x.pth"
    _zip(path, {"x": torch.tensor([1, 2, 65534], dtype=torch.uint16)}, 2)
    swapped = struct.pack(">3H", 1, 2, 65534)
    _rewrite(
        path,
        zipfile.ZIP_STORED,
        "archive",
        lambda name, data: {"byteorder": b"big", "data/0": swapped}.get(name, data),
    )
    assert read(path)["x"].numpy().tolist() == [1, 2, 65534]


def test_complex32_has_bytes_and_a_torch_form_but_no_numpy_form(tmp_path: Path) -> None:
    from ckptool.errors import UnsupportedError

    x = torch.tensor([1 + 2j, -3 - 4j]).to(torch.complex64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")  # said only once
        half = x.to(torch.complex32)
    torch.save({"x": half, "conj": half.conj()}, tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    assert ckpt["x"].dtype == "complex32"
    assert ckpt["x"].tobytes() == bits(half)
    assert torch.equal(ckpt["conj"].torch().to(torch.complex64), x.conj().resolve_conj())
    with pytest.raises(UnsupportedError, match="dtype `complex32` has no numpy form"):
        ckpt["x"].numpy()


def test_a_single_tensor_is_a_checkpoint_with_one_key(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3).t()
    torch.save(x, tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    assert list(ckpt) == ["(tensor)"]
    _check_same(ckpt, "(tensor)", x)


def test_a_string_subclass_of_dict_keeps_its_keys(tmp_path: Path) -> None:
    from collections import defaultdict

    x = torch.arange(4.0)
    torch.save(defaultdict(list, {"x": x}), tmp_path / "x.pth")
    _check_same(read(tmp_path / "x.pth"), "x", x)
