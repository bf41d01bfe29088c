"""Results as text and as JSON values; nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.errors import CkptError, printable, quoted
from ckptool.grouping import group

if TYPE_CHECKING:
    from ckptool.architectures.spec import Summary
    from ckptool.checkpoint import WeightSet
    from ckptool.compare import Entry
    from ckptool.diagnose import Diff
    from ckptool.identification import Identified
    from ckptool.inspection import Inspection
    from ckptool.planning import Plan
    from ckptool.tensors import LazyTensor, TensorSpec
    from ckptool.verification import Verified
    from ckptool.writing import Result


# What no file stores and what changes the outputs silently when it is wrong.
_TELLING = (
    "image_size",
    "mean",
    "std",
    "padding",
    "bn_eps",
    "backbone_bn_eps",
    "anchor_scale",
    "activation",
    "anchors",
    "scale_x_y",
)


def error_json(error: CkptError) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


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
        "metadata": dict(found.metadata),
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


def diff_json(found: Diff) -> dict[str, Any]:
    """The JSON of `diff`."""
    return {
        "file": found.file,
        "format": found.format,
        "weights": found.weights,
        "arch": found.arch,
        "num_classes": found.num_classes,
        "fits_strict": found.fits_strict,
        "counts": dict(found.counts),
        "entries": [
            {
                "key": entry.key,
                "kind": entry.kind,
                "found": spec_json(entry.found) if entry.found else None,
                "wanted": spec_json(entry.wanted) if entry.wanted else None,
            }
            for entry in found.entries
        ],
        "causes": [
            {
                "code": cause.code,
                "summary": cause.summary,
                "keys": list(cause.keys),
                "fix": cause.fix,
                "exact": cause.exact,
            }
            for cause in found.causes
        ],
        "unexplained": list(found.unexplained),
        "also_fits": list(found.also_fits),
        "not_in_file": dict(found.not_in_file),
        "notes": list(found.notes),
        "fix": found.fix,
    }


def identified_json(found: Identified) -> dict[str, Any]:
    """The JSON of `identify`."""
    return {
        "file": found.file,
        "format": found.format,
        "weights": found.weights,
        "candidates": [asdict(candidate) for candidate in found.candidates],
    }


def identified_text(found: Identified) -> str:
    """What `identify` shows."""
    if not found.candidates:
        return f"{printable(found.file)}: nothing that ckptool knows"
    rows = [["", "architecture", "classes", "dtype", "prefix", "differences"]]
    for item in found.candidates:
        wrong = [
            f"{count:,} {word}"
            for count, word in (
                (item.missing, "missing"),
                (item.unexpected, "unexpected"),
                (item.shape, "of another shape"),
            )
            if count
        ]
        classes = "" if item.num_classes is None else str(item.num_classes)
        mark = "fits" if item.fits else "near"
        rows.append(
            [mark, item.arch, classes, item.dtype, printable(item.prefix), ", ".join(wrong) or "-"]
        )
    lines = [f"{printable(found.file)}", "", *table(rows)]
    if len(found.fitting) > 1:
        lines += ["", f"{len(found.fitting)} fit alike: keys and shapes cannot tell them apart"]
    return "\n".join(lines)


def archs_json(found: Sequence[Summary]) -> dict[str, Any]:
    """The JSON of `archs`."""
    return {"archs": [asdict(item) for item in found]}


def archs_text(found: Sequence[Summary]) -> str:
    """What `archs` shows."""
    rows = [["architecture", "family", "keys", "parameters", "classes", "image", "live needs"]]
    for item in found:
        classes = "" if item.num_classes is None else str(item.num_classes)
        image = "×".join(map(str, item.image_size)) if item.image_size else ""
        rows.append(
            [
                item.name,
                item.family,
                f"{item.keys:,}",
                f"{item.parameters:,}",
                classes,
                image,
                ", ".join(item.needs),
            ]
        )
    return "\n".join(table(rows, "")) if found else "no architecture matches"


def result_json(found: Result) -> dict[str, Any]:
    """The JSON of `convert`."""
    return {
        "input": found.input,
        "output": found.output,
        "arch": found.plan.arch,
        "also_fits": list(found.also_fits),
        "plan": found.plan.to_json(),
        "dropped": list(found.dropped),
        "verified": found.verified,
        "fits_strict": found.fits_strict,
        "bytes": found.nbytes,
        "sha256": found.sha256,
        "notes": list(found.notes),
        "measured": {
            key: {name: number(value) for name, value in values.items()}
            for key, values in found.measured.items()
        },
    }


def verified_json(found: Verified) -> dict[str, Any]:
    """The JSON of `verify`."""
    return asdict(found)


def verified_text(found: Verified) -> str:
    """What `verify` shows."""
    lines = []
    if found.strict_load:
        lines.append(f"{printable(found.file)}: loads strictly into {printable(found.arch)}")
    else:
        counts = f"{len(found.missing):,} missing, {len(found.unexpected):,} unexpected"
        lines.append(
            f"{printable(found.file)}: does not load strictly into {printable(found.arch)}: "
            f"{counts}, {len(found.shape):,} of another shape; `ckptool diff` says why"
        )
    if found.forward:
        finite = "all finite" if found.forward["finite"] else "NOT all finite"
        shapes = ", ".join("×".join(map(str, shape)) for shape in found.forward["outputs"])
        size_ = "×".join(map(str, found.forward["input"]))
        lines.append(f"forward: {size_} gives {shapes}; {finite}")
    return "\n".join(lines)


def spec_json(spec: TensorSpec) -> dict[str, Any]:
    """The JSON of a spec."""
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def number(value: float | None) -> float | str | None:
    """A number as JSON can hold it: the non-finite ones as text."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def size(nbytes: int) -> str:
    """A size for people."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines with their columns aligned; cells that look like numbers to the right.

    Aligned here and not by `tabulate`, whose import costs more than `diff` takes.
    """
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def spec_text(spec: TensorSpec | None) -> str:
    """A spec for people: `float32 810×64×1×1`."""
    if spec is None:
        return ""
    return f"{spec.dtype} {'×'.join(map(str, spec.shape)) or 'scalar'}"


def inspection_text(found: Inspection, *, tree: bool = False, keys: bool = False) -> str:
    """What `inspect` shows."""
    lines = [f"{printable(found.file)}: {_format_name(found.format)}, {size(found.nbytes)}", ""]
    rows = [["weights", "tensors", "parameters", "size", "dtypes"]]
    for item in found.sets:
        mark = " (chosen)" if found.chosen and item.name == found.chosen.name else ""
        rows.append([_set_name(item) + mark, *_totals(item.tensors), _dtypes(item.tensors)])
    lines += table(rows, "") if found.sets else ["no weights"]
    if found.left_aside:
        rows = [["left aside", "size", "what"]]
        rows += [[printable(i.name, 60), size(i.nbytes), i.what] for i in found.left_aside[:20]]
        lines += ["", *table(rows, "")]
        if len(found.left_aside) > 20:
            lines.append(f"and {len(found.left_aside) - 20} more")
    if found.chosen and not (tree or keys):
        lines += ["", *_modules(found.chosen.tensors)]
    if found.chosen and tree:
        lines += ["", *_tree(found.chosen.tensors)]
    if found.chosen and keys:
        rows = [[printable(key), spec_text(t.spec)] for key, t in found.chosen.tensors.items()]
        lines += ["", *table(rows, "")]
    if found.statistics:
        rows = [["key", "min", "max", "mean", "non-finite", "zeros"]]
        rows += [
            [
                printable(key),
                *(_short(value) for value in (item.minimum, item.maximum, item.mean)),
                f"{item.non_finite:,}",
                f"{item.zero_share:.1%}",
            ]
            for key, item in found.statistics.items()
        ]
        lines += ["", *table(rows, "")]
    if found.findings:
        lines += ["", "findings", *(f"  {item.message}" for item in found.findings)]
    if found.globals:
        names = ", ".join(printable(item.name) for item in found.globals[:12])
        more = f" and {len(found.globals) - 12} more" if len(found.globals) > 12 else ""
        lines += ["", f"globals named, none of them touched: {names}{more}"]
    if "ckptool" in found.metadata:
        lines += ["", f"made by ckptool: {printable(found.metadata['ckptool'], 300)}"]
    return "\n".join(lines)


def diff_text(found: Diff, limit: int = 20) -> str:
    """What `diff` shows."""
    classes = f" with {found.num_classes} classes" if found.num_classes is not None else ""
    weights = "" if found.weights == "." else f", weights {quoted(found.weights)}"
    lines = [
        f"{printable(found.file)} ({_format_name(found.format)}{weights}) against "
        f"{printable(found.arch)}{classes}",
        "",
        _counts(found.counts),
    ]
    groups = _grouped(found.entries)
    if groups:
        rows = [["", "key", "found", "wanted"], *groups[: limit or None]]
        lines += ["", *table(rows)]
        if limit and len(groups) > limit:
            lines.append(f"  and {len(groups) - limit:,} more lines (--limit 0 shows all)")
    if found.causes:
        lines += ["", "why"]
        for number_, cause in enumerate(found.causes, 1):
            lines.append(f"  {number_}. {cause.summary}")
            if cause.fix:
                lines.append(f"     {cause.fix}")
    if found.unexplained:
        keys = ", ".join(pattern for pattern, _, _ in group((k, 0) for k in found.unexplained)[:8])
        lines += ["", f"unexplained: {printable(keys, 400)}"]
    if found.also_fits:
        lines += ["", "also fits"]
        lines += [f"  {name}: {_contrast(facts)}" for name, facts in found.distinguished.items()]
    if found.not_in_file:
        lines += ["", "not stored in any file: " + _card(found.not_in_file)]
    lines += ["", *(f"note: {note}" for note in found.notes)]
    lines += _verdict(found)
    return "\n".join(lines)


def _grouped(entries: Sequence[Entry]) -> list[list[str]]:
    """A row for each group of differences: kind, pattern, found, wanted.

    Tensors that are only missing or unexpected are grouped whatever their shapes are.
    """
    specs: dict[tuple[str, str], list[Entry]] = {}
    shared: list[tuple[str, tuple[str, str, str]]] = []
    for entry in entries:
        if entry.kind == "dtype":
            continue
        alone = entry.kind in ("missing", "unexpected")
        sides = ("", "") if alone else (spec_text(entry.found), spec_text(entry.wanted))
        shared.append((entry.key, (entry.kind, *sides)))
        specs.setdefault((entry.kind, entry.key), []).append(entry)
    rows = []
    for pattern, (kind, have, want), count in group(shared):
        if count == 1 and not (have or want):
            entry = specs[kind, pattern][0]
            have, want = spec_text(entry.found), spec_text(entry.wanted)
        name = printable(pattern, 90) + (f"  ({count})" if count > 1 else "")
        rows.append([kind, name, have, want])
    return rows


def _contrast(facts: Mapping[str, tuple[object, object]]) -> str:
    """What one architecture has instead of another."""
    words = [
        f"{name.replace('_', ' ')} {_fact(other)} instead of {_fact(own)}"
        for name, (own, other) in facts.items()
    ]
    return ", ".join(words) or "the same in everything that ckptool knows of"


def plan_text(found: Plan) -> str:
    """What `plan` and `convert --dry-run` show."""
    rows = [["step", "edit", "keys", "class", "options"]]
    for position, step in enumerate(found.steps, 1):
        options = printable(str(dict(step.options)), 100)
        rows.append([str(position), step.edit, f"{step.keys:,}", step.grade, options])
    target = found.arch or "no architecture"
    lines = [f"plan for {target}, {len(found.steps)} steps", "", *table(rows)]
    return "\n".join(lines)


def result_text(found: Result) -> str:
    """What `convert` shows."""
    lines = [f"{printable(found.output)}: written and verified, {size(found.nbytes)}"]
    lines += ["", *plan_text(found.plan).splitlines()]
    for note in found.notes:
        lines.append(f"  {note}")
    if found.dropped:
        keys = ", ".join(pattern for pattern, _, _ in group((k, 0) for k in found.dropped)[:8])
        lines.append(f"  dropped {len(found.dropped):,}: {printable(keys, 300)}")
    return "\n".join(lines)


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
    return [
        f"{len(tensors):,}",
        f"{sum(tensor.numel for tensor in tensors.values()):,}",
        size(sum(tensor.nbytes for tensor in tensors.values())),
    ]


def _dtypes(tensors: Mapping[str, LazyTensor]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
    return ", ".join(f"{name} ×{count:,}" for name, count in counts.items())


def _modules(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Tensors, parameters and bytes by the first segment of the keys."""
    tops: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in tensors.items():
        tops.setdefault(key.partition(".")[0], {})[key] = tensor
    if len(tops) == 1:
        return []
    rows = [["module", "tensors", "parameters", "size", "dtypes"]]
    rows += [
        [printable(top, 60), *_totals(inside), _dtypes(inside)]
        for top, inside in list(tops.items())[:20]
    ]
    lines = table(rows, "")
    return lines if len(tops) <= 20 else [*lines, f"and {len(tops) - 20} more"]


def _tree(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """The modules, each level indented, with the bytes below it."""
    nbytes: dict[str, int] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            nbytes[path] = nbytes.get(path, 0) + tensor.nbytes
    rows = []
    for path, total in nbytes.items():
        depth = path.count(".")
        leaf = spec_text(tensors[path].spec) if path in tensors else ""
        rows.append(["  " * depth + printable(path.rpartition(".")[2], 60), size(total), leaf])
    return table(rows, "")


def _counts(counts: Mapping[str, int]) -> str:
    words = {
        "matched": "matched",
        "missing": "missing",
        "unexpected": "unexpected",
        "shape": "of another shape",
        "dtype": "of another dtype",
    }
    return ", ".join(f"{counts[name]:,} {word}" for name, word in words.items())


def _card(card: Mapping[str, object]) -> str:
    """The facts of a card that decide what a network computes from an image."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_fact(card[name])}" for name in _TELLING if name in card
    )


def _fact(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "×".join(map(str, value)) if all(type(v) is int for v in value) else str(list(value))
    return str(value)


def _verdict(found: Diff) -> list[str]:
    if found.fits_strict:
        return ["it fits: load_state_dict(strict=True) succeeds"]
    if found.fix:
        return ["it does not load; this makes a file that does:", f"  {found.fix}"]
    return ["it does not load, and no edit known here would make it load"]


def _format_name(name: str) -> str:
    return {
        "torch-zip": "torch zip",
        "torch-legacy": "torch before 1.6",
        "torch-tar": "torch before 0.1.10",
        "torchscript": "TorchScript archive",
    }.get(name, name)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
