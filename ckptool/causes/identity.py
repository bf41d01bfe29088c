"""The file is of something else: another size, another family, a part of it, or more than it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckptool.architectures import frozen
from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed, quoted
from ckptool.identification import Candidate, candidates

# The share of the wanted keys that must be in the file for it to be worth a word on each.
_RELATED = 0.3
# So many tensors of other shapes are no accident but another width.
_WIDER = 4
_MOST_NAMED = 4
_NONE: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def another_architecture(situation: Situation, fitting: Sequence[Candidate]) -> Cause:
    """The cause of all differences from an architecture that the file is not of."""
    target = situation.target
    names = [candidate.arch for candidate in fitting]
    own = target.architecture.family if target.architecture else None
    family = own is not None and own in {_family(name) for name in names}
    count = fitting[0].num_classes
    classes = "" if count is None else f" with {counted(count, 'class', 'classes')}"
    there = sum(key in situation.found for key in target.specs)
    share = f"of whose {counted(len(target.specs), 'key')} the file has {there or 'none'}"
    return Cause(
        "other-size" if family else "other-family",
        f"the keys and shapes say {listed(names, _MOST_NAMED)}{classes}, you asked for "
        f"{quoted(target.name)}: another "
        f"{'size or variant of the same family' if family else f'network altogether, {share}'}",
        fix=f"--arch {names[0]}{_asking_for(names[0], count)}",
        exact=False,
        whole=True,
    )


def extra_modules(situation: Situation) -> list[Cause]:
    """Modules that the architecture does not have, such as an auxiliary head or a loss.

    Modules in a numbered list are not meant: more or fewer of them make another network.
    """
    known = {path for key in situation.wanted for path in _paths(key)}
    modules: dict[str, list[str]] = {}
    for key in situation.extra:
        path = next((path for path in _paths(key) if path not in known), None)
        if path is None and "." not in key:
            path = key
        if path is not None and not any(part.isdigit() for part in path.split(".")):
            modules.setdefault(path, []).append(key)
    keys = [key for inside in modules.values() for key in inside]
    if not modules:
        return []
    return [
        Cause(
            "extra-modules",
            f"{counted(len(keys), 'tensor is', 'tensors are')} of "
            f"{'a module' if len(modules) == 1 else 'modules'} that the architecture does not "
            f"have: {listed(modules)}",
            "drop",
            {"drop": keys},
            exact=False,
        )
    ]


def part_only(situation: Situation) -> list[Cause]:
    """Parts of the architecture of which the file has nothing."""
    there = {path for key in situation.found for path in _paths(key)}
    parts: dict[str, list[str]] = {}
    for key in situation.missing:
        path = next((path for path in _paths(key) if path not in there), None)
        if path is not None and not any(part.isdigit() for part in path.split(".")):
            parts.setdefault(path, []).append(key)
    parts = {
        path: keys
        for path, keys in parts.items()
        if "." not in path or len({key.rpartition(".")[0] for key in keys}) > 1
    }
    count = sum(map(len, parts.values()))
    if not parts:
        return []
    are = "is" if len(parts) == 1 else "are"
    held = dict.fromkeys(k.partition(".")[0] for k in situation.found if k in situation.wanted)
    summary = f"{listed(parts)} ({counted(count, 'tensor')}) of the architecture {are} not in "
    whole = held and not any("." in path or path in held for path in parts)
    summary += f"the file, which holds only its {listed(held)}" if whole else "the file"
    return [
        Cause(
            "part-only",
            summary,
            exact=False,
            keys=tuple(key for inside in parts.values() for key in inside),
        )
    ]


def another_size(situation: Situation) -> list[Cause]:
    """The same kind of network, deeper or wider, in a size that has no name here."""
    found, wanted = situation.found, situation.wanted
    depths = _depths(found, wanted)
    inside: dict[str, list[str]] = {}
    for key in (*situation.missing, *situation.extra):
        for parent, number in _numbers(key):
            have, want = depths.get(parent, _NONE)
            if number in have ^ want:
                inside.setdefault(parent, []).append(key)
                break
    words = [
        f"{len(depths[parent][0]):,} instead of {len(depths[parent][1]):,} {quoted(parent)}"
        for parent in inside
    ]
    keys = [key for below in inside.values() for key in below]
    shaped = [key for key in situation.reshaped if found[key].shape and wanted[key].shape]
    if len(shaped) >= _WIDER:
        first = max(shaped, key=lambda key: len(found[key].shape))
        words.append(
            f"{counted(len(shaped), 'tensor')} of other shapes ({quoted(first)} is "
            f"{_sizes(found[first].shape)} instead of {_sizes(wanted[first].shape)})"
        )
        keys += shaped
    if not words or not is_related(situation):
        return []
    return [
        Cause(
            "other-size",
            f"the file is of a network of another size, none that ckptool knows: "
            f"{', '.join(words[:_MOST_NAMED])}",
            exact=False,
            keys=tuple(dict.fromkeys(keys)),
        )
    ]


def unrelated(situation: Situation) -> list[Cause]:
    """A file that has next to nothing in common with the architecture."""
    share = _agreement(situation)
    if is_related(situation):
        return []
    near = [found.arch for found in candidates(situation.weights)]
    hint = f"; the nearest that ckptool knows is {quoted(near[0])}" if near else ""
    return [
        Cause(
            "unrelated",
            f"{_percent(share)} of the keys that {quoted(situation.target.name)} wants are in the "
            f"file: it is of another network{hint}",
            exact=False,
            whole=True,
        )
    ]


def _agreement(situation: Situation) -> float:
    """The share of the wanted keys that the file has, whatever their shapes."""
    there = sum(key in situation.found for key in situation.wanted)
    return there / len(situation.wanted) if situation.wanted else 0.0


def is_related(situation: Situation) -> bool:
    """Whether file and architecture share enough keys that the rest is worth a word on each."""
    there = sum(key in situation.wanted for key in situation.found)
    return _agreement(situation) >= _RELATED or 2 * there >= len(situation.found) > 0


def _percent(share: float) -> str:
    return "none" if not share else f"only {share:.0%}" if share >= 0.005 else "less than 1%"


def _depths(
    found: Iterable[str], wanted: Iterable[str]
) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """The lists of modules that have other numbers in the file than are wanted, with both."""
    have, want = _lists(found), _lists(wanted)
    return {
        parent: (frozenset(have[parent]), frozenset(numbers))
        for parent, numbers in want.items()
        if parent in have and len(have[parent]) != len(numbers)
    }


def _lists(keys: Iterable[str]) -> Mapping[str, set[str]]:
    """The numbers that stand behind each module's path."""
    numbers: dict[str, set[str]] = {}
    for key in keys:
        for parent, number in _numbers(key):
            numbers.setdefault(parent, set()).add(number)
    return numbers


def _numbers(key: str) -> Iterator[tuple[str, str]]:
    """Each whole number in a key, with the path before it."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if depth and part.isdigit():
            yield ".".join(parts[:depth]), part


def _paths(key: str) -> Iterator[str]:
    """The paths of the modules above a key, the outermost first."""
    at = key.find(".")
    while at >= 0:
        yield key[:at]
        at = key.find(".", at + 1)


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _asking_for(name: str, num_classes: int | None) -> str:
    """The option for another class count than the architecture's own."""
    own = frozen.index()[name]["num_classes"]
    return "" if num_classes in (None, own) else f" --num-classes {num_classes}"


def _family(name: str) -> str | None:
    entry = frozen.index().get(name)
    return entry["family"] if entry else None
