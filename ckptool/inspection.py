"""What a file is and holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptool.checkpoint import MADE_BY, Finding, GlobalName, LeftAside, WeightSet
from ckptool.containers import choose, left_aside
from ckptool.errors import CkptError, WeightsError, counted, listed, quoted
from ckptool.formats import darknet
from ckptool.reading import Opened, open_file
from ckptool.records import Record
from ckptool.tensors import LazyTensor, View

if TYPE_CHECKING:
    from ckptool.provenance import Origin
    from ckptool.statistics import TensorStatistics

# What is refused, where its kind is no adjective of a tensor.
_WORDS = {"dtype": "tensor", "array": "array", "module": "module", "storage": "storage"}


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A file, its weight sets, what stands beside them, and what its user should know.

    `chosen` is None where several weight sets are there and none is meant for certain.
    `statistics` are by key, empty unless they were asked for; `origin` is what the file says of
    how ckptool made it.
    """

    file: str
    format: str
    nbytes: int
    sets: tuple[WeightSet, ...]
    chosen: WeightSet | None
    left_aside: tuple[LeftAside, ...]
    globals: tuple[GlobalName, ...]
    findings: tuple[Finding, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)


def inspect(
    path: str | os.PathLike[str], *, weights: str | None = None, stats: bool = False
) -> Inspection:
    """What a file is and holds; with `stats` every value is read once, in a stream.

    Raises: CkptError if the file is not readable, or has no weight set of that name.
    """
    opened = open_file(path)
    chosen, findings = _chosen(opened, weights)
    measured: dict[str, TensorStatistics] = {}
    if chosen is not None:
        findings += [
            *_darknet(chosen, opened.contents.metadata),
            *_findings(chosen, opened.contents.format),
        ]
        if stats:
            from ckptool.statistics import value_findings

            measured = _measured(opened, chosen)
            findings += value_findings(chosen.tensors, measured)
    contents = opened.contents
    dangerous = [item for item in contents.globals if item.danger]
    if dangerous:
        findings.append(
            Finding(
                "dangerous-globals",
                "loading it with plain pickle would have run something: "
                + ", ".join(f"{item.name} ({item.danger})" for item in dangerous[:8])
                + ("" if len(dangerous) <= 8 else f" and {len(dangerous) - 8} more"),
            )
        )
    return Inspection(
        opened.path,
        contents.format,
        opened.nbytes,
        opened.sets,
        chosen,
        tuple(_left_aside(opened, chosen)),
        contents.globals,
        (*contents.findings, *findings),
        contents.metadata,
        _origin(contents.metadata),
        measured,
    )


def _origin(metadata: Mapping[str, str]) -> Origin | None:
    if MADE_BY not in metadata:
        return None
    from ckptool.provenance import origin  # few files have one

    return origin(metadata)


def _left_aside(opened: Opened, chosen: WeightSet | None) -> Iterator[LeftAside]:
    """What is not chosen: while nothing is, what is no weight set either."""
    sets = [] if chosen else [f"{found.name}." for found in opened.sets]
    for aside in left_aside(opened.contents.root, chosen, opened.nbytes):
        provenance = aside.name in opened.contents.metadata  # of a pickle that ckptool wrote
        if not provenance and not any(name.startswith(f"{aside.name}.") for name in sets):
            yield aside


def _chosen(opened: Opened, weights: str | None) -> tuple[WeightSet | None, list[Finding]]:
    try:
        return choose(opened.sets, weights), []
    except WeightsError as error:
        if weights is not None:
            raise error.located(quoted(opened.path)) from None
        hint = f"; choose with {error.hint}" if error.hint else ""
        return None, [Finding(error.code, error.message + hint)]
    except CkptError as error:
        raise error.located(quoted(opened.path)) from None


def _measured(opened: Opened, chosen: WeightSet) -> dict[str, TensorStatistics]:
    from ckptool.statistics import measure

    try:
        return measure(chosen.tensors)
    except CkptError as error:
        raise error.located(quoted(opened.path)) from None


def _findings(chosen: WeightSet, format_: str) -> list[Finding]:
    findings = list(chosen.findings)
    tied = chosen.aliases
    if tied:
        findings.append(
            Finding(
                "tied",
                f"{counted(len(tied), 'group')} of tied keys, one tensor under several names: "
                f"{listed(tied[0], 4)}",
                tuple(key for group in tied for key in group),
            )
        )
    wasted, keys = _wasted(chosen.tensors)
    if wasted and not _has_headers(format_):
        findings.append(
            Finding(
                "wasted-bytes",
                f"{wasted:,} bytes of the storages belong to no tensor: views were saved with "
                "their whole storages",
                keys,
            )
        )
    for kind in dict.fromkeys(item.kind for item in chosen.refused.values()):
        of_kind = {key: item for key, item in chosen.refused.items() if item.kind == kind}
        reason = next(iter(of_kind.values())).reason
        findings.append(
            Finding(
                f"refused-{kind}",
                f"{counted(len(of_kind), _WORDS.get(kind, f'{kind} tensor'))} listed but not read "
                f"({reason}): "
                f"{listed(of_kind, 3)}",
                tuple(of_kind),
            )
        )
    empty = [key for key, tensor in chosen.tensors.items() if 0 in tensor.shape]
    if empty:
        findings.append(
            Finding(
                "empty",
                f"{counted(len(empty), 'tensor')} without elements: {listed(empty, 3)}",
                tuple(empty),
            )
        )
    return findings


def _darknet(chosen: WeightSet, metadata: Mapping[str, str]) -> Iterator[Finding]:
    """What the header and the size of a darknet file say of it."""
    if darknet.KEY in chosen.tensors:
        from ckptool.architectures import darknet_files  # its tables cost as much as a large header

        floats = chosen.tensors[darknet.KEY]
        version = ".".join(metadata.get(name, "") for name in ("major", "minor", "revision"))
        seen = int(metadata.get("seen", 0))
        yield Finding("darknet-header", f"version {version}, {seen:,} images seen in training")
        fits = darknet_files.fitting(floats.numel)
        known = f"that of {darknet_files.described(fits)}"
        said = known if fits else "that of no network that ckptool knows; its cfg tells more"
        yield Finding("darknet-size", f"its size is {said}")


def _has_headers(format_: str) -> bool:
    """Whether there is more in a storage than values: an array's header, in an .npz."""
    from ckptool.formats import npz  # asked for seldom, and not imported for what is no zip

    return format_ == npz.NAME


def _wasted(tensors: Mapping[str, LazyTensor]) -> tuple[int, tuple[str, ...]]:
    """The bytes of storages that no tensor covers, and the keys of the tensors on those."""
    on: dict[Record, list[str]] = {}
    views = [(key, tensor.source) for key, tensor in tensors.items()]
    records = {key: source.record for key, source in views if isinstance(source, View)}
    if any(tensors[key].nbytes < record.nbytes for key, record in records.items()):
        for key, record in records.items():
            on.setdefault(record, []).append(key)
    wasted = 0
    there: list[str] = []
    for record, keys in on.items():
        waste = record.nbytes - sum(tensors[key].nbytes for key in keys)
        if waste > 0:
            wasted += waste
            there += keys
    return wasted, tuple(there)
