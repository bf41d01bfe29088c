"""The page of `inspect`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckptool.errors import printable
from ckptool.render.words import format_name, size, spec_text
from ckptool.report.page import (
    BYTES,
    COUNT,
    MAGNITUDES,
    NUMBER,
    SHARE,
    TEXT,
    Cell,
    Column,
    Grid,
    Page,
    Row,
    Status,
    dtype_words,
    point,
)

if TYPE_CHECKING:
    from ckptool.checkpoint import WeightSet
    from ckptool.inspection import Inspection
    from ckptool.statistics import TensorStatistics

_FINDINGS = (Status("ok", "", "nothing found"), Status("shape", "!", "has a finding"))


def inspection_page(found: Inspection) -> Page:
    """What a file is and holds, and what its values say if they were measured."""
    tensors = found.chosen.tensors if found.chosen else {}
    marked = {key for item in found.findings for key in item.keys}
    columns = [Column("dtype and shape", TEXT), Column("size", BYTES)]
    if found.statistics:
        columns += [
            Column("magnitudes", MAGNITUDES, "how many values have which magnitude, log scales"),
            Column("min", NUMBER),
            Column("max", NUMBER),
            Column("mean", NUMBER),
            Column("not finite", COUNT),
            Column("zeros", SHARE),
        ]
    rows = [
        Row(
            printable(key),
            int(key in marked),
            tensor.nbytes,
            (spec_text(tensor.spec), tensor.nbytes, *_measured(found.statistics.get(key))),
        )
        for key, tensor in tensors.items()
    ]
    names = ", ".join(printable(item.name) for item in found.globals)
    facts = [
        ("format", format_name(found.format)),
        ("size", size(found.nbytes)),
        ("tensors", f"{len(tensors):,}"),
        ("parameters", f"{sum(tensor.numel for tensor in tensors.values()):,}"),
        ("dtypes", dtype_words(tensor.dtype for tensor in tensors.values())),
    ]
    grids = [_sets(found.sets, found.chosen), _aside(found), _origin(found)]
    metadata = tuple((printable(k), printable(v, 300)) for k, v in found.metadata.items())
    if metadata:
        grids.append(Grid("Metadata in the file", ("name", "text"), metadata))
    return Page(
        "inspect",
        printable(found.file),
        facts=tuple(facts),
        heading="Findings",
        points=tuple(point("warning", item.message, None, item.keys) for item in found.findings),
        statuses=_FINDINGS,
        columns=tuple(columns),
        rows=tuple(rows),
        grids=tuple(grid for grid in grids if grid.rows),
        notes=(f"globals named in the file, none of them touched: {names}",) if names else (),
    )


def _measured(found: TensorStatistics | None) -> tuple[Cell, ...]:
    if found is None:
        return ()
    first = min(found.magnitudes, default=0)
    last = max(found.magnitudes, default=-1)
    counts = [found.magnitudes.get(at, 0) for at in range(first, last + 1)]
    return (
        (first, *counts),
        found.minimum,
        found.maximum,
        found.mean,
        found.non_finite,
        found.zero_share,
    )


def _sets(sets: Iterable[WeightSet], chosen: WeightSet | None) -> Grid:
    rows = []
    for item in sets:
        name = "the file itself" if item.name == "." else printable(item.name)
        averaged = {True: "averaged", False: "as trained", None: ""}[item.averaged]
        rows.append(
            (
                name,
                "yes" if chosen is not None and item.name == chosen.name else "",
                averaged,
                f"{len(item.tensors):,}",
                size(sum(tensor.nbytes for tensor in item.tensors.values())),
                dtype_words(tensor.dtype for tensor in item.tensors.values()),
            )
        )
    head = ("weights", "chosen", "kind", "tensors", "size", "dtypes")
    return Grid("Weight sets", head, tuple(rows))


def _aside(found: Inspection) -> Grid:
    rows = tuple(
        (printable(item.name), size(item.nbytes), printable(item.what)) for item in found.left_aside
    )
    return Grid("Left aside", ("what", "size", "kind"), rows)


def _origin(found: Inspection) -> Grid:
    origins = [found.origin, *found.origin.earlier] if found.origin else []
    rows = tuple(
        (
            printable(item.name),
            size(item.nbytes),
            printable(item.sha256),
            printable(", ".join(item.edits)) or "copied",
            printable(item.version),
        )
        for item in origins
    )
    return Grid("Made from", ("file", "size", "sha256", "by", "ckptool"), rows)
