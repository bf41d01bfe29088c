"""Rename keys: prefixes, segments, patterns or a list of names; values stay as they are.

Options: `strip` (a prefix that some or all keys have), `add` (a prefix for all), `remove` (segments
that are left out wherever they stand), `rules` (pairs of patterns, see `ckptool.rules`), `map`
(old to new names) or `guess` (the same, where nobody is sure of it). One of them a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, listed, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.plugins.drop import no_match
from ckptool.rules import Rule, check_distinct, rename_all

NAME = "rename"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights under their new names, in the same order, `_metadata` renamed with them.

    Raises: PlanError if two keys would get one name, if nothing matches, or a rule nothing.
    """
    ((kind, value),) = options.items()
    keys = [*weights.tensors, *weights.refused]
    names = _names(keys, kind, value)
    changed = tuple(new for old, new in names.items() if new != old)
    if not changed and kind == "rules":
        raise PlanError(f"{describe(options)}: every name stays as it is", code="plan.no-match")
    if not changed:
        wanted = value if isinstance(value, str) else next(iter(_patterns(kind, value)), "")
        raise no_match(wanted, keys)
    notes: tuple[str, ...] = ()
    if kind in ("map", "guess"):
        absent = [old for old in value if old not in weights.tensors]
        notes = (f"not in the file, and so not renamed: {listed(absent)}",) if absent else ()
    tensors = {names[key]: tensor for key, tensor in weights.tensors.items()}
    renamed = replace(
        weights,
        tensors=tensors,
        refused={names[key]: value for key, value in weights.refused.items()},
        versions=renamed_versions(weights, names),
    )
    return Applied(renamed, EXACT, changed, notes=notes)


def describe(options: Mapping[str, Any]) -> str:
    """`strip module.`, `neek.{*} to neck.{*}`."""
    ((kind, value),) = options.items()
    if kind in ("strip", "add"):
        return f"{kind} the prefix {quoted(value)}"
    if kind == "remove":
        return f"leave out the segments {listed(value, 3)}"
    pairs = list(value if kind == "rules" else value.items())
    guessed = "a guess: " if kind == "guess" else ""
    more = f" and {len(pairs) - 1:,} more" if len(pairs) > 1 else ""
    first = f"{quoted(pairs[0][0])} to {quoted(pairs[0][1])}" if pairs else "nothing"
    return f"{guessed}{first}{more}"


def _names(keys: list[str], kind: str, value: Any) -> dict[str, str]:
    """Each key's new name.

    Raises: PlanError if two keys would get one name, or if a rule matches none.
    """
    if kind == "strip":
        names = {key: key.removeprefix(value) for key in keys}
    elif kind == "add":
        names = {key: value + key for key in keys}
    elif kind == "remove":
        names = {key: _without(key, set(value)) for key in keys}
    elif kind in ("map", "guess"):
        if not all(isinstance(name, str) for name in value.values()):
            raise PlanError("a new name is no text", code="plan.options")
        names = {key: value.get(key, key) for key in keys}
    elif kind == "rules":
        rules = [Rule(old, new) for old, new in value]
        for rule in rules:
            if not any(rule.rewrite(key) is not None for key in keys):
                raise no_match(rule.old, keys)
        names = rename_all(keys, rules)
    else:
        raise PlanError(f"edit `rename` has no option {quoted(kind)}", code="plan.options")
    if "" in names.values():
        raise PlanError(
            f"{listed([old for old, new in names.items() if not new])} would be left without a "
            "name",
            code="plan.collision",
        )
    check_distinct(names)
    return names


def _patterns(kind: str, value: Any) -> list[str]:
    return [old for old, _ in value] if kind == "rules" else list(value)


def _without(key: str, segments: set[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in segments)


def renamed_versions(weights: WeightSet, names: Mapping[str, str]) -> Mapping[str, int] | None:
    """The versions under the modules' new paths, as far as the keys tell them.

    A module's path is read off its keys: where `a.b.weight` becomes `c.b.weight`, `a.b` becomes
    `c.b`, and `a` becomes `c`. Those above the last segment that the two names share are not told.
    """
    if weights.versions is None:
        return None
    paths: dict[str, str] = {}
    above: dict[str, str] = {}
    for old, new in names.items():
        before, after = old.split("."), new.split(".")
        before.pop()
        after.pop()
        paths.setdefault(".".join(before), ".".join(after))
        while before and after and before[-1] == after[-1]:
            before.pop()
            after.pop()
            above.setdefault(".".join(before), ".".join(after))
    return {
        table[path]: version
        for table in (above, paths)  # a module with tensors of its own has the last word
        for path, version in weights.versions.items()
        if path in table
    }
