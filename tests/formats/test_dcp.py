"""Folders of torch.distributed.checkpoint, as torch writes them, and as it never would."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_made import effdet
from tensors_made import bits
from torch.distributed import checkpoint
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, OutputError, UnsupportedError
from ckptool.reading import open_file, read

STATE = {
    "a.weight": torch.randn(4, 6),
    "a.bias": torch.randn(6).bfloat16(),
    "steps": torch.tensor(7),
    "none": torch.empty(0, 3),
}


def saved(folder: Path, state: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def edited(folder: Path, edit: Callable[[Any], None]) -> None:
    """The same folder with another `.metadata`."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def boxes(metadata: Any, key: str, *pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Give a tensor other pieces, all of them where its first one is."""
    entry = metadata.state_dict_metadata[key]
    entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in pairs]
    index = next(index for index in metadata.storage_data if index.fqn == key)
    for number, (offsets, _) in enumerate(pairs):
        there = dataclasses.replace(index, offset=torch.Size(offsets), index=number)
        metadata.storage_data[there] = metadata.storage_data[index]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """What two processes saved of a tf_efficientdet_d0, and its state dict."""
    return by_two_processes(tmp_path_factory.mktemp("ranks"))


def by_two_processes(home: Path, *how: str) -> tuple[Path, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(x.shape, generator=generator) if x.is_floating_point() else torch.tensor(3)
        for key, x in effdet("tf_efficientdet_d0").state_dict().items()
    }
    torch.save(state, home / "whole.pth")
    script = str(Path(__file__).with_name("dcp_rank.py"))
    words = [str(home / "whole.pth"), str(home / "dcp"), *how]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", script, str(rank), *words], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-2000:]
    return home / "dcp", state


def test_what_two_processes_saved_is_the_unsharded_state_dict(
    ranks: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, state = ranks
    opened = read(folder)
    assert opened.contents.format == "dcp"
    assert opened.weights.name == "model"
    assert len([name for name in os.listdir(folder) if name.endswith(".distcp")]) == 2
    assert {*opened} == {*state}
    cut = [key for key, x in opened.items() if len(x.source.items) > 1]  # type: ignore[attr-defined]
    assert len(cut) > 500
    for key, tensor in state.items():
        assert opened[key].dtype == str(tensor.dtype).removeprefix("torch.")
        assert opened[key].shape == tuple(tensor.shape)
        assert opened[key].tobytes() == bits(tensor), key


@pytest.mark.sweep
def test_what_fsdp_sharded_is_the_unsharded_state_dict(tmp_path: Path) -> None:
    folder, state = by_two_processes(tmp_path, "fsdp")
    opened = read(folder)
    assert {key: x.tobytes() for key, x in opened.items()} == {
        key: bits(x) for key, x in state.items()
    }


def test_a_folder_of_two_ranks_is_identified_and_converted(
    ranks: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, state = ranks
    assert ckptool.identify(folder).fitting[0].arch == "tf_efficientdet_d0"
    result = ckptool.convert(folder, tmp_path / "out.safetensors")
    assert result.fits_strict
    written = read(tmp_path / "out.safetensors")
    assert {key: x.tobytes() for key, x in written.items()} == {
        key: bits(x) for key, x in state.items()
    }


def test_columns_are_joined_a_few_rows_at_a_time(
    ranks: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, state = ranks
    key = max((k for k in state if "conv_pw" in k), key=lambda k: state[k].numel())
    chunks = [bytes(chunk) for chunk in read(folder)[key].chunks(1 << 10)]
    assert max(map(len, chunks)) <= max(1 << 10, state[key][0].numel() * 4)
    assert b"".join(chunks) == bits(state[key])


def test_nothing_but_the_metadata_is_read_and_torch_is_not_imported(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", {"model": STATE})
    for path in folder.glob("*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    code = (
        "import sys, ckptool; print(len(ckptool.read(sys.argv[1])), 'torch' in sys.modules, "
        "'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["4", "False", "False"]


def test_nested_state_dicts_keep_their_nesting(tmp_path: Path) -> None:
    """The full dotted name is the key that DCP flattens to: `model.a.weight`."""
    extra = {"ema": [torch.ones(2), {"x": torch.zeros(1)}], "epoch": 3}
    folder = saved(tmp_path / "dcp", {"model": STATE, **extra})
    opened = open_file(folder)
    names = {f"{found.name}.{key}" for found in opened.sets for key in found.tensors}
    flat = pickle.loads((folder / ".metadata").read_bytes()).state_dict_metadata
    assert {f"model.{key}" for key in STATE} <= names <= {*flat}
    findings = {item.code: item.message for item in opened.contents.findings}
    assert findings["shards"] == "6 tensors in 6 pieces in 1 file"
    assert findings["not-read"] == "1 pickled value beside the tensors: `epoch`"


@pytest.mark.parametrize("by", ["folder", ".metadata"])
def test_a_plain_state_dict(by: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    opened = read(folder if by == "folder" else folder / ".metadata")
    assert {key: x.tobytes() for key, x in opened.items()} == {
        key: bits(x) for key, x in STATE.items()
    }
    assert opened.nbytes == sum(path.stat().st_size for path in folder.iterdir())


def test_without_paths_the_keys_stay_flat(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", {"model": STATE})

    def forget(metadata: Any) -> None:
        metadata.planner_data = None

    edited(folder, forget)
    assert {*read(folder)} == {f"model.{key}" for key in STATE}


def test_torch_loads_what_is_written(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    result = ckptool.convert(tmp_path / "a.pth", tmp_path / "out.dcp")
    assert result.verified
    assert result.nbytes == sum(path.stat().st_size for path in (tmp_path / "out.dcp").iterdir())
    assert {*os.listdir(tmp_path)} == {"a.pth", "out.dcp"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / "out.dcp", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert {key: bits(x) for key, x in back.items()} == {key: bits(x) for key, x in STATE.items()}
    assert read(tmp_path / "out.dcp").contents.metadata["ckptool"].startswith('{"version"')
    with pytest.raises(OutputError, match="is not a regular file"):
        ckptool.convert(tmp_path / "a.pth", tmp_path / "out.dcp", force=True)


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 16)}, tmp_path / "a.pth")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OutputError, match=r"out\.dcp`: cannot be written: File too large"):
            ckptool.convert(tmp_path / "a.pth", tmp_path / "out.dcp")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (RuntimeError("no rank"), OutputError, "torch does not write it: no rank"),
    ],
    ids=["Ctrl-C", "torch's own"],
)
def test_what_stops_torch_is_not_hidden(
    raised: BaseException,
    expected: type[BaseException],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise raised

    torch.save(STATE, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(expected, match=message):
        ckptool.convert(tmp_path / "a.pth", tmp_path / "out.dcp")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_the_output_stands_beside_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "step_100", STATE)
    assert main(["convert", str(folder), "--dtype", "fp16"]) == 0
    assert (tmp_path / "step_100.fp16.safetensors").exists()
    assert capsys.readouterr().out.startswith(f"{tmp_path}/step_100.fp16.safetensors: ")


def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    (piece,) = folder.glob("*.distcp")
    data = piece.read_bytes()
    piece.write_bytes(data[:-9])
    with pytest.raises(FormatError, match=r"`__0_0\.distcp` is cut short: 9 bytes are missing"):
        read(folder)
    piece.unlink()
    with pytest.raises(CkptError, match=r"piece `__0_0\.distcp`: .*no such file"):
        read(folder)


def test_a_folder_without_its_metadata_was_not_saved_to_the_end(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    (folder / ".metadata").unlink()
    with pytest.raises(CkptError, match=r"folder without its `.metadata`, which is written last"):
        read(folder)


def test_a_path_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)

    def lead(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = "../outside"

    edited(folder, lead)
    with pytest.raises(FormatError, match=r"`\.\./outside` is not a plain file name"):
        read(folder)


def test_compressed_pieces_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)

    def compress(metadata: Any) -> None:
        for index, info in list(metadata.storage_data.items()):
            metadata.storage_data[index] = _StorageInfo(
                info.relative_path, info.offset, info.length, ["zstd"]
            )

    edited(folder, compress)
    with pytest.raises(UnsupportedError, match="its pieces are compressed") as caught:
        read(folder)
    assert "dcp_to_torch" in str(caught.value.hint)


TILINGS = {
    "a gap": ([((0, 0), (1, 6)), ((2, 0), (2, 6))], "leave a gap at 2 of axis 0, wanted 1"),
    "an overlap": ([((0, 0), (3, 6)), ((2, 0), (2, 6))], "overlap at 2 of axis 0, wanted 3"),
    "too little": ([((0, 0), (3, 6))], "reach 3 along axis 0"),
    "too much": ([((0, 0), (4, 6)), ((4, 0), (1, 6))], "reach 5 along axis 0"),
    "columns": ([((0, 0), (4, 2)), ((0, 3), (4, 3))], "leave a gap at 3 of axis 1, wanted 2"),
    "another rank": ([((0,), (4,))], "offsets and sizes of the tensor's rank"),
    "another size": ([((0, 0), (2, 6)), ((2, 0), (2, 6))], None),
}


@pytest.mark.parametrize("name", TILINGS)
def test_pieces_that_do_not_make_up_the_tensor(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    pairs, message = TILINGS[name]
    edited(folder, lambda metadata: boxes(metadata, "a.weight", *pairs))
    if message is None:  # only the pieces themselves tell
        tensor = read(folder)["a.weight"]
        with pytest.raises(FormatError, match=r"found float32 \(4, 6\), wanted float32 \(2, 6\)"):
            tensor.tobytes()
        return
    with pytest.raises(FormatError, match=r"`a\.weight`: \.metadata: ") as caught:
        read(folder)
    assert message in str(caught.value)


def test_a_piece_that_is_damaged_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    (piece,) = folder.glob("*.distcp")
    data = bytearray(piece.read_bytes())
    at = data.index(bits(STATE["a.weight"]))
    data[at] ^= 1
    piece.write_bytes(data)
    with pytest.raises(FormatError, match="found CRC"):
        read(folder)["a.weight"].tobytes()


class Other:
    """A class of the test's own."""


@pytest.mark.parametrize(
    "value", [{"a": 1}, [1], "text", 7, Other()], ids=["dict", "list", "text", "int", "object"]
)
def test_a_pickle_of_another_kind_under_that_name(value: object, tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(FormatError, match=r"\.metadata: found `.*`, wanted `torch\.distributed"):
        read(tmp_path)


def test_metadata_without_fields(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", STATE)
    for name in ("state_dict_metadata", "storage_data"):
        edited(folder, lambda metadata, name=name: setattr(metadata, name, None))  # type: ignore[misc]
        with pytest.raises(FormatError, match="is not a dict"):
            read(folder)


def test_many_tensors_of_the_same_many_pieces(tmp_path: Path) -> None:
    """A small pickle can refer to one list of pieces from thousands of keys."""
    folder = saved(tmp_path / "dcp", STATE)

    def repeat(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["a.weight"]
        entry.chunks = entry.chunks * 20_000
        for number in range(2_000):
            metadata.state_dict_metadata[f"k{number}"] = entry

    edited(folder, repeat)
    start = time.monotonic()
    with pytest.raises(FormatError):
        read(folder)
    assert time.monotonic() - start < 20


def test_mutants_are_read_or_refused(tmp_path: Path, count: Callable[[str, int], None]) -> None:
    """Whatever single bytes are, the answer is a tensor or an error of ckptool's."""
    folder = saved(tmp_path / "dcp", {"model": STATE, "epoch": 3})
    generator = random.Random(0)
    refused = 0
    for name in (".metadata", "__0_0.distcp"):
        data = (folder / name).read_bytes()
        for _ in range(400):
            mutant = bytearray(data)
            for _ in range(generator.choice((1, 1, 2, 8))):
                mutant[generator.randrange(len(mutant))] = generator.randrange(256)
            (folder / name).write_bytes(mutant)
            try:
                for tensor in read(folder).values():
                    tensor.tobytes()
            except CkptError:
                refused += 1
        (folder / name).write_bytes(data)
    assert 200 < refused < 800
    count("mutants of a distributed checkpoint read or refused", 800)


def test_a_file_for_each_tensor_is_more_than_may_be_open(tmp_path: Path) -> None:
    """As torch writes it where it is told to; a shell lets 1,024 files be open."""
    state = {f"k{number}": torch.tensor([float(number)]) for number in range(300)}
    writer = checkpoint.FileSystemWriter(tmp_path / "dcp", single_file_per_rank=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state, storage_writer=writer, no_dist=True)
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 300
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        opened = read(tmp_path / "dcp")
        assert [x.numpy()[0] for x in opened.values()] == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
