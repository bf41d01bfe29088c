"""Targets of torchvision's detectors.

Source: torchvision 0.29 `models/detection/generalized_rcnn.py`, `roi_heads.py`, `retinanet.py`,
`fcos.py`, `ssd.py`; the dtypes that each loss takes were measured on torch 2.15.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptool.errors import counted
from ckptool.preflight.boxes import XYXY, Boxes, check_boxes
from ckptool.preflight.findings import Finding, error, note, warning
from ckptool.preflight.images import Batch
from ckptool.preflight.subject import Subject
from ckptool.preflight.targets.common import (
    Labels,
    check_labels,
    device_of,
    dtype_of,
    missing_keys,
    numbers,
    tensor_findings,
    wrong_shape,
)

_LABELS = {
    "GeneralizedRCNN": ("int64",),
    "RetinaNet": ("int64", "int32"),
    "FCOS": ("int64", "int32"),
    "SSD": ("int64", "uint8"),
}
# FCOS writes the boxes into a tensor of float32; in half its loss becomes NaN.
_BOXES = {"FCOS": ("float32", "int64", "int32")}
_BACKGROUND = "the loss takes 0 for the background"


def check(targets: Any, batch: Batch, subject: Subject) -> Iterator[Finding]:
    """The findings about targets, a dict for each image."""
    entries = isinstance(targets, (list, tuple))
    if not entries or not all(isinstance(target, Mapping) for target in targets):
        kind = type(targets).__name__
        yield error(
            "target-type",
            f"found `{kind}`, wanted a list with one dict for each image",
            where="targets",
            fix="[{'boxes': …, 'labels': …} for each image]",
        )
        return
    if not subject.training:
        yield note(
            "target-unread",
            "the model is in evaluation mode, and reads no targets then",
            where="model",
            fix="model.train()",
        )
    if len(targets) != len(batch.images):
        yield error(
            "target-count",
            f"found targets for {counted(len(targets), 'image')}, wanted {len(batch.images):,}",
            where="targets",
        )
        return
    keys = ("boxes", "labels", *_more(subject))
    lacking = [at for at, target in enumerate(targets) if any(key not in target for key in keys)]
    if lacking:
        first = lacking[0]
        yield from missing_keys(targets[first], keys, f"targets[{first}]", len(lacking))
        return
    tensors = {
        f"targets[{at}][{key!r}]": target[key]
        for at, target in enumerate(targets)
        for key in ("boxes", "labels")
    }
    found = list(tensor_findings(tensors, subject, device_of(subject)))
    yield from found
    if any(finding.code == "target-type" for finding in found):
        return
    found = list(_shapes(targets))
    yield from found
    if found:
        return
    yield from _dtypes(targets, subject)
    if not any(tensor.is_meta for tensor in tensors.values()):
        yield from _values(targets, batch, subject)


def _more(subject: Subject) -> tuple[str, ...]:
    """The keys that other heads want."""
    heads = getattr(subject.core, "roi_heads", None)
    masks = heads is not None and heads.has_mask()
    points = heads is not None and heads.has_keypoint()
    return (*(["masks"] if masks else []), *(["keypoints"] if points else []))


def _shapes(targets: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for at, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            empty = not boxes.numel()
            fix = "an image without boxes has torch.zeros(0, 4)" if empty else None
            yield wrong_shape("boxes", boxes.shape, "n×4", f"targets[{at}]['boxes']", fix)
        elif labels.dim() != 1 or len(labels) != len(boxes):
            wanted = f"{len(boxes):,}, one for each box"
            yield wrong_shape("labels", labels.shape, wanted, f"targets[{at}]['labels']")
        else:
            continue
        return


def _dtypes(targets: Sequence[Mapping[str, Any]], subject: Subject) -> Iterator[Finding]:
    for key, table, fix in (
        ("labels", _LABELS, "labels.long()"),
        ("boxes", _BOXES, "boxes.float()"),
    ):
        allowed = table.get(subject.kind)
        wrong = [
            at
            for at, target in enumerate(targets)
            if allowed and len(target[key]) and dtype_of(target[key]) not in allowed
        ]
        if allowed and wrong:
            yield error(
                "target-dtype",
                f"found {key} in {dtype_of(targets[wrong[0]][key])}, wanted {allowed[0]}",
                where=f"targets[{wrong[0]}][{key!r}]",
                count=len(wrong),
                fix=fix,
            )


def _values(
    targets: Sequence[Mapping[str, Any]], batch: Batch, subject: Subject
) -> Iterator[Finding]:
    import numpy as np

    counts = [len(target["labels"]) for target in targets]
    places = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    if subject.num_classes:
        labels = np.concatenate([numbers(target["labels"]) for target in targets])
        yield from _labels(labels, places, subject)
    boxes = np.concatenate([numbers(target["boxes"]) for target in targets])
    limits = np.array([[batch.sizes[i][1], batch.sizes[i][0]] for i, _ in places], float)
    yield from check_boxes(
        Boxes(
            boxes,
            limits.reshape(-1, 2),
            XYXY,
            lambda at: f"targets[{places[at][0]}]['boxes'][{places[at][1]}]",
        )
    )


def _labels(labels: Any, places: list[tuple[int, int]], subject: Subject) -> Iterator[Finding]:
    """RetinaNet and FCOS have a row 0 that can be trained; for the others 0 is the background."""
    last = (subject.num_classes or 1) - 1
    zeros = labels == 0
    if subject.kind not in ("RetinaNet", "FCOS"):
        zeros[:] = False

    def where(at: int) -> str:
        return f"targets[{places[at][0]}]['labels'][{places[at][1]}]"

    if zeros.any():
        yield warning(
            "label-background",
            f"{int(zeros.sum()):,} of {counted(len(labels), 'label')} are 0, wanted 1 … {last}: "
            "published weights leave row 0 to the background",
            where=where(int(zeros.nonzero()[0][0])),
            count=int(zeros.sum()),
            fix="labels + 1, and one class more in the head",
        )
    rows = (~zeros).nonzero()[0]
    yield from check_labels(
        Labels(labels[rows], 1, last, lambda at: where(int(rows[at])), _BACKGROUND)
    )
