"""Safetensors headers and shard indexes that lie.

Source: the format's README and the tests of safetensors 0.8.0; the path traversals reported against
loaders of `*.index.json` (transformers, diffusers, huggingface_hub).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from .case import Case


def packed(header: bytes, body: bytes = bytes(8), length: int | None = None) -> bytes:
    """A safetensors file; `length` may lie about the header's."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, object]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"a": entry()}


def _dumped(header: object) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _texts() -> Iterator[tuple[str, bytes, str | None]]:
    """Headers as text: what JSON parsers differ on."""
    good = _dumped(GOOD)
    one = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
    header = "safetensors.header"
    yield "empty-object", b"{}", "safetensors.coverage"
    yield "spaces-behind", good + b" " * 9, None
    for label, padding in (("newline", b"\n"), ("tab", b"\t"), ("nul", b"\0"), ("junk", b"x")):
        yield f"{label}-behind", good + padding, header
    yield "twice-in-a-row", good + good, header
    yield "cut", good[:-1], header
    yield "duplicate-name", b'{"a":{%s},"a":{%s}}' % (one, one), header
    yield "duplicate-escaped", b'{"a":{%s},"\\u0061":{%s}}' % (one, one), header
    yield "duplicate-field", b'{"a":{"dtype":"I32",%s}}' % one, header
    yield "duplicate-metadata-key", b'{"__metadata__":{"x":"1","x":"2"},"a":{%s}}' % one, header
    yield "duplicate-metadata", b'{"__metadata__":{},"__metadata__":{},"a":{%s}}' % one, header
    for label, number in (
        ("fraction", b"2.0"),
        ("exponent", b"2e0"),
        ("minus-zero", b"-0"),
        ("leading-zero", b"02"),
        ("plus", b"+2"),
        ("hex", b"0x2"),
        ("nan", b"NaN"),
        ("infinity", b"Infinity"),
        ("minus-infinity", b"-Infinity"),
        ("digits", b"9" * 5_000),
        ("underscore", b"1_0"),
    ):
        shape = b'"dtype":"F32","shape":[%s],"data_offsets":[0,8]' % number
        yield f"number-{label}", b'{"a":{%s}}' % shape, "safetensors."
        offset = b'"dtype":"F32","shape":[2],"data_offsets":[%s,8]' % number
        yield f"offset-{label}", b'{"a":{%s}}' % offset, "safetensors."
    zero = b'"dtype":"F32","shape":[-0],"data_offsets":[0,0]'
    yield "minus-zero-elements", b'{"a":{%s},"b":{%s}}' % (one, zero), header
    zero = b'"dtype":"F32","shape":[0],"data_offsets":[-0,-0]'
    yield "minus-zero-offsets", b'{"a":{%s},"b":{%s}}' % (one, zero), header
    yield "comment", b'{"a":{%s}/**/}' % one, header
    yield "trailing-comma", b'{"a":{%s},}' % one, header
    yield "single-quotes", b"{'a':{%s}}" % one, header
    yield "bad-utf8", b'{"\xff":{%s}}' % one, header
    yield "utf8-surrogate", b'{"\xed\xa0\x80":{%s}}' % one, header
    yield "control-character", b'{"a\nb":{%s}}' % one, header
    yield "lone-surrogate", b'{"\\ud800":{%s}}' % one, "safetensors.name"
    yield (
        "lone-surrogate-metadata",
        b'{"__metadata__":{"x":"\\ud800"},"a":{%s}}' % one,
        ("safetensors.metadata"),
    )
    yield (
        "lone-surrogate-metadata-key",
        b'{"__metadata__":{"\\udfff":"x"},"a":{%s}}' % one,
        ("safetensors.metadata"),
    )
    yield (
        "lone-surrogate-dtype",
        b'{"a":{"dtype":"\\ud800","shape":[2],"data_offsets":[0,8]}}',
        ("safetensors.dtype"),
    )
    yield "paired-surrogates", b'{"\\ud83d\\ude00":{%s}}' % one, None
    yield "nul-in-name", b'{"a\\u0000b":{%s}}' % one, None
    yield "escape-in-name", b'{"\\u001b[2J":{%s}}' % one, None
    yield "empty-name", b'{"":{%s}}' % one, None
    for depth in (500, 990, 1_000, 10_000, 400_000):
        nested = b"[" * depth + b"]" * depth
        yield f"nested-{depth}-value", b'{"a":%s}' % nested, "safetensors."
        yield (
            f"nested-{depth}-dtype",
            (b'{"a":{"dtype":%s,"shape":[2],"data_offsets":[0,8]}}' % nested),
            "safetensors.",
        )
        yield (
            f"nested-{depth}-shape",
            (b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,8]}}' % nested),
            "safetensors.",
        )
        yield (
            f"nested-{depth}-metadata",
            b'{"__metadata__":{"x":%s},"a":{%s}}' % (nested, one),
            ("safetensors."),
        )
        yield f"nested-{depth}-objects", b'{"a":' * depth + b"1" + b"}" * depth, "safetensors."
    yield "long-name", b'{"%s":{%s}}' % (b"x" * 1_000_000, one), None
    yield (
        "long-dtype",
        b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,8]}}' % (b"x" * 1_000_000),
        "safetensors.dtype",
    )


def _values() -> Iterator[tuple[str, object, str | None]]:
    """Headers as values: what a tensor may say of itself."""
    wrong, cover = "safetensors.entry", "safetensors.coverage"
    yield "good", GOOD, None
    for label, value in (
        ("null", None),
        ("text", "F32"),
        ("number", 1),
        ("list", []),
        ("true", True),
        ("empty", {}),
        ("no-dtype", {"shape": [2], "data_offsets": [0, 8]}),
        ("no-shape", {"dtype": "F32", "data_offsets": [0, 8]}),
        ("no-offsets", {"dtype": "F32", "shape": [2]}),
        ("more", {**entry(), "x": 1}),
    ):
        yield f"entry-{label}", {"a": value}, wrong
    for label, value in (
        ("null", None),
        ("text", "2"),
        ("number", 2),
        ("object", {}),
        ("true", [True]),
        ("nested", [[2]]),
        ("text-inside", ["2"]),
        ("null-inside", [None]),
        ("negative", [-2]),
        ("both-negative", [-1, -2]),
        ("65-axes", [1] * 65),
    ):
        yield f"shape-{label}", {"a": entry(shape=value)}, wrong
    for label, value in (
        ("null", None),
        ("none", []),
        ("one", [0]),
        ("three", [0, 4, 8]),
        ("text", ["0", "8"]),
        ("true", [False, True]),
        ("backwards", [8, 0]),
        ("negative", [-8, 0]),
        ("object", {}),
    ):
        yield f"offsets-{label}", {"a": entry(offsets=value)}, wrong
    for label, value in (
        ("null", None),
        ("number", 32),
        ("lower", "f32"),
        ("space", "F32 "),
        ("unknown", "F128"),
        ("empty", ""),
        ("list", ["F32"]),
        ("object", {"F32": 1}),
    ):
        yield f"dtype-{label}", {"a": entry(dtype=value)}, "safetensors.dtype"
    yield "size-short", {"a": entry(shape=[1])}, "safetensors.size"
    yield "size-long", {"a": entry(shape=[3])}, "safetensors.size"
    yield "size-dtype", {"a": entry(dtype="F64")}, "safetensors.size"
    yield "size-bits", {"a": entry(dtype="F4", shape=[15])}, "safetensors.size"
    for power in (31, 48, 62, 63):
        large = [1 << power, 1 << power]
        yield f"product-{power}", {"a": entry(shape=large)}, "safetensors."
        yield (
            f"empty-product-{power}",
            {"a": entry(), "b": entry(shape=[0, *large], offsets=[8, 8])},
            ("safetensors.shape"),
        )
    yield (
        "empty-20-digits",
        {"a": entry(), "b": entry(shape=[0, 10**20 - 1], offsets=[8, 8])},
        ("safetensors.shape"),
    )
    yield "hole-first", {"a": entry(shape=[1], offsets=[4, 8])}, cover
    yield "hole-last", {"a": entry(shape=[1], offsets=[0, 4])}, cover
    yield "hole-between", {"a": entry("U8", [2], [0, 2]), "b": entry("U8", [4], [4, 8])}, cover
    yield "overlap", {"a": entry("U8", [6], [0, 6]), "b": entry("U8", [6], [2, 8])}, cover
    yield "same-bytes", {"a": entry(), "b": entry()}, cover
    yield "inside", {"a": entry(), "b": entry("U8", [1], [3, 4])}, cover
    yield "empty-inside", {"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, cover
    yield "empty-beyond", {"a": entry(), "b": entry(shape=[0], offsets=[9, 9])}, cover
    yield "past-end", {"a": entry(shape=[4], offsets=[0, 16])}, "format.truncated"
    yield "far-past-end", {"a": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, "format.truncated"
    for label, value in (
        ("null", None),
        ("list", []),
        ("text", "x"),
        ("number", {"x": 1}),
        ("nested", {"x": {}}),
        ("none", {"x": None}),
    ):
        yield f"metadata-{label}", {"__metadata__": value, **GOOD}, "safetensors.metadata"
    yield "metadata-only", {"__metadata__": {}}, cover
    yield "packed", {"a": entry("F4", [16])}, None
    yield "bool-of-twos", {"a": entry("BOOL", [8])}, None


def _lengths() -> Iterator[tuple[str, bytes, str | None]]:
    """Whole files whose header length lies."""
    good = _dumped(GOOD)
    unknown = "not-a-checkpoint"
    for length in (0, 1, 100_000_001, 1 << 32, 1 << 63, (1 << 64) - 1):
        yield f"length-{length:#x}", packed(good, length=length), unknown
    yield "length-past-end", packed(good, length=len(good) + 9), "format.truncated"
    yield "length-into-data", packed(good, length=len(good) + 8), "safetensors.header"
    yield "length-short", packed(good, length=len(good) - 1), "safetensors.header"
    yield "length-only", struct.pack("<Q", 2), unknown
    yield "leading-space", packed(b" " + good), unknown
    yield "leading-bom", packed(b"\xef\xbb\xbf" + good), unknown
    yield "list", packed(b"[" + good + b"]"), unknown
    yield "data-behind", packed(good, bytes(9)), "safetensors.coverage"
    yield "data-cut", packed(good, bytes(7)), "format.truncated"
    yield "archive-behind", packed(good, bytes(8) + b"PK\x03\x04"), "safetensors.coverage"


def header_cases() -> Iterator[Case]:
    """Every safetensors file."""
    for label, text, code in _texts():
        yield Case(f"F-{label}", packed(text), "case.safetensors", code)
    for label, value, code in _values():
        yield Case(f"F-{label}", packed(_dumped(value)), "case.safetensors", code)
    for label, whole, code in _lengths():
        yield Case(f"F-{label}", whole, "case.safetensors", code)


SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
GOOD_SHARD = packed(_dumped(GOOD))


def _index(weight_map: object, **more: object) -> bytes:
    return json.dumps({"weight_map": weight_map, **more}).encode()


def index_cases() -> Iterator[Case]:
    """Every index: names that lead out of the folder, and shards that do not fit."""
    beside = {SHARD: GOOD_SHARD}

    def case(label: str, data: bytes, code: str | None, **more: object) -> Case:
        told = {"beside": beside, **more}
        return Case(f"I-{label}", data, INDEX, code, **told)  # type: ignore[arg-type]

    yield case("good", _index({"a": SHARD}), None)
    for name in (
        "../" + SHARD,
        "/etc/passwd",
        "./" + SHARD,
        "x/" + SHARD,
        "x\\" + SHARD,
        "..",
        ".",
        "",
        "C:" + SHARD,
        "-rf",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "a\u202eb",
        "\ud800",
        "//host/share",
        "file:///etc/passwd",
        "http://host/" + SHARD,
    ):
        yield case(f"path-{name!a}", _index({"a": name}), "index.path")
    yield case("path-long", _index({"a": "x" * 5_000}), "file.unreadable")
    yield case("missing", _index({"a": "other.safetensors"}), "file.missing")
    out = "index.path"
    for label, target, code in (
        ("out", "/etc/passwd", out),
        ("up", "../../etc/passwd", out),
        ("device", "/dev/zero", out),
        ("folder", "/etc", out),
        ("beside", SHARD, None),
        ("loop", "link.safetensors", "file."),
        ("nowhere", "/nonexistent/x", out),
        ("itself", INDEX, "not-a-checkpoint.json"),
    ):
        yield case(
            f"link-{label}",
            _index({"a": "link.safetensors"}),
            code,
            links={"link.safetensors": target},
        )
    yield case("key-elsewhere", _index({"b": SHARD}), "index.format")
    yield case("key-left-out", _index({}), None)
    yield case("key-more", _index({"a": SHARD, "b": SHARD}), "index.format")
    two = packed(_dumped({"a": entry("U8", [4], [0, 4]), "b": entry("U8", [4], [4, 8])}))
    yield case("tensor-not-in-index", _index({"a": SHARD}), "index.format", beside={SHARD: two})
    other = {SHARD: GOOD_SHARD, "other.safetensors": two}
    yield case(
        "in-two-shards",
        _index({"a": SHARD, "b": "other.safetensors"}),
        "index.format",
        beside=other,
    )
    yield case("itself", _index({"a": INDEX}), "not-a-checkpoint.json")
    second = {SHARD: GOOD_SHARD, "second.json": _index({"a": SHARD})}
    yield case("an-index", _index({"a": "second.json"}), "not-a-checkpoint.json", beside=second)
    ring = {"second.json": _index({"a": INDEX})}
    yield case("ring", _index({"a": "second.json"}), "not-a-checkpoint.json", beside=ring)
    yield case("total-more", _index({"a": SHARD}, metadata={"total_size": 9}), "index.format")
    yield case("total-right", _index({"a": SHARD}, metadata={"total_size": 8}), None)
    yield case("total-fraction", _index({"a": SHARD}, metadata={"total_size": 8.0}), None)
    for label, value in (
        ("null", None),
        ("list", [SHARD]),
        ("text", SHARD),
        ("number", 1),
        ("nested", {"a": {"b": SHARD}}),
        ("list-inside", {"a": [SHARD]}),
        ("null-inside", {"a": None}),
    ):
        yield case(f"map-{label}", _index(value), "index.format")
    raw = b'{"weight_map":{"a":"%s","a":"%s"}}' % (SHARD.encode(), SHARD.encode())
    yield case("duplicate-key", raw, "index.json")
    yield case("duplicate-map", b'{"weight_map":{},"weight_map":{}}', "index.json")
    yield case("nested", b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "index.json")
    yield case("not-json", b'{"weight_map":{"a":}}', "index.json")
    yield case(
        "number-of-5000-digits", b'{"weight_map":{},"x":' + b"9" * 5_000 + b"}", "index.json"
    )
    yield case("bad-utf8", b'{"weight_map":{"\xff":"x"}}', "index.json")
    for label, shard, code in (
        ("empty", b"", "not-a-checkpoint.empty"),
        ("cut", GOOD_SHARD[:-1], "format.truncated"),
        ("text", b"hello", "not-a-checkpoint.text"),
        ("html", b"<html>", "not-a-checkpoint.html"),
    ):
        yield case(f"shard-{label}", _index({"a": SHARD}), code, beside={SHARD: shard})
