"""Tensors that lie about their storage: sizes, strides, offsets and types that cannot be.

Source of the lies: the threats that torch's own loader had to learn (pytorch pull requests 170085
and 181310), and the bugs of other readers (candle, burn, tinygrad).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .case import Case
from .opcodes import (
    BINPERSID,
    EMPTY_DICT,
    EMPTY_TUPLE,
    FALSE,
    NONE,
    REDUCE,
    STOP,
    TRUE,
    call,
    data,
    dict_of,
    list_of,
    name,
    number,
    proto,
    text,
    tuple_of,
)
from .pickles import legacy
from .zips import Archive, Item

# Storage class and item size of twelve element types.
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
NUMEL = 12
HUGE = (1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 500)
_HOOKS = name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE


@dataclass(frozen=True)
class Lie:
    """A tensor of three by four on a storage of twelve elements, but for what is told."""

    storage: str = "FloatStorage"
    offset: bytes = number(0)
    shape: bytes = tuple_of(number(3), number(4))
    stride: bytes = tuple_of(number(4), number(1))
    key: bytes = text("0")
    kind: bytes | None = None
    numel: bytes = number(NUMEL)
    location: bytes = text("cpu")
    tag: bytes = text("storage")
    view: bytes = b""
    ident: bytes | None = None
    function: str = "_rebuild_tensor_v2"
    more: bytes = FALSE + _HOOKS
    second: bytes | None = None  # another tensor of the same file

    def tensor(self) -> bytes:
        """The call that rebuilds it."""
        kind = name("torch", self.storage) if self.kind is None else self.kind
        ident = tuple_of(self.tag, kind, self.key, self.location, self.numel, self.view)
        ident = ident if self.ident is None else self.ident
        return call(
            name("torch._utils", self.function),
            ident + BINPERSID, self.offset, self.shape, self.stride, self.more,
        )  # fmt: skip

    def pickle(self) -> bytes:
        """A state dict with the tensor in it."""
        pairs = [(text("a"), self.tensor())]
        pairs += [(text("b"), self.second)] if self.second is not None else []
        return proto(2) + dict_of(*pairs) + STOP

    def zip(self) -> bytes:
        """The tensor in an archive."""
        stored = bytes(range(256))[: NUMEL * STORAGES[self.storage]]
        parts = ((b"data.pkl", self.pickle()), (b"data/0", stored), (b"version", b"3\n"))
        return Archive([Item(b"archive/" + part, data) for part, data in parts]).build()

    def legacy(self) -> bytes:
        """The tensor in a legacy stream."""
        stored = bytes(range(256))[: NUMEL * STORAGES[self.storage]]
        stream = legacy(self.pickle(), keys=list_of(text("0")))
        return stream + struct.pack("<q", NUMEL) + stored


def _tuple(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def _windows() -> Iterator[tuple[str, Lie, str]]:
    """Sizes, strides and offsets, which lie alike whatever the element type."""
    lie = Lie()
    yield "S02-offset-one", replace(lie, offset=number(1)), "tensor.bounds"
    yield "S02-size-more", replace(lie, shape=_tuple(4, 4)), "tensor.bounds"
    yield "S02-stride-more", replace(lie, stride=_tuple(5, 1)), "tensor.bounds"
    yield "S02-stride-inner", replace(lie, stride=_tuple(4, 2)), "tensor.bounds"
    yield (
        "S02-0-d-beyond",
        replace(lie, offset=number(12), shape=_tuple(), stride=_tuple()),
        ("tensor.bounds"),
    )
    yield "S03-offset-negative", replace(lie, offset=number(-1)), "tensor.view"
    yield "S03-size-negative", replace(lie, shape=_tuple(-3, -4)), "tensor.view"
    yield (
        "S03-stride-negative",
        replace(lie, offset=number(11), stride=_tuple(-4, -1)),
        "tensor.view",
    )
    yield "S06-size-short", replace(lie, shape=_tuple(3)), "tensor.rank"
    yield "S06-stride-short", replace(lie, stride=_tuple(1)), "tensor.rank"
    yield (
        "S05-expanded",
        replace(lie, shape=_tuple(1 << 40), stride=_tuple(0)),
        "tensors:tensor.expansion",
    )


def _once() -> Iterator[tuple[str, Lie, str]]:
    """Lies whose element type does not matter."""
    lie = Lie()
    wrong = "tensor.view"
    for value in HUGE:
        label = f"{value.bit_length()}-bit"
        far = wrong if value > 1 << 56 else "tensor.bounds"
        yield f"S02-offset-{label}", replace(lie, offset=number(value)), far
        yield f"S02-size-{label}", replace(lie, shape=_tuple(value, 1)), far
        yield f"S02-stride-{label}", replace(lie, stride=_tuple(value, 1)), far
        yield (
            f"S04-product-{label}",
            replace(lie, shape=_tuple(*[value] * 40), stride=_tuple(*[0] * 40)),
            (wrong if value > 1 << 56 else "tensor.numel"),
        )
        yield (
            f"S04-empty-{label}",
            replace(lie, shape=_tuple(0, value), stride=_tuple(1, 1)),
            (wrong if value > 1 << 56 else ""),
        )
        yield (
            f"S06-length-1-{label}",
            replace(lie, shape=_tuple(1, 2), stride=_tuple(value, 2)),
            (wrong if value > 1 << 56 else ""),
        )
    for label, part in (
        ("text", text("0")),
        ("bytes", data(b"0")),
        ("none", NONE),
        ("float", b"G" + b"\0" * 8),
        ("bool", TRUE),
        ("list", list_of(number(0))),
        ("tuple", _tuple(0)),
        ("dict", EMPTY_DICT),
        ("call", _HOOKS),
        ("global", name("builtins", "exec")),
        ("long", b"\x8b\xe8\x03\0\0" + b"\x7f" * 1000),
    ):
        yield f"S02-offset-is-{label}", replace(lie, offset=part), wrong
        if label not in ("list", "tuple"):
            yield f"S02-size-is-{label}", replace(lie, shape=part), wrong
            yield f"S02-stride-is-{label}", replace(lie, stride=part), wrong
        yield f"S02-size-holds-{label}", replace(lie, shape=tuple_of(number(3), part)), wrong
        if label != "none":
            yield f"P07-numel-is-{label}", replace(lie, numel=part), "tensor.storage"
        if label not in ("text", "bytes"):
            yield f"P07-key-is-{label}", replace(lie, key=part), "tensor.storage"
        yield f"P07-tag-is-{label}", replace(lie, tag=part), "tensor.storage"
        yield f"P07-ident-is-{label}", replace(lie, ident=part), "tensor.storage"
        if label != "global":
            yield f"P07-kind-is-{label}", replace(lie, kind=part), "tensor.storage"
        if label != "none":
            yield f"P07-view-is-{label}", replace(lie, view=part), "tensor.storage"
    yield "P07-numel-negative", replace(lie, numel=number(-12)), "tensor.storage"
    yield (
        "P07-view-negative",
        replace(lie, view=tuple_of(text("1"), number(-1), number(3))),
        ("tensor.storage"),
    )
    yield (
        "P07-view-shifted",
        replace(lie, view=tuple_of(text("1"), number(1), number(11))),
        ("tensor.bounds"),
    )
    for key in (
        "",
        "../0",
        "/etc/passwd",
        "0\0",
        "a" * 100_000,
        "0/../0",
        "\x1b[2J",
        "\u0661",
        "9",
    ):
        yield f"S08-key-{key[:12]!a}", replace(lie, key=text(key)), "storage."
    for kind in (
        name("torch", "Storage"),
        name("torch", "EvilStorage"),
        name("os", "FloatStorage"),
        name("torch", "FloatStorage.x"),
        name("builtins", "exec"),
        name("torch", "floatstorage"),
    ):
        yield f"P07-kind-{kind[1:-1]!a}", replace(lie, kind=kind), "tensor.dtype"
    for count in (0, 1, 11, 13, 24, 1 << 40):
        yield f"S01-numel-{count}", replace(lie, numel=number(count)), "storage.size"
    yield (
        "S06-rank-65",
        replace(lie, shape=_tuple(*[1] * 65), stride=_tuple(*[1] * 65)),
        "tensor.rank",
    )
    yield (
        "S06-rank-10000",
        replace(lie, shape=_tuple(*[1] * 10_000), stride=_tuple(*[1] * 10_000)),
        ("tensor.rank"),
    )
    yield "S06-rank-64", replace(lie, shape=_tuple(*[1] * 64), stride=_tuple(*[1] * 64)), ""
    yield (
        "S06-rank-64-scattered",
        replace(lie, shape=_tuple(2, *[1] * 62, 2), stride=_tuple(1, *[7] * 62, 5)),
        "",
    )
    yield "S05-expanded-64-MiB", replace(lie, shape=_tuple(1 << 24), stride=_tuple(0)), ""
    yield "S10-meta", replace(lie, location=text("meta")), ""
    yield "S10-cuda", replace(lie, location=text("cuda:99")), ""
    yield "S10-odd", replace(lie, location=text("\x1b[2J")), ""
    other = replace(lie, kind=name("torch", "IntStorage")).tensor()
    yield "S07-two-types", replace(lie, second=other), ""
    long = replace(lie, kind=name("torch", "LongStorage"), shape=_tuple(6), stride=_tuple(1))
    other = replace(long, numel=number(6)).tensor()
    yield "S07-two-sizes", replace(lie, second=other), ""
    yield "S07-two-lengths", replace(lie, second=long.tensor()), "storage.size"
    yield "P24-v2-short", replace(lie, more=b""), "tensor.arguments"
    yield "P24-v2-long", replace(lie, more=FALSE + _HOOKS + NONE + NONE), "tensor.arguments"
    for label, flags in (("conj", "conj"), ("neg", "neg")):
        metadata = dict_of((text(flags), TRUE))
        yield (
            f"S11-{label}-of-bytes",
            replace(lie, storage="ByteStorage", more=FALSE + _HOOKS + metadata),
            wrong,
        )
        yield (
            f"S11-{label}-of-bool",
            replace(lie, storage="BoolStorage", more=FALSE + _HOOKS + metadata),
            wrong,
        )
        yield (
            f"S11-{label}-of-complex",
            replace(lie, storage="ComplexFloatStorage", more=FALSE + _HOOKS + metadata),
            "",
        )
    yield (
        "S11-conj-of-floats",
        replace(lie, more=FALSE + _HOOKS + dict_of((text("conj"), TRUE))),
        wrong,
    )
    yield (
        "S11-metadata-is-text",
        replace(lie, more=FALSE + _HOOKS + text("conj")),
        "tensor.arguments",
    )
    for label, dtype in (
        ("exec", name("builtins", "exec")),
        ("text", text("float32")),
        ("none", NONE),
    ):
        yield (
            f"S07-v3-{label}",
            replace(lie, function="_rebuild_tensor_v3", more=FALSE + _HOOKS + dtype),
            "tensor.dtype",
        )
    yield (
        "S12-v3-unknown",
        replace(lie, function="_rebuild_tensor_v3", more=FALSE + _HOOKS + name("torch", "float1")),
        "",
    )
    yield (
        "S07-v3-wider",
        replace(lie, function="_rebuild_tensor_v3", more=FALSE + _HOOKS + name("torch", "float64")),
        "tensor.bounds",
    )
    yield (
        "S12-quantised",
        replace(lie, storage="CharStorage", kind=name("torch", "QInt8Storage")),
        "",
    )


def cases() -> Iterator[Case]:
    """Every window lie for every element type, every other lie once; in both containers."""
    lies = [
        (f"{label}-{storage}", replace(lie, storage=storage), code)
        for label, lie, code in _windows()
        for storage in STORAGES
    ]
    for label, lie, code in (*lies, *_once()):
        late = code.removeprefix("tensors:") if code.startswith("tensors:") else None
        early = None if late or not code else code
        in_zip, in_legacy = early, early
        if code == "storage.":
            in_zip, in_legacy = "storage.missing", "legacy.keys"
        elif label.startswith("S01") and int(label.rpartition("-")[2]) > NUMEL:
            in_legacy = "format.truncated"
        elif label == "S07-two-sizes":
            # A zip archive says how many bytes a record has, a legacy stream how many elements.
            in_legacy = "storage.size"
        yield Case(f"{label}-zip", lie.zip(), code=in_zip, tensors_code=late)
        yield Case(f"{label}-legacy", lie.legacy(), code=in_legacy, tensors_code=late)
