"""Files of any size whose cost must grow as they grow: each is a way to make a reader pay more.

A family is a function from a number of parts to a file. What it attacks: `wide` and `spam` the
memory for one byte, `shared` what is walked once for every reference, `long` what is copied with
every use, `nested` the stack.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

from . import opcodes as op
from .opcodes import STOP, dict_of, get, list_of, name, number, proto, put, text, tuple_of
from .pickles import legacy, nested
from .streams import array
from .zips import Archive, Item, tensor

TWO, FOUR = proto(2), proto(4)


@dataclass(frozen=True, slots=True)
class Family:
    """`make` gives a file of `parts` parts; it is timed at that number and at twice as many."""

    name: str
    make: Callable[[int], bytes]
    parts: int
    file: str = "case.pkl"

    def __str__(self) -> str:
        return self.name


def _archive(pickle: bytes, storages: dict[str, bytes]) -> bytes:
    items = [Item(b"archive/data.pkl", pickle)]
    items += [Item(f"archive/data/{key}".encode(), data) for key, data in storages.items()]
    return Archive([*items, Item(b"archive/version", b"3\n")]).build()


def _wide_dict(parts: int) -> bytes:
    return TWO + dict_of(*((text(f"k{n}"), number(n)) for n in range(parts))) + STOP


def _wide(body: bytes) -> Callable[[int], bytes]:
    """A list of equal parts."""
    return lambda parts: FOUR + list_of(body * parts) + STOP


def _referred(target: bytes) -> Callable[[int], bytes]:
    """A list of references to one value."""
    return lambda parts: FOUR + list_of(target + put(0), get(0) * parts) + STOP


def _tensors(parts: int) -> bytes:
    pairs = ((text(f"layer.{n}"), tensor(str(n), 2, (2,), (1,))) for n in range(parts))
    return _archive(TWO + dict_of(*pairs) + STOP, {str(n): bytes(8) for n in range(parts)})


def _one_tensor(parts: int) -> bytes:
    """One tensor under many keys, of a few bytes each."""
    pairs = b"".join(number(n) + get(0) for n in range(parts))
    body = tensor("0", 2, (2,), (1,)) + put(0) + op.POP
    return _archive(
        TWO + body + op.EMPTY_DICT + op.MARK + pairs + op.SETITEMS + STOP, {"0": bytes(8)}
    )


def _sets(parts: int) -> bytes:
    """Many mappings that each hold one tensor."""
    body = tensor("0", 2, (2,), (1,)) + put(0) + op.POP
    one = dict_of((text("a"), get(0)))
    return _archive(TWO + body + list_of(one * parts) + STOP, {"0": bytes(8)})


def _set_under_many_names(parts: int) -> bytes:
    """One mapping of many tensors, referred to as many times."""
    pairs = dict_of(*((text(f"k{n}"), tensor("0", 2, (2,), (1,))) for n in range(parts // 20)))
    return _archive(TWO + list_of(pairs + put(0), get(0) * parts) + STOP, {"0": bytes(8)})


def _leaf_referred(parts: int) -> bytes:
    """One long list of numbers, referred to many times."""
    leaf = list_of(op.NONE * parts) + put(0)
    return FOUR + list_of(leaf, get(0) * parts) + STOP


def _asides(parts: int) -> bytes:
    """A file with weights and as many other entries that all refer to one long value."""
    weights = tensor("0", 2, (2,), (1,)) + put(0)
    leaf = tuple_of(list_of(op.NONE * parts), op.NONE) + put(1)
    pairs = [(text("state_dict"), dict_of((text("a"), weights))), (text("x"), leaf)]
    pairs += [(text(f"optimizer{n}"), get(1)) for n in range(parts // 10)]
    return _archive(TWO + dict_of(*pairs) + STOP, {"0": bytes(8)})


def _module(parameters: bytes, modules: bytes, more: bytes = b"") -> bytes:
    """A pickled module."""
    made = name("torch.nn.modules.module", "Module") + op.EMPTY_TUPLE + op.NEWOBJ
    pairs = (
        (text("_parameters"), parameters),
        (text("_buffers"), op.EMPTY_DICT),
        (text("_modules"), modules),
    )
    body = b"".join(key + value for key, value in pairs)
    return made + op.EMPTY_DICT + op.MARK + body + more + op.SETITEMS + op.BUILD


def _shared_modules(parts: int) -> bytes:
    """Modules that hold the next one twice: 2^n of them by path, without a tensor."""
    body = _module(op.EMPTY_DICT, op.EMPTY_DICT) + put(0) + op.POP
    for _ in range(min(parts, 150)):
        twice = dict_of((text("a"), get(0)), (text("b"), get(0)))
        body += _module(op.EMPTY_DICT, twice) + put(0) + op.POP
    return TWO + body + get(0) + STOP


def _shared_scripts(parts: int) -> bytes:
    """The same of TorchScript's modules."""
    made = name("__torch__.m", "M") + op.EMPTY_TUPLE + op.NEWOBJ
    body = made + op.EMPTY_DICT + op.BUILD + put(0) + op.POP
    for _ in range(min(parts, 150)):
        body += (
            made + dict_of((text("a"), get(0)), (text("b"), get(0))) + op.BUILD + put(0) + op.POP
        )
    return TWO + body + get(0) + STOP


def _module_under_many_names(parts: int) -> bytes:
    """One module of many attributes, which its parent holds as often."""
    attributes = b"".join(text(f"x{n}") + op.NONE for n in range(parts))
    inner = _module(op.EMPTY_DICT, op.EMPTY_DICT, attributes) + put(0) + op.POP
    return (
        TWO
        + inner
        + _module(op.EMPTY_DICT, dict_of(*((text(f"m{n}"), get(0)) for n in range(parts))))
        + STOP
    )


def _tensors_of_long_paths(parts: int) -> bytes:
    """Modules in one another under one long name, the innermost with many tensors."""
    weights = tensor("0", 2, (2,), (1,)) + put(0) + op.POP
    key = text("x" * parts) + put(1) + op.POP
    inner = _module(dict_of(*((number(n), get(0)) for n in range(parts // 10))), op.EMPTY_DICT)
    for _ in range(100):
        inner = _module(op.EMPTY_DICT, dict_of((get(1), inner)))
    return _archive(TWO + weights + key + inner + STOP, {"0": bytes(8)})


def _long_paths(parts: int) -> bytes:
    """Dicts in one another under one long name."""
    key = text("x" * parts) + put(0) + op.POP
    opened = (op.EMPTY_DICT + op.MARK + op.NONE + op.NONE + get(0)) * 900
    return TWO + key + opened + op.EMPTY_DICT + op.SETITEMS * 900 + STOP


def _wide_under_long_path(parts: int) -> bytes:
    """Many mappings with a tensor, all under one long name."""
    weights = tensor("0", 2, (2,), (1,)) + put(0) + op.POP
    one = dict_of((text("a"), get(0)))
    body = dict_of((text("x" * parts), list_of(one * (parts // 20))))
    return _archive(TWO + weights + body + STOP, {"0": bytes(8)})


def _calls_of_long_name(parts: int) -> bytes:
    return (
        FOUR
        + list_of(
            name("m", "x" * parts) + put(0), (get(0) + op.EMPTY_TUPLE + op.REDUCE) * (parts // 5)
        )
        + STOP
    )


def _globals(parts: int) -> bytes:
    return FOUR + list_of(*(name("m", f"x{n}") for n in range(parts))) + STOP


def _arrays_on_one_text(parts: int) -> bytes:
    """Arrays whose bytes are one long text, encoded for each of them."""
    raw = text("x" * parts * 4) + put(0) + op.POP
    encoded = op.call(name("_codecs", "encode"), get(0), text("latin1"))
    one = array(shape=tuple_of(number(parts)), data=encoded)
    return proto(3) + raw + list_of(one * (parts // 200)) + STOP


def _nested_storages(parts: int) -> bytes:
    """Tensors on one storage that lies in bytes, as a long stream of its own."""
    ident = tuple_of(
        text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(2)
    )
    long = list_of(op.NONE * parts) + op.POP
    inner = legacy(TWO + long + ident + op.BINPERSID + STOP, keys=list_of(text("0")))
    blob = nested(inner + struct.pack("<q", 2) + bytes(8)) + put(0) + op.POP
    hooks = name("collections", "OrderedDict") + op.EMPTY_TUPLE + op.REDUCE
    one = op.call(
        name("torch._utils", "_rebuild_tensor_v2"),
        get(0),
        number(0),
        tuple_of(number(2)),
        tuple_of(number(1)),
        op.FALSE,
        hooks,
    )
    pairs = [(text(f"k{n}"), one) for n in range(parts // 200)]
    return FOUR + blob + dict_of(*pairs) + STOP


def _nested_bytes(parts: int) -> bytes:
    """Calls that load one long text as a pickle."""
    stream = (TWO + list_of(op.NONE * parts) + STOP).decode("latin-1")
    raw = text(stream) + put(0) + op.POP
    encoded = op.call(name("_codecs", "encode"), get(0), text("latin1"))
    one = op.call(name("torch.storage", "_load_from_bytes"), encoded)
    return FOUR + raw + list_of(one * (parts // 50)) + STOP


def _persistent(parts: int) -> bytes:
    return FOUR + list_of((op.NONE + op.BINPERSID) * parts) + STOP


def _header(parts: int) -> bytes:
    header = {
        f"layer.{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
        for n in range(parts)
    }
    data = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(data)) + data + bytes(4 * parts)


def _header_of(part: bytes) -> Callable[[int], bytes]:
    """A header that is not a tensor's, of equal parts."""

    def make(parts: int) -> bytes:
        data = b'{"a":[' + b",".join([part] * parts) + b"]}"
        return struct.pack("<Q", len(data)) + data

    return make


FAMILIES = (
    Family("wide-dict", _wide_dict, 30_000),
    Family("mark-spam", lambda parts: FOUR + op.MARK * parts + STOP, 400_000),
    Family("memo-spam", _wide(op.EMPTY_DICT + op.MEMOIZE), 10_000),
    Family(
        "memo-doubling",
        lambda parts: FOUR + op.EMPTY_TUPLE + (op.DUP + op.TUPLE2) * parts + STOP,
        100_000,
    ),
    Family("nested-tuples", lambda parts: FOUR + op.NONE + op.TUPLE1 * parts + STOP, 200_000),
    Family(
        "nested-calls",
        lambda parts: FOUR + op.NONE + (op.EMPTY_TUPLE + op.REDUCE) * parts + STOP,
        100_000,
    ),
    Family("many-tensors", _tensors, 1_000, "case.pth"),
    Family("json-header", _header, 4_000, "case.safetensors"),
    Family("json-lists", _header_of(b"[]"), 200_000, "case.safetensors"),
    Family("json-objects", _header_of(b'{"":{}}'), 80_000, "case.safetensors"),
    Family("wide-empty-dicts", _wide(op.EMPTY_DICT), 20_000),
    Family("wide-empty-lists", _wide(op.EMPTY_LIST), 20_000),
    Family("wide-tuples", _wide(op.NONE + op.TUPLE1), 10_000),
    Family("wide-pairs", _wide(op.NONE + op.TUPLE1 + op.TUPLE1), 6_000),
    Family("wide-calls", _wide(op.NONE + op.EMPTY_TUPLE + op.REDUCE), 8_000),
    Family(
        "wide-states",
        _wide(op.NONE + op.EMPTY_TUPLE + op.REDUCE + op.EMPTY_DICT + op.BUILD),
        8_000,
    ),
    Family("wide-references", _referred(tuple_of(op.NONE, op.NONE)), 10_000),
    Family("wide-keys", _wide(b"C\x0a" + b"k" * 10), 20_000),
    Family("persistent-ids", _persistent, 10_000),
    Family("one-tensor-many-keys", _one_tensor, 5_000, "case.pth"),
    Family("many-sets", _sets, 1_500, "case.pth"),
    Family("set-under-many-names", _set_under_many_names, 4_000, "case.pth"),
    Family("leaf-referred", _leaf_referred, 20_000),
    Family("asides", _asides, 40_000, "case.pth"),
    Family("shared-modules", _shared_modules, 75),
    Family("shared-scripts", _shared_scripts, 75),
    Family("module-under-many-names", _module_under_many_names, 4_000),
    Family("tensors-of-long-paths", _tensors_of_long_paths, 20_000, "case.pth"),
    Family("long-paths", _long_paths, 200_000),
    Family("wide-under-long-path", _wide_under_long_path, 40_000, "case.pth"),
    Family("calls-of-long-name", _calls_of_long_name, 20_000),
    Family("many-globals", _globals, 8_000),
    Family("arrays-on-one-text", _arrays_on_one_text, 100_000),
    Family("nested-storages", _nested_storages, 40_000),
    Family("nested-bytes", _nested_bytes, 100_000),
    Family("dotted-name", lambda parts: FOUR + name("m", "." * parts) + STOP, 400_000),
)
