"""Verify: that a file loads strictly into the real class, and what a forward pass gives."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool import architectures
from ckptool.architectures import darknet_files, frozen
from ckptool.architectures.live import quiet, told
from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.compare import compare
from ckptool.errors import PlanError, VerificationError, quoted
from ckptool.reading import read
from ckptool.tensors import TensorSpec

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


def load_strictly(
    model: torch.nn.Module, weights: WeightSet, kept: Iterable[str] = (), *, certain: bool = False
) -> None:
    """`load_state_dict(strict=True)` of weights that are read completely first.

    The model keeps its own values of the keys `kept`, where the weights have none. `certain` says
    that keys and shapes were found to agree; else the old values are copied before: torch loads
    what fits before it refuses the rest.

    Raises: VerificationError with torch's own words if it refuses them; the model is as it was.
    """
    state, live = state_dict(weights), model.state_dict()
    for key in kept:
        state.setdefault(key, live[key])
    saved = {}
    if not certain or not all(_is_plain(value) for value in live.values()):
        saved = {key: value.clone() for key, value in live.items() if hasattr(value, "clone")}
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:
        _restore(live, saved)
        raise VerificationError(
            f"load_state_dict(strict=True) refuses the weights: {error}", code="verification.load"
        ) from None


def has_own_rules(model: torch.nn.Module) -> bool:
    """Whether classes or hooks that are not torch's have a say in how the model is loaded."""
    return any(
        not (type(module)._load_from_state_dict.__module__ or "").startswith("torch.")
        or not (type(module).load_state_dict.__module__ or "").startswith("torch.")
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        for module in model.modules()
    )


def _is_plain(value: Any) -> bool:
    """Whether a tensor is torch's own kind, which takes any values of its shape."""
    import torch

    return type(value) is torch.Tensor and value.layout is torch.strided


def _restore(live: Mapping[str, Any], saved: Mapping[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for key, value in saved.items():
            live[key].copy_(value)


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
    """What a live model's state dict has.

    Raises: PlanError for a model without tensors, or with tensors that have no memory or shape.
    """
    import torch

    name = quoted(type(model).__name__)
    specs = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            continue  # what get_extra_state gives
        if torch.nn.parameter.is_lazy(value):
            raise PlanError(
                f"{name}: {quoted(key)} has no shape before the first forward pass",
                code="plan.model",
            )
        if value.is_meta:
            raise PlanError(
                f"{name}: {quoted(key)} is on the meta device, where there is no memory to load "
                "into",
                hint="model.to_empty(device='cpu') gives it some",
                code="plan.model",
            )
        specs[key] = TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
    if not specs:
        raise PlanError(f"{name} has no tensors", code="plan.model")
    return specs


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
