"""From a live model to an Architecture: measure what an instantiation produces.

Class-dependent tensors are found, not listed: the model is built with other class counts, and the
axes that moved are solved for `scale · classes + offset`. What a module knows and no tensor shows
(row layouts, image size, derived buffers) comes from Facts: functions of a live module, by the
dotted name of its class, so that nothing is imported to recognise it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptool.architectures.spec import Architecture, ClassAxis, Legacy, RowLayout
from ckptool.dtypes import DTYPES
from ckptool.errors import (
    ArchitectureError,
    UnsupportedError,
    listed,
    printable,
    quoted,
)
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

Module = Any
Build = Callable[[int | None], Module]

# Two counts that no default has and that share no factor; 1 and 2 often build another head.
_COUNTS = (11, 24)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
_INSTALL = "pip install 'ckptool[live]'"
# On no index; it is built against the torch that is installed.
_INSTALLS = {
    "detectron2": "pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2'",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What a module knows about itself; keys are relative to it.

    `layouts` may name tensors that do not depend on the class count: those are passed over.
    `legacy` are its old keys with their new names, as in an Architecture.
    """

    layouts: Mapping[str, RowLayout] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    card: Mapping[str, object] = field(default_factory=dict)
    legacy: tuple[tuple[str, str | None], ...] = ()


Facts = dict[str, Callable[[Module], Known]]


def measure_model(
    name: str,
    family: str,
    build: Build,
    *,
    facts: Facts | None = None,
    needs: tuple[str, ...] = ("torch",),
    sources: tuple[str, ...] = (),
    default: bool = True,
    sized: bool = True,
    num_classes: int | None = None,
) -> Architecture:
    """The architecture of the models that `build(class count)` gives; None is its default count.

    `default` tells whether it has a default, `sized` whether it takes a class count at all, and
    `num_classes` the default, where it is known (one build less). `needs` are the packages that a
    live model needs, `sources` those of them whose version shapes the manifest.

    Raises: ArchitectureError, UnsupportedError, and what `build` raises.
    """
    facts = facts or {}
    first = _take(name, build, None if default else _COUNTS[0], facts)
    known = num_classes if default else _COUNTS[0]
    axes: Mapping[str, ClassAxis] = {}
    if sized:
        counts = _COUNTS if known is None else (known + _COUNTS[0],)
        shots = [(count, _take(name, build, count, facts).specs) for count in counts]
        axes = _axes(shots if known is None else [*shots, (known, first.specs)])
        known = _count(axes, first.specs) if known is None else known
    axes = axes if known is not None else {}
    return Architecture(
        name=name,
        family=family,
        num_classes=known if default else None,
        specs=first.specs,
        axes=axes,
        layouts=_layouts(first, axes),
        parameters=first.parameters,
        aliases=first.aliases,
        derived=first.derived,
        card=first.card,
        legacy=first.legacy,
        source={package: _version(package) for package in sources},
        needs=needs,
    )


def require(package: str, name: str) -> Any:
    """The imported package; `name` is the architecture that needs it.

    Raises: ArchitectureError if it is not installed or does not import.
    """
    try:
        with quiet():
            return importlib.import_module(package)
    except Exception as error:
        package = package.split(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "which is not installed" if missing else f"which does not import: {told(error)}"
        raise ArchitectureError(
            f"{quoted(name)} needs {quoted(package)}, {reason}",
            hint=_INSTALLS.get(package, _INSTALL),
            code="architecture.not-installed",
        ) from None


def told(error: BaseException) -> str:
    """An exception of somebody else's code on one line."""
    text = printable(str(error).strip(), 400)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def unknown(name: str, known: Iterable[str], hint: str = "") -> ArchitectureError:
    """The error for a name that nothing answers to, with the closest of those that are known."""
    from difflib import get_close_matches

    known = list(known)
    typed = name.lower()
    close = [each for each in known if typed in each.lower()][:3]
    close = close or get_close_matches(typed.replace("-", "_"), known, 3)
    found = f"the closest are {listed(close)}" if close else ""
    return ArchitectureError(
        f"no architecture is called {quoted(name)}",
        hint="; ".join(part for part in (found, hint) if part) or None,
        code="architecture.unknown",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Somebody else's code runs inside: its output goes to stderr, its warnings nowhere."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def padding(modules: Iterable[Module]) -> str:
    """`same` if any convolution or pooling pads as TensorFlow does, else `symmetric`.

    Source: timm 1.0.31 `timm/layers` (Conv2dSame, MaxPool2dSame, AvgPool2dSame).
    """
    same = (
        type(m).__name__.endswith("Same") or m.__dict__.get("padding") == "same" for m in modules
    )
    return "same" if any(same) else "symmetric"


def numerics(modules: Iterable[Module]) -> dict[str, object]:
    """What the modules compute with and no tensor shows: BN eps and momentum, activations."""
    eps, momentum, activations = set(), set(), set()
    for module in modules:
        if hasattr(module, "running_mean") and hasattr(module, "eps"):
            eps.add(module.eps)
            momentum.add(getattr(module, "momentum", None))
        if type(module).__module__.startswith(_ACTIVATIONS) and not hasattr(module, "num_heads"):
            slope = getattr(module, "negative_slope", None)
            kind = type(module).__name__.lower()
            activations.add(kind if slope is None else f"{kind}({slope:g})")
    momentum.discard(None)
    return {
        "bn_eps": _only(eps),
        "bn_momentum": _only(momentum),
        "activation": ", ".join(sorted(activations)) or None,
    }


def torch_default(shape: tuple[int, ...]) -> RowLayout:
    """The layout of one row for each class, started as torch's Linear and Conv2d start.

    Source: torch 2.15 `nn/modules/linear.py` and `conv.py` (`reset_parameters`); `shape` is the
    weight's, for the bias too.
    """
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return RowLayout(init=("uniform", (max(fan_in, 1) ** -0.5,)))


@dataclass(frozen=True, slots=True)
class _Shot:
    """One instantiation, reduced to data."""

    specs: Mapping[str, TensorSpec]
    parameters: int
    aliases: tuple[tuple[str, ...], ...]
    layouts: Mapping[str, RowLayout]
    derived: tuple[str, ...]
    card: Mapping[str, object]
    legacy: Legacy


def _take(name: str, build: Build, count: int | None, facts: Facts) -> _Shot:
    torch = require("torch", name)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                module = build(count)
        except Exception:
            # Code that looks at values while it builds cannot run on meta; real faults recur here.
            module = build(count)
    with quiet():
        tensors = module.state_dict(keep_vars=True)
    known = list(recognised(module, facts))
    card: dict[str, object] = {"padding": padding(module.modules()), **numerics(module.modules())}
    for _, found in reversed(known):
        card.update(found.card)
    return _Shot(
        specs={key: _spec(name, key, tensor) for key, tensor in tensors.items()},
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        aliases=_aliases(tensors),
        layouts={at + key: layout for at, found in known for key, layout in found.layouts.items()},
        derived=tuple(at + key for at, found in known for key in found.derived),
        card={
            key: value
            for card in (card, *(f.card for _, f in known))
            for key, value in card.items()
        },
        legacy={
            at.removesuffix("."): tuple(
                (at + old, None if new is None else at + new) for old, new in found.legacy
            )
            for at, found in known
            if found.legacy
        },
    )


def recognised(module: Module, facts: Facts) -> Iterator[tuple[str, Known]]:
    """The prefix and the facts of every submodule whose class, or a base of it, is in the table."""
    for path, part in module.named_modules():
        for base in type(part).__mro__:
            tell = facts.get(f"{base.__module__}.{base.__qualname__}")
            if tell is not None:
                yield f"{path}." if path else "", tell(part)
                break


def _spec(name: str, key: str, tensor: Any) -> TensorSpec:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedError(
            f"{quoted(name)}: {quoted(key)} of its state dict is not a tensor",
            code="architecture.state",
        )
    if torch.nn.parameter.is_lazy(tensor):
        raise ArchitectureError(
            f"{quoted(name)}: {quoted(key)} has no shape before the first forward pass",
            code="architecture.lazy",
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{quoted(name)}: {quoted(key)} has dtype {quoted(dtype)}, which is not handled",
            code="architecture.dtype",
        )
    return TensorSpec(dtype, tuple(tensor.shape))


def _aliases(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """The groups of keys whose tensors are one, seen the same way; meta tensors have no address."""
    groups: dict[object, list[str]] = {}
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()._cdata
        seen = (storage, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())
        groups.setdefault(seen, []).append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def _axes(shots: list[tuple[int, Mapping[str, TensorSpec]]]) -> Mapping[str, ClassAxis]:
    """The axes that moved between class counts; none if any is not linear."""
    (a, before), (b, after), *_ = shots
    if list(before) != list(after):
        return {}
    axes = {}
    for key, spec in before.items():
        pairs = enumerate(zip(spec.shape, after[key].shape, strict=False))
        moved = [(axis, x, y) for axis, (x, y) in pairs if x != y]
        if not moved:
            continue
        (axis, x, y), *others = moved
        scale, rest = divmod(y - x, b - a)
        if others or rest or scale < 1:
            return {}
        axes[key] = ClassAxis(axis, scale, x - scale * a)
    return axes


def _count(axes: Mapping[str, ClassAxis], specs: Mapping[str, TensorSpec]) -> int | None:
    """The class count that gives these specs, None if the axes do not agree on one."""
    found = {
        axis.classes(specs[key].shape[axis.axis]) if key in specs else None
        for key, axis in axes.items()
    }
    return found.pop() if len(found) == 1 else None


def _layouts(shot: _Shot, axes: Mapping[str, ClassAxis]) -> dict[str, RowLayout]:
    """The recognised layouts, and the plain one where a row is a class and nothing else."""
    layouts = {}
    for key, axis in axes.items():
        if key in shot.layouts:
            layouts[key] = shot.layouts[key]
        elif (axis.axis, axis.scale, axis.offset) == (0, 1, 0):
            weight = shot.specs.get(key.removesuffix("bias") + "weight", shot.specs[key])
            layouts[key] = torch_default(weight.shape)
    return layouts


def _only(values: set[Any]) -> object:
    """The one value, all of them in order if there are several, None if there is none."""
    return (next(iter(values)) if len(values) == 1 else sorted(values)) if values else None


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
