"""Rename keys: prefixes, segments, patterns or a list of names; values stay as they are.

Options: `strip` (a prefix that some or all keys have), `add` (a prefix for all), `remove` (segments
that are left out wherever they stand), `rules` (pairs of patterns, see `ckptool.rules`) or `map`
(old to new names). One of them a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.rules import Rule, check_distinct, rename_all

NAME = "rename"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights under their new names, in the same order, `_metadata` renamed with them.

    Raises: PlanError if two keys would get one name, or if nothing matches.
    """
    names = _names(list(weights.tensors), options)
    changed = tuple(new for old, new in names.items() if new != old)
    if not changed:
        raise PlanError(
            f"renaming with {quoted(str(dict(options)))} matches no key", code="plan.no-match"
        )
    tensors = {names[key]: tensor for key, tensor in weights.tensors.items()}
    versions = _renamed_versions(weights, names)
    return Applied(replace(weights, tensors=tensors, versions=versions), EXACT, changed)


def _names(keys: list[str], options: Mapping[str, Any]) -> dict[str, str]:
    kind, value = next(iter(options.items()))
    if kind == "strip":
        names = {key: key.removeprefix(value) for key in keys}
    elif kind == "add":
        names = {key: value + key for key in keys}
    elif kind == "remove":
        segments = set(value)
        names = {key: _without(key, segments) for key in keys}
    elif kind == "map":
        names = {key: value.get(key, key) for key in keys}
    elif kind == "rules":
        return rename_all(keys, [Rule(old, new) for old, new in value])
    else:
        raise PlanError(f"edit `rename` has no option {quoted(kind)}", code="plan.options")
    check_distinct(names)
    return names


def _without(key: str, segments: set[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in segments)


def _renamed_versions(weights: WeightSet, names: Mapping[str, str]) -> Mapping[str, int] | None:
    """The versions under the modules' new paths, as far as the keys tell them.

    A module's path is read off its keys: where `a.b.weight` becomes `c.b.weight`, `a.b` becomes
    `c.b`. A module above the renamed ones keeps its version under every path that it gets.
    """
    if weights.versions is None:
        return None
    paths: dict[str, str] = {}
    for old, new in names.items():
        before, after = old.split("."), new.split(".")
        while before and after:
            before.pop()
            after.pop()
            paths.setdefault(".".join(before), ".".join(after))
    return {paths[path]: version for path, version in weights.versions.items() if path in paths}
