"""Buffers that follow from something else: BatchNorm's counters, anchors, counters of profilers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.causes import Cause, Situation, Target
from ckptool.compare import COUNTER
from ckptool.derived import DERIVED, PROFILED, is_named
from ckptool.errors import counted, listed, quoted
from ckptool.identification import recognised

_ANCHORS = DERIVED[:1]
_ANCHOR_FACTS = ("image_size", "levels", "num_scales", "aspect_ratios", "anchor_scale")
_ABSENT = f"BatchNorm counter (`{COUNTER}`)"
_ABSENTS = f"BatchNorm counters (`{COUNTER}`)"


def counters(situation: Situation) -> list[Cause]:
    """BatchNorm's `num_batches_tracked`, missing or superfluous."""
    found, wanted = situation.found, situation.wanted
    absent = [key for key in situation.missing if _counts(key)]
    started = [key for key in situation.tolerated if _counts(key) and key not in found]
    norms = _norms(found)
    missing = [key for key in (*absent, *started) if _module(key) in norms]
    causes = []
    if missing:
        causes.append(
            Cause(
                "bn-counters-missing",
                f"the file lacks {counted(len(missing), _ABSENT, _ABSENTS)}: at zero they change "
                "nothing, except for training without momentum"
                + ("" if absent else "; torch starts them at zero by itself"),
                "fill",
                {"zeros": {key: [wanted[key].dtype, []] for key in missing}},
                automatic=True,
                harmless=not absent,
                keys=tuple(missing),
            )
        )
    norms = _norms(wanted)
    extra = [key for key in situation.extra if _counts(key) and _module(key) in norms]
    if extra:
        causes.append(
            Cause(
                "bn-counters-unexpected",
                f"the file has {counted(len(extra), _ABSENT, _ABSENTS)} that the architecture "
                "lacks: its norms are frozen, or its torch is older than 0.4.1",
                "drop",
                {"drop": extra},
                f"--drop '*{COUNTER}'" if _only(found, COUNTER, extra) else None,
                automatic=True,
            )
        )
    return causes


def derived(situation: Situation) -> list[Cause]:
    """Buffers that the architecture computes itself and does not keep in its state dict."""
    architecture = situation.target.architecture
    names = (*DERIVED, *(architecture.derived if architecture else ()))
    extra = [key for key in situation.extra if is_named(key, names)]
    if not extra:
        return []
    bench = any(is_named(key, _ANCHORS) for key in extra)
    owner = "effdet's bench" if bench else "the model"
    return [
        Cause(
            "derived-buffers",
            f"{listed(extra, 3)} {'follows' if len(extra) == 1 else 'follow'} from the "
            f"configuration: {owner} computes {'it' if len(extra) == 1 else 'them'} itself",
            "drop",
            {"drop": extra},
            automatic=True,
        )
    ]


def anchors_missing(situation: Situation) -> list[Cause]:
    """effdet's anchor boxes, which a bench wants and a bare model's file has not.

    Source: effdet 0.4.1 `bench.py`, `anchors.py`.
    """
    absent = [key for key in situation.missing if is_named(key, DERIVED)]
    causes = []
    for key in absent:
        facts = _anchor_facts(situation.target, key) if is_named(key, _ANCHORS) else None
        if facts is not None:
            size = "×".join(map(str, facts["image_size"]))
            causes.append(
                Cause(
                    "anchors-missing",
                    f"the architecture is an effdet bench, which keeps its anchors in "
                    f"{quoted(key)}: those of {size} images are generated",
                    "anchors",
                    {"key": key, **facts},
                    automatic=True,
                )
            )
    rest = [key for key in absent if not any(cause.options["key"] == key for cause in causes)]
    if rest:
        causes.append(
            Cause(
                "derived-missing",
                f"{listed(rest, 3)} {'is' if len(rest) == 1 else 'are'} not in the file: the model "
                f"computes {'it' if len(rest) == 1 else 'them'} from its configuration, which the "
                "file does not tell",
                exact=False,
                keys=tuple(rest),
            )
        )
    return causes


def profiled(situation: Situation) -> list[Cause]:
    """What `thop.profile` leaves on a model, in the file or in the architecture.

    Source: thop 0.1.1 `profile.py` (`total_ops`, `total_params`: float64, shape (1,)).
    """
    causes = []
    extra = [key for key in situation.extra if is_named(key, PROFILED)]
    if extra:
        names = [name for name in PROFILED if any(is_named(key, (name,)) for key in extra)]
        exact = all(_only(situation.found, name, extra) for name in names)
        causes.append(
            Cause(
                "profiler-counters",
                f"{counted(len(extra), 'tensor is a counter', 'tensors are counters')} that "
                "`thop.profile` left on the model",
                "drop",
                {"drop": extra},
                " ".join(f"--drop '*{name}'" for name in names) if exact else None,
                automatic=True,
            )
        )
    missing = [key for key in situation.missing if is_named(key, PROFILED)]
    if missing:
        specs = {key: situation.wanted[key] for key in missing}
        causes.append(
            Cause(
                "profiler-counters-missing",
                f"the architecture has {counted(len(missing), 'counter')} that `thop.profile` left "
                "on it; at zero they change nothing",
                "fill",
                {"zeros": {key: [spec.dtype, list(spec.shape)] for key, spec in specs.items()}},
                automatic=True,
            )
        )
    return causes


def _anchor_facts(target: Target, key: str) -> Mapping[str, Any] | None:
    """What the wanted anchors follow from, None unless that is certain."""
    known: list[Architecture | None] = [target.architecture]
    if target.architecture is None:
        known = [frozen.find(candidate.arch) for candidate in recognised(target.specs)]
    facts: list[Mapping[str, Any]] = []
    for architecture in known:
        card = architecture.card if architecture else {}
        if all(name in card for name in _ANCHOR_FACTS):
            own = {name: card[name] for name in _ANCHOR_FACTS}
            if _number_of_boxes(own) == target.specs[key].shape[0] and own not in facts:
                facts.append(own)
    return facts[0] if len(facts) == 1 else None


def _number_of_boxes(facts: Mapping[str, Any]) -> int:
    first, last = facts["levels"]
    per_cell: int = facts["num_scales"] * len(facts["aspect_ratios"])
    sides = [[-(-side // 2**level) for side in facts["image_size"]] for level in range(last + 1)]
    return per_cell * sum(map(prod, sides[first:]))


def _only(found: Iterable[str], name: str, chosen: list[str]) -> bool:
    """Whether the chosen keys are all those that end with the name."""
    return {key for key in found if key.endswith(name)} <= set(chosen)


def _counts(key: str) -> bool:
    return key == COUNTER or key.endswith(f".{COUNTER}")


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _norms(keys: Iterable[str]) -> set[str]:
    """The modules that have running statistics."""
    return {_module(key) for key in keys if key.endswith("running_mean")}
