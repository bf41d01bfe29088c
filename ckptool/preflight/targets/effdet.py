"""Targets of effdet's training bench.

Source: effdet 0.4.1 `bench.py` (keys), `anchors.py` (boxes as y1, x1, y2, x2; a class below 0 fills
up), `object_detection/box_list.py` (float32), `data/transforms.py` (`img_size` is the width and the
height of the picture, `img_scale` what brings it back to that size).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, quoted
from ckptool.preflight.boxes import YXYX, Boxes, check_boxes
from ckptool.preflight.findings import Finding, error, note
from ckptool.preflight.images import Batch, shape_text, special_layout
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

if TYPE_CHECKING:
    from ckptool.preflight.targets.common import Array

_LABELED = "label_num_positives"
_SCALED = ("img_scale", "img_size")


def check(targets: Any, batch: Batch, subject: Subject) -> Iterator[Finding]:
    """The findings about targets; those with anchors labelled already are only looked at by key."""
    if not isinstance(targets, Mapping):
        kind = type(targets).__name__
        yield error(
            "target-type",
            f"found `{kind}`, wanted one dict with `bbox` and `cls` for the whole batch",
            where="targets",
            fix="stack them, filled up with boxes of class -1",
        )
        return
    if not subject.is_bench:
        yield note(
            "target-unread",
            f"`{subject.kind or subject.name}` takes no targets, wanted a `DetBenchTrain`",
            where="model",
            fix="effdet.DetBenchTrain(model)",
        )
    elif subject.core.anchor_labeler is None:
        levels = range(subject.core.num_levels)
        keys = [f"label_{what}_{level}" for what in ("cls", "bbox") for level in levels]
        yield from missing_keys(targets, (_LABELED, *keys), "targets")
        return
    scaled = _SCALED if subject.is_bench and not subject.training else ()
    yield from missing_keys(targets, ("bbox", "cls", *scaled), "targets")
    if "bbox" not in targets or "cls" not in targets:
        return
    yield from _pairs(targets, batch, subject)


def _pairs(targets: Mapping[str, Any], batch: Batch, subject: Subject) -> Iterator[Finding]:
    """The boxes and the classes, a tensor each or a list with one for each image."""
    per_image = {
        f"targets[{key!r}]" + (f"[{at}]" if isinstance(targets[key], (list, tuple)) else ""): value
        for key in ("bbox", "cls")
        for at, value in enumerate(
            targets[key] if isinstance(targets[key], (list, tuple)) else [targets[key]]
        )
    }
    found = list(tensor_findings(per_image, subject, device_of(subject)))
    yield from found
    if any(finding.code == "target-type" for finding in found):
        return
    boxes, classes = targets["bbox"], targets["cls"]
    found = list(_shapes(boxes, classes, len(batch.images)))
    yield from found
    other = [where for where, x in per_image.items() if "bbox" in where and _not_float(x)]
    if other:
        yield error(
            "target-dtype",
            f"found boxes in {dtype_of(per_image[other[0]])}, wanted float32: effdet takes no "
            "other",
            where=other[0],
            count=len(other),
            fix="bbox.float()",
        )
    if not found and not any(value.is_meta for value in per_image.values()):
        yield from _values(targets, batch, subject)


def _shapes(boxes: Any, classes: Any, count: int) -> Iterator[Finding]:
    for key, value, wanted in (("bbox", boxes, "batch×n×4"), ("cls", classes, "batch×n")):
        if not isinstance(value, (list, tuple)) and not value.dim():
            yield wrong_shape(quoted(key), value.shape, wanted, f"targets[{key!r}]")
            return
    if len(boxes) != count or len(classes) != count:
        yield error(
            "target-count",
            f"found targets for {len(boxes):,} and classes for {len(classes):,}, wanted "
            f"{counted(count, 'image')}",
            where="targets",
            fix="one entry of `bbox` and `cls` for each image",
        )
        return
    for at, (box, cls) in enumerate(zip(boxes, classes, strict=True)):
        if box.dim() != 2 or box.shape[1] != 4:
            yield wrong_shape("boxes", box.shape, "n×4 for each image", f"targets['bbox'][{at}]")
            return
        if cls.dim() != 1 or len(cls) != len(box):
            yield wrong_shape(
                "classes",
                cls.shape,
                f"{len(box):,}, one for each box of {shape_text(box.shape)}",
                f"targets['cls'][{at}]",
                "cls.squeeze(-1)" if cls.dim() == 2 else None,
            )
            return


def _values(targets: Mapping[str, Any], batch: Batch, subject: Subject) -> Iterator[Finding]:
    import numpy as np

    classes = [numbers(cls) for cls in targets["cls"]]
    boxes = [numbers(box) for box in targets["bbox"]]
    # A class below 0 fills up; NaN is not above -1 either, but nobody fills up with it.
    real = [~(cls <= -1) for cls in classes]
    places = [(i, j) for i, kept in enumerate(real) for j in np.flatnonzero(kept)]
    kept_classes = np.concatenate([c[k] for c, k in zip(classes, real, strict=True)])
    kept_boxes = np.concatenate([b[k] for b, k in zip(boxes, real, strict=True)])
    if subject.num_classes:
        yield from check_labels(
            Labels(
                kept_classes,
                1,
                subject.num_classes,
                lambda at: f"targets['cls'][{places[at][0]}, {places[at][1]}]",
                "effdet trains these boxes as background",
            )
        )
    of = [place[0] for place in places]
    limits = np.array([[batch.sizes[i][1], batch.sizes[i][0]] for i in of], float).reshape(-1, 2)
    yield from check_boxes(
        Boxes(
            kept_boxes,
            limits,
            YXYX,
            lambda at: f"targets['bbox'][{places[at][0]}, {places[at][1]}]",
            evidence=_picture(targets, limits, of),
        )
    )


def _picture(targets: Mapping[str, Any], limits: Array, of: list[int]) -> Array:
    """The width and height that the picture takes in a padded image, where the targets tell."""
    import numpy as np
    import torch

    size, scale = (targets.get(key) for key in ("img_size", "img_scale"))
    if not isinstance(size, torch.Tensor) or not isinstance(scale, torch.Tensor):
        return limits
    if special_layout(size) or special_layout(scale):
        return limits
    if size.dim() != 2 or size.shape[1] != 2 or scale.dim() != 1 or size.is_meta or scale.is_meta:
        return limits
    if not of or max(of) >= min(len(size), len(scale)):
        return limits
    sizes, scales = numbers(size), numbers(scale)
    if not (np.isfinite(sizes).all() and np.isfinite(scales).all() and (scales > 0).all()):
        return limits
    return np.minimum(limits, (sizes / scales[:, None])[of])


def _not_float(tensor: Any) -> bool:
    return dtype_of(tensor) != "float32"
