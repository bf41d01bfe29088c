"""Verify: that a file loads strictly into the real class, and what a forward pass gives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool import architectures
from ckptool.architectures import darknet_files, frozen
from ckptool.architectures.live import quiet, told
from ckptool.checkpoint import Checkpoint
from ckptool.compare import compare
from ckptool.errors import VerificationError, quoted
from ckptool.reading import read
from ckptool.strict import load_strictly, module_specs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether a file loads strictly into the real class, and what a forward pass gave.

    `forward` has the input's shape, the outputs' shapes and whether all of them are finite.
    """

    file: str
    arch: str
    strict_load: bool
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape: tuple[str, ...]
    forward: Mapping[str, Any] | None = None
    num_classes: int | None = None

    @property
    def passed(self) -> bool:
        """Whether it loads, and the forward pass, if there was one, gave finite values only."""
        return self.strict_load and (self.forward is None or bool(self.forward["finite"]))


def verify(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    *,
    arch: str,
    num_classes: int | None = None,
    weights: str | None = None,
    forward: bool = False,
) -> Verified:
    """Load the file strictly into the real class; with `forward` run one random image through it.

    Raises: CkptError if the file is unreadable or the architecture is not installed.
    """
    darknet = darknet_files.is_darknet(arch)
    opened = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else read(checkpoint, weights=weights, darknet=darknet)
    )
    if darknet:
        opened = darknet_files.keyed(opened, architectures.find(arch))
    model = architectures.build(arch, num_classes)
    try:
        load_strictly(model, opened.weights)
        loads = True
    except VerificationError:
        loads = False
    known = frozen.find(arch)
    legacy = known.legacy if known else {}
    held, specs = opened.weights, module_specs(model)
    found = compare(held.specs, specs, held.versions, legacy=legacy)
    by_kind = {
        kind: tuple(entry.key for entry in found.entries if entry.kind == kind)
        for kind in ("missing", "unexpected", "shape")
    }
    shapes = _run(model, arch, architectures.find(arch).card) if forward and loads else None
    return Verified(opened.path, arch, loads, **by_kind, forward=shapes, num_classes=num_classes)


def _run(model: torch.nn.Module, name: str, card: Mapping[str, object]) -> Mapping[str, Any]:
    """One forward pass of a random image of the architecture's size.

    Raises: VerificationError if the network does not run.
    """
    import torch

    size = card.get("image_size")
    height, width = size if isinstance(size, (list, tuple)) else (256, 256)
    image = torch.rand(1, 3, int(height), int(width), generator=torch.Generator().manual_seed(0))
    model.eval()
    try:
        with torch.no_grad(), quiet():
            outputs = list(_tensors(model(image)))
    except Exception as error:
        shape = "×".join(map(str, image.shape))
        raise VerificationError(
            f"{quoted(name)} does not run on an image of {shape}: {told(error)}",
            code="verification.forward",
        ) from None
    return {
        "input": list(image.shape),
        "outputs": [list(output.shape) for output in outputs],
        "finite": all(bool(torch.isfinite(output).all()) for output in outputs),
    }


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside nested lists, tuples and dicts."""
    if hasattr(value, "layout"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
