"""What `diff --values` shows: how far the values of two checkpoints are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, listed
from ckptool.render.words import fitted, number, wrapped

if TYPE_CHECKING:
    from ckptool.changes import Change, Values

_HEAD = ["elements", "relative L2", "max |Δ|", "1 - cosine"]


def values_json(found: Values) -> dict[str, Any]:
    """The `values` of the JSON of `diff`, what changed most first."""
    return {
        "rtol": found.rtol,
        "atol": found.atol,
        "within": found.within,
        "identical": found.identical,
        "edits": list(found.edits),
        "left_out": list(found.left_out),
        "tensors": [{"key": change.key, **_change_json(change)} for change in found.tensors],
        "modules": [
            {
                "module": module.total.key,
                "tensors": module.tensors,
                "tensors_changed": module.changed,
                **_change_json(module.total),
            }
            for module in found.modules()
        ],
    }


def values_text(found: Values, limit: int, width: int) -> list[str]:
    """The values of `diff`: by module, then the tensors that changed most.

    `limit` is the number of tensors, 0 for all that changed.
    """
    count = len(found.tensors)
    changed = [change for change in found.tensors if change.changed]
    lines = ["", f"values of {counted(count, 'tensor')} compared: {_tally(found)}"]
    if found.edits:
        lines += [f"  after: {edit}" for edit in found.edits]
    if found.left_out:
        names = listed(found.left_out, 3)
        said = f"not compared, as only one file has them, or in another shape: {names}"
        lines += wrapped(said, width, "  ", "    ")
    if not changed:
        return lines
    every = found.modules()
    modules = [module for module in every if module.changed]
    untouched = len(every) - len(modules)
    rows = [["changed, by module", "tensors", *_HEAD]]
    for module in modules:
        touched = f"{module.changed:,} of {module.tensors:,}"
        rows.append([module.total.key, touched, *_numbers(module.total)])
    lines += ["", *fitted(rows, width)] if modules else []
    if modules and untouched:
        lines.append(f"  unchanged: {counted(untouched, 'more module')}")
    counters = found.counters
    if counters.changed:
        far = f"by at most {counters.total.max_abs:g}"
        which = f"{counters.changed:,} of {counted(counters.tensors, 'tensor')}"
        lines += ["", f"  counters and other whole numbers: {which} changed, {far}"]
    shown = changed[: limit or None]
    rows = [["changed most", *_HEAD]]
    rows += [[change.key, *_numbers(change)] for change in shown]
    lines += ["", *fitted(rows, width)]
    if len(shown) < len(changed):
        lines.append(f"  and {len(changed) - len(shown):,} more; --limit 0 shows every tensor")
    return lines


def values_verdict(found: Values) -> str:
    """One sentence on whether the values agree."""
    count = len(found.tensors)
    if not count:
        return "no values were compared: no tensor is in both files with one shape"
    if found.identical == count:
        return "the tensor is bit-equal" if count == 1 else f"all {count:,} tensors are bit-equal"
    if not any(change.changed for change in found.tensors):
        return "all values are equal, though not every bit is: other dtypes, or -0 for 0"
    outside = sum(change.outside for change in found.tensors)
    tolerance = f"rtol {found.rtol:g} and atol {found.atol:g}"
    if not outside:
        return f"all values are equal within {tolerance}"
    tensors = counted(sum(bool(c.outside) for c in found.tensors), "tensor")
    beyond = f" by more than {tolerance} allow" if found.rtol or found.atol else ""
    return f"{counted(outside, 'value')} in {tensors} differ{'s' * (outside == 1)}{beyond}"


def change_words(change: Change) -> str:
    """How one tensor changed, in a few words."""
    if change.identical:
        return "bit-equal"
    if not change.changed:
        return "equal values"
    words = ["elements changed", *_HEAD[1:]]
    return ", ".join(f"{name} {text}" for name, text in zip(words, _numbers(change), strict=True))


def _tally(found: Values) -> str:
    """How many tensors are bit-equal, equal in value, changed; which values are no numbers."""
    equal = sum(not change.changed and not change.identical for change in found.tensors)
    changed = sum(bool(change.changed) for change in found.tensors)
    lost = sum(change.non_finite for change in found.tensors)
    parts = [f"{found.identical:,} bit-equal"]
    parts += [f"{equal:,} equal in value"] if equal else []
    parts += [f"{changed:,} changed"]
    parts += [f"{counted(lost, 'value')} to or from NaN or infinity"] if lost else []
    return ", ".join(parts)


def _numbers(change: Change) -> list[str]:
    if change.max_abs is None:
        return [_percent(change.share), "-", "-", "-"]
    cosine = change.cosine
    return [
        _percent(change.share),
        f"{change.relative_l2:.2e}",
        f"{change.max_abs:.2e}",
        "-" if cosine is None else f"{1 - cosine:.1e}",
    ]


def _percent(share: float) -> str:
    """A share that is not 0 is not shown as 0, one that is not all not as all."""
    if 0 < share < 0.0001:
        return "<0.01 %"
    if 0.9999 < share < 1:
        return ">99.99 %"
    return f"{share:.2%}".replace("%", " %")


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "dtypes": list(change.dtypes),
        "elements": change.elements,
        "identical": change.identical,
        "changed": change.changed,
        "outside": change.outside,
        "non_finite": change.non_finite,
        "max_abs": number(change.max_abs),
        "relative_l2": number(change.relative_l2),
        "cosine": change.cosine,
    }
