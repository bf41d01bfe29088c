"""The rows of a live model's heads against its anchors and classes, by shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ckptool.architectures.darknet_layers import BOX_AND_OBJECTNESS
from ckptool.errors import counted, quoted
from ckptool.preflight.findings import Finding, error
from ckptool.preflight.subject import EFFDET, TORCHVISION, YOLO, Subject, known_parts


@dataclass(frozen=True, slots=True)
class Rows:
    """A head: how many rows it gives, and how many are read.

    They are read as `anchors` blocks of `each`; `what` says what a block is.
    """

    where: str
    found: int
    anchors: int
    each: int
    what: str


def check_heads(subject: Subject) -> Iterator[Finding]:
    """The findings about heads of another anchor or class count than is read."""
    for rows in heads_of(subject):
        if rows.found != rows.anchors * rows.each:
            yield _finding(rows)


def heads_of(subject: Subject) -> Iterator[Rows]:
    """Every head of the model of which it is known what it should give."""
    if subject.kind and subject.family == EFFDET:
        yield from _effdet(subject)
    elif subject.kind and subject.family == TORCHVISION:
        yield from _torchvision(subject)
    elif subject.kind and subject.family == YOLO:
        yield from _darknet(subject)
    if subject.architecture is not None and (not subject.kind or subject.family == YOLO):
        yield from _architecture(subject)


def _finding(rows: Rows) -> Finding:
    blocks, rest = divmod(rows.found, rows.each)
    message = (
        f"{quoted(rows.where)} gives {rows.found:,} rows, wanted {rows.anchors * rows.each:,}: "
        f"{counted(rows.anchors, 'anchor')} of {rows.what}"
    )
    fix = "the head and what reads it from one configuration"
    if not rest and blocks:
        has = "one anchor" if blocks == 1 else f"{blocks} anchors"
        lacking = "" if blocks > rows.anchors else _lacking(blocks, rows.anchors)
        message += f"; it is a head of {has}{lacking}"
        fix = f"a head of {counted(rows.anchors, 'anchor')}, or a configuration of {blocks}"
    return error("head-rows", message, where=rows.where, fix=fix)


def _lacking(found: int, wanted: int) -> str:
    missing = list(range(found, wanted))
    if len(missing) == 1:
        return f", and anchor {missing[0]} is not there"
    return f", and the anchors {missing[0]} … {missing[-1]} are not there"


def _last(part: Any) -> tuple[str, int]:
    """The key and the rows of the last weight of a module."""
    *_, (key, weight) = (pair for pair in part.named_parameters() if pair[1].dim() > 1)
    return key, int(weight.shape[0])


def _effdet(subject: Subject) -> Iterator[Rows]:
    core = subject.core
    net = core.model if hasattr(core, "model") else core
    at = f"{subject.path}." if subject.path else ""
    at += "model." if net is not core else ""
    config = core.config
    anchors = config.num_scales * len(config.aspect_ratios)
    classes = config.num_classes
    what = {"class_net": (classes, f"{classes:,} classes"), "box_net": (4, "4 box values")}
    for name, (each, told) in what.items():
        key, found = _last(getattr(net, name).predict)
        yield Rows(f"{at}{name}.predict.{key}", found, anchors, each, told)


def _torchvision(subject: Subject) -> Iterator[Rows]:
    """The class count is what most heads agree on, the anchors what the generator makes."""
    core, classes = subject.core, subject.num_classes or 0
    paths = {id(module): path for path, module in subject.model.named_modules()}
    told = f"{classes:,} classes, the background among them"
    for part, layouts, _ in known_parts(core, TORCHVISION):
        for key, layout in layouts.items():
            if key.endswith("weight"):
                at = f"{paths[id(part)]}.{key}"
                found = int(part.get_parameter(key).shape[0])
                each = layout.per_class * classes
                per_class = "" if layout.per_class == 1 else f" with {layout.per_class} rows each"
                generator = getattr(core, "anchor_generator", None)
                anchors = layout.groups
                if generator is not None and subject.kind in ("RetinaNet", "FCOS"):
                    anchors = generator.num_anchors_per_location()[0]
                yield Rows(at, found, anchors, each, told + per_class)
    if subject.kind == "GeneralizedRCNN":
        proposals = core.rpn
        wanted = proposals.anchor_generator.num_anchors_per_location()[0]
        for name, each, what in (("cls_logits", 1, "1 score"), ("bbox_pred", 4, "4 box values")):
            layer = getattr(proposals.head, name)
            at = f"{paths[id(layer)]}.weight"
            yield Rows(at, int(layer.weight.shape[0]), wanted, each, what)


def _darknet(subject: Subject) -> Iterator[Rows]:
    core = subject.core
    at = f"{subject.path}." if subject.path else ""
    for index, prefixes in core.spelling.items():
        head = core.network.head_after(index)
        if head:
            weight = core.get_submodule(prefixes.conv).weight
            each = BOX_AND_OBJECTNESS + head.classes
            what = f"{BOX_AND_OBJECTNESS} + {head.classes:,} classes"
            yield Rows(
                f"{at}{prefixes.conv}.weight", weight.shape[0], len(head.anchors), each, what
            )


def _architecture(subject: Subject) -> Iterator[Rows]:
    """The class-dependent tensors of the architecture that the caller named."""
    architecture = subject.architecture
    assert architecture is not None
    known = subject.num_classes or architecture.num_classes
    for key, layout in architecture.layouts.items():
        spec, axis = subject.specs.get(key), architecture.axes.get(key)
        if spec is None or axis is None or known is None or not key.endswith("weight"):
            continue
        each = layout.kept + layout.per_class * known
        kept = f"{layout.kept} + " if layout.kept else ""
        what = f"{kept}{known:,} classes"
        # Where no head gives a class count, as many blocks as the default's rows make.
        if len(spec.shape) > axis.axis:
            yield Rows(key, spec.shape[axis.axis], layout.groups, each, what)
