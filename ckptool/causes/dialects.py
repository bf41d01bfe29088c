"""The same network as another implementation spells it."""

from __future__ import annotations

from collections.abc import Mapping

from ckptool import dialects
from ckptool.architectures import find
from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Situation
from ckptool.dialects.spec import Dialect
from ckptool.errors import counted, listed, quoted
from ckptool.identification import prefixes
from ckptool.pairing import guess

# The share of a dialect's tensors that must be there, class rows aside, for a file to be in it.
_SIMILAR = 0.6
# Dialects that differ in a few members only, of which other causes tell.
_NEAR = (
    {"effdet", "effdet-level-first"},
    {"tianxiaomo", "tianxiaomo-neek"},
)


def other_dialect(situation: Situation) -> list[Cause]:
    """Keys that are spelled, and values that are laid out, as another implementation has them.

    The eps of its BatchNorms is told apart from that: no key and no shape shows it.
    """
    architecture = situation.target.architecture
    wanted = dialects.native(architecture) if architecture else None
    if architecture is None or wanted is None:
        return []
    marked = list(dialects.recognised(situation.found, prefixes(situation.found)))
    if all(dialect.name == wanted.name for dialect, _ in marked):
        return []
    own = architecture if architecture.dialect is None else find(architecture.name)
    scores = {
        (dialect.name, prefix): _share(situation, own, dialect, prefix)
        for dialect, prefix in marked
        if dialects.spells(dialect, own)
    }
    best = max(scores.values(), default=0.0)
    names = [pair for pair, score in scores.items() if score == best]
    if best < _SIMILAR or any(_is_near(name, wanted.name) for name, _ in names):
        return []
    name, prefix = names[0]
    found = dialects.find(name, own)
    edits = dialects.edits(found, wanted, own, prefix)
    causes = [
        Cause(
            "dialect",
            _summary(found, wanted, prefix, [dialects.find(n, own) for n, _ in names]),
            "dialect",
            edits["dialect"],
            f"--from-dialect {names[-1][0]}" if len(names) > 1 else None,
            automatic=len(names) == 1,
        )
    ]
    if "eps" in edits:
        causes.append(_eps(found, wanted, edits["eps"]))
    if found.part is not None and own is architecture:
        causes.append(_part_only(found, dialects.uncovered(own, found)))
    return causes


def unknown_dialect(situation: Situation) -> list[Cause]:
    """Unknown names of shapes that are, in their order, the architecture's: a guess."""
    if 2 * len(situation.missing) <= len(situation.wanted):
        return []
    architecture = situation.target.architecture
    axes = architecture.axes if architecture else {}
    found = guess(situation.found, situation.wanted, axes)
    if found is None:
        return []
    sides = ((found.extra, "the file"), (found.missing, "the architecture"))
    but = [f"{counted(len(k), 'tensor')} of {side}, {listed(k, 2)}" for k, side in sides if k]
    text = (
        "under names that no table knows, the shapes of the file are, read in order, those of the "
        f"architecture{' but for ' + but[0] if but else ''}"
    )
    if found.against:
        keys = (*situation.missing, *situation.extra)
        text += f"; but the names contradict that, so nothing is paired: {found.against}"
        return [Cause("unknown-dialect", text, exact=False, keys=keys)]
    return [
        Cause(
            "unknown-dialect",
            f"{text}. A guess at the pairing: {found.evidence}",
            "rename",
            {"guess": dict(found.names)},
            "--accept-guess",
            exact=False,
            ambiguous=found.ambiguous,
        )
    ]


def _eps(found: Dialect, wanted: Dialect, options: Mapping[str, object]) -> Cause:
    return Cause(
        "norm-eps",
        f"the BatchNorms of {quoted(found.name)} have the eps {options['from']:g}, those of "
        f"{quoted(wanted.name)} {options['to']:g}: the running variances make up for it",
        "eps",
        options,
        automatic=True,
        harmless=True,
    )


def _part_only(found: Dialect, missing: tuple[str, ...]) -> Cause:
    return Cause(
        "part-only",
        f"{quoted(found.name)} is the {found.part} only: the other "
        f"{counted(len(missing), 'tensor')} of the architecture are not in the file",
        exact=False,
        keys=missing,
    )


def _is_near(name: str, other: str) -> bool:
    return name == other or {name, other} in _NEAR


def _share(situation: Situation, own: Architecture, dialect: Dialect, prefix: str) -> float:
    """The share of the architecture's tensors in a dialect that the file has."""
    spelled = dialects.spelled(own, dialect)
    there = 0
    for key, spec in spelled.specs.items():
        found = situation.found.get(prefix + key)
        there += found is not None and (found.shape == spec.shape or key in spelled.axes)
    return there / len(spelled.specs)


def _summary(found: Dialect, wanted: Dialect, prefix: str, alike: list[Dialect]) -> str:
    part = f"{found.part} of the " if found.part else ""
    behind = f", behind the prefix {quoted(prefix)}" if prefix else ""
    text = (
        f"the file has the {part}network in the dialect {quoted(found.name)}{behind}, the "
        f"architecture is spelled in {quoted(wanted.name)}"
    )
    if len(alike) == 1:
        return text
    others = (f"{quoted(d.name)} ({d.when})" if d.when else quoted(d.name) for d in alike)
    return f"{text}; keys and shapes cannot tell whether it is {' or '.join(others)}"
