"""Diffs of made checkpoints, and what becomes of the commands that they propose."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_made import Held as Held
from checkpoints_made import State, Versions, loads, numbered, write
from torch import nn

import ckptool
from ckptool.causes import Cause
from ckptool.cli import main


class Bench:
    """One file that is compared, explained and converted."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.path = folder / "weights.pth"
        self.values: dict[str, float] = {}

    def diff(
        self, state: State, metadata: Versions | None = None, *, values: Any = None, **target: Any
    ) -> ckptool.Diff:
        """The diff of a file with that state dict; the n-th tensor is full of n, or of `values`."""
        made = numbered(state)
        for key, value in (values or {}).items():
            made[key] = value
        self.values = {key: float(n) for n, key in enumerate(state, 1)}
        write(state, self.path, metadata, made)
        return ckptool.diff(self.path, **target)

    def run(self, options: str) -> dict[str, torch.Tensor]:
        """What `ckptool convert FILE OPTIONS` writes."""
        output = self.folder / "out.pth"
        command = ["convert", str(self.path), *shlex.split(options), "--force", "-o", str(output)]
        assert main(command) == 0, self.capsys.readouterr().err
        self.capsys.readouterr()
        return dict(torch.load(output, weights_only=True))

    def refused(self, options: str) -> str:
        """What `ckptool convert FILE OPTIONS` says when it refuses."""
        output = self.folder / "none.pth"
        assert main(["convert", str(self.path), *shlex.split(options), "-o", str(output)]) == 2
        assert not output.exists()
        return self.capsys.readouterr().err

    def fixes(
        self, found: ckptool.Diff, cause: Cause, module: nn.Module
    ) -> dict[str, torch.Tensor]:
        """The file that the cause's own options make, which loads strictly into the real class."""
        assert cause.fix is not None
        made = self.run(cause.fix)
        assert loads(module, {k: Held(v.dtype, tuple(v.shape)) for k, v in made.items()})
        self.solves(found, module)
        return made

    def solves(self, found: ckptool.Diff, module: nn.Module) -> dict[str, torch.Tensor]:
        """The file that the diff's command makes, which loads strictly into the real class."""
        assert found.fix is not None
        words = shlex.split(found.fix)
        assert words[:3] == ["ckptool", "convert", str(self.path)]
        made = self.run(shlex.join(words[3:]))
        state = {key: Held(value.dtype, tuple(value.shape)) for key, value in made.items()}
        assert loads(module, state)
        return made


def only(found: ckptool.Diff, code: str) -> Cause:
    """The one cause, by its code, that explains everything."""
    assert [cause.code for cause in found.causes] == [code], str(found)
    assert found.unexplained == ()
    assert set(found.causes[0].keys) == {e.key for e in found.entries if e.kind != "dtype"}
    assert not found.fits_strict
    return found.causes[0]


def codes(found: ckptool.Diff) -> list[str]:
    return [cause.code for cause in found.causes]
