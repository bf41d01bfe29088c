"""What `inspect` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ckptool.dtypes import DTYPES
from ckptool.errors import counted, printable
from ckptool.render.words import (
    fitted,
    format_name,
    number,
    shortened,
    size,
    spec_json,
    spec_text,
    table,
    wrapped,
)

if TYPE_CHECKING:
    from ckptool.checkpoint import WeightSet
    from ckptool.inspection import Inspection
    from ckptool.provenance import Origin
    from ckptool.tensors import LazyTensor

WIDTH = 100

_BAR = 12


def inspection_json(found: Inspection) -> dict[str, Any]:
    """The JSON of `inspect`."""
    value: dict[str, Any] = {
        "file": found.file,
        "format": found.format,
        "bytes": found.nbytes,
        "weights": [_set_json(item) for item in found.sets],
        "chosen": found.chosen.name if found.chosen else None,
        "left_aside": [
            {"name": item.name, "what": item.what, "bytes": item.nbytes}
            for item in found.left_aside
        ],
        "globals": [item.name for item in found.globals],
        "dangerous": [item.name for item in found.globals if item.danger],
        "findings": [
            {"code": item.code, "message": item.message, "keys": list(item.keys)}
            for item in found.findings
        ],
        "tensors": [
            {"key": key, **spec_json(tensor.spec)}
            for key, tensor in (found.chosen.tensors if found.chosen else {}).items()
        ],
        "refused": [
            {"key": key, "kind": item.kind, "reason": item.reason}
            for key, item in (found.chosen.refused if found.chosen else {}).items()
        ],
        "by_dtype": _groups_json(found.chosen.tensors, _dtype_of) if found.chosen else {},
        "by_module": _groups_json(found.chosen.tensors, _module_of) if found.chosen else {},
        "metadata": dict(found.metadata),
        "made_from": _origin_json(found.origin) if found.origin else None,
    }
    if found.statistics:
        value["stats"] = [
            {
                "key": key,
                "min": number(item.minimum),
                "max": number(item.maximum),
                "mean": number(item.mean),
                "non_finite": item.non_finite,
                "zero_share": item.zero_share,
            }
            for key, item in found.statistics.items()
        ]
    return value


def inspection_text(
    found: Inspection, *, tree: bool = False, keys: bool = False, width: int = WIDTH
) -> str:
    """What `inspect` shows on a screen of a width."""
    lines = [f"{printable(found.file)}: {format_name(found.format)}, {size(found.nbytes)}", ""]
    rows = [["weights", "tensors", "parameters", "size", "dtypes"]]
    for item in found.sets:
        mark = " (chosen)" if found.chosen and item.name == found.chosen.name else ""
        rows.append([_set_name(item) + mark, *_totals(item.tensors)])
    lines += table(rows, "") if found.sets else ["no weights"]
    if found.left_aside:
        rows = [["left aside", "size", "what"]]
        rows += [[printable(i.name, 60), size(i.nbytes), i.what] for i in found.left_aside[:20]]
        lines += ["", *table(rows, "")]
        if len(found.left_aside) > 20:
            lines.append(f"and {len(found.left_aside) - 20} more")
    for title, group in (("dtype", _dtype_of), ("module", _module_of)):
        rows = _grouped(found.chosen.tensors, group) if found.chosen and not (tree or keys) else []
        if len(rows) > 1:
            shown = [[title, "tensors", "parameters", "size", "dtypes"], *rows[:20]]
            lines += ["", *table([row[:4] for row in shown] if title == "dtype" else shown, "")]
            lines += [f"and {len(rows) - 20} more"] if len(rows) > 20 else []
    if found.chosen and tree:
        lines += ["", *_tree(found.chosen.tensors, width)]
    if found.chosen and keys:
        rows = [[printable(key), spec_text(t.spec)] for key, t in found.chosen.tensors.items()]
        rows += [[printable(key), f"{x.kind}, not read"] for key, x in found.chosen.refused.items()]
        lines += ["", *table(rows, "")]
    if found.statistics:
        rows = [["key", "min", "max", "mean", "non-finite", "zeros"]]
        rows += [
            [
                key,
                *(_short(value) for value in (item.minimum, item.maximum, item.mean)),
                f"{item.non_finite:,}",
                f"{item.zero_share:.1%}",
            ]
            for key, item in found.statistics.items()
        ]
        lines += ["", *fitted(rows, width, "")]
    if found.findings:
        lines += ["", "findings"]
        for finding in found.findings:
            lines += wrapped(finding.message, width, "  ", "    ")
    if found.globals:
        names = ", ".join(printable(item.name) for item in found.globals[:12])
        more = f" and {len(found.globals) - 12} more" if len(found.globals) > 12 else ""
        said = f"globals named, none of them touched: {names}{more}"
        lines += ["", *wrapped(said, width, "", "  ")]
    if found.origin:
        lines += ["", *_origin_text(found.origin)]
    return "\n".join(lines)


def _origin_json(origin: Origin) -> dict[str, Any]:
    return {
        "version": origin.version,
        "name": origin.name,
        "bytes": origin.nbytes,
        "sha256": origin.sha256,
        "edits": list(origin.edits),
        "earlier": [_origin_json(item) for item in origin.earlier],
    }


def _origin_text(origin: Origin) -> list[str]:
    """One line on what the file was made from, and one on what that was made from."""
    words = f"{counted(len(origin.edits), 'step')}: {', '.join(origin.edits)}"
    line = (
        f"made by ckptool {origin.version} from {origin.name} (sha256 {origin.sha256}) by "
        f"{words if origin.edits else 'copying it'}"
    )
    before = ", that from ".join(item.name for item in origin.earlier)
    return [printable(line, 400), *([printable(f"that from {before}", 400)] if before else [])]


def _set_json(item: WeightSet) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for tensor in item.tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    return {
        "name": item.name,
        "tensors": len(item.tensors),
        "parameters": sum(tensor.numel for tensor in item.tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in item.tensors.values()),
        "dtypes": dtypes,
        "averaged": item.averaged,
        "origin": item.origin,
    }


def _set_name(item: WeightSet) -> str:
    name = "(the file itself)" if item.name == "." else printable(item.name, 60)
    return name + {True: ", averaged", False: ", as trained", None: ""}[item.averaged]


def _totals(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """How many tensors, parameters and bytes, and of which dtypes, in one pass."""
    counts: dict[str, int] = {}
    elements: dict[str, int] = {}
    for tensor in tensors.values():
        dtype = tensor.dtype
        counts[dtype] = counts.get(dtype, 0) + 1
        elements[dtype] = elements.get(dtype, 0) + tensor.numel
    return [
        f"{len(tensors):,}",
        f"{sum(elements.values()):,}",
        size(sum(numel * DTYPES[dtype].itemsize for dtype, numel in elements.items())),
        ", ".join(f"{dtype} ×{count:,}" for dtype, count in counts.items()),
    ]


def _grouped(
    tensors: Mapping[str, LazyTensor], group: Callable[[str, LazyTensor], str]
) -> list[list[str]]:
    """Tensors, parameters, bytes and dtypes by what the group of a tensor is."""
    return [
        [printable(name, 60), *_totals(inside)] for name, inside in _groups(tensors, group).items()
    ]


def _groups(
    tensors: Mapping[str, LazyTensor], group: Callable[[str, LazyTensor], str]
) -> dict[str, dict[str, LazyTensor]]:
    found: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in tensors.items():
        found.setdefault(group(key, tensor), {})[key] = tensor
    return found


def _dtype_of(key: str, tensor: LazyTensor) -> str:
    return tensor.dtype


def _module_of(key: str, tensor: LazyTensor) -> str:
    return key.partition(".")[0]


def _groups_json(
    tensors: Mapping[str, LazyTensor], group: Callable[[str, LazyTensor], str]
) -> dict[str, dict[str, int]]:
    return {
        name: {
            "tensors": len(inside),
            "parameters": sum(tensor.numel for tensor in inside.values()),
            "bytes": sum(tensor.nbytes for tensor in inside.values()),
        }
        for name, inside in _groups(tensors, group).items()
    }


def _tree(tensors: Mapping[str, LazyTensor], width: int) -> list[str]:
    """The modules, each level indented, with the bytes below it and their share as a bar."""
    nbytes: dict[str, int] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            nbytes[path] = nbytes.get(path, 0) + tensor.nbytes
    specs = {path: spec_text(tensors[path].spec) if path in tensors else "" for path in nbytes}
    total = max(sum(tensor.nbytes for tensor in tensors.values()), 1)
    beside = max(map(len, specs.values()), default=0)
    names = ["  " * path.count(".") + printable(path.rpartition(".")[2], 60) for path in nbytes]
    room = max(width - _BAR - beside - 18, 20)
    rows = [
        [shortened(name, room), size(each), _bar(each / total), specs[path]]
        for name, (path, each) in zip(names, nbytes.items(), strict=True)
    ]
    return table(rows, "")


def _bar(share: float) -> str:
    """A bar of eighths, at least one for what is there at all."""
    eighths = max(round(share * _BAR * 8), int(share > 0))
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip().ljust(_BAR)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
