"""Differences of dtype, which never stop a load: torch casts without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptool.causes import Cause
from ckptool.compare import Entry
from ckptool.dtypes import CAST_TARGETS, DTYPES, SHORT, widens
from ckptool.errors import counted, listed
from ckptool.tensors import TensorSpec


def dtypes(found: Mapping[str, TensorSpec], entries: Iterable[Entry]) -> list[Cause]:
    """The differences of dtype, one cause for each pair of types; `found` are all specs."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.kind == "dtype" and entry.found and entry.wanted:
            pairs.setdefault((entry.found.dtype, entry.wanted.dtype), []).append(entry.key)
    floating = [key for key, spec in found.items() if DTYPES[spec.dtype].kind == "f"]
    targets = {want for have, want in pairs if _is_cast(have, want)}
    causes = []
    for (have, want), keys in pairs.items():
        cast = _is_cast(have, want)
        are = "is" if len(keys) == 1 else "are"
        causes.append(
            Cause(
                "dtype",
                f"{_which(keys, floating)} {are} {have} in the file and {want} in the "
                "architecture; load_state_dict casts without a word",
                "cast" if cast else None,
                fix=f"--dtype {SHORT[want]}" if cast and len(targets) == 1 else None,
                exact=cast and widens(have, want),
                harmless=True,
                keys=tuple(keys),
            )
        )
    return causes


def _is_cast(have: str, want: str) -> bool:
    """Whether `--dtype` makes one dtype of the other."""
    return have in CAST_TARGETS and want in CAST_TARGETS


def _which(keys: list[str], floating: list[str]) -> str:
    """Which of the floating tensors some keys are: all, those of BatchNorm, of one module."""
    chosen, total = set(keys), len(floating)
    count = counted(len(keys), "tensor")
    if not chosen <= set(floating):
        return f"{count} ({listed(keys, 2)})"
    if len(chosen) == total:
        return f"all {total:,} floating tensors" if total > 1 else f"the only {count}"
    norms = {key.rpartition(".")[0] for key in floating if key.endswith("running_mean")}
    groups = {"BatchNorm": {k for k in floating if k.rpartition(".")[0] in norms}}
    for key in floating:
        groups.setdefault(f"`{key.partition('.')[0]}`", set()).add(key)
    for name, group in groups.items():
        if chosen == group:
            return f"{'the' if len(keys) > 1 else 'the only'} {count} of {name}"
        if chosen | group == set(floating) and not chosen & group:
            return f"all floating tensors but those of {name}, {len(keys):,},"
    tops = dict.fromkeys(key.partition(".")[0] for key in keys)
    if sum(key.partition(".")[0] in tops for key in floating) == len(keys):
        return f"the {count} of {listed(tops)}"
    return f"{len(keys):,} of {counted(total, 'floating tensor')} ({listed(keys, 2)})"
