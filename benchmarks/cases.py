"""What is compared with what: our command first, then what a user would run instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import inputs
from benchmarks.measure import Case, Command

_PYTHON = sys.executable
_KIT = str(Path(_PYTHON).parent / "ckptkit")
_SCRIPTS = Path(__file__).parent / "scripts"
_OUT = inputs.CACHE / "out"
_SAFE, _TORCH = _OUT / "out.safetensors", _OUT / "out.pth"


def ckptool(*words: object, exits: tuple[int, ...] = (0,)) -> Command:
    """Our command, under its name."""
    line = [_PYTHON, "-m", "ckptool", *map(str, words)]
    return Command(f"ckptool {words[0]}", line, clean, exits)


def script(name: str, *words: object, own_figures: bool = False) -> Command:
    """A script of torch or of a library, under its name and options."""
    shown = " ".join([name.removesuffix(".py"), *(str(word) for word in words[2:])])
    line = [_PYTHON, str(_SCRIPTS / name), *map(str, words)]
    return Command(shown, line, clean, own_figures=own_figures)


def ckptkit(*words: object) -> Command:
    """The command of the package ckptkit, whose `diff` exits with 1 where files differ."""
    return Command(f"ckptkit {words[0]}", [_KIT, *map(str, words)], exits=(0, 1))


def clean() -> None:
    """Remove what the run before wrote."""
    _OUT.mkdir(parents=True, exist_ok=True)
    for path in _OUT.iterdir():
        path.unlink()


def d7(suffix: str) -> Path:
    """The checkpoint of 1,818 tensors and 200 MB."""
    return inputs.model_file("tf_efficientdet_d7", suffix)


def start() -> Sequence[Command]:
    """The physical floor."""
    return [ckptool("--version"), Command("bare Python", [_PYTHON, "-c", "pass"])]


def inspect_safetensors(make: Callable[[], Path]) -> Sequence[Command]:
    """A header alone, as others read it."""
    path = make()
    return [ckptool("inspect", path), ckptkit("info", path), script("safe_open.py", path)]


def with_torch(command: str, arch: str) -> Sequence[Command]:
    """Inspect, diff or identify, and the script that builds the model."""
    path = inputs.model_file(arch, ".pth")
    aim = ("--arch", arch) if command == "diff" else ()
    return [ckptool(command, path, *aim), script("diff_with_torch.py", path, arch)]


def two_files() -> Sequence[Command]:
    """One file against another."""
    one, other = d7(".safetensors"), inputs.model_file("tf_efficientdet_d6", ".safetensors")
    return [ckptool("diff", one, "--like", other, exits=(0, 1)), ckptkit("diff", one, other)]


def converted(megabytes: int, output: Path, *words: str, script_too: bool = True) -> list[Command]:
    """Convert a dense file; the limit is a copy of it that is on the disk when it returns."""
    source = inputs.dense_file(megabytes)
    copy = f"cp --sparse=never --reflink=never {source} {_OUT}/copy && sync {_OUT}/copy"
    commands = [
        ckptool("convert", source, "-o", output, *words),
        Command("cp, sync", ["sh", "-c", copy], clean),
    ]
    if script_too:
        commands.append(script("convert_with_torch.py", source, output, *words[1:]))
    return commands


def loaded() -> Sequence[Command]:
    """A matching file into a model that is there."""
    words = ("load.py", d7(".pth"), "tf_efficientdet_d7")
    return [script(*words, how, own_figures=True) for how in ("ckptool", "mmap", "torch")]


def many(command: str, count: int) -> Sequence[Command]:
    """More and more tensors."""
    path, safe = (inputs.many_tensors(count, suffix) for suffix in (".pth", ".safetensors"))
    more = {"inspect": (), "diff": ("--like", safe), "convert": ("-o", _SAFE)}[command]
    return [ckptool(command, path, *more)]


def _sparse(command: str, megabytes: int) -> Sequence[Command]:
    return [ckptool(command, inputs.sparse_zip(megabytes))]


GROUPS: dict[str, list[Case]] = {
    "start": [Case("start", start, 10)],
    "read": [
        Case("inspect D7 .pth", partial(with_torch, "inspect", "tf_efficientdet_d7")),
        Case(
            "inspect D7 .safetensors",
            partial(inspect_safetensors, partial(d7, ".safetensors")),
            10,
        ),
        Case("inspect sparse 10 GiB .pth", partial(_sparse, "inspect", 10 << 10)),
        Case(
            "inspect sparse 10 GiB .safetensors",
            partial(inspect_safetensors, partial(inputs.sparse_file, 10 << 10)),
        ),
        Case("diff D7 .pth", partial(with_torch, "diff", "tf_efficientdet_d7")),
        Case("diff D0 .pth", partial(with_torch, "diff", "tf_efficientdet_d0")),
        Case("diff D7 with D6 .safetensors", two_files),
        Case("identify D7 .pth", partial(with_torch, "identify", "tf_efficientdet_d7")),
    ],
    "convert": [
        Case("convert 4 GiB .pth to .safetensors", partial(converted, 4096, _SAFE), 3),
        Case("convert 4 GiB .pth to .pth", partial(converted, 4096, _TORCH), 3),
        Case("convert 4 GiB to fp16", partial(converted, 4096, _SAFE, "--dtype", "fp16"), 3),
        Case(
            "convert 4 GiB to bf16",
            partial(converted, 4096, _SAFE, "--dtype", "bf16", script_too=False),
            3,
        ),
    ],
    "load": [Case("load_into D7", loaded)],
    "grow": [
        *(
            Case(f"{command} {count:,} tensors", partial(many, command, count), 3)
            for command in ("inspect", "diff", "convert")
            for count in (100, 1_000, 10_000, 100_000)
        ),
        *(
            Case(
                f"convert {megabytes:,} MiB {' '.join(words)}".rstrip(),
                partial(converted, megabytes, _SAFE, *words, script_too=False),
                3 if megabytes < 10_000 else 1,
            )
            for words in ((), ("--dtype", "fp16"))
            for megabytes in (64, 256, 1024, 16384)
        ),
    ],
}
