"""Verify: that a file loads strictly into the real class, and what a forward pass gives."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool import architectures
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.errors import VerificationError
from ckptool.reading import read
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22


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
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint, weights=weights)
    model = architectures.build(arch, num_classes)
    try:
        load_strictly(model, opened.weights)
        loads = True
    except VerificationError:
        loads = False
    found = compare(opened.weights.specs, module_specs(model), opened.weights.versions)
    by_kind = {
        kind: tuple(entry.key for entry in found.entries if entry.kind == kind)
        for kind in ("missing", "unexpected", "shape")
    }
    shapes = _run(model, architectures.find(arch).card) if forward and loads else None
    return Verified(opened.path, arch, loads, **by_kind, forward=shapes)


def load_strictly(
    model: torch.nn.Module,
    weights: WeightSet,
    kept: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """`load_state_dict(strict=True)` of weights that are read completely first.

    `kept` are values of the model's own that it keeps where the weights have none.

    Raises: VerificationError with torch's own words if it refuses them.
    """
    state = state_dict(weights)
    for key, value in (kept or {}).items():
        state.setdefault(key, value)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise VerificationError(
            f"load_state_dict(strict=True) refuses the weights: {error}", code="verification.load"
        ) from None


def state_dict(weights: WeightSet) -> OrderedDict[str, torch.Tensor]:
    """The weights as torch would have loaded them: ties kept, with their `_metadata`."""
    made: dict[Any, torch.Tensor] = {}
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, tensor in weights.tensors.items():
        if tensor not in made:
            made[tensor] = tensor.torch()
        state[key] = made[tensor]
    if weights.versions is not None:
        metadata = OrderedDict((path, {"version": n}) for path, n in weights.versions.items())
        state._metadata = metadata  # type: ignore[attr-defined]
    return state


def module_specs(model: torch.nn.Module) -> dict[str, TensorSpec]:
    """What a live model's state dict has."""
    return {
        key: TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for key, value in model.state_dict().items()
        if hasattr(value, "dtype")
    }


def _run(model: torch.nn.Module, card: Mapping[str, object]) -> Mapping[str, Any]:
    """One forward pass of a random image of the architecture's size."""
    import torch

    size = card.get("image_size")
    height, width = size if isinstance(size, (list, tuple)) else (256, 256)
    image = torch.rand(1, 3, int(height), int(width), generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        outputs = list(_tensors(model(image)))
    return {
        "input": list(image.shape),
        "outputs": [list(output.shape) for output in outputs],
        "finite": all(math.isfinite(float(output.abs().max())) for output in outputs),
    }


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside nested lists, tuples and dicts."""
    if hasattr(value, "dtype"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
