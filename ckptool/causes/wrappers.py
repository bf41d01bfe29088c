"""Wrappers around a model: prefixes and segments that DDP, compile, Lightning or a bench add."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed, quoted
from ckptool.identification import SEGMENTS
from ckptool.tensors import TensorSpec

_WRITTEN_BY = {
    "module": "DistributedDataParallel or DataParallel",
    "model": "a Lightning module or an effdet bench",
    "_orig_mod": "torch.compile",
    "_forward_module": "Lightning",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# What is also the name of many a member, and of a prefix: only inside a key is it a segment.
_PARALLEL = "module"
_STACKED = {"model.model.": "an effdet bench inside a Lightning module adds"}
_DEEPEST = 6
# The least share of the smaller side's differing keys that must agree before a prefix is believed.
_BELIEVED = 0.3


def segments(situation: Situation) -> list[Cause]:
    """Segments of wrappers that stand anywhere in the keys."""
    wanted = _parts(situation.wanted)
    inside = [name for name in SEGMENTS if name in _parts(situation.found) - wanted]
    if _is_parallel_inside(situation):
        inside.append(_PARALLEL)
    if not inside:
        return []
    keys = [key for key in situation.found if not set(key.split(".")).isdisjoint(inside)]
    names = " and ".join(quoted(f"{name}.") for name in inside)
    owners = " and ".join(_WRITTEN_BY[name] for name in inside)
    leading = len(inside) == 1 and all(_only_leads(key, inside[0]) for key in keys)
    return [
        Cause(
            "wrapper-segment",
            f"{_share(len(keys), len(situation.found))} {names} in their names, which {owners} "
            f"put{'s' if len(inside) == 1 else ''} there",
            "rename",
            {"remove": inside},
            f"--strip-prefix {inside[0]}." if leading else None,
            automatic=True,
            first=True,
        )
    ]


def _is_parallel_inside(situation: Situation) -> bool:
    """Whether members of the model were wrapped by themselves: `head.module.weight`."""
    inside = [key for key in situation.extra if f".{_PARALLEL}." in key]
    if not inside:
        return False
    known = {part for key in situation.wanted for part in key.split(".")}
    owners = {key.partition(f".{_PARALLEL}.")[0].rpartition(".")[2] for key in inside}
    return _PARALLEL not in known and not known.isdisjoint(owners)


def mixed_copies(situation: Situation) -> list[Cause]:
    """The weights twice in one file: under two prefixes, or with and without one."""
    found, wanted = situation.found, situation.wanted
    votes = _votes(situation.extra, wanted)
    votes[""] = _agreeing(situation)
    (first, most), (second, others) = [*votes.most_common(2), ("", 0)][:2]
    if most < _enough(situation) or not _is_alike(situation, first):
        return []
    twice = _twice(found, first, "") if first else []
    if twice:
        second = ""
    elif others >= _BELIEVED * most:
        twice = [key for key in _twice(found, first, second) if key.removeprefix(first) in wanted]
    if not twice:
        return []
    prefixed, plain = (first, second) if first else (second, first)
    how = f"under {quoted(first)} and under {quoted(second)}"
    if not plain:
        how = f"with and without the prefix {quoted(prefixed)}"
    rest = twice[0].removeprefix(first)
    glob = shlex.quote(f"{prefixed}*")
    return [
        Cause(
            "mixed-copies",
            f"{counted(len(twice), 'tensor is', 'tensors are')} in the file twice, {how} "
            f"({listed([first + rest, second + rest])}): which of them are meant cannot be told; "
            f"`--keep {glob}` or `--drop {glob}` chooses",
            exact=False,
            whole=True,
        )
    ]


def prefix(situation: Situation) -> list[Cause]:
    """A prefix that the keys have too many, or too few, or instead of another one."""
    found, wanted = situation.found, situation.wanted
    strip, stripped = _best(_votes(situation.extra, wanted))
    add, added = _best(_votes(situation.missing, found))
    enough = _enough(situation)
    # To add one moves the keys that agree as they are.
    added -= _agreeing(situation)
    if not _is_alike(situation, strip):
        stripped = 0
    if max(stripped, added) < enough:
        return _another_prefix(situation, enough)
    if stripped >= added:
        having = sum(key.startswith(strip) for key in found)
        return [
            Cause(
                "wrapper-prefix",
                f"{_share(having, len(found), 'start')} with {quoted(strip)}, {_adding(strip)}",
                "rename",
                {"strip": strip},
                f"--strip-prefix {shlex.quote(strip)}",
                automatic=True,
            )
        ]
    return [
        Cause(
            "missing-prefix",
            f"the architecture's keys start with {quoted(add)}, the file's do not: the model is "
            "wrapped, the file is not"
            if all(key.startswith(add) for key in wanted)
            else f"{added:,} of {counted(len(found), 'key')} are the architecture's without "
            f"{quoted(add)} in front",
            "rename",
            {"add": add},
            automatic=True,
        )
    ]


def _enough(situation: Situation) -> float:
    """How many keys must agree before a prefix is believed."""
    return max(1, _BELIEVED * min(len(situation.extra), len(situation.missing)))


def _is_alike(situation: Situation, prefix: str) -> bool:
    """Whether half of the keys have a prefix, or a tensor under it has the shape that is wanted.

    Of a file's parts many have a `weight` and a `bias`, whatever they are.
    """
    found, wanted = situation.found, situation.wanted
    rests = [key.removeprefix(prefix) for key in found if key.startswith(prefix)]
    shapes = ((found[prefix + rest].shape, wanted[rest].shape) for rest in rests if rest in wanted)
    return 2 * len(rests) >= len(found) or any(one == other for one, other in shapes)


def _twice(found: Mapping[str, TensorSpec], first: str, second: str) -> list[str]:
    """The keys with the first prefix that are there with the second one too."""
    starting = (key for key in found if key.startswith(first))
    return [key for key in starting if second + key.removeprefix(first) in found]


def _another_prefix(situation: Situation, enough: float) -> list[Cause]:
    """One prefix in the file, another one in the architecture."""
    found, wanted = situation.found, situation.wanted
    best, most, start = ("", ""), 0, 0
    for old in _common(found):
        rests = [key[len(old) :] for key in found if key.startswith(old)]
        for new in _common(wanted):
            count = sum(new + rest in wanted for rest in rests)
            if count > most:
                best, most, start = (old, new), count, len(rests)
    if most - _agreeing(situation) < enough:
        return []
    old, new = best
    return [
        Cause(
            "another-prefix",
            f"{_share(start, len(found), 'start')} with {quoted(old)}, the architecture's with "
            f"{quoted(new)}",
            "rename",
            {"rules": [[f"{old}{{*}}", f"{new}{{*}}"]]},
            automatic=True,
        )
    ]


def _share(number: int, total: int, verb: str = "have") -> str:
    """`all 784 keys start`, `300 of 784 keys start`, `the one key starts`."""
    if number == total:
        return f"all {number:,} keys {verb}" if number > 1 else f"the only key {_singular(verb)}"
    return f"{number:,} of {total:,} keys {verb if number > 1 else _singular(verb)}"


def _singular(verb: str) -> str:
    return "has" if verb == "have" else f"{verb}s"


def _adding(strip: str) -> str:
    """A clause on who puts a prefix in front of keys."""
    if strip in _STACKED:
        return f"which {_STACKED[strip]}"
    names = list(dict.fromkeys(strip.rstrip(".").split(".")))
    known = [name for name in names if name in _WRITTEN_BY]
    if len(known) < len(names):
        return "the architecture's do not"
    if len(known) == 1:
        return f"which {_WRITTEN_BY[known[0]]} adds"
    return "which " + " and ".join(f"{_WRITTEN_BY[n]} ({quoted(f'{n}.')})" for n in known) + " add"


def _parts(keys: Iterable[str]) -> set[str]:
    """The wrappers' segments that are in the keys."""
    keys = list(keys)
    return {
        name for name in SEGMENTS if any(name in key and name in key.split(".") for key in keys)
    }


def _only_leads(key: str, name: str) -> bool:
    return key.startswith(f"{name}.") and key.split(".").count(name) == 1


def _best(votes: Counter[str]) -> tuple[str, int]:
    return votes.most_common(1)[0] if votes else ("", 0)


def _votes(longer: Iterable[str], shorter: Mapping[str, TensorSpec]) -> Counter[str]:
    """For each prefix how many of the longer keys it turns into shorter ones."""
    votes: Counter[str] = Counter()
    for key in longer:
        for start in _starts(key):
            if key[len(start) :] in shorter:
                votes[start] += 1
    return votes


def _agreeing(situation: Situation) -> int:
    """How many keys of the file are wanted under their own names."""
    return len(situation.found) - len(situation.extra)


def _starts(key: str) -> Iterator[str]:
    """The prefixes of a key that end with a dot, the shortest first."""
    at = key.find(".")
    for _ in range(_DEEPEST):
        if at < 0:
            return
        yield key[: at + 1]
        at = key.find(".", at + 1)


def _common(keys: Iterable[str]) -> list[str]:
    """The prefixes that at least half of the keys have."""
    votes: Counter[str] = Counter()
    total = 0
    for key in keys:
        total += 1
        for start in _starts(key):
            votes[start] += 1
    return [start for start, count in votes.items() if 2 * count >= total]
