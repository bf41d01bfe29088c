"""The state dict of a pickled `nn.Module`, rebuilt from its attributes without its class.

Source: `torch/nn/modules/module.py` (`state_dict`, `_save_to_state_dict`; torch 2.15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckptool.checkpoint import Budget, Finding, Refused, Tree, Value, WeightSet, is_tree
from ckptool.errors import FormatError, listed, quoted
from ckptool.tensors import LazyTensor

_CONTAINERS = ("dict", "list", "tuple", "set")
_PARTS = ("_parameters", "_buffers", "_modules")
# Two kinds of module pickle themselves as a call: with all attributes, or with the inner module.
_TRACED = "torch.fx.graph_module.reduce_graph_module"
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
# The weights of a quantised layer are an attribute: an object of the kernel that reads them.
_PACKED = "torch.ScriptObject"
# No class of these overrides what `state_dict()` gives.
_PLAIN = ("torch.nn.modules.", "torch.nn.parallel.", "torch.optim.swa_utils.")
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")


def is_module(tree: Tree) -> bool:
    """Whether an object in a pickle is an `nn.Module`."""
    kind = tree.type
    return kind not in _CONTAINERS and (kind == _COMPILED or _parts(tree) is not None)


def salvage(tree: Tree, budget: Budget) -> WeightSet:
    """The weight set that `state_dict()` of the pickled module would give, in its order.

    Raises: FormatError for a module that contains itself, or others too many times over.
    """
    tensors: dict[str, LazyTensor] = {}
    refused: dict[str, Refused] = {}
    classes: dict[str, None] = {}
    hooked: dict[str, None] = {}
    todo: list[tuple[str, Tree, frozenset[int]]] = [("", tree, frozenset())]
    while todo:
        prefix, module, above = todo.pop()
        if module.identity in above or len(above) > 200:
            raise FormatError("a pickled module contains itself", code="salvage.cycle")
        above |= {module.identity}
        classes[module.type] = None
        parts = _parts(module)
        if parts is None:
            inner = dict(module.attributes()).get("(0)")
            if module.type == _COMPILED and is_tree(inner):
                budget.spend_key(prefix, "_orig_mod")
                todo.append((f"{prefix}_orig_mod.", inner, above))
            else:
                refused[prefix.rstrip(".")] = Refused(
                    "module",
                    f"{quoted(module.type)} pickles itself in a way that hides its tensors",
                )
            continue
        budget.spend(len(parts))
        if any(_holds_anything(parts.get(hook)) for hook in _HOOKS):
            hooked[module.type] = None
        for key, value in _own(parts):
            budget.spend_key(prefix, key)
            if prefix + key in tensors or prefix + key in refused:
                raise FormatError(
                    f"two tensors are called {quoted(prefix + key)}", code="tree.duplicate"
                )
            if isinstance(value, LazyTensor):
                tensors[prefix + key] = value
            elif isinstance(value, Refused):
                refused[prefix + key] = value
            elif is_tree(value):
                refused[prefix + key] = Refused(
                    "unknown", f"{quoted(value.type)} is no tensor known here"
                )
        for key, value in parts.items():
            if is_tree(value) and value.type == _PACKED:
                budget.spend_key(prefix, key)
                refused[prefix + key] = Refused(
                    "quantised", "packed by the kernel that reads it, as integers with a scale"
                )
        children = []
        for key, child in _children_of(parts["_modules"]):
            budget.spend_key(prefix, key)
            if is_tree(child):
                children.append((f"{prefix}{key}.", child, above))
        todo += reversed(children)
    return WeightSet(
        ".",
        tensors,
        refused,
        origin=tree.type,
        findings=_findings(tree.type, list(classes), list(hooked)),
    )


def _parts(tree: Tree) -> Mapping[str, Value] | None:
    """The attributes of a pickled module, None if they are not those of one."""
    attributes = dict(tree.attributes())
    if tree.type == _TRACED:
        attributes = dict(_children_of(attributes.get("(0)")))
    return attributes if all(is_tree(attributes.get(part)) for part in _PARTS) else None


def _own(parts: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    """A module's own parameters, then its persistent buffers."""
    transient = parts.get("_non_persistent_buffers_set")
    skipped = {value for _, value in _children_of(transient) if isinstance(value, str)}
    yield from _children_of(parts["_parameters"])
    for key, value in _children_of(parts["_buffers"]):
        if key not in skipped:
            yield key, value


def _children_of(value: Value) -> Iterator[tuple[str, Value]]:
    if is_tree(value):
        yield from value.items()


def _holds_anything(value: Value) -> bool:
    return next(_children_of(value), None) is not None


def _findings(root: str, classes: list[str], hooked: list[str]) -> tuple[Finding, ...]:
    own = [name for name in classes if not name.startswith(_PLAIN)]
    overrides = "overrides" if len(own) == 1 else "override"
    findings = [
        Finding(
            "salvaged-module",
            f"rebuilt from the pickled module {quoted(root)} without its class"
            + (f"; if {listed(own, 3)} {overrides} state_dict(), its keys differ" if own else ""),
        )
    ]
    if hooked:
        findings.append(
            Finding(
                "state-dict-hooks",
                f"{listed(hooked, 3)} had state_dict hooks, which were not run",
            )
        )
    return tuple(findings)
