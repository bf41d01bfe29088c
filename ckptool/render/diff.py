"""What `diff` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptool.errors import printable, quoted
from ckptool.grouping import group
from ckptool.render.words import fact, format_name, spec_json, spec_text, table

if TYPE_CHECKING:
    from ckptool.compare import Entry
    from ckptool.diagnose import Diff


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


def diff_text(found: Diff, limit: int = 20) -> str:
    """What `diff` shows."""
    classes = f" with {found.num_classes} classes" if found.num_classes is not None else ""
    weights = "" if found.weights == "." else f", weights {quoted(found.weights)}"
    lines = [
        f"{printable(found.file)} ({format_name(found.format)}{weights}) against "
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
        f"{name.replace('_', ' ')} {fact(other)} instead of {fact(own)}"
        for name, (own, other) in facts.items()
    ]
    return ", ".join(words) or "the same in everything that ckptool knows of"


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
        f"{name.replace('_', ' ')} {fact(card[name])}" for name in _TELLING if name in card
    )


def _verdict(found: Diff) -> list[str]:
    if found.fits_strict:
        return ["it fits: load_state_dict(strict=True) succeeds"]
    if found.fix:
        return ["it does not load; this makes a file that does:", f"  {found.fix}"]
    return ["it does not load, and no edit known here would make it load"]
