"""Carrying a plan out: what comes back, what is refused, and what happens under way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.cli import main
from ckptool.errors import CkptError, FormatError, OutputError, PlanError
from ckptool.formats.atomic import replace_file
from ckptool.reading import read

OUTPUTS = ("out.pth", "out.safetensors")


def source(folder: Path, name: str = "source.pth", tensors: int = 8) -> Path:
    torch.manual_seed(0)
    torch.save({f"k{n}": torch.randn(n + 1, 5) for n in range(tensors)}, folder / name)
    return folder / name


def loaded(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ckptool.write


@pytest.mark.parametrize("name", OUTPUTS)
def test_write_puts_the_chosen_weights_into_a_file_as_they_are(name: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    result = ckptool.write(ckptool.read(path), tmp_path / name)
    wanted, found = loaded(path), loaded(tmp_path / name)
    assert list(read(tmp_path / name)) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (result.input, result.output) == (str(path), str(tmp_path / name))
    assert (result.plan.steps, result.dropped, result.verified) == ((), (), True)
    assert result.nbytes == (tmp_path / name).stat().st_size


def test_write_needs_force_to_replace(tmp_path: Path) -> None:
    path = source(tmp_path)
    (tmp_path / "out.pth").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        ckptool.write(ckptool.read(path), tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"old"
    ckptool.write(ckptool.read(path), tmp_path / "out.pth", force=True)
    assert len(loaded(tmp_path / "out.pth")) == 8


def test_write_takes_a_checkpoint_whose_weights_were_changed(tmp_path: Path) -> None:
    """Functions take values: a checkpoint with fewer keys is a checkpoint."""
    ckpt = ckptool.read(source(tmp_path))
    tensors = {key: x for key, x in ckpt.items() if key < "k3"}
    fewer = replace(ckpt, weights=replace(ckpt.weights, tensors=tensors))
    ckptool.write(fewer, tmp_path / "out.safetensors")
    assert list(loaded(tmp_path / "out.safetensors")) == ["k0", "k1", "k2"]
    assert len(ckpt) == 8


# What is refused before anything is written


@pytest.mark.parametrize("name", ["out", "out.npz", "out.h5", "out.PTH", "out.tar.gz", "out."])
def test_a_suffix_that_no_format_has_is_refused(name: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    with pytest.raises(OutputError, match="no format is written under the suffix") as caught:
        ckptool.convert(path, tmp_path / name)
    assert caught.value.hint == "one of .safetensors .pth .pt .ckpt .bin .pkl .weights .dcp"
    assert names(tmp_path) == ["source.pth"]


@pytest.mark.parametrize("how", ["path", "other spelling", "symbolic link", "hard link", "folder"])
@pytest.mark.parametrize("force", [False, True])
def test_the_output_is_not_the_input_by_whatever_name(
    how: str, force: bool, tmp_path: Path
) -> None:
    path = source(tmp_path)
    before = path.read_bytes()
    output = tmp_path / "alias.pth"
    if how == "path":
        output = path
    elif how == "other spelling":
        output = tmp_path / "." / ".." / tmp_path.name / "source.pth"
    elif how == "symbolic link":
        output.symlink_to(path)
    elif how == "hard link":
        output.hardlink_to(path)
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        output = tmp_path / "link" / "source.pth"
    with pytest.raises(OutputError) as caught:
        ckptool.convert(path, output, force=force)
    assert caught.value.message == f"`{output}` is the input file itself"
    assert caught.value.hint == "-o ANOTHER"
    assert path.read_bytes() == before
    assert output.samefile(path)


def test_the_output_is_no_shard_of_the_input(tmp_path: Path) -> None:
    ckptool.convert(source(tmp_path), tmp_path / "w.safetensors", max_shard_size=200)
    shard = next(path for path in tmp_path.iterdir() if "-00002-of-" in path.name)
    with pytest.raises(OutputError, match="is the input file itself"):
        ckptool.convert(tmp_path / "w.safetensors.index.json", shard, force=True)
    assert len(read(tmp_path / "w.safetensors.index.json")) == 8


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    ckpt = ckptool.read(source(tmp_path))
    none = replace(ckpt, weights=replace(ckpt.weights, tensors={}))
    with pytest.raises(PlanError, match="no tensor is left to be written"):
        ckptool.write(none, tmp_path / "out.pth")
    assert names(tmp_path) == ["source.pth"]


def test_metadata_that_a_torch_file_cannot_hold_are_named(tmp_path: Path) -> None:
    metadata = {"format": "pt", "license": "MIT", "trained by": "us"}
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata=metadata)
    result = ckptool.convert(tmp_path / "a.safetensors", tmp_path / "out.pth")
    assert sorted(result.notes[-1].split(": ")[1].split(", ")) == ["`license`", "`trained by`"]
    assert result.notes[-1].startswith("a torch file has no place for the source's metadata: ")
    assert not ckptool.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors").notes


# A source that changes under way


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def overwritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"other")


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


CHANGES = {
    "appended": appended,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 300),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten": overwritten,
    "touched": touched,
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("phase", ["write", "verify"])
@pytest.mark.parametrize("dtype", [None, "fp16"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_source_that_changes_under_way_is_refused(
    change: Callable[[Path], None], dtype: str | None, phase: str, name: str, tmp_path: Path
) -> None:
    """In the first or in the last tensor; the old output stays."""
    (tmp_path / name).write_bytes(b"old")
    for when in (1, 7):
        path = source(tmp_path)
        os.utime(path, ns=(2, 2))
        seen: Counter[str] = Counter()

        def progress(
            now: str, *_: int, when: int = when, path: Path = path, seen: Counter[str] = seen
        ) -> None:
            seen[now] += 1
            if now == phase and seen[now] == when:
                change(path)

        with pytest.raises(CkptError) as caught:
            ckptool.convert(path, tmp_path / name, dtype=dtype, force=True, progress=progress)
        assert seen[phase] >= when
        assert caught.value.message.startswith(f"`{path}`: ")
        assert caught.value.code in ("file.changed", "format.truncated", "zip.crc")
        assert names(tmp_path) == sorted([name, "source.pth"])
        assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_source_that_is_replaced_under_way_is_read_to_its_end(name: str, tmp_path: Path) -> None:
    """What was opened is what is converted: a file renamed over it is another."""
    path = source(tmp_path)
    wanted = loaded(path)

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "write":
            replace_file(str(path), lambda out: out.write(b"new"), lambda _: None, force=True)

    ckptool.convert(path, tmp_path / name, progress=progress)
    found = loaded(tmp_path / name)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_source_cut_while_it_is_hashed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptool import provenance

    path = source(tmp_path)
    plain = provenance.sha256

    def cut(file: object, *more: object) -> str:
        os.truncate(path, 100)
        return plain(file, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(provenance, "sha256", cut)
    with pytest.raises(FormatError, match="the file ends early") as caught:
        ckptool.convert(path, tmp_path / "out.safetensors")
    assert caught.value.message.startswith(f"`{path}`: ")
    assert names(tmp_path) == ["source.pth"]


def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector is no fault of the output."""
    path = source(tmp_path)
    ckpt = ckptool.read(path)
    plain = os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            raise OSError(5, "Input/output error")
        return plain(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(CkptError) as caught:
        ckptool.convert(ckpt, tmp_path / "out.safetensors")
    assert caught.value.message.startswith(f"`{path}`: at byte ")
    assert caught.value.message.endswith("cannot be read: Input/output error")
    assert names(tmp_path) == ["source.pth"]


# Progress, and being stopped


@pytest.mark.parametrize("name", OUTPUTS)
def test_progress_counts_every_byte_of_both_phases(name: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    total = sum(x.nbytes for x in read(path).values())
    seen: list[tuple[str, int, int]] = []
    ckptool.convert(path, tmp_path / name, progress=lambda *step: seen.append(step))
    assert [phase for phase, _, _ in seen] == ["write"] * 8 + ["verify"] * 8
    assert {item[2] for item in seen} == {total}
    for phase in ("write", "verify"):
        counted = [done for now, done, _ in seen if now == phase]
        assert counted == sorted(counted)
        assert counted[-1] == total


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("phase", ["write", "verify"])
def test_a_conversion_that_is_stopped_leaves_nothing(phase: str, name: str, tmp_path: Path) -> None:
    path = source(tmp_path)

    def stop(now: str, done: int, total: int) -> None:
        if now == phase:
            raise KeyboardInterrupt

    for size in (None, 100):
        with pytest.raises(KeyboardInterrupt):
            ckptool.convert(path, tmp_path / name, progress=stop, max_shard_size=size)
        assert names(tmp_path) == ["source.pth"]


def test_stopping_does_not_wait_for_the_hash_of_a_large_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptool.files import ByteFile

    path = source(tmp_path)
    plain = ByteFile.blocks

    def slow(self: ByteFile, offset: int, length: int, step: int = 1 << 22) -> object:
        if length == self.size and self.path == str(path):
            for _ in range(10_000):
                time.sleep(0.001)
                yield b"x"
        else:
            yield from plain(self, offset, length, step)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ByteFile, "blocks", slow)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ckptool.convert(path, tmp_path / "out.pth", progress=stop)
    assert time.monotonic() - start < 5


def test_the_command_line_says_that_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ckptool import writing

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "prove", stopped)
    path = source(tmp_path)
    assert main(["convert", str(path), "-o", str(tmp_path / "out.pth")]) == 130
    assert capsys.readouterr().err.strip() == "stopped"
    assert names(tmp_path) == ["source.pth"]


# The progress bar


def on_terminal(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout, and what a terminal on stderr was sent."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", *words], stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # what a terminal says when its other side was closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert process.stdout
    out = process.stdout.read()
    process.stdout.close()
    return process.wait(), out.decode(), shown.decode()


def test_a_terminal_is_shown_a_bar_that_goes_away(tmp_path: Path) -> None:
    path = source(tmp_path, tensors=40)
    code, out, shown = on_terminal(["convert", str(path), "-o", str(tmp_path / "out.pth")])
    assert code == 0
    steps = [step for step in shown.split("\r") if "%" in step]
    assert {step.split()[0] for step in steps} == {"write", "verify"}
    shares = [int(step.split()[-2]) for step in steps if step.startswith("write")]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert steps[-1].startswith("verify " + "█" * 25 + " 100 %")
    assert all(len(step) <= 40 for step in steps)
    assert shown.endswith("\r" + " " * 40 + "\r")
    assert "\r" not in out
    assert "%" not in out


def test_a_bar_goes_away_before_an_error_is_shown(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9), "b": torch.tensor([1e30])}, tmp_path / "x.pth")
    words = ["convert", str(tmp_path / "x.pth"), "--dtype", "fp16", "-o", str(tmp_path / "y.pth")]
    code, _, shown = on_terminal(words)
    assert code == 2
    assert "write" in shown
    assert ("\r" + " " * 40 + "\r" + "error: ") in click.unstyle(shown)


@pytest.mark.parametrize("json_wanted", [[], ["--json"]])
def test_without_a_terminal_there_is_no_bar(json_wanted: list[str], tmp_path: Path) -> None:
    words = ["convert", str(source(tmp_path)), "-o", str(tmp_path / "out.pth"), *json_wanted]
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "█" not in done.stdout


# Memory


# What the system counts for a child begins with what its parent had; this does not.
MEASURED = """
import re, sys
from ckptool.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """4 GiB of random numbers in 64 tensors."""
    path = tmp_path_factory.mktemp("large") / "source.pth"
    torch.save({f"k{n}": torch.randn(4096, 4096) for n in range(64)}, path)
    yield path
    path.unlink()


@pytest.mark.sweep
@pytest.mark.parametrize(("dtype", "most"), [(None, 120), ("fp16", 200)])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_large_file_costs_no_memory(
    name: str, dtype: str | None, most: int, large: Path, count: Callable[[str, int], None]
) -> None:
    """The peak is that of the whole process, which starts no other, in MiB."""
    output = large.with_name(name)
    words = ["convert", str(large), "-o", str(output), *(["--dtype", dtype] if dtype else [])]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False
    )
    output.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr) >> 10
    count(f"MiB at most while 4 GiB become {name} ({dtype or 'as they are'})", peak)
    assert peak <= most
