"""A live module as the target: its specs, and a strict load that fails as a whole or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import DTYPES, numpy_dtype, widens
from ckptool.errors import LossError, PlanError, VerificationError, quoted
from ckptool.tensors import LazyTensor, TensorSpec
from ckptool.threads import for_all

if TYPE_CHECKING:
    import torch

_OWN = {"load_state_dict", "_load_from_state_dict"}  # methods that one module may have replaced


def load_strictly(
    model: torch.nn.Module, weights: WeightSet, kept: Iterable[str] = (), *, certain: bool = False
) -> None:
    """`load_state_dict(strict=True)` of weights that are read completely first.

    The model keeps its own values of the keys `kept`, where the weights have none. `certain` says
    that keys and shapes were found to agree; else the old values are copied before: torch loads
    what fits before it refuses the rest.

    Raises: VerificationError with torch's own words if it refuses them; the model is as it was.
    """
    # Classes and hooks of one's own may keep what they are given.
    state, live = state_dict(weights, own=not certain), model.state_dict()
    for key in kept:
        state.setdefault(key, live[key])
    saved, held = {}, []
    if not certain or not all(is_plain(value) for value in live.values()):
        saved = {key: value.clone() for key, value in live.items() if hasattr(value, "clone")}
        held = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:
        for module, parameters, buffers in held:  # a class may have replaced its own
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        _restore(model, live, saved)
        raise VerificationError(
            f"load_state_dict(strict=True) refuses the weights: {error}", code="verification.load"
        ) from None


def has_own_rules(model: torch.nn.Module) -> bool:
    """Whether classes or hooks that are not torch's have a say in how the model is loaded."""
    import torch

    return any(
        not (type(module)._load_from_state_dict.__module__ or "").startswith("torch.")
        or not (type(module).load_state_dict.__module__ or "").startswith("torch.")
        or type(module).set_extra_state is not torch.nn.Module.set_extra_state
        or not _OWN.isdisjoint(vars(module))
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        for module in model.modules()
    )


def is_plain(value: Any) -> bool:
    """Whether a tensor is torch's own kind, which takes any values of its shape.

    One that is expanded does not: several of its elements are one; nor does one of inference mode.
    """
    import torch

    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and (value.is_contiguous() or 0 not in value.stride())
        and (not value.is_inference() or torch.is_inference_mode_enabled())
    )


def _restore(
    model: torch.nn.Module, live: Mapping[str, Any], saved: Mapping[str, torch.Tensor]
) -> None:
    """Give every tensor its old values, and every module its old extra state."""
    import torch

    with torch.no_grad():
        for key, value in saved.items():
            with suppress(RuntimeError):  # what cannot be written to is as it was
                live[key].copy_(value)
    for name, module in model.named_modules() if saved else ():
        key = f"{name}._extra_state" if name else "_extra_state"
        if key in live:
            with suppress(Exception):  # a class that does not take what it gave
                module.set_extra_state(live[key])


def state_dict(weights: WeightSet, *, own: bool = True) -> OrderedDict[str, torch.Tensor]:
    """The weights as torch would have loaded them: ties kept, with their `_metadata`.

    Tensors that need not have memory of their `own` are to be copied from.
    """
    numbers: dict[LazyTensor, int] = {}
    of_key = [numbers.setdefault(t, len(numbers)) for t in weights.tensors.values()]
    tensors = list(numbers)

    def load(number: int) -> torch.Tensor:
        return tensors[number].torch(own=own)

    loaded = for_all(load, [tensor.nbytes for tensor in tensors])
    values = (loaded[number] for number in of_key)
    state = OrderedDict(zip(weights.tensors, values, strict=True))
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


def narrowed(weights: WeightSet, specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """The keys whose values might not fit into the model's floating type, by that type.

    torch casts while it loads, and what is too large becomes infinite without a word.
    """
    found: dict[str, list[str]] = {}
    for key, tensor in weights.tensors.items():
        wanted = specs[key].dtype if key in specs else tensor.dtype
        if (
            tensor.dtype != wanted
            and DTYPES[tensor.dtype].kind == DTYPES[wanted].kind == "f"
            and not widens(tensor.dtype, wanted)
        ):
            found.setdefault(wanted, []).append(key)
    return found


def refuse_other_kinds(weights: WeightSet, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse numbers that torch would turn into something else without a word.

    A counter may be stored as a float; a weight of bytes is a quantised one without its scale.
    """
    for key, tensor in weights.tensors.items():
        if key in specs and not _means_the_same(tensor, specs[key].dtype):
            raise LossError(
                f"{quoted(key)}: found {tensor.dtype}, the model has {specs[key].dtype}, which "
                "would not be the same values",
                code="loss.kind",
            )


def _means_the_same(tensor: LazyTensor, dtype: str) -> bool:
    """Whether the values are the same ones in a type of another kind."""
    import numpy

    found, wanted = DTYPES[tensor.dtype], DTYPES[dtype]
    if found == wanted or found.kind == wanted.kind in "fc" or found.kind == "b":
        return True
    quantised = found.itemsize == 1 and wanted.kind == "f" and tensor.numel > 1
    if "q" in (found.kind, wanted.kind) or found.kind == "c" or quantised:
        return False
    values = tensor.numpy()
    with numpy.errstate(invalid="ignore"):
        back = values.astype(numpy_dtype(dtype)).astype(values.dtype)
    return bool((values == back).all())
