"""Leave tensors out, by name.

Options: `drop` or `keep`, a list of globs (`*` stands for any text). A key means itself, whatever
characters it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, listed
from ckptool.plugins import SELECTIVE, Applied

NAME = "drop"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights without the dropped keys, or with the kept ones only.

    Raises: PlanError for a glob that matches nothing, or if nothing is left.
    """
    ((kind, globs),) = options.items()
    if kind not in ("drop", "keep"):
        raise PlanError(f"edit `drop` has no option {listed([kind])}", code="plan.options")
    there = (*weights.tensors, *weights.refused)
    chosen = set(matching(there, globs))
    dropped = tuple(key for key in there if (key in chosen) == (kind == "drop"))
    gone = set(dropped)
    tensors = {key: tensor for key, tensor in weights.tensors.items() if key not in gone}
    refused = {key: value for key, value in weights.refused.items() if key not in gone}
    if not tensors:
        raise PlanError(f"nothing is left after --{kind} {listed(globs)}", code="plan.empty")
    left = replace(weights, tensors=tensors, refused=refused)
    return Applied(left, SELECTIVE, dropped=dropped)


def describe(options: Mapping[str, Any]) -> str:
    """`leave out head.*`, `keep only backbone.*`."""
    ((kind, globs),) = options.items()
    return f"{'leave out' if kind == 'drop' else 'keep only'} {listed(globs, 3)}"


def matching(keys: Iterable[str], globs: Iterable[str]) -> list[str]:
    """The keys that any of the globs matches; PlanError for a glob that matches none."""
    there = dict.fromkeys(keys)
    found: set[str] = set()
    for glob in globs:
        hits = {glob} if glob in there else {key for key in there if fnmatchcase(key, glob)}
        if not hits:
            raise no_match(glob, there)
        found |= hits
    return [key for key in there if key in found]


def no_match(pattern: str, keys: Iterable[str]) -> PlanError:
    """The error for a pattern that no key matches, with the keys that come near."""
    from difflib import get_close_matches
    from itertools import islice

    plain = pattern.strip("*{}")
    near = [key for key in keys if plain and plain.lower() in key.lower()][:3]
    near = near or get_close_matches(plain, islice(keys, 2_000), 3, 0.5)
    return PlanError(
        f"{listed([pattern])} matches no key",
        hint=f"the closest are {listed(near)}" if near else "`ckptool inspect --keys` lists them",
        code="plan.no-match",
    )
