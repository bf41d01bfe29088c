"""What a pickle turns into: inert nodes, beside None, bool, int, float, str, bytes and tuple.

A node has no method but its constructor; its fields are read, never called.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.errors import FormatError


class Global:
    """A name that a plain unpickler would import; `path` is `module.name`."""

    __slots__ = ("module", "name", "path")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.path = f"{module}.{name}"


class PersistentId:
    """A reference to something outside the stream; torch's storages are such."""

    __slots__ = ("id",)

    def __init__(self, id: object) -> None:
        self.id = id


class DictNode:
    """A dict as the list key, value, key, value …: nothing from the stream is hashed."""

    __slots__ = ("items",)

    def __init__(self, items: list[object] | None = None) -> None:
        self.items = items


class ListNode:
    """A list."""

    __slots__ = ("items",)

    def __init__(self, items: list[object] | None = None) -> None:
        self.items = items


class SetNode:
    """A set or frozenset, in stream order, duplicates kept."""

    __slots__ = ("items",)

    def __init__(self, items: list[object] | None = None) -> None:
        self.items = items


Container = DictNode | ListNode | SetNode


class Call:
    """What REDUCE, NEWOBJ, INST or OBJ would have built.

    `items` is what SETITEMS, APPENDS or ADDITEMS would have put into it, `states` what BUILD would
    have set on it, in order.
    """

    __slots__ = ("args", "function", "items", "kwargs", "states")

    def __init__(self, function: object, args: object, kwargs: object = None) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.items: Container | None = None
        self.states: list[object] | None = None


class Span:
    """A large bytes value or integer that stays where it is: offsets into the stream."""

    __slots__ = ("start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop


def pairs(node: DictNode) -> Iterator[tuple[object, object]]:
    """The keys and values of a dict node."""
    items = iter(node.items or ())
    return zip(items, items, strict=True)


def text(value: object) -> str | None:
    """A str, or the ASCII bytes that Python 2 wrote for one; None for anything else."""
    if type(value) is str:
        return value
    if type(value) is bytes and value.isascii():
        return str(value, "ascii")
    return None


def called(node: object) -> str | None:
    """The dotted name of what a call would have called, None for anything else."""
    if type(node) is Call and type(node.function) is Global:
        return node.function.path
    return None


def arguments(node: object) -> tuple[object, ...]:
    """What a call would have been given; empty for anything else."""
    return node.args if type(node) is Call and type(node.args) is tuple else ()


def integers(value: object) -> tuple[int, ...] | None:
    """A tuple or list of integers, `torch.Size` and TorchScript's lists of them among them."""
    if type(value) is Call:
        for _ in range(3):
            if called(value) in _WRAPPED:
                inner = arguments(value)
                value = inner[0] if len(inner) == 1 else None
    if type(value) is ListNode:
        value = tuple(value.items or ())
    if type(value) is not tuple or not set(map(type, value)) <= _INTEGER:
        return None
    return value


def holder(node: object) -> object:
    """What a bytes value is made of: the same for all calls that encode one text."""
    return arguments(node)[0] if called(node) == "_codecs.encode" and arguments(node) else node


def raw_bytes(node: object) -> bytes | Span | None:
    """A bytes value, as protocols 0 to 2 spell it too: `_codecs.encode(text, 'latin1')`."""
    if type(node) is bytes or type(node) is Span:
        return node
    if called(node) == "_codecs.encode" and len(arguments(node)) == 2:
        value, encoding = arguments(node)
        if type(value) is str and text(encoding) in ("latin1", "latin-1"):
            try:
                return value.encode("latin-1")
            except UnicodeEncodeError:
                raise FormatError(
                    "bytes written as text do not fit Latin-1", code="pickle.bytes"
                ) from None
    if called(node) in ("builtins.bytes", "__builtin__.bytes") and not arguments(node):
        return b""
    return None


_INTEGER = {int}  # not bool
_WRAPPED = ("torch.Size", "torch.jit._pickle.build_intlist")
