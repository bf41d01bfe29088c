"""Which mappings inside a loaded file hold weights, and which one of them is meant.

Source: what each framework's own loader takes: timm 1.0.31 (`_helpers.py`), mmengine 0.10
(`checkpoint.py`, `ema_hook.py`), Lightning 2.6 (`weight_averaging.py`), YOLOv5 v7
(`experimental.py`), RT-DETR (`_solver.py`), Detectron2 (`detection_checkpoint.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckptool.checkpoint import LeftAside, Refused, Tree, Value, WeightSet, is_tree
from ckptool.errors import FormatError, WeightsError, listed, printable, quoted
from ckptool.salvage import is_module, salvage
from ckptool.tensors import LazyTensor, View

ROOT = "."
_DEEPEST = 1_000
_MOST_NODES = 50_000_000

_PRIMARY = (
    "state_dict model module net network model_state_dict model_state params weights blobs "
    "model_dict"
).split()
_KNOWN = frozenset(_PRIMARY) | frozenset(
    "state_dict_ema model_ema ema ema_model ema_state_dict ema_net current_model_state params_ema "
    "student teacher generator discriminator shadow averaged_model".split()
)
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged|swa|shadow|teacher)(?:$|[._])")
_ASIDE = re.compile(
    r"optim|sched|scaler|scaling|callback|loops|rng|random|hyper|hparam|args|config|cfg|meta|hub"
    r"|momentum|amp|grad|metric|loss_scale|fitness|results|history"
)


def find(root: Value) -> tuple[WeightSet, ...]:
    """The weight sets in a loaded file, in file order.

    Raises: FormatError for a file that is nested beyond what any checkpoint needs.
    """
    sets = list(_candidates(root))
    if not sets:
        sets = list(_candidates(root, least_share=0))
    if not sets:
        return ()
    sets = [found for found in sets if not any(_outdone(found, other) for other in sets)]
    known = [_KNOWN.intersection(found.name.split(".")) for found in sets]
    if any(known):  # the small ones beside them are statistics, counters, losses
        largest = max(len(found.tensors) for found in sets)
        sets = [
            found
            for found, name in zip(sets, known, strict=True)
            if name or len(found.tensors) * 2 >= largest
        ]
    return _labelled(sets)


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


def left_aside(root: Value, chosen: WeightSet | None) -> tuple[LeftAside, ...]:
    """What the file holds beside the chosen weights, with the bytes of its tensors."""
    rest = "" if chosen is None or chosen.name == ROOT else chosen.name
    found = []
    here, prefix = root, ""
    while rest:
        children = list(_children(here))
        # A key may have dots of its own: the longest one that fits is the step.
        fitting = [key for key, _ in children if f"{rest}.".startswith(f"{key}.")]
        if not fitting:
            break
        step = max(fitting, key=len)
        found += [_aside(prefix + key, value) for key, value in children if key != step]
        here = next(value for key, value in children if key == step)
        prefix, rest = f"{prefix}{step}.", rest[len(step) + 1 :]
    if chosen is None or not chosen.origin:
        inside = {*chosen.tensors, *chosen.refused, "_metadata"} if chosen else set()
        found += [
            _aside(prefix + key, value) for key, value in _children(here) if key not in inside
        ]
    return tuple(found)


def _candidates(root: Value, least_share: float = 0.5) -> Iterator[WeightSet]:
    """Every mapping with tensors, every pickled module, every TorchScript module."""
    if isinstance(root, LazyTensor):
        yield WeightSet(ROOT, {"(tensor)": root})
    todo: list[tuple[str, Value, int]] = [("", root, 0)]
    seen: set[int] = set()
    nodes = 0
    while todo:
        path, value, depth = todo.pop()
        if not is_tree(value) or value.identity in seen:
            continue
        tree = value
        if depth > _DEEPEST:
            raise FormatError(f"nested deeper than {_DEEPEST:,} levels", code="tree.depth")
        if tree.type.startswith("__torch__"):
            yield _scripted(path or ROOT, tree)
            continue
        if is_module(tree):
            seen.add(tree.identity)
            yield salvage(path or ROOT, tree)
            continue
        entries = list(_children(tree))
        nodes += 1 + len(entries)
        if nodes > _MOST_NODES:
            raise FormatError(f"more than {_MOST_NODES:,} objects", code="tree.size")
        if not entries:
            continue
        if any(is_tree(child) for _, child in entries):
            seen.add(tree.identity)
        found = _weight_set(path or ROOT, tree, entries, least_share)
        if found is not None:
            yield found
        if _is_optimizer(entries):
            continue
        todo += [
            (f"{path}.{key}" if path else key, child, depth + 1)
            for key, child in reversed(entries)
            if is_tree(child) and not (_ASIDE.search(key.lower()) and least_share)
        ]


def _weight_set(
    name: str, tree: Tree, entries: list[tuple[str, Value]], least_share: float
) -> WeightSet | None:
    """The mapping's tensors, None if too few of its values are tensors."""
    tensors: dict[str, LazyTensor] = {}
    refused: dict[str, Refused] = {}
    for key, value in entries:
        if isinstance(value, LazyTensor):
            if key in tensors:
                raise FormatError(f"two tensors are called {quoted(key)}", code="tree.duplicate")
            tensors[key] = value
        elif isinstance(value, Refused):
            refused[key] = value
    if tree.type in ("list", "tuple", "set") or (not tensors and not refused):
        return None
    if len(tensors) + len(refused) < least_share * len(entries):
        return None
    return WeightSet(name, tensors, refused, versions=_versions(tree))


def _versions(tree: Tree) -> Mapping[str, int] | None:
    """Module path to version, from the `_metadata` that torch puts on a state dict."""
    metadata = dict(tree.attributes()).get("_metadata")
    if not is_tree(metadata):
        return None
    versions = {}
    for module, local in metadata.items():
        version = dict(local.items()).get("version") if is_tree(local) else None
        if type(version) is int:
            versions[module] = version
    return versions


def _scripted(name: str, tree: Tree) -> WeightSet:
    """All tensors of a TorchScript module by attribute path.

    Only its code tells a buffer from a tensor that is a plain attribute, so both are here.
    """
    tensors: dict[str, LazyTensor] = {}
    refused: dict[str, Refused] = {}
    todo: list[tuple[str, Tree, int]] = [("", tree, 0)]
    while todo:
        prefix, module, depth = todo.pop()
        if depth > 200 or len(tensors) + len(todo) > 2_000_000:
            raise FormatError("a scripted module contains itself", code="salvage.cycle")
        children = []
        for key, value in module.attributes():
            if isinstance(value, LazyTensor):
                tensors[prefix + key] = value
            elif isinstance(value, Refused):
                refused[prefix + key] = value
            elif is_tree(value) and value.type.startswith("__torch__"):
                children.append((f"{prefix}{key}.", value, depth + 1))
        todo += reversed(children)
    return WeightSet(name, tensors, refused, origin=tree.type)


def _children(value: Value) -> Iterator[tuple[str, Value]]:
    if is_tree(value):
        yield from value.items()
        yield from value.attributes()


def _is_optimizer(entries: list[tuple[str, Value]]) -> bool:
    return {"state", "param_groups"} <= {key for key, _ in entries}


def _outdone(found: WeightSet, other: WeightSet) -> bool:
    """Whether one of two sets, one inside the other, has more tensors."""
    inner, outer = found.name + ".", other.name + "."
    related = ROOT in (found.name, other.name) or inner.startswith(outer) or outer.startswith(inner)
    return other is not found and related and len(found.tensors) < len(other.tensors)


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
    if len(sets) == 1 or len({tuple(found.tensors.items()) for found in sets}) == 1:
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
    return " or ".join(f"--weights {shlex.quote(name)}" for name in names)


def _described(found: WeightSet) -> str:
    kind = {True: "averaged, ", False: "as trained, ", None: ""}[found.averaged]
    return f"{kind}{len(found.tensors):,} tensors"


def _aside(name: str, value: Value) -> LeftAside:
    return LeftAside(name, _what(value), _weigh(value))


def _what(value: Value) -> str:
    """A word or two on a value that is left aside."""
    if isinstance(value, LazyTensor):
        return f"tensor {value.dtype} {value.shape}"
    if isinstance(value, Refused):
        return f"{value.kind} tensor"
    if is_tree(value):
        count = sum(1 for _ in _children(value))
        return f"{printable(value.type, 60)}, {count:,} entries"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, str):
        return f"str {quoted(value, 40)}"
    return f"{type(value).__name__} {value}" if value is not None else "None"


def _weigh(value: Value) -> int:
    """The bytes of the tensors and large values under a value, shared storages once."""
    total = 0
    todo = [value]
    seen: set[object] = set()
    while todo:
        item = todo.pop()
        if isinstance(item, LazyTensor):
            record = item.source.record if isinstance(item.source, View) else item
            if record not in seen:
                seen.add(record)
                total += record.nbytes
        elif is_tree(item) and item.identity not in seen:
            seen.add(item.identity)
            total += item.nbytes
            todo += [child for _, child in _children(item)]
    return total
