"""Leave tensors out, by name.

Options: `drop` or `keep`, a list of globs (`*` stands for any text).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    globs = list(options.get("drop", ())) or list(options.get("keep", ()))
    matched = matching(list(weights.tensors), globs)
    chosen = set(matched)
    dropped = tuple(key for key in weights.tensors if (key in chosen) == ("drop" in options))
    gone = set(dropped)
    tensors = {key: tensor for key, tensor in weights.tensors.items() if key not in gone}
    if not tensors:
        raise PlanError(f"nothing is left after {listed(globs)}", code="plan.empty")
    return Applied(replace(weights, tensors=tensors), SELECTIVE, dropped=dropped)


def matching(keys: list[str], globs: list[str]) -> list[str]:
    """The keys that any of the globs matches; PlanError for a glob that matches none."""
    for glob in globs:
        if not any(fnmatchcase(key, glob) for key in keys):
            raise PlanError(f"{listed([glob])} matches no key", code="plan.no-match")
    return [key for key in keys if any(fnmatchcase(key, glob) for glob in globs)]
