"""A plan as data: the steps of a conversion, as JSON, bound to weights, and carried out.

The plan is the work: what `--dry-run` prints is what `convert` runs, and a stored plan is run by
the same function.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import PlanError, quoted
from ckptool.files import ByteFile
from ckptool.plugins import GRADES, Applied, apply

VERSION = 1

_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Step:
    """One edit with its options; `keys` is how many keys it touches, `grade` what it costs."""

    edit: str
    options: Mapping[str, Any]
    keys: int = 0
    grade: str = "exact"


@dataclass(frozen=True, slots=True)
class Plan:
    """An ordered list of edits, bound to weights of one signature.

    What it aims at: `arch`, an architecture, or `like`, the path of another checkpoint; the class
    count; the type that was asked for; the dialect, if it is not the architecture's own.
    """

    signature: str
    steps: tuple[Step, ...]
    arch: str | None = None
    num_classes: int | None = None
    dtype: str | None = None
    like: str | None = None
    dialect: str | None = None

    def _repr_html_(self) -> str:
        from ckptool.render.notebook import plan_html

        return plan_html(self)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        target = {"arch": self.arch, "num_classes": self.num_classes, "dtype": self.dtype}
        more = {"like": self.like, "dialect": self.dialect}
        target |= {name: value for name, value in more.items() if value is not None}
        return {
            "version": VERSION,
            "signature": self.signature,
            "target": target,
            "steps": [
                {"edit": s.edit, "options": dict(s.options), "keys": s.keys, "class": s.grade}
                for s in self.steps
            ],
        }


def signature(weights: WeightSet) -> str:
    """A digest of keys, shapes and dtypes: a plan fits every file that has the same, in any order.

    The order does not count because safetensors does not keep it.
    """
    lines = sorted(f"{key!r} {spec.dtype} {spec.shape}" for key, spec in weights.specs.items())
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def made(weights: WeightSet, steps: Sequence[Step], **target: Any) -> Plan:
    """The plan of some steps for some weights, with the number of keys and the grade of each.

    Raises: PlanError if a step cannot be carried out.
    """
    _, results = carried_out(steps, weights)
    counted = (
        replace(step, keys=len(result.keys) + len(result.dropped), grade=result.grade)
        for step, result in zip(steps, results, strict=True)
    )
    return Plan(signature(weights), tuple(counted), **target)


def refuse_losses(weights: WeightSet) -> None:
    """Raise for what no output can hold: to leave it out is for the user to say."""
    if not weights.refused:
        return
    import shlex

    from ckptool.rules import globs

    chosen = globs(weights.refused, (*weights.tensors, *weights.refused))
    for key, value in weights.refused.items():
        raise PlanError(
            f"{quoted(key)} is in the file as {value.kind}, not as a dense tensor "
            f"({value.reason}), and would be left out",
            hint=" ".join(f"--drop {shlex.quote(glob)}" for glob in chosen),
            code="plan.not-dense",
        )


def execute(plan: Plan, weights: WeightSet) -> tuple[WeightSet, tuple[Applied, ...]]:
    """The weights after all steps, lazily, and what each step did.

    Raises: PlanError if the plan was made for weights with another signature.
    """
    found = signature(weights)
    if found != plan.signature:
        raise PlanError(
            f"the plan was made for other weights: found {found[:19]}…, "
            f"wanted {plan.signature[:19]}…",
            hint="`ckptool plan` makes one for this file; --weights chooses another set in it",
            code="plan.signature",
        )
    return carried_out(plan.steps, weights)


def carried_out(steps: Sequence[Step], weights: WeightSet) -> tuple[WeightSet, tuple[Applied, ...]]:
    """The weights after some steps, lazily, and what each step did."""
    results = []
    for step in steps:
        result = apply(step.edit, step.options, weights)
        weights = result.weights
        results.append(result)
    return weights, tuple(results)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan that a file holds; PlanError unless it holds one."""
    path = os.fspath(path)
    file = ByteFile(path)
    try:
        value = json.loads(file.read(0, min(file.size, _MOST_BYTES)))
        if not isinstance(value, dict):
            raise ValueError("found no JSON object")
        if value["version"] != VERSION:
            raise PlanError(
                f"found plan version {value['version']!r}, wanted {VERSION}", code="plan.version"
            )
        return _parsed(value)
    except PlanError as error:
        raise error.located(quoted(path)) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(
            f"{quoted(path)}: not a plan: {_reason(error)}",
            hint="ckptool plan FILE … -o PLAN.json writes one",
            code="plan.format",
        ) from None


def _parsed(value: Mapping[str, Any]) -> Plan:
    """The plan of a JSON value; raises whatever a value of another form raises."""
    steps = tuple(
        Step(_text(step["edit"]), dict(step["options"]), int(step["keys"]), _text(step["class"]))
        for step in value["steps"]
    )
    if not {step.grade for step in steps} <= set(GRADES):
        raise ValueError("a class is none of " + ", ".join(GRADES))
    target = value["target"]
    return Plan(
        _text(value["signature"]),
        steps,
        arch=None if target["arch"] is None else _text(target["arch"]),
        num_classes=None if target["num_classes"] is None else int(target["num_classes"]),
        dtype=None if target["dtype"] is None else _text(target["dtype"]),
        like=None if target.get("like") is None else _text(target["like"]),
        dialect=None if target.get("dialect") is None else _text(target["dialect"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {value!r}, wanted a text")
    return value


def _reason(error: Exception) -> str:
    """Why a file holds no plan: in the words of a file, not of the program that reads it."""
    if isinstance(error, KeyError):
        return f"no {error}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error) if isinstance(error, ValueError) else "a field is not of its kind"
