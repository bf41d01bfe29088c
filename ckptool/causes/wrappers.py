"""Wrappers around a model: prefixes and segments that DDP, compile, Lightning or a bench add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ckptool.causes import Cause, Situation
from ckptool.errors import listed, quoted
from ckptool.identification import SEGMENTS
from ckptool.tensors import TensorSpec

_WRITTEN_BY = {
    "module.": "DistributedDataParallel or DataParallel",
    "_orig_mod.": "torch.compile",
    "_forward_module.": "Lightning",
    "_fsdp_wrapped_module.": "FSDP",
    "model.": "a Lightning module or an effdet bench",
    "model.model.": "an effdet bench inside a Lightning module",
    "module.model.": "a bench or module inside DistributedDataParallel",
}
_DEEPEST = 6


def segments(situation: Situation) -> list[Cause]:
    """Segments of wrappers that stand anywhere in the keys."""
    found, wanted = situation.weights.tensors, situation.target.specs
    inside = [
        name
        for name in SEGMENTS
        if any(name in key.split(".") for key in found)
        and not any(name in key.split(".") for key in wanted)
    ]
    if not inside:
        return []
    names = ", ".join(quoted(f"{name}.") for name in inside)
    owners = " and ".join(sorted({_WRITTEN_BY.get(f"{name}.", "a wrapper") for name in inside}))
    return [
        Cause(
            "wrapper-segment",
            f"the keys hold {names}, which {owners} puts into them",
            "rename",
            {"remove": inside},
            "--rename "
            + " --rename ".join(f"'{{*a}}{name}.{{*b}}={{*a}}{{*b}}'" for name in inside),
            automatic=True,
        )
    ]


def prefix(situation: Situation) -> list[Cause]:
    """A prefix that all keys have too many, or too few."""
    found, wanted = situation.weights.specs, situation.target.specs
    agreeing = _agreeing(found, wanted)
    strip, stripped = _best_prefix(found, wanted)
    add, added = _best_prefix(wanted, found)
    if max(stripped, added) <= agreeing:
        return []
    if stripped >= added:
        return _strip(situation, strip)
    return [
        Cause(
            "missing-prefix",
            f"the architecture's keys start with {quoted(add)}, the file's do not",
            "rename",
            {"add": add},
            f"--add-prefix {add}",
            automatic=True,
        )
    ]


def _strip(situation: Situation, strip: str) -> list[Cause]:
    keys = list(situation.weights.tensors)
    twice = [key for key in keys if key.startswith(strip) and key.removeprefix(strip) in keys]
    if twice:
        return [
            Cause(
                "mixed-copies",
                f"{len(twice):,} tensors are in the file twice, with and without the prefix "
                f"{quoted(strip)} ({listed([twice[0], twice[0].removeprefix(strip)])}): which of "
                "them is meant cannot be told",
                fix=f"--keep '{strip}*' or --drop '{strip}*'",
                exact=False,
                ends=True,
                keys=tuple(twice),
            )
        ]
    having = sum(key.startswith(strip) for key in keys)
    count = "all" if having == len(keys) else f"{having:,} of"
    owner = _WRITTEN_BY.get(strip)
    return [
        Cause(
            "wrapper-prefix",
            f"{count} {len(keys):,} keys start with {quoted(strip)}"
            + (f", which {owner} adds" if owner else ""),
            "rename",
            {"strip": strip},
            f"--strip-prefix {strip}",
            automatic=True,
        )
    ]


def _agreeing(found: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> int:
    return sum(key in wanted for key in found)


def _best_prefix(longer: Iterable[str], shorter: Mapping[str, TensorSpec]) -> tuple[str, int]:
    """The prefix that turns the most of the longer keys into shorter ones, and how many."""
    votes: Counter[str] = Counter()
    for key in longer:
        at = key.find(".")
        for _ in range(_DEEPEST):
            if at < 0:
                break
            if key[at + 1 :] in shorter:
                votes[key[: at + 1]] += 1
            at = key.find(".", at + 1)
    return votes.most_common(1)[0] if votes else ("", 0)
