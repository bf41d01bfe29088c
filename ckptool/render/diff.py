"""What `diff` shows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, listed, printable, quoted
from ckptool.grouping import group, group_within
from ckptool.render.values import values_json, values_text, values_verdict
from ckptool.render.words import (
    diff_words,
    fact,
    format_name,
    plain,
    shortened,
    spec_json,
    spec_text,
    table,
    wrapped,
)

if TYPE_CHECKING:
    from ckptool.causes import Cause
    from ckptool.compare import Entry
    from ckptool.diagnose import Diff

# Lines for the differences: where a cause explains them all, and where somebody has to look.
LIMIT_EXPLAINED, LIMIT = 10, 20
WIDTH = 100

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
_MOST_UNEXPLAINED = 8
# So many groups of keys are shown that a guess cannot tell apart.
_MOST_GROUPS = 4
# The room for a key that is not to be cut.
_WHOLE = 1_000
# So many missing or unexpected keys are shown with their shapes.
_FEW = 8
_LONGEST_COMMAND = 20_000


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
                "harmless": cause.harmless,
                **({"ambiguous": cause.ambiguous} if cause.ambiguous else {}),
            }
            for cause in found.causes
        ],
        "unexplained": list(found.unexplained),
        "also_fits": list(found.also_fits),
        "not_in_file": plain(found.not_in_file),
        "notes": list(found.notes),
        "fix": found.fix,
        **({"values": values_json(found.values)} if found.values else {}),
    }


def diff_text(found: Diff, limit: int | None = None, width: int = WIDTH) -> str:
    """What `diff` shows: the differences, what explains them, and last what to type.

    `limit` is the number of lines for the differences, 0 for one for each key and no end; without
    it there are fewer where the causes say it all.
    """
    if limit is None:
        limit = LIMIT if found.unexplained else LIMIT_EXPLAINED
    classes = "" if found.num_classes is None else f" with {_classes(found.num_classes)}"
    weights = "" if found.weights == "." else f", weights {quoted(found.weights)}"
    lines = [
        f"{printable(found.file)} ({format_name(found.format)}{weights}) against "
        f"{printable(found.arch)}{classes}",
        _counts(found.counts),
    ]
    lines += _differences(found.entries, limit, width)
    blocking = [cause for cause in found.causes if not cause.harmless]
    harmless = [cause for cause in found.causes if cause.harmless]
    lines += _causes("why it does not load", blocking, 1, width)
    lines += _causes("worth knowing", harmless, 1 + len(blocking), width)
    if found.unexplained:
        keys = [f"  {name}" for name in _patterns(found.unexplained, _MOST_UNEXPLAINED, width)]
        lines += ["", f"not explained: {counted(len(found.unexplained), 'key')}", *keys]
    near = found.fits_strict or found.fix
    if found.also_fits and near:
        lines += ["", "keys and shapes fit these as well"]
        for name, facts in found.distinguished.items():
            lines += wrapped(f"{name}: {_contrast(facts)}", width, "  ", "    ")
    card = _card(found.not_in_file) if near else ""
    if card:
        lines += ["", *wrapped(f"not stored in any file: {card}", width, "", "  ")]
    for note in found.notes:
        lines += ["", *wrapped(f"note: {note}", width, "", "  ")]
    if found.values:
        lines += values_text(found.values, limit, width)
    return "\n".join([*lines, "", *verdict(found)])


def _differences(entries: Sequence[Entry], limit: int, width: int) -> list[str]:
    """A table of the differences, grouped for people."""
    alone = [(e.key, e.kind) for e in entries if e.kind in ("missing", "unexpected")]
    shaped = [(e.key, _sides(e)) for e in entries if e.kind == "shape"]
    shapes = group(shaped) if limit else [(key, sides, 1) for key, sides in shaped]
    others = [(key, kind, 1) for key, kind in alone]
    if limit:
        others = group_within(alone, max(limit - len(shapes), limit // 2))
    total = len(shapes) + len(others)
    if not total:
        return []
    if limit:
        shapes = shapes[: max(limit - len(others), limit - limit // 2)]
        others = others[: limit - len(shapes)]
    few = len(others) <= _FEW and all(count == 1 for _, _, count in others)
    by_key = {(e.key, e.kind): (spec_text(e.found), spec_text(e.wanted)) for e in entries if few}
    rows = [("shape", pattern, n, sides) for pattern, sides, n in shapes]
    rows += [
        (kind, pattern, n, by_key.get((pattern, kind), ("", ""))) for pattern, kind, n in others
    ]
    beside = max(len("  ".join(sides).rstrip()) for *_, sides in rows)
    room = max(width - beside - 18, 30) if limit else _WHOLE
    shown = [[kind, _named(pattern, n, room), *sides] for kind, pattern, n, sides in rows]
    lines = ["", *table([["", "", "found", "wanted"], *shown] if beside else shown)]
    if total > len(shown):
        more = counted(total - len(shown), "more line")
        lines.append(f"  and {more}; --limit 0 shows every key")
    return lines


def _named(pattern: str, count: int, room: int) -> str:
    """A pattern and for how many keys it stands, on one line; the last names go first."""
    tally = f"  ({count:,})" if count > 1 else ""
    module, dot, last = pattern.rpartition(".")
    if count > 1 and len(pattern) + len(tally) > room and "," in last:
        pattern = f"{module}{dot}*"
    return shortened(printable(pattern, 500), room - len(tally)) + tally


def _sides(entry: Entry) -> tuple[str, str]:
    """Both sides of a difference of shape; the dtype is told where it differs too."""
    if entry.found is None or entry.wanted is None:
        return spec_text(entry.found), spec_text(entry.wanted)
    if entry.found.dtype != entry.wanted.dtype:
        return spec_text(entry.found), spec_text(entry.wanted)
    have, want = (
        "×".join(map(str, spec.shape)) or "scalar" for spec in (entry.found, entry.wanted)
    )
    return have, want


def _causes(title: str, causes: Sequence[Cause], first: int, width: int) -> list[str]:
    lines = ["", title] if causes else []
    for number, cause in enumerate(causes, first):
        lines += wrapped(cause.summary, width, f"  {number}. ", "     ")
        for keys in cause.ambiguous[:_MOST_GROUPS]:
            text = f"order alone: {counted(len(keys), 'tensor')}, {listed(keys, 2)}"
            lines += wrapped(text, width, "       ", "         ")
        rest = len(cause.ambiguous) - _MOST_GROUPS
        if rest > 0:
            lines.append(f"       and {counted(rest, 'group')} more; --json has them all")
        if cause.fix and not _is_target(cause):
            lines.append(f"       {printable(cause.fix, _LONGEST_COMMAND)}")
    return lines


def _is_target(cause: Cause) -> bool:
    """Whether a cause goes away as soon as the target is named, which the last line does."""
    return cause.automatic and (cause.fix or "").startswith(("--arch ", "--like "))


def _patterns(keys: Iterable[str], most: int, width: int) -> list[str]:
    """Keys as patterns, each on its line, and how many lines more there would be."""
    groups = group_within([(key, None) for key in keys], most)
    names = [_named(pattern, count, width - 4) for pattern, _, count in groups[:most]]
    rest = len(groups) - len(names)
    return [*names, f"and {rest:,} more"] if rest else names


def _contrast(facts: Mapping[str, tuple[object, object]]) -> str:
    """What one architecture has instead of another."""
    words = [
        f"{name.replace('_', ' ')} {fact(other)} instead of {fact(own)}"
        for name, (own, other) in facts.items()
    ]
    return ", ".join(words) or "the same in everything that ckptool knows of"


def _counts(counts: Mapping[str, int]) -> str:
    words = {
        "missing": "missing",
        "unexpected": "unexpected",
        "shape": "of another shape",
        "dtype": "of another dtype",
    }
    wrong = [f"{counts[name]:,} {word}" for name, word in words.items() if counts[name]]
    matched = counted(counts["matched"], "tensor matches", "tensors match")
    return ", ".join([matched, *wrong])


def _classes(count: int) -> str:
    return counted(count, "class", "classes")


def _card(card: Mapping[str, object]) -> str:
    """The facts of a card that decide what a network computes from an image."""
    return ", ".join(
        f"{name.replace('_', ' ')} {fact(card[name])}"
        for name in _TELLING
        if card.get(name) is not None
    )


def verdict(found: Diff) -> list[str]:
    """Whether the file fits, what makes it fit, and whether the values agree."""
    return [*loads(found), *([values_verdict(found.values)] if found.values else [])]


def loads(found: Diff) -> list[str]:
    """Whether the file fits, and what makes it fit."""
    if found.fits_strict:
        return ["it fits: load_state_dict(strict=True) succeeds"]
    loads = not any(found.counts[kind] for kind in ("missing", "unexpected", "shape"))
    if found.fix:
        what = "it loads, but not every dtype is as wanted" if loads else "it does not load"
        does = "has them" if loads else "does"
        return [
            f"{what}; this makes a file that {does}:",
            f"  {printable(found.fix, _LONGEST_COMMAND)}",
        ]
    if loads:
        return ["it loads, but not every dtype is as wanted"]
    other = next((c.fix for c in found.causes if c.whole and c.fix), None)
    if other:
        command = shlex.join(diff_words(found.file, found.weights))
        return ["it does not load; this compares it with what it is of:", f"  {command} {other}"]
    stuck = [
        str(number)
        for number, cause in enumerate((c for c in found.causes if not c.harmless), 1)
        if cause.edit is None and not cause.automatic
    ]
    reasons = [f"see {' and '.join(stuck)}"] if stuck else []
    if found.unexplained:
        reasons.append(f"{counted(len(found.unexplained), 'key is', 'keys are')} not explained")
    return [f"it does not load, and no conversion makes it: {', '.join(reasons)}"]
