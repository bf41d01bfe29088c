"""Which mappings inside a loaded file hold weights, and which one of them is meant.

Source: what each framework's own loader takes: timm 1.0.31 (`_helpers.py`), mmengine 0.10
(`checkpoint.py`, `ema_hook.py`), Lightning 2.6 (`weight_averaging.py`), YOLOv5 v7
(`experimental.py`), RT-DETR (`_solver.py`), Detectron2 (`detection_checkpoint.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ckptool.averages import is_average, split
from ckptool.candidates import DEEPEST, ROOT, SMALL, children, search
from ckptool.checkpoint import Budget, LeftAside, Refused, Value, WeightSet, is_tree
from ckptool.errors import WeightsError, counted, listed, printable, quoted
from ckptool.tensors import LazyTensor, View

_MOST_ASIDE = 1_000  # entries of one mapping that are named one by one
_LONGEST_KEY = 1_000

_PRIMARY = (
    "state_dict model module net network model_state_dict model_state params weights blobs "
    "model_dict"
).split()
_KNOWN = frozenset(_PRIMARY) | frozenset(
    "state_dict_ema model_ema ema ema_model ema_state_dict ema_net current_model_state params_ema "
    "student teacher generator discriminator shadow averaged_model".split()
)
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged|swa|shadow|teacher)(?:$|[._])")


def find(root: Value, nbytes: int = 0) -> tuple[WeightSet, ...]:
    """The weight sets in a loaded file of that size, in file order.

    Raises: FormatError for a file that is nested, or refers to itself, beyond what any needs.
    """
    sets, passed_over = search(root, Budget(nbytes))
    if not sets and passed_over:
        sets, _ = search(root, Budget(nbytes), least_share=0)
    if not sets:
        return ()
    sets = _largest(sets)
    known = [_KNOWN.intersection(found.name.split(".")) for found in sets]
    if any(known):  # the small ones beside them are statistics, counters, losses
        largest = max(len(found.tensors) for found in sets)
        sets = [
            found
            for found, name in zip(sets, known, strict=True)
            if name or len(found.tensors) * 2 >= largest
        ]
    return tuple(part for found in _labelled(sets) for part in split(found))


def choose(sets: Sequence[WeightSet], wanted: str | None = None) -> WeightSet:
    """The set of that name, or the one that the framework which wrote the file would load.

    Raises: WeightsError if there is none, or if that is not certain.
    """
    names = [found.name for found in sets]
    if wanted is not None:
        for found in sets:
            if found.name == wanted:
                return found
        raise WeightsError(
            f"no weight set {quoted(wanted)} in the file; it holds {listed(names) or 'none'}",
            hint=_options(names[:1]) or None,
            code="weights.unknown",
        )
    if not sets:
        raise WeightsError("the file holds no tensors that look like weights", code="weights.none")
    chosen = _chosen(sets)
    if chosen is None:
        raise WeightsError(
            f"the file holds {len(sets)} weight sets: "
            + ", ".join(f"{quoted(found.name)} ({_described(found)})" for found in sets[:6]),
            hint=_options(names[:6]),
            code="weights.ambiguous",
        )
    return chosen


def left_aside(root: Value, chosen: WeightSet | None, nbytes: int = 0) -> tuple[LeftAside, ...]:
    """What a file of that size holds beside the chosen weights, with the bytes of its tensors.

    What is in two of them is counted in the first.
    """
    rest = "" if chosen is None or chosen.name == ROOT else chosen.name
    found: list[LeftAside] = []
    scale = _Scale(Budget(nbytes))
    here, prefix = root, ""
    while rest:
        # A key may have dots of its own: the longest one that fits is the step.
        fitting = (key for key, _ in children(here) if f"{rest}.".startswith(f"{key}."))
        step = max(fitting, key=len, default=None)
        if step is None:
            break
        found += scale.weighed(here, prefix, {step})
        here = next(value for key, value in children(here) if key == step)
        prefix, rest = f"{prefix}{step}.", rest[len(step) + 1 :]
    if chosen is None or not chosen.origin:
        inside = {*chosen.tensors, *chosen.refused, "_metadata"} if chosen else set()
        inside |= {key for key, _ in children(here) if is_average(key)}
        found += scale.weighed(here, prefix, inside)
    return tuple(found)


def _largest(sets: Sequence[WeightSet]) -> list[WeightSet]:
    """The sets, in the order of a walk, but for those around or inside a larger one."""
    outdone: set[int] = set()
    around: list[int] = []
    for place, found in enumerate(sets):
        while around and not _is_inside(found.name, sets[around[-1]].name):
            around.pop()
        for outer in around:
            difference = len(found.tensors) - len(sets[outer].tensors)
            if difference:
                outdone.add(outer if difference > 0 else place)
        around.append(place)
    return [found for place, found in enumerate(sets) if place not in outdone]


def _is_inside(name: str, outer: str) -> bool:
    return outer == ROOT or name.startswith(f"{outer}.")


def _labelled(sets: list[WeightSet]) -> tuple[WeightSet, ...]:
    """The sets with `averaged` as the framework that wrote the file means it."""
    names = {found.name for found in sets}
    if len(sets) < 2:
        return tuple(sets)
    if {"state_dict", "ema_state_dict"} <= names or {
        "state_dict",
        "current_model_state",
    } <= names:  # mmengine swaps the two when it saves
        averaged = {"state_dict"}
    else:
        averaged = {name for name in names if _AVERAGED.search(name)}
        if not averaged:
            return tuple(sets)
    return tuple(replace(found, averaged=found.name in averaged) for found in sets)


def _chosen(sets: Sequence[WeightSet]) -> WeightSet | None:
    by_name = {found.name: found for found in sets}
    if all(found.tensors == sets[0].tensors for found in sets):
        return sets[0]
    for names in (("state_dict", "ema_state_dict"), ("state_dict", "current_model_state")):
        if by_name.keys() >= set(names):
            return by_name["state_dict"]
    if "model" in by_name and by_name["model"].origin and "ema" in by_name:
        return by_name["ema"]
    if by_name.keys() >= {"model", "ema.module"}:
        return by_name["ema.module"]
    if any(found.averaged for found in sets):
        return None
    primary = [found for found in sets if found.name in _PRIMARY]
    return primary[0] if len(primary) == 1 else None


def _options(names: list[str]) -> str:
    import shlex

    return " or ".join(f"--weights {shlex.quote(name)}" for name in names)


def _described(found: WeightSet) -> str:
    kind = {True: "averaged, ", False: "as trained, ", None: ""}[found.averaged]
    return f"{kind}{len(found.tensors):,} tensors"


class _Scale:
    """What is left aside and how many bytes it has, each value counted once."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._seen: set[object] = set()
        self._entries: dict[int, int] = {}

    def weighed(self, tree: Value, prefix: str, inside: Collection[str]) -> Iterator[LeftAside]:
        """The children of a value that are not inside the weights, very many of them as one."""
        named, more, total = 0, 0, 0
        for key, value in children(tree):
            if key in inside:
                continue
            if named < _MOST_ASIDE:
                named += 1
                name = prefix + (key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}…")
                yield LeftAside(name, self._what(value), self._weigh(value))
            else:
                more += 1
                total += self._weigh(value)
        if more:
            yield LeftAside(f"{prefix}…", f"{more:,} more entries", total)

    def _what(self, value: Value) -> str:
        """A word or two on a value that is left aside."""
        if isinstance(value, LazyTensor):
            return f"tensor {value.dtype} {value.shape}"
        if isinstance(value, Refused):
            return f"{value.kind} tensor"
        if is_tree(value):
            count = self._entries.get(value.identity)
            if count is None:
                count = self._entries[value.identity] = sum(1 for _ in children(value))
                self._budget.spend(count)
            return f"{printable(value.type, 60)}, {counted(count, 'entry', 'entries')}"
        if isinstance(value, bytes):
            return f"{len(value):,} bytes"
        if isinstance(value, str):
            return f"str {quoted(value, 40)}"
        return f"{type(value).__name__} {value}" if value is not None else "None"

    def _weigh(self, value: Value) -> int:
        """The bytes of the tensors and large values under a value, shared storages once."""
        total = 0
        walks: list[tuple[int, Iterator[tuple[str, Value]]]] = [(0, iter((("", value),)))]
        counts = [0]
        while walks:
            above, entries = walks[-1]
            key, item = next(entries, (None, None))
            self._budget.spend(1)
            if key is None:
                walks.pop()
                if counts.pop() > SMALL:
                    self._seen.add(above)
                continue
            counts[-1] += 1
            if isinstance(item, LazyTensor):
                record = item.source.record if isinstance(item.source, View) else item
                if record not in self._seen:
                    self._seen.add(record)
                    total += record.nbytes
            elif not is_tree(item) or item.identity in self._seen:
                continue
            else:
                total += item.nbytes
                if len(walks) < DEEPEST:
                    walks.append((item.identity, children(item)))
                    counts.append(0)
            self._seen.add(above)
        return total
