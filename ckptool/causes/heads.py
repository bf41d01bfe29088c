"""What a user chose for the model: the number of classes, the input channels, the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Situation
from ckptool.errors import quoted
from ckptool.identification import class_count
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
    summary = (
        f"the file has {found:,} classes, the architecture is asked for {wanted:,} "
        f"({quoted(key)} has {axis.length(found):,} rows, "
        f"{_formula(axis.scale, axis.offset)} wants {axis.length(wanted):,})"
    )
    if architecture.axes.keys() - architecture.layouts.keys():
        unknown = "; how the rows of its heads are ordered is not known, so none can be kept"
        return [Cause("class-count", summary + unknown, exact=False, keys=tuple(architecture.axes))]
    return [
        Cause(
            "class-count",
            summary,
            "heads",
            {
                "from": found,
                "to": wanted,
                "map": [None] * foreground(architecture, wanted),
                "seed": 0,
                "tensors": _tensors(architecture),
            },
            f"--num-classes {wanted}",
            exact=False,
        )
    ]


def foreground(architecture: Architecture, num_classes: int) -> int:
    """The number of classes without the background, which some architectures count."""
    counted = any(layout.counted and layout.background for layout in architecture.layouts.values())
    return num_classes - counted


def _tensors(architecture: Architecture) -> dict[str, Any]:
    """The class-dependent tensors as the edit `heads` wants them."""
    return {
        key: {"axis": axis.axis, "layout": asdict(architecture.layouts[key])}
        for key, axis in architecture.axes.items()
    }


def _formula(scale: int, offset: int) -> str:
    shown = f"{scale}·C" if scale > 1 else "C"
    return f"{shown}+{offset}" if offset else shown


def input_channels(situation: Situation) -> list[Cause]:
    """Another number of input channels in the first convolution."""
    found, wanted = situation.weights.specs, situation.target.specs
    key = stem(wanted)
    if key is None or key not in found:
        return []
    have, want = found[key].shape, wanted[key].shape
    if len(have) != 4 or have == want or (have[0], *have[2:]) != (want[0], *want[2:]):
        return []
    return [
        Cause(
            "input-channels",
            f"the first convolution {quoted(key)} takes {have[1]} channels in the file, the "
            f"architecture is asked for {want[1]}",
            "channels",
            {"key": key, "to": want[1]},
            f"--in-chans {want[1]}",
            exact=False,
        )
    ]


def anchors(situation: Situation) -> list[Cause]:
    """Another number of anchors per location: the box head's rows are 4 per anchor."""
    architecture = situation.target.architecture
    found, wanted = situation.weights.specs, situation.target.specs
    if architecture is None:
        return []
    for key in wanted:
        if not key.startswith("box_net.predict.") or key not in found:
            continue
        have, want = found[key].shape, wanted[key].shape
        if have and have[1:] == want[1:] and have[0] != want[0] and not have[0] % 4:
            heads = [k for k in wanted if k.startswith(("box_net.predict.", "class_net.predict."))]
            differing = [k for k in heads if k in found and found[k].shape != wanted[k].shape]
            return [
                Cause(
                    "anchor-count",
                    f"the file has {have[0] // 4} anchors per location, the architecture "
                    f"{want[0] // 4} ({quoted(key)} has {have[0]} rows, {want[0]} are wanted): "
                    "other aspect ratios or scales, whose rows cannot be converted",
                    exact=False,
                    keys=tuple(differing),
                )
            ]
    return []


def stem(specs: Mapping[str, TensorSpec]) -> str | None:
    """The key of the first convolution's weight: the first tensor with four axes."""
    return next((key for key, spec in specs.items() if len(spec.shape) == 4), None)
