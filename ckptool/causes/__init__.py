"""Causes: why a file does not fit, one module per kind, each with the edit that removes it.

A detector looks at the weights as they are after the edits before it, and at what is wanted; it
returns the causes that it sees. DETECTORS is their order: what wraps all keys comes first, what
concerns single tensors last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import WeightSet
from ckptool.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Target:
    """What the weights should fit: a manifest, and the architecture it is of, if it is of one."""

    name: str
    specs: Mapping[str, TensorSpec]
    num_classes: int | None = None
    architecture: Architecture | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason for differences.

    `summary` is a sentence. `edit` and `options` are the step that removes the cause, None where
    no edit can. `fix` are the options of `ckptool convert` that ask for it, None where there are
    none. `automatic` tells a step that needs no option of its own: it preserves the function.
    `ends` says that the search ends here: behind it nothing is worth a look. `keys` are the keys
    that it explains; the solver fills them in where the edit tells them.
    """

    code: str
    summary: str
    edit: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fix: str | None = None
    exact: bool = True
    automatic: bool = False
    ends: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """What a detector sees."""

    weights: WeightSet
    target: Target
