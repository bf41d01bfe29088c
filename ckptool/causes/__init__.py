"""Causes: why a file does not fit, one module per kind, each with the edit that removes it.

A detector looks at a Situation, the weights as they are after the edits of the causes before, and
returns the causes that it sees. `order` has the order in which they look.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptool.architectures.spec import Architecture, Legacy
from ckptool.checkpoint import WeightSet
from ckptool.tensors import TensorSpec

if TYPE_CHECKING:
    from ckptool.compare import Comparison
    from ckptool.plugins import Applied


@dataclass(frozen=True, slots=True)
class Target:
    """What the weights should fit: a manifest, and the architecture it is of, if it is of one."""

    name: str
    specs: Mapping[str, TensorSpec]
    num_classes: int | None = None
    architecture: Architecture | None = None

    @property
    def legacy(self) -> Legacy:
        """The old keys that its classes rename as they load."""
        return self.architecture.legacy if self.architecture else {}

    @property
    def option(self) -> str:
        """The option of the command line that names it."""
        if self.architecture is None or self.architecture.name != self.name:
            return f"--like {shlex.quote(self.name)}"
        return f"--arch {shlex.quote(self.architecture.name)}"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason for differences.

    `summary` is a sentence. `edit` and `options` are the step that removes the cause, None where
    no edit can. `fix` are the options of `ckptool convert` that ask for it, None where there are
    none; where a detector leaves it out, the solver fills it in. `automatic` tells a cause that
    `convert` removes unasked, since that preserves the function. `harmless` tells one that stops no
    load. `keys` are the keys that it explains: missing and differing ones as they are wanted,
    unexpected ones as they are in the file; the solver fills in what the edit tells. `whole` says
    that it explains all that is left; `first` that its edit may show only after another one.
    `ambiguous` are groups of the file's keys that the edit may take for each other.
    """

    code: str
    summary: str
    edit: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fix: str | None = None
    exact: bool = True
    automatic: bool = False
    harmless: bool = False
    whole: bool = False
    first: bool = False
    keys: tuple[str, ...] = ()
    ambiguous: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """What a detector sees: the weights, the target, and the differences not explained yet.

    `found` are the specs of the weights. `missing` are wanted keys that are not among them,
    `extra` keys of theirs that are not wanted, `reshaped` keys of both whose shapes differ, and
    `tolerated` wanted keys whose differences torch puts right by itself.
    """

    weights: WeightSet
    target: Target
    found: Mapping[str, TensorSpec]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()

    @property
    def wanted(self) -> Mapping[str, TensorSpec]:
        """The specs of the target."""
        return self.target.specs


@dataclass(frozen=True, slots=True)
class Solved:
    """What the detectors found: the causes, the weights after all their edits, what is left.

    `applied` has the result of each cause that has an edit, in order; `unexplained` are the keys
    that no cause accounts for.
    """

    causes: tuple[Cause, ...]
    applied: tuple[tuple[Cause, Applied], ...]
    weights: WeightSet
    before: Comparison
    after: Comparison
    unexplained: tuple[str, ...]

    @property
    def fixable(self) -> bool:
        """Whether the edits, automatic or asked for, make the weights fit."""
        return self.after.fits and all(cause.edit or cause.automatic for cause in self.causes)
