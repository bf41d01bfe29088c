"""A data set against an architecture and a checkpoint, before anything is trained on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckptool import architectures
from ckptool.architectures.spec import Architecture
from ckptool.preflight.annotations import (
    Table,
    check_entries,
    check_images,
    check_places,
    table_of,
)
from ckptool.preflight.boxes import MISREAD
from ckptool.preflight.categories import Labels, check_categories, labels_of, mapped, rows_of
from ckptool.preflight.coco import Coco, read_coco
from ckptool.preflight.findings import Report, by_weight
from ckptool.preflight.fit import check_file, fit_of
from ckptool.preflight.json_stream import Progress
from ckptool.preflight.matching import check_sizes, histogram, matching_of
from ckptool.preflight.pictures import check_pictures
from ckptool.preflight.summary import Category, Summary

if TYPE_CHECKING:
    from ckptool.checkpoint import Checkpoint


def check_dataset(
    annotations: str | os.PathLike[str],
    *,
    arch: str,
    num_classes: int | None = None,
    images: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """What would break training on a file of COCO annotations, and what the file holds.

    `num_classes` counts as the architecture does; left out, it is the checkpoint's, or the
    architecture's default. With `images`, the folder of the image files, each of them is decoded.
    Nothing is run, and torch is not imported for a built-in architecture.

    Raises: ArchitectureError if there is no architecture of that name, or it cannot have that many
    classes; FormatError if the annotations are no COCO; CkptError if a file cannot be read.
    """
    architecture = architectures.find(arch)
    if num_classes is not None:
        architecture.manifest(num_classes)  # raises if it cannot be
    fit = fit_of(checkpoint, architecture, num_classes, weights) if checkpoint else None
    count = num_classes or (fit.num_classes if fit else None) or architecture.num_classes
    coco = read_coco(os.fspath(annotations), progress)
    table = table_of(coco)
    labels = labels_of(architecture, count)
    categories = _categories(coco, table, labels)
    summary = _summary(coco, table, architecture, categories, labels)
    findings = [
        *(check_file(fit, architecture, num_classes) if fit else ()),
        *check_categories(categories, labels, architecture, count),
        *check_images(coco, table),
        *check_entries(coco, table, architecture),
        *(places := tuple(check_places(coco, table))),
    ]
    if not {finding.code for finding in places} & MISREAD:
        findings += check_sizes(summary)
    if images is not None:
        findings += check_pictures(coco, os.fspath(images), progress)
    return Report(architecture.name, count, by_weight(findings), summary)


def _categories(coco: Coco, table: Table, labels: Labels | None) -> tuple[Category, ...]:
    """The categories of the file, each with its label, its row and its boxes."""
    import numpy as np

    counts = np.bincount(table.category[~table.crowd], minlength=len(coco.category_ids)).tolist()
    names = {
        coco.category_id(number): name
        for number, name in zip(coco.categories, coco.names, strict=True)
    }
    boxes = {id_: counts[number] for id_, number in coco.category_ids.items()}
    return mapped(names, boxes, labels)


def _summary(
    coco: Coco,
    table: Table,
    architecture: Architecture,
    categories: tuple[Category, ...],
    labels: Labels | None,
) -> Summary:
    matching = matching_of(architecture)
    return Summary(
        file=coco.path,
        images=len(coco.images),
        boxes=int(table.usable.sum()),
        crowds=len(coco.crowds),
        rows=rows_of(labels) if labels else None,
        categories=categories,
        sizes=histogram(table.boxes[table.usable], table.sides[table.usable], matching),
        input=matching.input if matching else "",
        anchors=matching.anchors if matching else "",
    )
