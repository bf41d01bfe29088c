"""What a user chose for the model: the number of classes, the input channels, the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Situation
from ckptool.errors import PlanError, quoted
from ckptool.tensors import TensorSpec


def classes(situation: Situation) -> list[Cause]:
    """Another class count than the architecture is asked for."""
    architecture = situation.target.architecture
    wanted = situation.target.num_classes
    if architecture is None or wanted is None:
        return []
    found = class_count(situation.weights.specs, architecture)
    if found is None or found == wanted:
        return []
    key = next(iter(architecture.axes))
    axis = architecture.axes[key]
    return [
        Cause(
            "class-count",
            f"the file has {found:,} classes, the architecture is asked for {wanted:,} "
            f"({quoted(key)} has {axis.length(found):,} rows, "
            f"{_formula(axis.scale, axis.offset)} wants {axis.length(wanted):,})",
            "heads",
            head_options(architecture, found, wanted, [None] * foreground(architecture, wanted), 0),
            f"--num-classes {wanted}",
            exact=False,
        )
    ]


def class_count(specs: Mapping[str, TensorSpec], architecture: Architecture) -> int | None:
    """The class count that all class-dependent tensors agree on, None if they do not."""
    counts = set()
    for key, axis in architecture.axes.items():
        spec = specs.get(key)
        if spec is None or len(spec.shape) <= axis.axis:
            return None
        counts.add(axis.classes(spec.shape[axis.axis]))
    return counts.pop() if len(counts) == 1 else None


def foreground(architecture: Architecture, num_classes: int) -> int:
    """The number of classes without the background, which some architectures count."""
    counted = any(layout.counted and layout.background for layout in architecture.layouts.values())
    return num_classes - counted


def head_options(
    architecture: Architecture,
    found: int,
    wanted: int,
    class_map: list[int | None],
    seed: int,
) -> dict[str, Any]:
    """The options of the edit `heads` for an architecture.

    Raises: PlanError if the row layout of a class-dependent tensor is not known.
    """
    tensors = {}
    for key, axis in architecture.axes.items():
        layout = architecture.layouts.get(key)
        if layout is None:
            raise PlanError(
                f"how the class rows of {quoted(key)} are ordered is not known",
                code="plan.heads",
            )
        tensors[key] = {"axis": axis.axis, "layout": asdict(layout)}
    return {"from": found, "to": wanted, "map": class_map, "seed": seed, "tensors": tensors}


def _formula(scale: int, offset: int) -> str:
    shown = f"{scale}·C" if scale > 1 else "C"
    return f"{shown}+{offset}" if offset else shown
