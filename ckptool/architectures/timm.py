"""The models of timm: live models without weights, and what their configuration says of images.

Source: timm 1.0.31 (`models/_factory.py`, `models/_pretrained.py`).
"""

from __future__ import annotations

from functools import partial

from ckptool.architectures.live import (
    Facts,
    Known,
    Module,
    measure_model,
    require,
    unknown,
)
from ckptool.architectures.spec import Architecture

FAMILY = "timm"
PREFIX = "timm:"
NEEDS = ("timm", "torch")


def measure(name: str) -> Architecture:
    """The architecture of a timm model, instantiated on the meta device where it can be.

    Raises: ArchitectureError if timm is not installed, has no such model or cannot build it.
    """
    return measure_model(
        name, FAMILY, partial(build, name), facts=FACTS, needs=NEEDS, sources=("timm",)
    )


def build(name: str, num_classes: int | None = None) -> Module:
    """A live model with random weights; nothing is downloaded.

    Raises: ArchitectureError if timm is not installed or has no such model.
    """
    timm = require("timm", name)
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short.split(".")[0]):
        raise unknown(name, (PREFIX + each for each in timm.list_models()))
    options = {} if num_classes is None else {"num_classes": num_classes}
    return timm.create_model(short, pretrained=False, **options)


def _configured(module: Module) -> Known:
    """The image size and normalisation in the configuration that timm leaves on a model."""
    found = getattr(module, "pretrained_cfg", None) or {}
    if "input_size" not in found:
        return Known()
    return Known(
        card={
            "image_size": list(found["input_size"][1:]),
            "mean": list(found["mean"]),
            "std": list(found["std"]),
            "interpolation": found.get("interpolation"),
            "crop_pct": found.get("crop_pct"),
            "classifier": found.get("classifier"),
        }
    )


FACTS: Facts = {"torch.nn.modules.module.Module": _configured}
