"""A pickle's node graph seen as a tree of values: tensors recognised, everything else inert.

The tree is made on demand and not kept: a walk costs memory only where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckptool.checkpoint import Value
from ckptool.formats.nodes import (
    Call,
    DictNode,
    Global,
    ListNode,
    PersistentId,
    SetNode,
    Span,
    arguments,
    called,
    pairs,
    text,
)
from ckptool.formats.numpy_nodes import array_of, is_array
from ckptool.formats.rebuild import Storages, rebuild

_PLAIN = (type(None), bool, int, float, str, bytes)
_RECONSTRUCTORS = ("copyreg._reconstructor", "copy_reg._reconstructor")
_CONTAINERS = {DictNode: "dict", ListNode: "list", SetNode: "set", tuple: "tuple"}


@dataclass(frozen=True, slots=True)
class NodeTree:
    """A node that is not a plain value or a tensor, as a Tree."""

    node: object
    storages: Storages

    @property
    def identity(self) -> int:
        """Equal for the same node."""
        return id(self.node)

    @property
    def type(self) -> str:
        """`dict`, `list`, `tuple`, `set`, or the dotted name of what would have been called."""
        node = self.node
        known = _CONTAINERS.get(type(node))
        if known is not None:
            return known
        if type(node) is Call:
            node = _class_of(node)
        if type(node) is Global:
            return node.path
        if type(node) is PersistentId:
            return "persistent id"
        return "bytes" if type(node) is Span else "object"

    @property
    def nbytes(self) -> int:
        """The bytes of a large value that stayed in the stream, 0 for anything else."""
        return self.node.stop - self.node.start if type(self.node) is Span else 0

    def items(self) -> Iterator[tuple[str, Value]]:
        """The entries of a mapping or sequence; keys as text."""
        node = self.node
        if type(node) is Call:
            if (
                node.items is None
                and type(node.args) is tuple
                and node.args
                and _builtin(self.type)
            ):
                yield from self._entries(_as_dict(node.args[-1]))
            node = node.items
        yield from self._entries(node)

    def attributes(self) -> Iterator[tuple[str, Value]]:
        """What BUILD would have set on an object, and what it was called with."""
        node = self.node
        if type(node) is not Call:
            return
        for state in node.states or ():
            for part in state if type(state) is tuple else (state,):
                if type(part) is DictNode:
                    yield from self._entries(part)
                elif part is not None:
                    yield "(state)", value_of(part, self.storages)
        if not _builtin(self.type):
            for position, argument in enumerate(arguments(node)):
                yield f"({position})", value_of(argument, self.storages)
        if type(node.kwargs) is DictNode:
            yield from self._entries(node.kwargs)

    def _entries(self, node: object) -> Iterator[tuple[str, Value]]:
        if type(node) is DictNode:
            for position, (key, value) in enumerate(pairs(node)):
                name = key if type(key) is str else _key_text(key, position)
                yield name, value_of(value, self.storages)
        elif type(node) is tuple or type(node) is ListNode or type(node) is SetNode:
            items = node.items or () if isinstance(node, (ListNode, SetNode)) else node
            for position, value in enumerate(items):
                yield str(position), value_of(value, self.storages)


def value_of(node: object, storages: Storages) -> Value:
    """The node as a plain value, a tensor, a refused tensor or a Tree.

    Raises: FormatError for a tensor that says something impossible about its storage.
    """
    for _ in range(8):
        if type(node) is not Call or called(node) != "torch.jit._pickle.restore_type_tag":
            break
        node = arguments(node)[0] if arguments(node) else None
    if type(node) is Call or type(node) is PersistentId:
        tensor = rebuild(node, storages)
        if tensor is not None:
            return tensor
        if type(node) is Call and is_array(node):
            return array_of(node, storages)
    elif type(node) in _PLAIN:
        return node  # type: ignore[return-value]
    return NodeTree(node, storages)


def _class_of(node: Call) -> object:
    """The class of an instance, as protocols 0 and 1 and the legacy formats spell it too."""
    found = node.function
    if called(node) in _RECONSTRUCTORS and arguments(node):
        found = arguments(node)[0]
    if type(found) is PersistentId and type(found.id) is tuple:
        # A class with its source code: `('module', class, file, source)`, `(class, file, source)`.
        return next((part for part in found.id if type(part) is Global), found)
    return found


def _builtin(name: str) -> bool:
    """Whether a type is a container whose argument is its content."""
    return name.startswith(
        ("collections.", "builtins.", "__builtin__.", "torch.Size", "torch.jit.")
    )


def _as_dict(node: object) -> object:
    """A list of pairs, as Python 2 writes an OrderedDict, as a dict node; others as they are."""
    items = node.items if type(node) is ListNode else None
    flat: list[object] = []
    for item in items or ():
        entry = item.items if type(item) is ListNode else item
        if not isinstance(entry, (tuple, list)) or len(entry) != 2 or text(entry[0]) is None:
            return node
        flat += entry
    return DictNode(flat) if flat else node


def _key_text(key: object, position: int) -> str:
    """A key as text: strings as they are, others marked so that they cannot pass for one."""
    name = text(key)
    if name is not None:
        return name
    if type(key) is int and -(1 << 64) < key < 1 << 64:
        return f"int:{key}"
    return f"{type(key).__name__}#{position}"
