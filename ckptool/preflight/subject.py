"""What images and targets are checked against: a live model, recognised without being run.

A model is known by the dotted name of its class, wherever it stands inside others; another one by
its keys and shapes, or by the architecture that the caller names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptool import architectures
from ckptool.architectures.spec import Architecture, RowLayout
from ckptool.derived import DERIVED, is_named
from ckptool.errors import CkptError, quoted
from ckptool.identification import prefixes, recognised, without_segments
from ckptool.tensors import TensorSpec

Module = Any

EFFDET, TORCHVISION, YOLO = "effdet", "torchvision", "yolov4"

# Source: effdet 0.4.1 (bench.py, efficientdet.py), torchvision 0.29 (models/detection).
_DETECTION = "torchvision.models.detection"
KINDS = {
    "effdet.bench.DetBenchTrain": EFFDET,
    "effdet.bench.DetBenchPredict": EFFDET,
    "effdet.efficientdet.EfficientDet": EFFDET,
    f"{_DETECTION}.generalized_rcnn.GeneralizedRCNN": TORCHVISION,
    f"{_DETECTION}.retinanet.RetinaNet": TORCHVISION,
    f"{_DETECTION}.fcos.FCOS": TORCHVISION,
    f"{_DETECTION}.ssd.SSD": TORCHVISION,
    "ckptool.architectures.darknet_net.DarknetNet": YOLO,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A live model as the checks see it.

    `core` is the part whose class is known, at `path` inside `model`; it is the model itself where
    none is. `kind` is the name of that class. `num_classes` counts as the architecture does.
    `architecture` is what the caller named or what the keys fit, and `specs` are the model's
    tensors under its keys.
    """

    model: Module
    core: Module
    path: str
    kind: str
    family: str
    name: str
    num_classes: int | None
    card: Mapping[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None
    specs: Mapping[str, TensorSpec] = field(default_factory=dict)

    @property
    def training(self) -> bool:
        """Whether the known part is in training mode."""
        return bool(self.core.training)

    @property
    def is_bench(self) -> bool:
        """Whether it is an effdet bench that computes a loss."""
        return self.kind == "DetBenchTrain"


def subject_of(model: Module, arch: str | None = None) -> Subject:
    """What a live model is.

    Raises: ArchitectureError if there is no architecture of that name; CkptError for what is no
    live model.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise CkptError(
            f"found {quoted(type(model).__name__)}, wanted a live `torch.nn.Module`",
            hint="the model comes first, then the images; a file is read by ckptool.load_into",
            code="model.type",
        )
    path, core, dotted = _known(model)
    kind = dotted.rpartition(".")[2]
    specs = _specs(model)
    architecture = architectures.find(arch) if arch else None
    if not dotted and architecture is None:
        fitting = recognised(specs)
        architecture = architectures.find(fitting[0].arch) if fitting else None
    family = KINDS.get(dotted) or _family(architecture)
    if architecture is not None:
        specs = _below_prefix(specs, architecture)
    own = kind or type(model).__name__
    if architecture is not None:
        own = architecture.name
    elif family == EFFDET:
        own = str(core.config.name or kind)
    card: Mapping[str, Any]
    count, card = _facts(core, dotted)
    if architecture is not None and not dotted:
        count, card = _count(architecture, specs), architecture.card
    return Subject(model, core, path, kind, family, own, count, card, architecture, specs)


def counted_classes(rows: int, layout: RowLayout) -> int | None:
    """The class count of a head of so many rows, None if no count gives them."""
    inner, rest = divmod(rows, layout.groups)
    count, left = divmod(inner - layout.kept, layout.per_class)
    return None if rest or left or count < 0 else count


def _known(model: Module) -> tuple[str, Module, str]:
    """The outermost part of a known class, its path, and the dotted name of that class."""
    for path, part in model.named_modules():
        for base in type(part).__mro__:
            dotted = f"{base.__module__}.{base.__qualname__}"
            if dotted in KINDS:
                return path, part, dotted
    return "", model, ""


def _specs(model: Module) -> Mapping[str, TensorSpec]:
    """The tensors of a model by shape, on the meta device too; without what is computed."""
    import torch

    return {
        without_segments(key): TensorSpec(str(value.dtype).removeprefix("torch."), (*value.shape,))
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
        and not torch.nn.parameter.is_lazy(value)
        and not is_named(key, DERIVED)
    }


def _family(architecture: Architecture | None) -> str:
    if architecture is None:
        return ""
    return YOLO if architecture.family == "darknet" else architecture.family


def _below_prefix(
    specs: Mapping[str, TensorSpec], architecture: Architecture
) -> Mapping[str, TensorSpec]:
    """The specs below the prefix under which most keys of the architecture are."""
    tried = prefixes(specs)
    best = max(tried, key=lambda prefix: sum(prefix + key in specs for key in architecture.specs))
    return {k.removeprefix(best): spec for k, spec in specs.items() if k.startswith(best)}


def _count(architecture: Architecture, specs: Mapping[str, TensorSpec]) -> int | None:
    """The class count on which most of the class-dependent tensors agree."""
    found = [
        axis.classes(specs[key].shape[axis.axis])
        for key, axis in architecture.axes.items()
        if key in specs and len(specs[key].shape) > axis.axis
    ]
    counts = [count for count in found if count]
    return max(counts, key=counts.count) if counts else architecture.num_classes


def _facts(core: Module, dotted: str) -> tuple[int | None, dict[str, Any]]:
    """The class count and the card of a known part, read from the live module."""
    family = KINDS.get(dotted)
    if family == YOLO:
        from ckptool.architectures.yolov4 import card

        return core.network.num_classes, card(core.network)
    if family is None:
        return None, {}
    merged: dict[str, Any] = {}
    counts = []
    for part, layouts, facts in known_parts(core, family):
        merged.update(facts)
        tensors = dict(part.named_parameters())
        for key, layout in layouts.items():
            count = counted_classes(tensors[key].shape[0], layout)
            counts += [count] if count else []
    count = max(counts, key=counts.count) if counts else None
    return (core.config.num_classes if family == EFFDET else count), merged


def known_parts(
    core: Module, family: str
) -> Iterator[tuple[Module, Mapping[str, RowLayout], Mapping[str, Any]]]:
    """The parts that know their row layouts or facts of the card."""
    from ckptool.architectures import effdet, live, torchvision

    facts = effdet.FACTS if family == EFFDET else torchvision.FACTS
    for prefix, known in live.recognised(core, facts):
        part = core.get_submodule(prefix.rstrip("."))
        tensors = dict(part.named_parameters())
        yield part, {k: v for k, v in known.layouts.items() if k in tensors}, known.card
