"""Attack pickles: the shapes that advisories on pickle loaders and scanners describe, by id.

`runs` tells those that a plain `pickle.loads` executes: the corpus is checked for that, so that
what is refused or listed here is the real thing.

Source of the shapes: the public advisories of picklescan and fickling, CVE-2025-1716, -1889,
-10155, CVE-2026-24747, CVE-2018-20406, cpython issues 115952, 154318, 154848 and 135321.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .opcodes import (
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    FROZENSET,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    POP_MARK,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    STOP,
    TRUE,
    TUPLE,
    TUPLE1,
    TUPLE2,
    call,
    data,
    dict_of,
    frame,
    get,
    list_of,
    name,
    number,
    proto,
    put,
    stack_name,
    text,
    tuple_of,
)

CODE = "import sys; sys.attacked = True"
EXEC = name("builtins", "exec")
ARGUMENT = text(CODE)
ARGUMENTS = ARGUMENT + TUPLE1
NAMES = ("builtins.exec",)
NAMESPACE = name("types", "SimpleNamespace")
ORDERED = name("collections", "OrderedDict")
RUN = call(EXEC, ARGUMENT)


@dataclass(frozen=True, slots=True)
class Attack:
    """A stream, the error that it must give (None: it is readable), the globals to be listed.

    `codes` are the errors that it gives inside other containers, where they differ.
    """

    name: str
    stream: bytes
    code: str | None = None
    names: tuple[str, ...] = ()
    runs: bool = False
    codes: Mapping[str, str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def harmless_to_unpickle(self) -> bool:
        """Whether a plain unpickler survives it: it is told to do nothing but set a flag."""
        return not self.name.startswith(
            ("P09-put", "P12", "P13", "P10", "P21", "P24", "P04-newobj-class")
        )


def shapes() -> Iterator[Attack]:
    """Every shape of attack, once."""
    yield from _calls()
    yield from _names()
    yield from _objects()
    yield from _containers()
    yield from _memo()
    yield from _frames()
    yield from _lengths()
    yield from _texts()
    yield from _structure()
    yield from _nested_bytes()


def _calls() -> Iterator[Attack]:
    for version in (0, 1, 2, 3, 4, 5):
        start = proto(version) if version > 1 else b""
        module = "__builtin__" if version < 3 else "builtins"
        yield Attack(
            f"P01-reduce-protocol-{version}",
            start + call(name(module, "exec"), ARGUMENT) + STOP,
            names=(f"{module}.exec",),
            runs=True,
        )
    two = proto(2)
    inst = MARK + ARGUMENT + b"ibuiltins\nexec\n"
    yield Attack("P03-inst", two + inst + STOP, names=NAMES, runs=True)
    yield Attack("P03-inst-popped", two + inst + POP + NONE + STOP, names=NAMES, runs=True)
    called = MARK + EXEC + ARGUMENT + OBJ
    yield Attack("P03-obj", two + called + STOP, names=NAMES, runs=True)
    yield Attack("P03-obj-popped", two + called + POP + EMPTY_DICT + STOP, names=NAMES, runs=True)
    yield Attack("P03-obj-empty-mark", two + MARK + OBJ + STOP, "pickle.stack")
    yield Attack("P04-newobj", two + EXEC + ARGUMENTS + NEWOBJ + STOP, names=NAMES)
    yield Attack(
        "P04-newobj-ex", proto(4) + EXEC + ARGUMENTS + EMPTY_DICT + NEWOBJ_EX + STOP, names=NAMES
    )
    popen = name("subprocess", "Popen")
    yield Attack(
        "P04-newobj-class",
        two + popen + list_of(text("true")) + TUPLE1 + NEWOBJ + STOP,
        names=("subprocess.Popen",),
    )
    yield Attack("P01-popped", two + RUN + POP + EMPTY_DICT + STOP, names=NAMES, runs=True)
    yield Attack(
        "P01-popped-by-mark",
        two + MARK + RUN + POP_MARK + EMPTY_DICT + STOP,
        names=NAMES,
        runs=True,
    )
    yield Attack("P01-in-key", two + dict_of((RUN, NONE)) + STOP, names=NAMES, runs=True)
    yield Attack("P01-in-value", two + dict_of((text("a"), RUN)) + STOP, names=NAMES, runs=True)
    yield Attack("P01-in-persistent-id", two + RUN + POP + NONE + STOP, names=NAMES, runs=True)
    getter = call(name("builtins", "getattr"), name("builtins", "print"), text("__self__"))
    found = call(name("builtins", "getattr"), getter, text("exec"))
    yield Attack(
        "P01-getattr-chain",
        two + call(found, ARGUMENT) + STOP,
        names=("builtins.getattr",),
        runs=True,
    )
    partial = call(name("functools", "partial"), EXEC, ARGUMENT)
    yield Attack(
        "P23-partial", two + call(partial) + STOP, names=("functools.partial", *NAMES), runs=True
    )
    yield Attack(
        "P23-map",
        two
        + call(name("builtins", "list"), call(name("builtins", "map"), EXEC, list_of(ARGUMENT)))
        + STOP,
        names=("builtins.map", *NAMES),
        runs=True,
    )
    resolved = call(name("pkgutil", "resolve_name"), text("builtins:exec"))
    yield Attack(
        "P23-resolve-name",
        two + call(resolved, ARGUMENT) + STOP,
        names=("pkgutil.resolve_name",),
        runs=True,
    )
    yield Attack(
        "P22-dotted-name",
        proto(4) + call(stack_name("pathlib", "os.getpid")) + STOP,
        names=("pathlib.os.getpid",),
    )
    yield Attack(
        "P22-dotted-exec",
        proto(4) + call(stack_name("builtins", "print.__self__.exec"), ARGUMENT) + STOP,
        names=("builtins.print.__self__.exec",),
        runs=True,
    )
    for size in (1, 2, 4):
        code = {1: b"\x82\x01", 2: b"\x83\x01\x00", 4: b"\x84\x01\x00\x00\x00"}[size]
        yield Attack(f"P06-ext{size}", two + code + EMPTY_TUPLE + REDUCE + STOP, "pickle.opcode")
    yield Attack(
        "P24-bytearray",
        two + call(name("builtins", "bytearray"), number(1 << 40)) + STOP,
    )
    yield Attack(
        "P24-codecs-rot13", two + call(name("_codecs", "encode"), text("a"), text("rot13")) + STOP
    )
    big = tuple_of(number(1 << 16), number(1 << 16))
    yield Attack("P24-tensor-size", two + name("torch", "Tensor") + big + REDUCE + STOP)
    yield Attack(
        "P24-untyped-storage",
        two + call(name("torch.storage", "UntypedStorage"), number(1 << 40)) + STOP,
    )


def _names() -> Iterator[Attack]:
    four = proto(4)
    module, attribute = text("builtins"), text("exec")
    run = STACK_GLOBAL + ARGUMENTS + REDUCE + STOP
    yield Attack("P02-plain", four + module + attribute + run, names=NAMES, runs=True)
    yield Attack(
        "P02-from-memo",
        four + module + put(0) + attribute + put(1) + POP + POP + get(0) + get(1) + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-put-again",
        four
        + module
        + put(0)
        + POP
        + attribute
        + put(1)
        + POP
        + get(0)
        + put(2)
        + POP
        + get(2)
        + get(1)
        + put(0)
        + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-decoy-popped",
        four + module + attribute + text("os") + POP + text("path") + text("x") + POP + POP + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-decoy-mark",
        four
        + module
        + attribute
        + MARK
        + text("collections")
        + text("OrderedDict")
        + POP_MARK
        + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-duplicate",
        four + module + attribute + DUP + POP + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-memo-replaced",
        four
        + text("collections")
        + put(0)
        + POP
        + module
        + put(0)
        + POP
        + get(0)
        + attribute
        + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-unicode-8",
        four + b"\x8d" + struct.pack("<Q", 8) + b"builtins" + b"Vexec\n" + run,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P02-escaped-text", four + b"Vbuiltin\\u0073\nV\\u0065xec\n" + run, names=NAMES, runs=True
    )
    for wrong, part in (
        ("bytes", data(b"exec")),
        ("none", NONE),
        ("number", number(1)),
        ("tuple", EMPTY_TUPLE),
        ("global", EXEC),
        ("list", EMPTY_LIST),
    ):
        yield Attack(f"P02-name-is-{wrong}", four + module + part + run, "pickle.operand")
        yield Attack(f"P02-module-is-{wrong}", four + part + attribute + run, "pickle.operand")
    yield Attack("P02-one-string", four + module + run, "pickle.stack")
    yield Attack("P02-below-mark", four + module + MARK + attribute + run, "pickle.stack")
    for label, odd in (
        ("escape", "\x1b[2J\x1b]0;owned\x07"),
        ("newline", "a\nb"),
        ("nul", "a\0b"),
        ("bidi", "a\u202egpj.exe"),
        ("surrogate", "a\ud800b"),
        ("long", "x" * 100_000),
        ("dots", "." * 50_000),
        ("empty", ""),
    ):
        yield Attack(
            f"P27-name-{label}",
            four + call(stack_name("evil", odd)) + STOP,
            names=(f"evil.{odd}",),
        )
        yield Attack(
            f"P27-key-{label}", four + dict_of((text(odd), RUN)) + STOP, names=NAMES, runs=True
        )
    yield Attack(
        "P28-python2-eval",
        b"c__builtin__\nexec\n" + ARGUMENTS + REDUCE + STOP,
        names=("__builtin__.exec",),
        runs=True,
    )
    yield Attack(
        "P28-copy-reg",
        proto(2)
        + call(
            name("copy_reg", "_reconstructor"),
            name("os", "system"),
            name("__builtin__", "object"),
            NONE,
        )
        + STOP,
        names=("os.system",),
    )


def _objects() -> Iterator[Attack]:
    two = proto(2)
    space = NAMESPACE + EMPTY_TUPLE + NEWOBJ
    yield Attack(
        "P05-setstate-replaced",
        two + space + dict_of((text("__setstate__"), EXEC)) + BUILD + ARGUMENT + BUILD + STOP,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P05-slot-state",
        two
        + space
        + NONE
        + dict_of((text("__setstate__"), EXEC))
        + TUPLE2
        + BUILD
        + ARGUMENT
        + BUILD
        + STOP,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P05-append-replaced",
        two + space + dict_of((text("append"), EXEC)) + BUILD + ARGUMENT + APPEND + STOP,
        names=NAMES,
        runs=True,
    )
    yield Attack(
        "P05-extend-replaced",
        two
        + space
        + dict_of((text("extend"), call(name("functools", "partial"), EXEC, ARGUMENT)))
        + BUILD
        + MARK
        + dict_of()
        + APPENDS
        + STOP,
        names=("functools.partial", *NAMES),
    )
    yield Attack(
        "P05-add-replaced",
        proto(4) + space + dict_of((text("add"), EXEC)) + BUILD + MARK + ARGUMENT + ADDITEMS + STOP,
        names=NAMES,
        runs=True,
    )
    defaults = NONE + dict_of((text("__defaults__"), tuple_of(RUN))) + TUPLE2
    yield Attack(
        "P05-build-function",
        two + name("torch._utils", "_rebuild_tensor_v2") + defaults + BUILD + STOP,
        "pickle.operand",
        runs=True,
    )
    for label, target in (
        ("dict", EMPTY_DICT),
        ("text", text("a")),
        ("tuple", EMPTY_TUPLE),
        ("list", EMPTY_LIST),
        ("none", NONE),
        ("number", number(1)),
    ):
        yield Attack(
            f"P05-build-{label}", two + target + dict_of() + BUILD + STOP, "pickle.operand"
        )
    yield Attack(
        "P05-class-swapped",
        two + space + dict_of((text("__class__"), EXEC)) + BUILD + STOP,
        names=NAMES,
    )
    for label, ident in (
        ("text", text("storage")),
        ("number", number(0)),
        ("empty", EMPTY_TUPLE),
        ("nested", tuple_of(tuple_of(text("storage")))),
        ("dict", EMPTY_DICT),
        ("call", RUN),
        ("short", tuple_of(text("storage"), EXEC)),
    ):
        # pickle.loads has no persistent_load and stops there, after what stands before.
        yield Attack(
            f"P07-persistent-{label}",
            two + EXEC + POP + ident + BINPERSID + STOP,
            names=NAMES,
            runs=label == "call",
            codes={"legacy": "tensor.storage"},
        )
    yield Attack("P07-persid-line", b"cbuiltins\nexec\n0P\xff\xfe\n.", "pickle.text")
    yield Attack(
        "P07-persid-text",
        EXEC + POP + b"Pstorage\n.",
        names=NAMES,
        codes={"legacy": "tensor.storage"},
    )
    tensor = call(name("torch._utils", "_rebuild_tensor_v2"), NONE)
    yield Attack(
        "P08-setitem-on-tensor",
        two + tensor + text("a") + NONE + SETITEM + STOP,
        "tensor.arguments",
    )
    for opcode, part in (
        ("setitem", text("a") + NONE + SETITEM),
        ("append", NONE + APPEND),
        ("appends", MARK + NONE + APPENDS),
        ("setitems", MARK + NONE + NONE + SETITEMS),
        ("additems", MARK + NONE + ADDITEMS),
    ):
        for label, target in (
            ("text", text("a")),
            ("tuple", EMPTY_TUPLE),
            ("global", EXEC),
            ("number", number(1)),
            ("bytes", data(b"a")),
            ("frozenset", MARK + FROZENSET),
            ("none", NONE),
        ):
            if (opcode, label) != ("additems", "frozenset"):
                yield Attack(
                    f"P08-{opcode}-on-{label}", proto(4) + target + part + STOP, "pickle.operand"
                )


def _containers() -> Iterator[Attack]:
    two = proto(2)
    for label, made in (
        ("tuples", EMPTY_TUPLE + (DUP + TUPLE2) * 60),
        ("lists", EMPTY_LIST + (put(0) + POP + EMPTY_LIST + MARK + get(0) + get(0) + APPENDS) * 60),
        (
            "dicts",
            EMPTY_DICT + (put(0) + POP + dict_of((text("a"), get(0)), (text("b"), get(0)))) * 60,
        ),
        (
            "sets",
            EMPTY_TUPLE
            + (DUP + MARK + POP_MARK + TUPLE2) * 60
            + put(0)
            + POP
            + EMPTY_SET
            + MARK
            + get(0)
            + get(0)
            + ADDITEMS,
        ),
    ):
        yield Attack(f"P10-laughs-{label}", two + made + STOP)
        yield Attack(f"P10-laughs-{label}-called", two + made + EMPTY_TUPLE + REDUCE + STOP)
        yield Attack(
            f"P10-laughs-{label}-argument", two + EXEC + made + TUPLE1 + REDUCE + STOP, names=NAMES
        )
        yield Attack(
            f"P10-laughs-{label}-key", two + made + put(1) + POP + dict_of((get(1), NONE)) + STOP
        )
        yield Attack(
            f"P10-laughs-{label}-state",
            two + NAMESPACE + EMPTY_TUPLE + NEWOBJ + made + BUILD + STOP,
        )
    for label, wrap in (
        ("tuple", TUPLE1),
        ("call", EMPTY_TUPLE + REDUCE),
        ("newobj", EMPTY_TUPLE + NEWOBJ),
        ("frozenset", b""),
    ):
        deep = EXEC + wrap * 100_000 if wrap else MARK * 50_000 + NONE + FROZENSET * 50_000
        names = NAMES if wrap else ()
        code = "tree.depth" if label in ("tuple", "frozenset") else None
        yield Attack(f"P12-deep-{label}", proto(4) + deep + STOP, code, names)
        yield Attack(
            f"P12-deep-{label}-key",
            proto(4) + EMPTY_DICT + deep + NONE + SETITEM + STOP,
            None,
            names,
        )
    deep = EMPTY_LIST * 100_000 + APPEND * 99_999
    yield Attack("P12-deep-list", two + deep + STOP, "tree.depth")
    yield Attack(
        "P12-deep-dict",
        two + (EMPTY_DICT + NONE) * 99_999 + NONE + SETITEM * 99_999 + STOP,
        "tree.depth",
    )
    yield Attack(
        "P12-deep-persistent",
        two + NONE + BINPERSID * 100_000 + STOP,
        codes={"legacy": "tensor.storage"},
    )
    yield Attack(
        "P12-deep-state",
        two + (EXEC + EMPTY_TUPLE + REDUCE) * 50_000 + BUILD * 49_999 + STOP,
        "tree.depth",
        NAMES,
    )
    colliding = [number(k * ((1 << 61) - 1)) for k in range(1, 20_001)]
    yield Attack("P13-colliding-keys", two + dict_of(*((key, NONE) for key in colliding)) + STOP)
    yield Attack(
        "P13-colliding-set", proto(4) + EMPTY_SET + MARK + b"".join(colliding) + ADDITEMS + STOP
    )
    twice = dict_of((text("a"), RUN), (text("a"), NONE))
    yield Attack("P25-key-twice", two + twice + STOP, names=NAMES, runs=True)
    cycle = EMPTY_LIST + put(0) + get(0) + APPEND
    yield Attack("P10-cycle-list", two + cycle + STOP)
    yield Attack("P10-cycle-dict", two + EMPTY_DICT + put(0) + text("a") + get(0) + SETITEM + STOP)
    yield Attack(
        "P10-cycle-call",
        two + EXEC + EMPTY_TUPLE + REDUCE + put(0) + get(0) + BUILD + STOP,
        names=NAMES,
    )


def _memo() -> Iterator[Attack]:
    two = proto(2)
    for index in (2, 1 << 8, 1 << 28, (1 << 32) - 1):
        yield Attack(
            f"P09-put-{index}", two + NONE + b"r" + struct.pack("<I", index) + STOP, "pickle.memo"
        )
    yield Attack("P09-put-text", two + NONE + b"p" + b"9" * 30 + b"\n" + STOP, "pickle.memo")
    yield Attack(
        "P09-put-long-text", two + NONE + b"p" + b"9" * 5_000 + b"\n" + STOP, "pickle.memo"
    )
    yield Attack("P09-put-negative", two + NONE + b"p-1\n" + STOP, "pickle.memo")
    yield Attack("P09-get-missing", two + get(0) + STOP, "pickle.memo")
    yield Attack("P09-get-far", two + get(1 << 30) + STOP, "pickle.memo")
    yield Attack("P09-get-negative", two + NONE + put(0) + b"g-1\n" + STOP, "pickle.memo")
    yield Attack("P09-get-gap", two + NONE + put(1) + get(0) + STOP, "pickle.memo")
    yield Attack("P09-put-nothing", two + put(0) + NONE + STOP, "pickle.stack")
    yield Attack("P09-memoize-nothing", proto(4) + MEMOIZE + NONE + STOP, "pickle.stack")
    yield Attack("P09-memoize-mark", proto(4) + NONE + MARK + MEMOIZE + STOP, "pickle.stack")
    grown = EMPTY_DICT + put(0) + text("a") + RUN + SETITEM
    yield Attack("P11-filled-after-put", two + grown + POP + get(0) + STOP, names=NAMES, runs=True)


def _frames() -> Iterator[Attack]:
    four = proto(4)
    # What stands in the operand of the frame's last opcode is run by readers that leave it there.
    hidden = RUN + STOP
    yield Attack(
        "P14-straddle",
        four + frame(b"X" + struct.pack("<I", len(hidden)), 5) + hidden + NONE + STOP,
        "pickle.frame",
    )
    yield Attack(
        "P14-straddle-binbytes8",
        four + frame(b"\x8e" + struct.pack("<Q", 64), 9) + b"x" * 64 + STOP,
        "pickle.frame",
    )
    yield Attack("P14-nested", four + frame(frame(NONE) + STOP), "pickle.frame")
    yield Attack(
        "P14-past-end",
        four + frame(NONE + STOP, 1 << 20),
        "pickle.truncated",
        codes={"legacy": "pickle.truncated"},
    )
    yield Attack("P14-huge", four + frame(NONE + STOP, (1 << 64) - 1), "pickle.truncated")
    yield Attack("P14-stop-inside", four + frame(NONE + STOP + b"N" * 8), "pickle.frame")
    yield Attack("P14-empty", four + frame(b"") + frame(RUN + STOP), names=NAMES, runs=True)
    yield Attack(
        "P14-many", four + frame(NONE + POP) * 500 + frame(RUN + STOP), names=NAMES, runs=True
    )
    yield Attack("P14-unframed", four + frame(RUN + POP) + NONE + STOP, names=NAMES, runs=True)


def _lengths() -> Iterator[Attack]:
    three = proto(3)
    cut = "pickle.truncated"
    for opcode, width, sizes in (
        (b"\x8a", 1, (255,)),
        (b"\x8b", 4, (1 << 20, (1 << 31) - 1)),
        (b"C", 1, (255,)),
        (b"B", 4, (1 << 20, (1 << 32) - 1)),
        (b"\x8e", 8, (1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)),
        (b"\x8c", 1, (255,)),
        (b"X", 4, (1 << 20, (1 << 32) - 1)),
        (b"\x8d", 8, (1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)),
        (b"\x96", 8, (1 << 20, 1 << 40, (1 << 64) - 1)),
        (b"U", 1, (255,)),
        (b"T", 4, (1 << 20, (1 << 31) - 1)),
    ):
        for size in sizes:
            body = opcode + size.to_bytes(width, "little") + b"short"
            yield Attack(f"P15-{opcode.hex()}-{size:#x}", three + body + STOP, cut)
    for opcode in (b"\x8b", b"T"):
        for size in (-1, -(1 << 31)):
            yield Attack(
                f"P15-{opcode.hex()}-{size}",
                three + opcode + struct.pack("<i", size) + STOP,
                "pickle.operand",
            )
    for label, body in (("next-buffer", b"\x97"), ("readonly-buffer", NONE + b"\x98")):
        yield Attack(f"P26-{label}", proto(5) + body + STOP, "pickle.opcode")
    for version in (6, 7, 255):
        yield Attack(
            f"P26-protocol-{version}",
            proto(2) + POP + STOP if version == 7 else proto(version) + RUN + STOP,
            "pickle.stack" if version == 7 else "pickle.protocol",
            codes={} if version == 7 else {"raw": "not-a-checkpoint.unknown"},
        )
    yield Attack(
        "P26-protocol-again", proto(2) + proto(2) + RUN + STOP, "pickle.protocol", runs=True
    )
    yield Attack(
        "P26-protocol-late", proto(2) + RUN + proto(2) + STOP, "pickle.protocol", runs=True
    )


def _texts() -> Iterator[Attack]:
    two = proto(2)
    wrong = "pickle.operand"
    for label, line, code in (
        ("int-hex", b"I0x10\n", wrong),
        ("int-empty", b"I\n", wrong),
        ("int-space", b"I 1\n", wrong),
        ("int-underscore", b"I1_0\n", wrong),
        ("int-arabic", "I\u0663\n".encode(), wrong),
        ("int-true", b"I01\n", None),
        ("int-long-zeros", b"I001\n", None),
        ("int-huge", b"I" + b"9" * 100_000 + b"\n", None),
        ("long-huge", b"L" + b"9" * 100_000 + b"L\n", None),
        ("long-word", b"Lten\n", wrong),
        ("float-word", b"Fone\n", wrong),
        ("float-long", b"F" + b"9" * 100_000 + b"\n", wrong),
        ("float-exponent", b"F1e999999\n", wrong),
        ("float-overflow", b"F1e99999\n", None),
        ("float-nan", b"Fnan\n", None),
        ("string-open", b"S'abc\n", wrong),
        ("string-bare", b"Sabc\n", wrong),
        ("string-one", b"S'\n", wrong),
        ("string-escape", b"S'\\x41\\101\\q'\n", None),
        ("unicode-escape", b"V\\u12\n", "pickle.text"),
        ("unicode-surrogate", b"V\\ud800\n", None),
        ("binunicode-bad", b"X\x02\0\0\0\xff\xfe", "pickle.text"),
        ("global-bad", b"c\xff\n\xfe\n", "pickle.text"),
        ("no-newline", b"I1", "pickle.truncated"),
    ):
        yield Attack(f"P16-{label}", two + line + STOP, code)
    yield Attack("P17-seed", two + dict_of((text("seed"), number(1 << 64))) + STOP)
    yield Attack("P17-long1", two + b"\x8a\xff" + b"\x7f" * 255 + STOP)
    yield Attack("P17-long4", two + b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + STOP)
    yield Attack("P17-key", two + dict_of((number(1 << 2000), RUN)) + STOP, names=NAMES, runs=True)


def _structure() -> Iterator[Attack]:
    two = proto(2)
    yield Attack(
        "P19-no-stop", two + RUN, "pickle.truncated", runs=True, codes={"legacy": "pickle.protocol"}
    )
    yield Attack("P19-bad-opcode", two + RUN + b"\xff" + STOP, "pickle.opcode", runs=True)
    yield Attack("P19-zero-opcode", two + RUN + b"\0" + STOP, "pickle.opcode", runs=True)
    yield Attack("P19-underflow", two + RUN + POP + POP + STOP, "pickle.stack", runs=True)
    yield Attack(
        "P19-cut-operand",
        two + RUN + b"X\xff",
        "pickle.truncated",
        runs=True,
        codes={"legacy": "pickle.truncated"},
    )
    trailing = {"zip": "pickle.trailing", "legacy": "legacy.keys"}
    yield Attack("P20-two-pickles", two + NONE + STOP + two + RUN + STOP, None, codes=trailing)
    yield Attack(
        "P20-trailing",
        two + RUN + STOP + b"garbage",
        names=NAMES,
        runs=True,
        codes={"zip": "pickle.trailing", "legacy": "pickle.truncated"},
    )
    yield Attack("P20-leftover", two + EMPTY_LIST + RUN + STOP, "pickle.stack", runs=True)
    yield Attack("P20-open-mark", two + MARK + RUN + STOP, "pickle.stack", runs=True)
    yield Attack("P20-empty", two + STOP, "pickle.stack")
    yield Attack("P20-only-mark", two + MARK + STOP, "pickle.stack")
    yield Attack(
        "P20-odd-items",
        two + EMPTY_DICT + MARK + RUN + SETITEMS + STOP,
        "pickle.operand",
        runs=True,
    )
    yield Attack("P20-odd-dict", two + MARK + RUN + b"d" + STOP, "pickle.operand", runs=True)
    yield Attack("P20-mark-popped", two + MARK + POP + RUN + STOP, names=NAMES, runs=True)
    yield Attack("P20-no-mark", two + NONE + TUPLE + STOP, "pickle.stack")
    yield Attack("P20-below-mark", two + NONE + MARK + DUP + STOP, "pickle.stack")
    yield Attack("P20-true", two + TRUE + POP + RUN + STOP, names=NAMES, runs=True)


def legacy(body: bytes, magic: bytes | None = None, keys: bytes = EMPTY_LIST) -> bytes:
    """A legacy torch stream around a pickle."""
    number_of_torch = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
    system = dict_of((text("protocol_version"), number(1001)), (text("little_endian"), TRUE))
    return b"".join(
        (
            proto(2) + (magic or number_of_torch) + STOP,
            proto(2) + b"M\xe9\x03" + STOP,
            proto(2) + system + STOP,
            body,
            proto(2) + keys + STOP,
        )
    )


def nested(body: bytes, version: int = 4) -> bytes:
    """A call of `torch.storage._load_from_bytes` on a stream, without PROTO and STOP."""
    inner = data(body)
    if version < 3:
        encode = name("_codecs", "encode")
        inner = call(encode, text(body.decode("latin-1")), text("latin1"))
    return call(name("torch.storage", "_load_from_bytes"), inner)


def _nested_bytes() -> Iterator[Attack]:
    load = "torch.storage._load_from_bytes"
    attack = legacy(proto(2) + RUN + STOP)
    both = (load, *NAMES)
    for version in (2, 3, 4):
        start = proto(version)
        inner = nested(attack, version)
        yield Attack(f"P21-protocol-{version}", start + inner + STOP, names=both)
        yield Attack(f"P21-popped-{version}", start + inner + POP + NONE + STOP, names=both)
        yield Attack(f"P21-value-{version}", start + dict_of((text("a"), inner)) + STOP, names=both)
    four = proto(4)
    yield Attack("P21-bare", four + nested(proto(2) + RUN + STOP) + STOP, names=both)
    yield Attack(
        "P21-large",
        four + nested(proto(2) + data(b"x" * 9_000) + POP + RUN + STOP) + STOP,
        names=both,
    )
    yield Attack(
        "P21-inst",
        proto(2) + MARK + data(attack) + b"itorch.storage\n_load_from_bytes\n" + STOP,
        names=both,
    )
    yield Attack(
        "P21-obj",
        proto(2) + MARK + name("torch.storage", "_load_from_bytes") + data(attack) + OBJ + STOP,
        names=both,
    )
    yield Attack("P21-twice", four + nested(four + nested(attack) + STOP) + STOP, names=both)
    deep = attack
    for _ in range(50):
        deep = four + nested(deep) + STOP
    yield Attack("P21-deep", deep, names=(load,))
    yield Attack("P21-garbage", four + nested(b"\x80\x04garbage") + STOP, names=(load,))
    yield Attack("P21-zip", four + nested(b"PK\x03\x04" + b"\0" * 40) + STOP, names=(load,))
    yield Attack(
        "P21-as-storage",
        proto(2)
        + call(
            name("torch._utils", "_rebuild_tensor_v2"),
            nested(attack),
            number(0),
            tuple_of(number(1)),
            tuple_of(number(1)),
            b"\x89",
            ORDERED + EMPTY_TUPLE + REDUCE,
        )
        + STOP,
        "tensor.storage",
    )
    yield Attack(
        "P23-pickle-loads",
        four + call(name("pickle", "loads"), data(proto(2) + RUN + STOP)) + STOP,
        names=("pickle.loads",),
        runs=True,
    )


# Callables that advisories name, one or more for each class of advisory: what they reach differs,
# what a reader must do with them does not.
GADGETS = """
os.system os.popen os.execvp os.spawnlp os.posix_spawn os.remove os.rename posix.system nt.system
posixpath.os.system subprocess.Popen subprocess.check_output subprocess.getoutput
commands.getoutput pty.spawn pty.os.system _posixsubprocess.fork_exec
multiprocessing.util.spawnv_passfds multiprocessing.popen_spawn_posix.Popen
asyncio.unix_events._UnixSubprocessTransport._start asyncio.subprocess.create_subprocess_shell
concurrent.futures.ProcessPoolExecutor signal.raise_signal builtins.eval builtins.exec
builtins.compile builtins.__import__ builtins.open builtins.getattr builtins.setattr
builtins.breakpoint builtins.globals builtins.vars builtins.map builtins.input __builtin__.eval
__builtin__.execfile __builtin__.reload __builtin__.apply __builtin__.file importlib.import_module
importlib.machinery.SourceFileLoader importlib.util.spec_from_file_location imp.load_source
runpy.run_path runpy._run_code pkgutil.resolve_name zipimport.zipimporter code.interact
code.InteractiveInterpreter.runcode codeop.compile_command types.CodeType types.FunctionType
marshal.loads pickle.loads pickle.Unpickler _pickle.loads cPickle.loads dill.loads joblib.load
cloudpickle.cloudpickle.loads shelve.open copyreg.add_extension bdb.Bdb.run bdb.Bdb.runeval
pdb.run trace.Trace.run trace.Trace.runctx profile.run profile.Profile.run profile.Profile.runctx
cProfile.run cProfile.runctx timeit.timeit timeit.main doctest.debug_script doctest.testsource
dis.distb faulthandler._sigsegv atexit.register sched.scheduler.run idlelib.run.Executive.runcode
idlelib.pyshell.ModifiedInterpreter.runcommand idlelib.pyshell.ModifiedInterpreter.runcode
idlelib.autocomplete.AutoComplete.get_entity idlelib.autocomplete.AutoComplete.fetch_completions
idlelib.calltip.Calltip.fetch_tip idlelib.debugobj.ObjectTreeItem.SetText
lib2to3.pgen2.grammar.Grammar.loads lib2to3.pgen2.pgen.ParserGenerator.make_label
logging.config.listen logging.FileHandler logging.config._resolve pydoc.pipepager pydoc.locate
pydoc.tempfilepager inspect.getattr_static sys.settrace sys.modules.clear gc.get_objects
unittest.mock.patch test.support.script_helper.run_python ensurepip._run_pip pip.main
pip._internal.cli.main.main setuptools.sandbox.run_setup distutils.spawn.spawn
distutils.file_util.write_file venv.create site.execsitecustomize tkinter.Tcl
turtle.write_docstringdict readline.read_init_file rlcompleter.Completer.attr_matches
operator.attrgetter operator.methodcaller _operator.attrgetter functools.partial functools.reduce
itertools.starmap string.Formatter.format re.Scanner.scan weakref.finalize
_thread.start_new_thread threading.Thread threading.Timer ctypes.CDLL ctypes.string_at
_ctypes.dlopen cffi.FFI socket.create_connection socket.socket _socket.socket
ssl.get_server_certificate http.client.HTTPConnection urllib.request.urlopen
urllib.request.urlretrieve urllib2.urlopen ftplib.FTP smtplib.SMTP imaplib.IMAP4_stream
poplib.POP3 telnetlib.Telnet nntplib.NNTP xmlrpc.client.ServerProxy webbrowser.open requests.get
requests.api.post aiohttp.ClientSession httpx.get wsgiref.simple_server.make_server shutil.rmtree
shutil.copyfile tempfile.mktemp glob.glob io.open io.FileIO _io.open fileinput.input
linecache.getlines mmap.mmap fcntl.ioctl sqlite3.connect zipfile.ZipFile tarfile.open dbm.open
platform.popen platform._syscmd_file uuid._get_command_stdout cgitb.lookup cgi.test
_osx_support._read_output _aix_support._read_cmd_output _pyrepl.pager.pipe_pager
_testcapi.run_in_subinterp ntpath.os.system pathlib.os.system
numpy.testing._private.utils.runstring numpy.f2py.crackfortran.getlincoef
numpy.f2py.crackfortran._eval_length numpy.distutils.exec_command.exec_command numpy.load
numpy.fromfile numpy.memmap pandas.read_pickle pandas.eval scipy.io.loadmat numba.jit
IPython.embed nose.run_exit torch.load torch.save torch.compile torch.jit.load torch.jit.script
torch.hub.load torch.hub.load_state_dict_from_url torch.package.PackageImporter
torch.classes.load_library torch.ops.load_library torch.serialization.load
torch.utils._config_module.load_config torch.utils.collect_env.run
torch.utils.cpp_extension.load_inline torch.utils.bottleneck.__main__.run_cprofile
torch.utils.bottleneck.__main__.run_autograd_prof
torch.utils.data.datapipes.utils.decoder.basichandlers torch.utils.model_dump.main
torch._dynamo.guards.GuardBuilder.get torch._inductor.codecache.compile_file
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
torch.fx.graph_module._forward_from_src torch.jit.unsupported_tensor_ops.execWrapper
torch.distributed.rpc.rpc_sync torch.storage._load_from_bytes torch.multiprocessing.spawn
joblib.numpy_pickle.load sklearn.externals.joblib.load keras.models.load_model
tensorflow.io.read_file tensorflow.py_function mlflow.pyfunc.load_model evil.run __main__.build
models.yolo.setup
""".split()


def gadgets() -> Iterator[Attack]:
    """One call of each callable, spelled by GLOBAL or STACK_GLOBAL in turn."""
    for position, full in enumerate(GADGETS):
        module, _, attribute = full.rpartition(".")
        function = (stack_name if position % 2 else name)(module, attribute)
        stream = proto(4 if position % 2 else 2) + call(function, text("true")) + STOP
        yield Attack(f"P23-{full}", stream, names=(full,))
