"""What a user chose for the model: the number of classes, the input channels, the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ckptool.architectures import frozen
from ckptool.architectures.spec import ClassAxis, RowLayout
from ckptool.causes import Cause, Situation
from ckptool.errors import counted, quoted
from ckptool.identification import class_count, recognised
from ckptool.tensors import TensorSpec

# Heads with four rows for each anchor, and the one with a single row.
# Source: effdet 0.4.1 `HeadNet`; torchvision 0.29 `RPNHead`, `RetinaNetRegressionHead`, `SSDHead`.
_BOX_HEADS = (
    "box_net.predict.",
    "rpn.head.bbox_pred.",
    "regression_head.bbox_reg.",
    "regression_head.module_list.",
)
_OBJECTNESS = "rpn.head.cls_logits."
_PER_BOX = 4


def classes(situation: Situation) -> list[Cause]:
    """Another class count than the architecture is asked for."""
    head = _head(situation)
    if head is None:
        return []
    found = class_count(situation.found, head.axes)
    wanted = head.num_classes
    if not found or found == wanted or not set(head.axes) & set(situation.reshaped):
        return []
    key, axis = next(iter(head.axes.items()))
    summary = (
        f"the file has {counted(found, 'class', 'classes')}, the architecture is asked for "
        f"{wanted:,} ({quoted(key)} has {axis.length(found):,} rows, "
        f"{_formula(axis.scale, axis.offset)} wants {axis.length(wanted):,})"
    )
    if abs(found - wanted) == 1 and any(layout.background for layout in head.layouts.values()):
        summary += ", which may be only the background: the architecture counts it as a class"
    if head.axes.keys() - head.layouts.keys():
        unknown = "; in what order the rows of its heads stand is not known, so none can be kept"
        return [Cause("class-count", summary + unknown, exact=False, keys=tuple(head.axes))]
    return [
        Cause(
            "class-count",
            summary,
            "heads",
            {
                "from": found,
                "to": wanted,
                "map": [None] * foreground(head.layouts, wanted),
                "seed": 0,
                "tensors": {
                    key: {"axis": axis.axis, "layout": asdict(head.layouts[key])}
                    for key, axis in head.axes.items()
                },
            },
            f"--num-classes {wanted}",
            exact=False,
        )
    ]


def input_channels(situation: Situation) -> list[Cause]:
    """Another number of input channels in the first convolution."""
    key = stem(situation.wanted)
    if key is None or key not in situation.reshaped:
        return []
    have, want = situation.found[key].shape, situation.wanted[key].shape
    if len(have) != 4 or (have[0], *have[2:]) != (want[0], *want[2:]):
        return []
    return [
        Cause(
            "input-channels",
            f"the first convolution {quoted(key)} takes {counted(have[1], 'channel')} in the file, "
            f"the architecture is asked for {want[1]:,}",
            "channels",
            {"key": key, "to": want[1]},
            f"--in-chans {want[1]}",
            exact=False,
        )
    ]


def anchors(situation: Situation) -> list[Cause]:
    """Another number of anchors per location, told by the rows of the box heads or of YOLO's."""
    found, wanted = situation.found, situation.wanted
    boxes = [key for key in situation.reshaped if _is_box_head(key, situation)]
    head = _head(situation)
    if boxes:
        key = boxes[0]
        have, want = found[key].shape[0] // _PER_BOX, wanted[key].shape[0] // _PER_BOX
        related = [k for k in situation.reshaped if k in boxes or _OBJECTNESS in k]
        related += [k for k in _dense(head, want) if k in situation.reshaped]
    else:
        rows = _other_groups(situation, head)
        if rows is None or head is None:
            return []
        have, want, key = rows
        related = [k for k in head.axes if k in situation.reshaped]
    return [
        Cause(
            "anchor-count",
            f"the file has {counted(have, 'anchor')} per location, the architecture {want:,} "
            f"({quoted(key)} has {found[key].shape[0]:,} rows, {wanted[key].shape[0]:,} are "
            "wanted): with other aspect ratios or scales its heads cannot be converted",
            exact=False,
            keys=tuple(dict.fromkeys(related)),
        )
    ]


def foreground(layouts: Mapping[str, RowLayout], num_classes: int) -> int:
    """The number of classes without the background, which some architectures count."""
    return num_classes - any(layout.counted and layout.background for layout in layouts.values())


def stem(specs: Mapping[str, TensorSpec]) -> str | None:
    """The key of the first convolution's weight: the first tensor with four axes.

    Detectron2 lists the neck before the backbone, whose first module is called `stem`.
    """
    found = [key for key, spec in specs.items() if len(spec.shape) == 4]
    return next((key for key in found if ".bottom_up.stem." in key), found[0] if found else None)


@dataclass(frozen=True, slots=True)
class _Head:
    """The class-dependent tensors of a target, under its keys, and the class count it asks for."""

    num_classes: int
    axes: Mapping[str, ClassAxis]
    layouts: Mapping[str, RowLayout]


def _head(situation: Situation) -> _Head | None:
    """The head of the target; of another checkpoint as the architecture tells that it is of."""
    target = situation.target
    if target.architecture is not None:
        if target.num_classes is None or not target.architecture.axes:
            return None
        return _Head(target.num_classes, target.architecture.axes, target.architecture.layouts)
    known = next(iter(recognised(target.specs)), None) if situation.reshaped else None
    architecture = frozen.find(known.arch) if known else None
    if known is None or architecture is None or known.num_classes is None:
        return None
    return _Head(
        known.num_classes,
        {known.prefix + key: axis for key, axis in architecture.axes.items()},
        {known.prefix + key: layout for key, layout in architecture.layouts.items()},
    )


def _is_box_head(key: str, situation: Situation) -> bool:
    """Whether a key is of a head with four rows per anchor, whose number of rows differs."""
    have, want = situation.found[key].shape, situation.wanted[key].shape
    return (
        any(name in key for name in _BOX_HEADS)
        and have[1:] == want[1:]
        and have[1:2] != (1,)  # a depthwise convolution, whose rows are channels
        and have[:1] != want[:1]
        and bool(have)
        and not have[0] % _PER_BOX
    )


def _dense(head: _Head | None, anchors_wanted: int) -> list[str]:
    """The class-dependent tensors that have a block of rows for each anchor."""
    layouts = head.layouts if head else {}
    return [key for key, layout in layouts.items() if layout.groups == anchors_wanted > 1]


def _other_groups(situation: Situation, head: _Head | None) -> tuple[int, int, str] | None:
    """Anchors found and wanted and a key, if only another number of anchors explains the rows."""
    counts = set()
    for key, axis in head.axes.items() if head else ():
        layout = head.layouts.get(key) if head else None
        if head is None or layout is None or key not in situation.reshaped:
            return None
        block, rest = divmod(axis.length(head.num_classes), layout.groups)
        have = situation.found[key].shape
        if rest or len(have) <= axis.axis or have[axis.axis] % block or not layout.kept:
            return None
        counts.add((have[axis.axis] // block, layout.groups))
    if head is None or len(counts) != 1 or class_count(situation.found, head.axes):
        return None
    found, wanted = counts.pop()
    return found, wanted, next(iter(head.axes))


def _formula(scale: int, offset: int) -> str:
    shown = f"{scale}·C" if scale > 1 else "C"
    return f"{shown}+{offset}" if offset else shown
