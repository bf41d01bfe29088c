"""Tensors in a pickle: the calls that would rebuild one, read as views on storages.

Source: `torch/_utils.py`, `torch/_tensor.py`, `torch/serialization.py` (torch 2.15) and their
older forms back to 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ckptool.checkpoint import Refused
from ckptool.dtypes import BY_STORAGE, DType, find
from ckptool.errors import FormatError, quoted
from ckptool.formats.nodes import (
    Call,
    DictNode,
    Global,
    PersistentId,
    arguments,
    called,
    integers,
    pairs,
    text,
)
from ckptool.records import Record
from ckptool.tensors import MOST_AXES, LazyTensor, View, is_possible, span, spec_of

_LARGEST = 1 << 56  # elements; a size, stride or offset beyond it is a lie

# Calls that only wrap another tensor, their first argument.
_WRAPPERS = frozenset(
    (
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.autograd.variable.Variable",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch.jit._pickle.restore_type_tag",
    )
)
# Calls that make a view on a storage, and their least number of arguments.
_VIEWS = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
_SUBCLASSES = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
_KINDS = {
    "torch._utils._rebuild_qtensor": ("quantised", "its integers mean nothing without a scale"),
    "torch._utils._rebuild_sparse_tensor": ("sparse", "only its non-zero values are stored"),
    "torch._utils._rebuild_sparse_csr_tensor": ("sparse", "only its non-zero values are stored"),
    "torch._utils._rebuild_nested_tensor": ("nested", "its rows have different shapes"),
    "torch.nested._internal.nested_tensor._rebuild_njt": (
        "nested",
        "its rows have different shapes",
    ),
    "torch.storage._load_from_bytes": ("storage", "a storage on its own, without a shape"),
    "torch._utils._rebuild_meta_tensor_no_storage": ("meta", "the file holds no data for it"),
    "torch._utils._rebuild_wrapper_subclass": ("wrapper", "its data is inside another object"),
    "torch._utils._rebuild_xla_tensor": ("device", "it is stored as an array for another device"),
    "torch._utils._rebuild_device_tensor_from_numpy": (
        "device",
        "it is stored as an array for another device",
    ),
    "torch.nn.parameter.UninitializedParameter": ("uninitialised", "it never got a shape"),
    "torch.nn.parameter.UninitializedBuffer": ("uninitialised", "it never got a shape"),
}


@dataclass(frozen=True, slots=True)
class Storages:
    """Where the storages of a pickle are.

    `record` gives the storage of a key whose size in bytes the pickle declares; `value` a bytes
    value of the stream as a record of its own; `nested` the storage inside such a value
    (`torch.storage._load_from_bytes`). `tensors` are those that a tar file refers to by number.
    `rebuilt` remembers what was made of a node, so that who walks twice rebuilds once.
    """

    record: Callable[[str, int], Record]
    value: Callable[[object], Record | None]
    nested: Callable[[object], tuple[Record, DType | None] | None]
    tensors: Mapping[str, LazyTensor | Refused] = field(default_factory=dict)
    rebuilt: dict[Call | PersistentId, LazyTensor | Refused | None] = field(default_factory=dict)


def rebuild(node: Call | PersistentId, storages: Storages) -> LazyTensor | Refused | None:
    """The tensor that a call would rebuild, None if it is not such a call.

    Raises: FormatError for a tensor that says something impossible about its storage.
    """
    if node not in storages.rebuilt:
        storages.rebuilt[node] = _rebuild(node, storages)
    return storages.rebuilt[node]


def _rebuild(node: object, storages: Storages) -> LazyTensor | Refused | None:
    for _ in range(8):
        if type(node) is PersistentId:
            return _numbered(node, storages)
        name, args = called(node), arguments(node)
        if name is None:
            return None
        if name in _VIEWS:  # what most calls are
            return _view(name, args, storages)
        if name in _WRAPPERS:
            if not args:
                return None
            node = args[0]
        elif name in _SUBCLASSES and len(args) >= 3:
            subclass = _named(args[1])
            if "DTensor" in subclass or "ShardedTensor" in subclass:
                return Refused("sharded", f"{subclass}: this file has one rank's part of it")
            node = Call(args[0], args[2])
        elif name in _KINDS:
            return Refused(*_KINDS[name])
        elif name.endswith(("DTensor", "ShardedTensor")):
            return Refused("sharded", f"{quoted(name)}: this file has one rank's part of it")
        elif name.startswith("torch._utils._rebuild_"):
            return Refused("unknown", f"{quoted(name)} is of a torch that is not known here")
        else:
            return None
    raise FormatError("a tensor is wrapped more than 8 times", code="tensor.nesting")


def _numbered(node: PersistentId, storages: Storages) -> LazyTensor | Refused | None:
    """A reference to a tensor of a tar file, or to a storage that no tensor looks at."""
    if type(node.id) is str or type(node.id) is int:
        return storages.tensors.get(str(node.id))
    if type(node.id) is tuple and node.id and text(node.id[0]) == "storage":
        return Refused("storage", "a storage on its own, without a shape")
    return None


def _view(name: str, args: tuple[object, ...], storages: Storages) -> LazyTensor | Refused:
    """`(storage, offset, size, stride, requires_grad, hooks, [dtype], [metadata])`."""
    least = _VIEWS[name]
    if len(args) < least or len(args) > least + 1:
        raise _bad("arguments", f"{quoted(name)} has {len(args)} arguments, wanted {least}")
    stored = storage_of(args[0], storages)
    if isinstance(stored, Refused):
        return stored
    record, dtype, shift = stored
    if least == 7:
        dtype = _named_dtype(args[6])
        if dtype is None:
            return Refused("dtype", f"its element type {_named(args[6])} is not known here")
    if dtype is None:
        raise _bad("dtype", "a tensor on an untyped storage does not say its dtype")
    flags = _flags(args[least]) if len(args) > least else (False, False)
    return view_on(record, dtype, (shift, args[1], args[2], args[3]), *flags)


def view_on(
    record: Record,
    dtype: DType,
    window: tuple[int, object, object, object],
    conj: bool = False,
    negative: bool = False,
) -> LazyTensor | Refused:
    """The tensor of a window (shift, offset, size, stride; in elements) on a storage.

    Raises: FormatError if the window is not inside the storage.
    """
    shift, offset, size, stride = window
    shape, strides = integers(size), integers(stride)
    if type(offset) is not int or shape is None or strides is None:
        raise _bad("view", "offset, size and stride of a tensor are not integers")
    if not 0 <= offset < _LARGEST:
        raise _out_of_range()
    reach = _reach(shape, strides)
    if (conj and dtype.kind != "c") or (
        negative and (dtype.kind not in "fc" or dtype.itemsize < 2)
    ):
        raise _bad("view", f"a tensor of dtype {dtype.name} is marked as conjugate or negative")
    if dtype.kind == "q":
        return Refused("quantised", "its integers mean nothing without a scale")
    end = offset + shift + reach
    if reach and end * dtype.itemsize > record.nbytes:
        raise _bad(
            "bounds",
            f"a tensor of shape {shape} reaches element {end - 1:,} of storage "
            f"{quoted(record.name)}, which has {record.nbytes // dtype.itemsize:,}",
        )
    source = View(record, offset + shift, strides, conj, negative)
    return LazyTensor(spec_of(dtype.name, shape), source)


@lru_cache(1 << 10)  # most windows of a network are there many times
def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements of a storage a window spans, from its first to its last; 0 if it is empty.

    Raises: FormatError for a window that no tensor can have.
    """
    numbers = (*shape, *strides)
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= _LARGEST:
        raise _out_of_range()
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise _bad("rank", f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if not is_possible(shape):
        raise _bad("numel", f"a tensor declares {math.prod(shape):,} elements")
    return 0 if 0 in shape else span(shape, strides)


def storage_of(node: object, storages: Storages) -> tuple[Record, DType | None, int] | Refused:
    """A storage, its element type (None if untyped), and the shift of a legacy storage view.

    Raises: FormatError unless it is exactly what torch writes for a storage.
    """
    if type(node) is Call:
        name, args = called(node), arguments(node)
        if name == "torch.storage._load_from_bytes" and len(args) == 1:
            stored = storages.nested(args[0])
            if stored is not None:
                return *stored, 0
        if name in ("torch.storage.TypedStorage", "torch.storage._TypedStorage"):
            return Refused("storage", "it is a storage object of its own, not a reference to one")
    key, dtype, numel, shift = storage_reference(node)
    if text(node.id[3]) == "meta":  # type: ignore[attr-defined]
        return Refused("meta", "the file holds no data for it")
    return storages.record(key, numel * (dtype.itemsize if dtype else 1)), dtype, shift


def storage_reference(node: object) -> tuple[str, DType | None, int, int]:
    """Key, element type, number of elements and shift of `('storage', type, key, device, n)`."""
    ident = node.id if type(node) is PersistentId else None
    if type(ident) is not tuple or len(ident) not in (5, 6) or text(ident[0]) != "storage":
        raise _bad("storage", "a tensor's storage is not a storage reference")
    kind, key, numel = ident[1], text(ident[2]), ident[4]
    if type(kind) is not Global or key is None or not _is_count(numel):
        raise _bad("storage", "a storage reference is malformed")
    shift = 0
    if len(ident) == 6 and ident[5] is not None:
        view = ident[5]
        if type(view) is not tuple or len(view) != 3 or not _is_count(view[1]):
            raise _bad("storage", "a storage view is malformed")
        shift = view[1]
    return key, storage_dtype(kind), numel, shift


def storage_dtype(kind: Global) -> DType | None:
    """The element type of a storage class, by its exact name; None for an untyped storage."""
    if kind.module in ("torch", "torch.storage", "torch.cuda"):
        if kind.name in BY_STORAGE:
            return BY_STORAGE[kind.name]
        if kind.name == "UntypedStorage":
            return None
    raise _bad("dtype", f"{quoted(kind.path)} is not a storage class")


def _is_count(value: object) -> bool:
    """Whether a value from the stream can be a number of elements."""
    return type(value) is int and 0 <= value < _LARGEST


def _named_dtype(node: object) -> DType | None:
    """The element type of `torch.float8_e4m3fn` and the like, None for one not in the table."""
    if type(node) is not Global or node.module != "torch":
        raise _bad("dtype", f"the dtype of a tensor is {_named(node)}, which is none")
    return find(node.name)


def _named(node: object) -> str:
    return quoted(node.path if type(node) is Global else "not a name")


def _flags(metadata: object) -> tuple[bool, bool]:
    """The conj and neg bits of a tensor's metadata."""
    if metadata is None:
        return False, False
    if type(metadata) is not DictNode:
        raise _bad("arguments", "the metadata of a tensor is not a dict")
    bits = {text(key): value for key, value in pairs(metadata) if type(value) is bool}
    return bits.get("conj", False), bits.get("neg", False)


def _out_of_range() -> FormatError:
    return _bad("view", "offset, size or stride of a tensor is negative or out of range")


def _bad(rule: str, what: str) -> FormatError:
    return FormatError(what, code=f"tensor.{rule}")
