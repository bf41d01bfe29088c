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
SMALL = 8  # plain entries; to walk fewer again costs less than to remember them

_ASIDE = re.compile(
    r"optim|sched|scaler|scaling|callback|loops|rng|random|hyper|hparam|args|config|cfg|meta|hub"
    r"|momentum|amp|grad|metric|loss_scale|fitness|results|history"
)
_OPTIMIZER = {"state", "param_groups"}


@dataclass(slots=True, eq=False)
class _Survey:
    """What one look at a value's children finds: its tensors, and what else there is."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    entries: int = 0
    names: list[str] = field(default_factory=list)  # of the trees; a pair of each takes more memory
    trees: list[Tree] = field(default_factory=list)
    optimizer: bool = False
    twice: str | None = None


def search(root: Value, budget: Budget, least_share: float = 0.5) -> tuple[list[WeightSet], bool]:
    """Every mapping with tensors, every pickled module, every TorchScript module, in file order.

    A mapping counts if at least that share of its values are tensors; the second value tells
    whether any was passed over for that, or for a name like an optimizer's.

    Raises: FormatError for a file that is nested, or refers to itself, beyond what any needs;
    WeightsError for one with thousands of mappings that hold tensors.
    """
    if isinstance(root, LazyTensor):
        return [WeightSet(ROOT, {"(tensor)": root})], False
    walk = _Walk(budget, least_share)
    walk.run(root)
    return walk.sets, walk.passed_over


class _Walk:
    """Where a search stands: the values that are open, what was seen, what was found."""

    def __init__(self, budget: Budget, least_share: float) -> None:
        self.sets: list[WeightSet] = []
        self.passed_over = False
        self._budget = budget
        self._least_share = least_share
        self._open: list[tuple[str, Iterator[tuple[str, Value]]]] = []
        self._seen: set[int] = set()
        self._plain: dict[int, tuple[WeightSet, int]] = {}

    def run(self, root: Value) -> None:
        """Visit every value once, each before what it holds."""
        self._open.append(("", iter((("", root),))))
        try:
            while self._open:
                key, value = next(self._open[-1][1], (None, None))
                if key is None:
                    self._open.pop()
                elif is_tree(value) and value.identity not in self._seen:
                    self._visit(key, value)
        finally:
            self._open.clear()  # it refers to this walk: a cycle would keep the file open

    def _visit(self, key: str, tree: Tree) -> None:
        # A mapping of nothing but weights may go by several names.
        known, names = self._plain.get(tree.identity, (None, 0))
        if known is not None:
            if names < _MOST_NAMES:
                self._plain[tree.identity] = known, names + 1
                self._keep(key, known)
            return
        if len(self._open) > DEEPEST:
            raise FormatError(f"nested deeper than {DEEPEST:,} levels", code="tree.depth")
        if tree.type.startswith("__torch__") or is_module(tree):
            self._seen.add(tree.identity)
            scripted = tree.type.startswith("__torch__")
            found = (_scripted if scripted else salvage)(tree, self._budget)
            if found.tensors or found.refused:
                self._keep(key, found)
            return
        survey = _survey(tree, self._budget)
        mapping = _weight_set(tree, survey, self._least_share, self._budget)
        if mapping is not None:
            self._keep(key, mapping)
        elif survey.tensors or survey.refused:
            self.passed_over = True
        if survey.trees:
            self._seen.add(tree.identity)
            if not survey.optimizer:
                self._open.append((key, self._inside(survey)))
        elif mapping is not None:
            self._plain[tree.identity] = mapping, 1
        elif survey.entries > SMALL:
            self._seen.add(tree.identity)

    def _keep(self, key: str, found: WeightSet) -> None:
        if len(self.sets) == _MOST_SETS:
            raise WeightsError(
                f"more than {_MOST_SETS:,} mappings in the file hold tensors: this looks like "
                "data, not like weights",
                code="weights.many",
            )
        parts = [above for above, _ in self._open[2:]] + [key]
        self._budget.spend(sum(map(len, parts)))
        self.sets.append(replace(found, name=".".join(parts) or ROOT))

    def _inside(self, survey: _Survey) -> Iterator[tuple[str, Value]]:
        """The children that may hold weights; an optimizer's state looks as if it did."""
        for key, child in zip(survey.names, survey.trees, strict=True):
            if self._least_share and _ASIDE.search(key[:_LONGEST_KEY].lower()):
                self.passed_over = True
            else:
                yield key, child


def children(value: Value) -> Iterator[tuple[str, Value]]:
    """What a value holds, whether as entries or as attributes."""
    if is_tree(value):
        yield from value.items()
        yield from value.attributes()


def _survey(tree: Tree, budget: Budget) -> _Survey:
    found = _Survey()
    optimizer = set()
    for key, value in children(tree):
        found.entries += 1
        if key in _OPTIMIZER:
            optimizer.add(key)
        if isinstance(value, (LazyTensor, Refused)):
            if key in found.tensors or key in found.refused:
                found.twice = key
            if isinstance(value, LazyTensor):
                found.tensors[key] = value
            else:
                found.refused[key] = value
        elif is_tree(value):
            found.names.append(key)
            found.trees.append(value)
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
        if not is_tree(local):
            continue
        for key, version in local.items():
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
