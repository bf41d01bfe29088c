"""From weights and a target to the causes of their differences, each with what it explains.

A cause counts only for what no cause before it explains, and one that explains nothing is none:
so every difference is explained once, and by the fewest causes that the detectors see.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ckptool.architectures import frozen
from ckptool.causes import Cause, Situation, Solved, Target
from ckptool.causes.identity import another_architecture, is_related
from ckptool.causes.order import AROUND, INSIDE, REST, Detector
from ckptool.checkpoint import WeightSet
from ckptool.compare import Comparison, compare, compare_weights
from ckptool.errors import PlanError
from ckptool.identification import Candidate, candidates
from ckptool.plugins import Applied, edit
from ckptool.rules import globs

# A difference, named so that it keeps its name across edits: a key that is wanted, or one that is
# in the file.
Difference = tuple[str, str]
_WANTED, _FOUND = "wanted", "found"

_MOST_TRIED = 3
_MOST_DROPS = 4


@dataclass(frozen=True, slots=True)
class _State:
    """How far the search is.

    `open` are the differences not explained yet, `closed` those that causes without an edit
    explain; `strays` are those of values that are no dense tensors, which no edit sees. `file` are
    the file's own keys, and `origin` tells for each key of the weights which of them it came from.
    `waiting` are causes whose edit is done but shows only after the next one, with the file's keys
    that it renamed.
    """

    weights: WeightSet
    target: Target
    file: tuple[str, ...]
    origin: Mapping[str, str]
    order: Mapping[Difference, str]
    open: frozenset[Difference]
    strays: frozenset[Difference]
    closed: frozenset[Difference] = frozenset()
    causes: tuple[Cause, ...] = ()
    applied: tuple[tuple[Cause, Applied], ...] = ()
    waiting: tuple[tuple[Cause, Applied, frozenset[str]], ...] = ()

    def keys(self, differences: Iterable[Difference]) -> tuple[str, ...]:
        """The keys of some differences, in the order of the comparison."""
        chosen = set(differences)
        return tuple(dict.fromkeys(key for found, key in self.order.items() if found in chosen))


def solve(weights: WeightSet, target: Target, before: Comparison | None = None) -> Solved:
    """The causes of all differences, each with the keys that it explains, as far as any does.

    `before` are the differences, where they were looked at already.
    """
    if before is None:
        before = compare_weights(weights, target.specs, target.legacy)
    around = _searched(_start(weights, target, before), AROUND)
    found = _searched(around, INSIDE) if is_related(_situation(around)) else around
    if found.open or any(_gives_up(cause) for cause in found.causes):
        names = _other_architectures(around)
        if names:
            found = _explained(around, another_architecture(_situation(around), names))
        else:
            found = _searched(found, REST)
    specs, versions = found.weights.specs, found.weights.versions
    after = compare(specs, target.specs, versions, legacy=target.legacy)
    return Solved(found.causes, found.applied, found.weights, before, after, found.keys(found.open))


def _gives_up(cause: Cause) -> bool:
    """Whether a cause is one that another architecture may explain better."""
    return cause.edit in (None, "drop") and not cause.automatic


def _other_architectures(state: _State) -> list[Candidate]:
    """The built-in architectures that the weights are of, none if the target is nearer to them.

    They fit as they are, or after edits that preserve the function.
    """
    fitting = []
    near = 0
    for candidate in candidates(state.weights):
        if _is_target(candidate, state.target):
            return []
        if candidate.fits:
            fitting.append(candidate)
        elif not fitting and near < _MOST_TRIED:
            near += 1
            if _fits_edited(state.weights, candidate):
                fitting.append(candidate)
    return fitting


def _fits_edited(weights: WeightSet, candidate: Candidate) -> bool:
    architecture = frozen.find(candidate.arch)
    assert architecture is not None
    specs = architecture.manifest(candidate.num_classes)
    target = Target(architecture.name, specs, candidate.num_classes, architecture)
    start = _start(weights, target, compare_weights(weights, specs, target.legacy))
    found = _searched(_searched(start, AROUND), INSIDE)
    return not found.open and all(cause.automatic for cause in found.causes)


def _is_target(candidate: Candidate, target: Target) -> bool:
    """Whether an architecture is the target, or cannot be told from it."""
    architecture = frozen.find(candidate.arch)
    assert architecture is not None
    if target.architecture is not None and target.architecture.name == candidate.arch:
        return True
    return architecture.manifest(candidate.num_classes) == target.specs


def _start(weights: WeightSet, target: Target, before: Comparison) -> _State:
    order = {
        _named(entry.kind, entry.key): entry.key
        for entry in before.entries
        if entry.kind != "dtype"
    }
    strays = {(_FOUND, key) for key in (*weights.refused, *weights.others)}
    return _State(
        weights,
        target,
        tuple(weights.tensors),
        {key: key for key in (*weights.tensors, *weights.refused)},
        order,
        frozenset(order),
        frozenset(strays & order.keys()),
    )


def _named(kind: str, key: str) -> Difference:
    return (_FOUND if kind == "unexpected" else _WANTED, key)


def _searched(state: _State, detectors: Iterable[Detector]) -> _State:
    """The state after each of the detectors had its look."""
    situation = _situation(state)
    for detect in detectors:
        if not (state.open or situation.tolerated):
            break
        before = state
        for cause in detect(situation):
            state = _explained(state, cause)
        if state is not before:
            situation = _situation(state)
    return state


def _situation(state: _State) -> Situation:
    specs = state.weights.specs
    legacy = state.target.legacy
    found = compare(specs, state.target.specs, state.weights.versions, legacy=legacy)
    keys: dict[str, list[str]] = {"missing": [], "unexpected": [], "shape": []}
    for entry in found.entries:
        # What torch renames as it loads differs in shape under a name that is not in the file.
        here = entry.kind != "shape" or entry.key in specs
        if entry.kind != "dtype" and here and _is_open(state, entry.kind, entry.key):
            keys[entry.kind].append(entry.key)
    return Situation(
        state.weights,
        state.target,
        specs,
        tuple(keys["missing"]),
        tuple(keys["unexpected"]),
        tuple(keys["shape"]),
        tuple(entry.key for entry in found.tolerated),
    )


def _is_open(state: _State, kind: str, key: str) -> bool:
    """Whether a difference of the weights as they are now is one of the file that is open."""
    return _named(kind, state.origin.get(key, key) if kind == "unexpected" else key) in state.open


def _explained(state: _State, cause: Cause) -> _State:
    """The state with one cause more, or as it was if the cause explains nothing that is open."""
    if cause.edit is None:
        named = {(_WANTED, key) for key in cause.keys}
        named |= {(_FOUND, state.origin.get(key, key)) for key in cause.keys}
        explained = state.open if cause.whole else state.open & named
        if not explained:
            return state
        fix = cause.fix or (state.target.option if cause.automatic else None)
        told = replace(cause, keys=state.keys(explained), fix=fix)
        return replace(
            state,
            open=state.open - explained,
            closed=state.closed | explained,
            causes=(*state.causes, told),
        )
    try:
        result = edit(cause.edit).apply(state.weights, cause.options)
    except PlanError:
        return state  # names that collide, a tensor that is not what its name says
    origin = _followed(state.origin, state.weights, result.weights)
    left = _left(state, result.weights, origin)
    explained = state.open - left
    edited = replace(state, weights=result.weights, origin=origin)
    if cause.first and not explained:
        renamed = frozenset(origin[key] for key in result.keys)
        return replace(edited, waiting=(*state.waiting, (cause, result, renamed)))
    if len(left - state.open) >= len(explained) and not cause.harmless:
        return state
    for earlier, earlier_result, renamed in state.waiting:
        paid = frozenset(item for item in explained if item[0] == _FOUND and item[1] in renamed)
        edited = _with(edited, earlier, earlier_result, paid)
        explained -= paid
    dropped = [state.origin.get(key, key) for key in result.dropped]
    return replace(_with(edited, cause, result, explained, dropped), open=left, waiting=())


def _with(
    state: _State,
    cause: Cause,
    result: Applied,
    explained: frozenset[Difference],
    dropped: Collection[str] = (),
) -> _State:
    """The state with a cause that an edit removes; `dropped` are the file's keys that it drops."""
    fix = cause.fix
    if fix is None and cause.edit == "drop":
        found = globs(dropped, state.file)
        if not cause.automatic or len(found) <= _MOST_DROPS:
            fix = " ".join(f"--drop {shlex.quote(glob)}" for glob in found)
    keys = state.keys(explained) or cause.keys
    told = replace(cause, keys=keys, fix=fix or state.target.option)
    applied = (*state.applied, (told, result))
    return replace(state, causes=(*state.causes, told), applied=applied)


def _left(state: _State, weights: WeightSet, origin: Mapping[str, str]) -> frozenset[Difference]:
    """The differences of edited weights that no cause explains."""
    legacy = state.target.legacy
    found = compare(weights.specs, state.target.specs, weights.versions, legacy=legacy)
    left = {
        _named(entry.kind, origin.get(entry.key, entry.key))
        if entry.kind == "unexpected"
        else _named(entry.kind, entry.key)
        for entry in found.entries
        if entry.kind != "dtype"
    }
    return frozenset((left - state.closed) | (state.open & state.strays))


def _followed(origin: Mapping[str, str], before: WeightSet, after: WeightSet) -> dict[str, str]:
    """For each key after an edit the file's own key that it came from."""
    old, new = list(before.tensors.items()), list(after.tensors.items())
    # A renaming leaves every value in its place, the refused ones too.
    refused = zip(after.refused, before.refused, strict=True)
    others = {key: origin.get(was, was) for key, was in refused}
    if [id(tensor) for _, tensor in old] == [id(tensor) for _, tensor in new]:
        pairs = zip(new, old, strict=True)
        return {**{key: origin[was] for (key, _), (was, _) in pairs}, **others}
    by_tensor = {id(tensor): key for key, tensor in old}
    return {
        **{
            key: origin.get(key if key in before.tensors else by_tensor.get(id(tensor), key), key)
            for key, tensor in new
        },
        **others,
    }
