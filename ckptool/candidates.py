"""Every mapping in a loaded file that could be its weights, found in one bounded walk.

A value is walked once, however often the file refers to it, and the walk keeps no more than the
path to where it stands: what it costs grows with the file, not with what the file says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ckptool.checkpoint import Budget, Refused, Tree, Value, WeightSet, is_tree
from ckptool.errors import FormatError, WeightsError, quoted
from ckptool.salvage import is_module, salvage
from ckptool.tensors import LazyTensor

ROOT = "."
DEEPEST = 1_000
_LONGEST_KEY = 1_000  # of the key's characters, what is looked at
_MOST_SETS = 10_000
_MOST_NAMES = 8  # of one mapping
_SMALL = 8  # entries; to walk fewer again costs less than to remember them

_ASIDE = re.compile(
    r"optim|sched|scaler|scaling|callback|loops|rng|random|hyper|hparam|args|config|cfg|meta|hub"
    r"|momentum|amp|grad|metric|loss_scale|fitness|results|history"
)
_OPTIMIZER = {"state", "param_groups"}


@dataclass(slots=True)
class _Survey:
    """What one look at a value's children finds: its tensors, and what else there is."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    entries: int = 0
    trees: bool = False
    optimizer: bool = False
    twice: str | None = None


def candidates(root: Value, budget: Budget, least_share: float = 0.5) -> Iterator[WeightSet]:
    """Every mapping with tensors, every pickled module, every TorchScript module, in file order.

    A mapping counts if at least that share of its values are tensors. One that holds weights and
    nothing to walk into may go by several names.

    Raises: FormatError for a file that is nested, or refers to itself, beyond what any needs;
    WeightsError for one with thousands of mappings that hold tensors.
    """
    if isinstance(root, LazyTensor):
        yield WeightSet(ROOT, {"(tensor)": root})
    walks: list[tuple[str, Iterator[tuple[str, Value]]]] = [("", iter((("", root),)))]
    seen: set[int] = set()
    plain: dict[int, tuple[WeightSet, int]] = {}
    count = 0
    while walks:
        key, value = next(walks[-1][1], (None, None))
        if key is None:
            walks.pop()
            continue
        if not is_tree(value) or value.identity in seen:
            continue
        found, met = plain.get(value.identity, (None, 0))
        inside = False
        if met:
            if met == _MOST_NAMES:
                continue
        elif len(walks) > DEEPEST:
            raise FormatError(f"nested deeper than {DEEPEST:,} levels", code="tree.depth")
        elif value.type.startswith("__torch__") or is_module(value):
            seen.add(value.identity)
            scripted = value.type.startswith("__torch__")
            found = _scripted(value, budget) if scripted else salvage(ROOT, value, budget)
        else:
            survey = _survey(value, budget)
            found = _weight_set(value, survey, least_share, budget)
            inside = survey.trees and not survey.optimizer
            if survey.trees or (found is None and survey.entries > _SMALL):
                seen.add(value.identity)
        if found is not None and (found.tensors or found.refused):
            if value.identity not in seen:
                plain[value.identity] = found, met + 1
            count += 1
            if count > _MOST_SETS:
                raise WeightsError(
                    f"more than {_MOST_SETS:,} mappings in the file hold tensors: this looks like "
                    "data, not like weights",
                    code="weights.many",
                )
            yield replace(found, name=_name(walks, key, budget))
        if inside:
            walks.append((key, _worth_a_look(value, least_share)))


def children(value: Value) -> Iterator[tuple[str, Value]]:
    """What a value holds, whether as entries or as attributes."""
    if is_tree(value):
        yield from value.items()
        yield from value.attributes()


def _worth_a_look(tree: Tree, least_share: float) -> Iterator[tuple[str, Value]]:
    """The children that may hold weights; an optimizer's state looks as if it did."""
    for key, child in children(tree):
        if is_tree(child) and not (least_share and _ASIDE.search(key[:_LONGEST_KEY].lower())):
            yield key, child


def _name(walks: list[tuple[str, Iterator[tuple[str, Value]]]], key: str, budget: Budget) -> str:
    """The dotted path to a key below the values that are being walked."""
    parts = [above for above, _ in walks[2:]] + [key]
    budget.spend(sum(map(len, parts)))
    return ".".join(parts) or ROOT


def _survey(tree: Tree, budget: Budget) -> _Survey:
    found = _Survey()
    optimizer = set()
    for key, value in children(tree):
        found.entries += 1
        if key in _OPTIMIZER:
            optimizer.add(key)
        if isinstance(value, LazyTensor | Refused):
            if key in found.tensors or key in found.refused:
                found.twice = key
            if isinstance(value, LazyTensor):
                found.tensors[key] = value
            else:
                found.refused[key] = value
        elif is_tree(value):
            found.trees = True
    found.optimizer = optimizer == _OPTIMIZER
    budget.spend(1 + 2 * found.entries)
    return found


def _weight_set(
    tree: Tree, survey: _Survey, least_share: float, budget: Budget
) -> WeightSet | None:
    """The mapping's tensors, None if too few of its values are tensors."""
    tensors, refused = survey.tensors, survey.refused
    weights = len(tensors) + len(refused)
    if (
        tree.type in ("list", "tuple", "set")
        or not weights
        or weights < least_share * survey.entries
    ):
        return None
    if survey.twice is not None:
        raise FormatError(f"two tensors are called {quoted(survey.twice)}", code="tree.duplicate")
    others: list[str] = []
    if weights < survey.entries:
        others += (key for key, _ in tree.items() if key not in tensors and key not in refused)
    versions = _versions(tree, budget)
    return WeightSet(ROOT, tensors, refused, versions=versions, others=tuple(others))


def _versions(tree: Tree, budget: Budget) -> Mapping[str, int] | None:
    """Module path to version, from the `_metadata` that torch puts on a state dict."""
    metadata = next((value for key, value in tree.attributes() if key == "_metadata"), None)
    if not is_tree(metadata):
        return None
    versions = {}
    for module, local in metadata.items():
        for key, version in local.items() if is_tree(local) else ():
            budget.spend(1)
            if key == "version" and type(version) is int:
                versions[module] = version
    return versions


def _scripted(tree: Tree, budget: Budget) -> WeightSet:
    """All tensors of a TorchScript module by attribute path.

    Only its code tells a buffer from a tensor that is a plain attribute, so both are here.
    """
    tensors: dict[str, LazyTensor] = {}
    refused: dict[str, Refused] = {}
    todo: list[tuple[str, Tree, int]] = [("", tree, 0)]
    while todo:
        prefix, module, depth = todo.pop()
        if depth > 200:
            raise FormatError("a scripted module contains itself", code="salvage.cycle")
        inner = []
        for key, value in module.attributes():
            budget.spend_key(prefix, key)
            if isinstance(value, LazyTensor):
                tensors[prefix + key] = value
            elif isinstance(value, Refused):
                refused[prefix + key] = value
            elif is_tree(value) and value.type.startswith("__torch__"):
                inner.append((f"{prefix}{key}.", value, depth + 1))
        todo += reversed(inner)
    return WeightSet(ROOT, tensors, refused, origin=tree.type)
