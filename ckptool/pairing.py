"""A guess at which tensor is which where no name is known: their shapes, read in order.

A state dict has its tensors in the order in which the modules are defined. If that gives, tensor by
tensor, the shapes of an architecture, it is probably the same network; but tensors of one shape may
be exchanged without anybody seeing it. So a guess says what it rests on, what it cannot tell, and
whether the names contradict it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ckptool.architectures.spec import ClassAxis
from ckptool.dtypes import DTYPES
from ckptool.errors import counted, listed, quoted
from ckptool.tensors import TensorSpec

# Fewer tensors than this are like those of any network.
_FEWEST = 8
# The share of tensors that one side may have more, in one place, and how many places are tried.
_MOST_MORE, _MOST_PLACES = 0.05, 16
_MOST_WORDS = 5
# A word, or the number of a module.
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_NUMBER = re.compile(r"[0-9]+")
_DOT = re.compile(r"[./]")
# What implementations call the same thing. Source: TensorFlow 2.15 (`BatchNormalization`);
# RetinaNets and EfficientDets of torchvision 0.29, Detectron2, mmdet 3.3, effdet 0.4.1.
_SAME = {
    "gamma": "weight",
    "beta": "bias",
    "moving": "running",
    "variance": "var",
    "cls": "class",
    "classifier": "class",
    "classification": "class",
    "bbox": "box",
    "reg": "box",
    "regressor": "box",
    "regression": "box",
}

Pair = tuple[str, str]
_Shape = tuple[int, ...]
# The shape of a tensor and the agreeing words in its names.
_Kind = tuple[_Shape, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Guess:
    """A pairing of a file's tensors, in order, with those of a network under other names.

    `names` are the file's keys to the network's. `unique` is the number of pairs whose shape no
    other pair has; the names, by words that agree (`words`), numbers and modules, tell `named` more
    pairs from others of their shape. `ambiguous` are groups of the file's keys that only their
    order tells apart. `extra` and `missing` are keys that have no pair. `against` says what in the
    names contradicts the pairing, None if nothing does.
    """

    names: Mapping[str, str]
    unique: int
    named: int
    words: tuple[str, ...]
    ambiguous: tuple[tuple[str, ...], ...]
    extra: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    against: str | None = None

    @property
    def evidence(self) -> str:
        """What tells the pairs apart, as a sentence."""
        total, left = len(self.names), sum(map(len, self.ambiguous))
        words = f" and words ({listed(self.words, _MOST_WORDS)})" if self.words else ""
        told = [
            f"{self.unique:,} of {counted(total, 'pair')} ({self.unique / total:.0%}) have a shape "
            "of their own"
        ]
        if self.named:
            told.append(f"{self.named:,} are told apart by modules, numbers{words} that agree")
        if left:
            told.append(f"{left:,} rest on their order alone")
        return ", ".join(told)


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of the file that is one on the other side, too: both paths, the shapes in it."""

    path: str
    name: str
    shapes: tuple[_Shape, ...]


def guess(
    found: Mapping[str, TensorSpec],
    wanted: Mapping[str, TensorSpec],
    axes: Mapping[str, ClassAxis],
) -> Guess | None:
    """The pairing that the shapes give, read in order; None if they are not of the same network.

    `axes` are the wanted keys whose shapes depend on the class count. Counters of norms may be
    missing altogether, and one side may have a few tensors more, all in one place.
    """
    keys, names = list(found), list(wanted)
    if not any(map(_is_counter, found.values())):
        names = [name for name in names if not _is_counter(wanted[name])]
    more = len(keys) - len(names)
    shorter = min(len(keys), len(names))
    if shorter < _FEWEST or abs(more) > _MOST_MORE * shorter:
        return None

    def alike(key: str, name: str) -> bool:
        return _is_alike(found[key], wanted[name], axes.get(name))

    front = _common(zip(keys, names, strict=False), alike)
    if front < shorter:
        back = _common(zip(reversed(keys), reversed(names), strict=False), alike)
        if not more or front + back < shorter:
            return None
        places = range(shorter - back, front + 1)
    else:
        back = _common(zip(reversed(keys), reversed(names), strict=False), alike) if more else 0
        places = range(shorter - back if more else front, front + 1)
    found_guesses = [_without(keys, names, place, more, wanted) for place in places[-_MOST_PLACES:]]
    sound = [each for each in found_guesses if each.against is None]
    best = max(sound or found_guesses, key=lambda each: each.unique + each.named)
    if not best.unique:
        return None
    equal = [each for each in sound if each.named == best.named]
    if len(equal) > 1:
        # Which of these has no pair is as open as which pair is which.
        near = keys[places[0] : places[-1] + max(more, 0) + 1]
        best = replace(best, ambiguous=(*best.ambiguous, tuple(near)))
    return best


def _common(pairs: Iterable[Pair], alike: Callable[[str, str], bool]) -> int:
    """How many pairs there are before the first that are not alike."""
    count = 0
    for key, name in pairs:
        if not alike(key, name):
            break
        count += 1
    return count


def _is_counter(spec: TensorSpec) -> bool:
    return spec.shape == () and DTYPES[spec.dtype].kind != "f"


def _is_alike(found: TensorSpec, wanted: TensorSpec, axis: ClassAxis | None) -> bool:
    """Whether two tensors may be the same one, for another class count maybe."""
    if (DTYPES[found.dtype].kind == "f") is not (DTYPES[wanted.dtype].kind == "f"):
        return False
    if axis is None or found.shape == wanted.shape:
        return found.shape == wanted.shape
    at = axis.axis
    around = (found.shape[:at], found.shape[at + 1 :]) == (
        wanted.shape[:at],
        wanted.shape[at + 1 :],
    )
    return around and bool(axis.classes(found.shape[at]))


def _without(
    keys: Sequence[str],
    names: Sequence[str],
    place: int,
    more: int,
    wanted: Mapping[str, TensorSpec],
) -> Guess:
    """The guess with what one side has more left out at a place."""
    end = place + abs(more)
    extra = tuple(keys[place:end]) if more > 0 else ()
    missing = tuple(names[place:end]) if more < 0 else ()
    own = [*keys[:place], *keys[end if more > 0 else place :]]
    other = [*names[:place], *names[end if more < 0 else place :]]
    judged = _judged(list(zip(own, other, strict=True)), wanted)
    return replace(judged, extra=extra, missing=missing)


def _judged(pairs: list[Pair], wanted: Mapping[str, TensorSpec]) -> Guess:
    """What speaks for pairs and against them."""
    by_shape: dict[_Shape, list[Pair]] = {}
    for pair in pairs:
        by_shape.setdefault(wanted[pair[1]].shape, []).append(pair)
    alone = [group[0] for group in by_shape.values() if len(group) == 1]
    against = _torn(pairs)
    words: dict[str, None] = {}
    classes: dict[_Kind, list[Pair]] = {}
    for shape, group in by_shape.items():
        agreeing, contradiction = _agreeing(group) if len(group) > 1 else ([], None)
        against = against or contradiction or _disordered(group)
        words.update(dict.fromkeys(agreeing))
        for pair in group:
            kind = shape, _words(pair[0]).intersection(agreeing)
            classes.setdefault(kind, []).append(pair)
    open_ = _open(pairs, classes)
    left = sum(map(len, open_))
    return Guess(
        dict(pairs),
        len(alone),
        len(pairs) - len(alone) - left,
        tuple(words),
        tuple(tuple(key for key, _ in group) for group in open_),
        against=against,
    )


def _agreeing(group: list[Pair]) -> tuple[list[str], str | None]:
    """The words that stand in the same pairs on both sides; what contradicts, if anything does.

    A word that as many keys have on both sides, but others, is a contradiction.
    """
    sides: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for number, pair in enumerate(group):
        for side, key in zip(sides, pair, strict=True):
            for word in _words(key):
                side.setdefault(word, []).append(number)
    agreeing = []
    for word, here in sides[0].items():
        there = sides[1].get(word, [])
        if here == there and len(here) < len(group):
            agreeing.append(word)
        elif here != there and len(here) == len(there):
            key, name = group[next(n for n in here if n not in there)]
            return [], f"{_pair(key, name)}, and only one of the two is called {quoted(word)}"
    return sorted(agreeing), None


def _disordered(group: list[Pair]) -> str | None:
    """What contradicts if numbered keys of one kind are numbered in another order."""
    for pairs in _templates(group).values():
        own, other = ([_numbers(pair[side]) for pair in pairs] for side in (0, 1))
        count = range(len(pairs))
        ranks = sorted(count, key=own.__getitem__), sorted(count, key=other.__getitem__)
        if ranks[0] != ranks[1]:
            at = next(number for number in count if ranks[0][number] != ranks[1][number])
            return f"{_pair(*pairs[at])}, though the numbers are in another order"
    return None


def _torn(pairs: list[Pair]) -> str | None:
    """What contradicts if tensors of one module would be those of several, or the other way."""
    if not all(_module(key) for key, _ in pairs):
        return None  # names without modules
    seen: tuple[dict[str, Pair], dict[str, Pair]] = ({}, {})
    for key, name in pairs:
        modules = _module(key), _module(name)
        for known, module in zip(seen, modules, strict=True):
            before = known.setdefault(module, (key, name))
            if (_module(before[0]), _module(before[1])) != modules:
                return f"{_pair(key, name)}, but {_pair(*before)}: one module against two"
    return None


def _open(pairs: list[Pair], classes: Mapping[_Kind, list[Pair]]) -> list[list[Pair]]:
    """The groups of pairs that only their order tells apart.

    What is in a module that is known can only be exchanged with what else is in it; a module is
    known once anything in it is.
    """
    shapes = {pair: kind[0] for kind, group in classes.items() for pair in group}
    modules = _modules(pairs, [shapes[pair] for pair in pairs])
    above = {key: [m for path in _paths(key) if (m := modules.get(path))] for key, _ in pairs}
    known: set[_Module] = set()
    while True:
        groups: dict[tuple[_Kind, _Module | None], list[Pair]] = {}
        for kind, group in classes.items():
            for pair in group:
                inside = next((module for module in above[pair[0]] if module in known), None)
                groups.setdefault((kind, inside), []).append(pair)
        told = [pair for group in groups.values() if _is_told_apart(group) for pair in group]
        more = {module for key, _ in told for module in above[key]}
        more.update(_told_inside(known, above.values()))
        if more <= known:
            return [group for group in groups.values() if not _is_told_apart(group)]
        known |= more


def _modules(pairs: list[Pair], shapes: list[_Shape]) -> dict[str, _Module]:
    """The file's modules that are a module on the other side, too, by their paths."""
    own, other = (_spans([pair[side] for pair in pairs]) for side in (0, 1))
    names = {span: path for path, span in other.items()}
    return {
        path: _Module(path, names[span], tuple(shapes[slice(*span)]))
        for path, span in own.items()
        if span in names
    }


def _spans(keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The modules whose tensors stand together: the places of the first and behind the last."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        for path in _paths(key):
            places.setdefault(path, []).append(place)
    spans = {path: (found[0], found[-1] + 1) for path, found in places.items()}
    return {path: span for path, span in spans.items() if len(places[path]) == span[1] - span[0]}


def _told_inside(known: set[_Module], above: Iterable[list[_Module]]) -> Iterator[_Module]:
    """The modules in known ones with other shapes than all beside them, or numbered through.

    Numbers tell nothing in a square, as many modules in each as there are of them: row or column?
    """
    children: dict[_Module | None, dict[_Module, None]] = {}
    for path in above:
        for module, parent in zip(path, [*path[1:], None], strict=False):
            children.setdefault(parent, {})[module] = None
    for parent, inside in children.items():
        if parent is not None and parent not in known:
            continue
        shapes = Counter(module.shapes for module in inside)
        yield from (module for module in inside if shapes[module.shapes] == 1)
        kinds: dict[Pair, list[_Module]] = {}
        for module in inside:
            kind = _NUMBER.sub("#", module.path), _NUMBER.sub("#", module.name)
            kinds.setdefault(kind, []).append(module)
        for group in kinds.values():
            rows = [[cell.shapes for cell in children.get(module, ())] for module in group]
            if len(group) > 1 and rows != [list(column) for column in zip(*rows, strict=False)]:
                yield from group


def _is_told_apart(group: list[Pair]) -> bool:
    """Whether a group is one pair, or numbered through in the same order on both sides."""
    if len(group) == 1:
        return True
    if len(_templates(group)) > 1:
        return False
    # A second number may be the first one of the other side: levels of repeats, repeats of levels.
    return all(_varying([_numbers(pair[side]) for pair in group]) == 1 for side in (0, 1))


def _templates(group: list[Pair]) -> dict[Pair, list[Pair]]:
    """The pairs by their keys without numbers."""
    found: dict[Pair, list[Pair]] = {}
    for key, name in group:
        found.setdefault((_NUMBER.sub("#", key), _NUMBER.sub("#", name)), []).append((key, name))
    return found


def _varying(numbers: list[tuple[int, ...]]) -> int:
    """How many of the numbers of keys are not the same in all of them."""
    return sum(len(set(column)) > 1 for column in zip(*numbers, strict=True))


def _pair(key: str, name: str) -> str:
    return f"{quoted(key)} would become {quoted(name)}"


@cache
def _words(key: str) -> frozenset[str]:
    parts = (part.lower() for part in _PART.findall(key) if not part.isdigit())
    return frozenset(_SAME.get(part, part) for part in parts)


@cache
def _numbers(key: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBER.findall(key)))


@cache
def _paths(key: str) -> tuple[str, ...]:
    """The modules that a tensor is in, the innermost first."""
    return tuple(key[: match.start()] for match in _DOT.finditer(key))[::-1]


def _module(key: str) -> str:
    """The module that a tensor is of."""
    return next(iter(_paths(key)), "")
