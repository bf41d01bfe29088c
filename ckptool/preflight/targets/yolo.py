"""Targets of the YOLO family: classes from 0, boxes as centre and size in shares of the image.

Two forms are known: one tensor n×6 (image, class, centre x, centre y, width, height), and a list
with a tensor n×5 (class, centre x, …) for each image, as a darknet label file has them.

Source: AlexeyAB/darknet `src/data.c` (`read_boxes`: class, x, y, w, h in shares of the image).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted
from ckptool.preflight.boxes import CXCYWH, Boxes, check_boxes
from ckptool.preflight.findings import Finding, error
from ckptool.preflight.images import Batch
from ckptool.preflight.subject import Subject
from ckptool.preflight.targets.common import (
    Labels,
    check_labels,
    device_of,
    dtype_of,
    numbers,
    tensor_findings,
    wrong_shape,
)

if TYPE_CHECKING:
    from ckptool.preflight.targets.common import Array

_FORM = "image, class, centre x, centre y, width, height"


def check(targets: Any, batch: Batch, subject: Subject) -> Iterator[Finding]:
    """The findings about targets."""
    import torch

    listed = isinstance(targets, (list, tuple))
    if not listed and not isinstance(targets, torch.Tensor):
        kind = type(targets).__name__
        yield error(
            "target-type",
            f"found `{kind}`, wanted a tensor n×6 ({_FORM}), or a list of n×5 without the image",
            where="targets",
        )
        return
    tensors = {f"targets[{at}]": t for at, t in enumerate(targets)} if listed else {}
    found = list(tensor_findings(tensors or {"targets": targets}, subject, device_of(subject)))
    yield from found
    if any(finding.code == "target-type" for finding in found):
        return
    if listed and len(targets) != len(batch.images):
        yield error(
            "target-count",
            f"found targets for {counted(len(targets), 'image')}, wanted {len(batch.images):,}",
            where="targets",
        )
        return
    columns = 5 if listed else 6
    for where, tensor in (tensors or {"targets": targets}).items():
        if tensor.dim() != 2 or tensor.shape[1] != columns:
            form = _FORM.removeprefix("image, ") if listed else _FORM
            yield wrong_shape("targets", tensor.shape, f"n×{columns}: {form}", where)
            return
        if not tensor.is_floating_point() and tensor.numel():
            yield error(
                "target-dtype",
                f"found targets in {dtype_of(tensor)}, wanted float32: shares of the image are "
                "cut to 0 or 1",
                where=where,
                fix="targets.float() before they are divided by the image's size",
            )
            return
        if tensor.is_meta:
            return
    yield from _values(_rows(targets, listed), batch, subject, listed)


def _rows(targets: Any, listed: bool) -> Array:
    """The targets as n×6."""
    import numpy as np

    if not listed:
        return numbers(targets)
    parts = [np.insert(numbers(tensor), 0, at, axis=1) for at, tensor in enumerate(targets)]
    return np.concatenate(parts) if parts else np.zeros((0, 6))


def _values(rows: Array, batch: Batch, subject: Subject, listed: bool) -> Iterator[Finding]:
    import numpy as np

    images, classes, boxes = rows[:, 0], rows[:, 1], rows[:, 2:]
    starts = np.searchsorted(images, images) if listed else np.zeros(len(rows), int)

    def where(at: int) -> str:
        return f"targets[{int(images[at])}][{at - starts[at]}]" if listed else f"targets[{at}]"

    known = np.isin(images, np.arange(len(batch.images)))
    if not known.all():
        at = int(np.flatnonzero(~known)[0])
        yield error(
            "target-image",
            f"{int((~known).sum()):,} of {counted(len(rows), 'target')} name an image such as "
            f"{images[at]:g}, wanted 0 … {len(batch.images) - 1}",
            where=where(at),
            count=int((~known).sum()),
            fix="column 0 is the image's number in the batch",
        )
    if subject.num_classes:
        yield from check_labels(Labels(classes, 0, subject.num_classes - 1, where))
    at_image = np.where(known, images, 0).astype(int)
    limits = np.array([[width, height] for height, width in batch.sizes], float)[at_image]
    yield from check_boxes(Boxes(boxes, limits, CXCYWH, where, relative=True))
