"""Lies in the formats without a directory: legacy streams, tar files, numpy pickles, darknet.

Source: `torch/serialization.py` (`_legacy_load`, `legacy_load`; torch 2.15), POSIX ustar, numpy's
`array_setstate`, AlexeyAB/darknet `src/parser.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from . import opcodes as op
from .case import Case
from .opcodes import STOP, dict_of, list_of, name, number, proto, text, tuple_of
from .pickles import EXEC, NAMES, RUN, legacy
from .tars import header, member, tar
from .views import Lie

TWO = proto(2)
SIZE = 12 * 4
DATA = bytes(range(SIZE))
ROOT = Lie().pickle()
ONE_KEY = list_of(text("0"))


def _pickled(body: bytes) -> bytes:
    return TWO + body + STOP


def legacy_cases() -> Iterator[Case]:
    """Legacy streams: the five pickles and the storages behind them."""
    good = legacy(ROOT, keys=ONE_KEY)
    prefix = struct.pack("<q", 12)

    def case(label: str, data: bytes, code: str | None, *names: str) -> Case:
        return Case(f"L-{label}", data, "case.pth", code, names)

    yield case("good", good + prefix + DATA, None)
    yield case("trailing", good + prefix + DATA + b"x" * 9, None)
    size, cut = "storage.size", "format.truncated"
    for value in (0, 11, 13, -1, -12, 1 << 40, (1 << 63) - 1, -(1 << 63)):
        yield case(f"L01-length-{value}", good + struct.pack("<q", value) + DATA, size)
    for left in (0, 1, 47):
        yield case(f"L02-cut-{left}", good + prefix + DATA[:left], cut)
    yield case("L02-cut-prefix", good + prefix[:3], cut)
    yield case("L02-no-storages", good, cut)
    big = Lie(numel=number(1 << 40)).pickle()
    huge = struct.pack("<q", 1 << 40)
    yield case("L01-terabytes", legacy(big, keys=ONE_KEY) + huge + DATA, cut)
    keys = "legacy.keys"
    for label, part in (
        ("none", op.NONE),
        ("text", text("0")),
        ("dict", op.EMPTY_DICT),
        ("tuple", tuple_of(text("0"))),
        ("numbers", list_of(number(0))),
        ("nested", list_of(list_of(text("0")))),
        ("twice", list_of(text("0"), text("0"))),
        ("unknown", list_of(text("0"), text("1"))),
    ):
        yield case(f"L01-keys-{label}", legacy(ROOT, keys=part) + prefix + DATA, keys)
    empty = legacy(ROOT, keys=op.EMPTY_LIST)
    yield case("L01-keys-empty", empty + prefix + DATA, "storage.missing")
    other = Lie(numel=number(6), shape=tuple_of(number(6)), stride=tuple_of(number(1))).tensor()
    yield case(
        "L01-two-sizes", legacy(Lie(second=other).pickle(), keys=ONE_KEY) + prefix + DATA, size
    )
    view = Lie(
        view=tuple_of(text("1"), number(2), number(4)),
        shape=tuple_of(number(4)),
        stride=tuple_of(number(1)),
    )
    yield case("L03-view", legacy(view.pickle(), keys=ONE_KEY) + prefix + DATA, None)
    far = Lie(view=tuple_of(text("1"), number(1 << 50), number(4)))
    yield case("L03-view-far", legacy(far.pickle(), keys=ONE_KEY) + prefix + DATA, "tensor.bounds")
    # A class with its source code, which torch compares and writes as `<name>.patch` to the folder.
    module = tuple_of(text("module"), EXEC, text("/etc/passwd"), text("import os"))
    sourced = op.MARK + module + op.BINPERSID + op.EMPTY_TUPLE + op.REDUCE + op.POP_MARK
    yield case("L04-source", legacy(TWO + sourced + op.EMPTY_DICT + STOP), None, *NAMES)
    odd = tuple_of(text("module"))
    yield case("L04-short", legacy(TWO + odd + op.BINPERSID + STOP), None)
    computed = TWO + EXEC + tuple_of(text("1")) + op.REDUCE + STOP
    rest = legacy(ROOT, keys=ONE_KEY)[len(_pickled(b"\x8a\x0a" + b"x" * 10)) :]
    yield case("L06-magic-computed", computed + rest + prefix + DATA, None, *NAMES)
    yield case("L06-magic-in-tuple", legacy(ROOT, magic=number(1) + op.POP + EXEC), None, *NAMES)
    ran = dict_of((text("little_endian"), RUN))
    parts = legacy(ROOT, keys=ONE_KEY).split(_pickled(_system()))
    yield case("L07-system-runs", parts[0] + _pickled(ran) + parts[1] + prefix + DATA, None, *NAMES)
    big_endian = dict_of((text("little_endian"), op.FALSE))
    yield case("L07-big-endian", parts[0] + _pickled(big_endian) + parts[1] + prefix + DATA, None)
    version = legacy(ROOT, keys=ONE_KEY).replace(b"M\xe9\x03.", b"M\xea\x03.", 1)
    yield case("L06-protocol-1002", version + prefix + DATA, "legacy.magic")
    keyed = legacy(ROOT, keys=RUN + op.POP + ONE_KEY)
    yield case("L06-keys-run", keyed + prefix + DATA, None, *NAMES)
    # More than one read of the start of the file, cut in the middle of an operand and of a frame.
    long = proto(4) + op.frame(
        dict_of(*((text(f"k{n}" + "ä" * 99), number(n)) for n in range(9_000)))
    )
    yield case("long-frame", legacy(long + STOP), None)
    yield case("long-cut", legacy(long), "pickle.")


def _system() -> bytes:
    return dict_of((text("protocol_version"), number(1001)), (text("little_endian"), op.TRUE))


def tar_cases() -> Iterator[Case]:
    """Tar files: headers, members, and the numbers in them."""
    kind = name("torch", "FloatStorage")
    stored = _pickled(tuple_of(text("1"), text("cpu"), kind)) + struct.pack("<q", 12) + DATA
    one = _pickled(number(1))
    storages = one + stored + _pickled(op.EMPTY_LIST)
    shape = struct.pack("<2i", 2, 0) + struct.pack("<5q", 3, 4, 4, 1, 0)
    entry = _pickled(tuple_of(text("7"), text("1"), name("torch", "FloatTensor")))
    tensors = one + entry + shape
    body = _pickled(dict_of((text("a"), text("7") + op.BINPERSID)))
    good = {
        "sys_info": _pickled(_system()),
        "pickle": body,
        "storages": storages,
        "tensors": tensors,
    }
    wrong = "tar.format"

    def case(label: str, data: bytes, code: str | None, *names: str) -> Case:
        return Case(f"L05-{label}", data, "case.tar", code, names)

    def changed(label: str, code: str | None, *names: str, **members: bytes) -> Case:
        return case(label, tar({**good, **members}), code, *names)

    yield changed("good", None)
    for missing in good:
        left = {key: data for key, data in good.items() if key != missing}
        yield case(f"without-{missing}", tar(left), wrong)
    first = member("sys_info", good["sys_info"])
    rest = tar({key: data for key, data in good.items() if key != "sys_info"})
    for label, kind_byte in (
        ("hard-link", b"1"),
        ("symlink", b"2"),
        ("device", b"3"),
        ("block", b"4"),
        ("folder", b"5"),
        ("fifo", b"6"),
        ("contiguous", b"7"),
        ("pax-global", b"g"),
        ("long-name", b"L"),
        ("long-link", b"K"),
        ("sparse", b"S"),
        ("odd", b"\xff"),
    ):
        block = member("pickle", b"", kind=kind_byte, link=b"/etc/passwd")
        yield case(f"type-{label}", first + block + rest, wrong)
    for label, record in (
        ("path", b"19 path=/etc/passwd\n"),
        ("size", b"18 size=100000000\n"),
        ("sparse", b"26 GNU.sparse.name=pickle\n"),
        ("junk", b"x" * 100),
        ("long", b"20 mtime=1500000000.0\n" * 10_000),
    ):
        block = member("PaxHeaders/pickle", record, kind=b"x")
        yield case(f"pax-{label}", first + block + rest, wrong)
    for called in ("/etc/passwd", "../pickle", "pickle/", "Pickle", "other", "\x1b[2J", "pickle "):
        yield case(f"name-{called!a}", first + member(called, b"x") + rest, wrong)
    yield case("name-empty", first + member("", b"x") + rest, wrong)
    yield case("twice", tar(good)[:-1024] + tar({"pickle": _pickled(RUN)}), wrong)
    for label, size in (
        ("negative", b"-0000000001\0"),
        ("hex", b"0x000000010\0"),
        ("eight", b"00000000008\0"),
        ("binary", b"\x80" + b"\0" * 10 + b"\x01"),
        ("binary-negative", b"\xff" * 12),
        ("empty", b"\0" * 12),
        ("spaces", b" " * 12),
        ("twelve-digits", b"7" * 12),
    ):
        yield case(f"size-{label}", first + member("pickle", b"", size=size) + rest, wrong)
    yield case("size-past-end", first + header("pickle", 1 << 30) + rest, "format.truncated")
    yield case("size-8-GiB", first + header("pickle", (1 << 33) - 1) + rest, "format.truncated")
    yield case("checksum", first + member("pickle", b"", checksum=0) + rest, wrong)
    yield case("cut", tar(good)[:1500], "format.truncated")
    yield case("only-header", tar(good)[:512], "format.truncated")
    yield changed("pickle-runs", None, *NAMES, pickle=_pickled(RUN))
    yield changed(
        "storages-run",
        None,
        *NAMES,
        storages=_pickled(RUN + op.POP + number(1)) + storages[len(one) :],
    )
    yield changed(
        "tensors-run",
        None,
        *NAMES,
        tensors=one + _pickled(RUN + op.POP + tuple_of(text("7"), text("1"), EXEC)) + shape,
    )
    yield changed("system-runs", None, sys_info=_pickled(RUN))
    for label, count in (
        ("none", op.NONE),
        ("text", text("1")),
        ("negative", number(-1)),
        ("many", number(1 << 40)),
        ("list", op.EMPTY_LIST),
    ):
        yield changed(f"count-{label}", wrong, storages=_pickled(count) + storages[len(one) :])
        yield changed(f"tensors-{label}", wrong, tensors=_pickled(count) + tensors[len(one) :])
    yield changed("count-more", "", storages=_pickled(number(2)) + storages[len(one) :])
    yield changed("tensors-more", "", tensors=_pickled(number(2)) + tensors[len(one) :])
    yield changed(
        "storage-twice", wrong, storages=_pickled(number(2)) + stored * 2 + _pickled(op.EMPTY_LIST)
    )
    yield changed("tensor-twice", wrong, tensors=_pickled(number(2)) + (entry + shape) * 2)
    for label, length in (("negative", -1), ("more", 13), ("far", 1 << 60), ("least", -(1 << 63))):
        lied = stored.replace(struct.pack("<q", 12), struct.pack("<q", length))
        code = "pickle.truncated" if label == "more" else wrong
        yield changed(f"length-{label}", code, storages=one + lied + _pickled(op.EMPTY_LIST))
    for label, part in (
        ("none", op.NONE),
        ("key-none", tuple_of(op.NONE, op.NONE, kind)),
        ("two", tuple_of(text("1"), kind)),
        ("kind-text", tuple_of(text("1"), text("cpu"), text("FloatStorage"))),
    ):
        yield changed(
            f"storage-is-{label}",
            wrong,
            storages=one + _pickled(part) + stored[-SIZE - 8 :] + _pickled(op.EMPTY_LIST),
        )
    evil = _pickled(tuple_of(text("1"), text("cpu"), EXEC))
    yield changed(
        "storage-kind-exec",
        "tensor.dtype",
        storages=one + evil + stored[-SIZE - 8 :] + _pickled(op.EMPTY_LIST),
    )
    for label, view in (
        ("far", tuple_of(text("2"), text("1"), number(8), number(8))),
        ("negative", tuple_of(text("2"), text("1"), number(-4), number(4))),
        ("backwards", tuple_of(text("2"), text("1"), number(4), number(-4))),
        ("huge", tuple_of(text("2"), text("1"), number(1 << 200), number(1))),
        ("unknown", tuple_of(text("2"), text("9"), number(0), number(1))),
        ("short", tuple_of(text("2"), text("1"))),
        ("text", text("2")),
        ("none", op.NONE),
    ):
        yield changed(f"view-{label}", wrong, storages=one + stored + _pickled(list_of(view)))
    yield changed("views-dict", wrong, storages=one + stored + _pickled(op.EMPTY_DICT))
    for label, numbers, code in (
        ("size", (3, 5, 5, 1, 0), "tensor.bounds"),
        ("negative", (-3, 4, 4, 1, 0), "tensor.view"),
        ("offset", (3, 4, 4, 1, 1), "tensor.bounds"),
        ("huge", (1 << 62, 1 << 62, 0, 0, 0), "tensor.view"),
        ("offset-negative", (3, 4, 4, 1, -1), "tensor.view"),
    ):
        told = struct.pack("<2i", 2, 0) + struct.pack("<5q", *numbers)
        yield changed(f"tensor-{label}", code, tensors=one + entry + told)
    for rank in (-1, 65, 1 << 30, -(1 << 31)):
        yield changed(
            f"rank-{rank}", wrong, tensors=one + entry + struct.pack("<2i", rank, 0) + shape[8:]
        )
    yield changed("rank-more", wrong, tensors=one + entry + struct.pack("<2i", 3, 0) + shape[8:])
    yield changed(
        "tensor-unknown-storage",
        wrong,
        tensors=one + _pickled(tuple_of(text("7"), text("9"), EXEC)) + shape,
    )
    yield changed("tensor-unknown", None, pickle=_pickled(text("8") + op.BINPERSID))


def array(
    shape: bytes = tuple_of(number(3), number(4)), kind: bytes = text("f4"),
    order: bytes = text("<"),
    fortran: bytes = op.FALSE, data: bytes = op.data(DATA), state: bytes | None = None,
    module: str = "numpy.core.multiarray",
) -> bytes:  # fmt: skip
    """What numpy pickles for an array."""
    made = op.call(
        name(module, "_reconstruct"), name("numpy", "ndarray"), tuple_of(number(0)), op.data(b"b")
    )
    dtype = op.call(name("numpy", "dtype"), kind, op.FALSE, op.TRUE)
    dtype += tuple_of(
        number(3), order, op.NONE, op.NONE, op.NONE, number(-1), number(-1), number(0)
    )
    dtype += op.BUILD
    told = tuple_of(number(1), shape, dtype, fortran, data) if state is None else state
    return made + told + op.BUILD


def numpy_cases() -> Iterator[Case]:
    """Arrays in a bare pickle."""
    wrong = "numpy.array"

    def case(label: str, made: bytes, code: str | None = None, *names: str) -> Case:
        stream = proto(3) + dict_of((text("a"), made), (text("b"), array())) + STOP
        return Case(f"K02-{label}", stream, "case.pkl", code, names)

    yield case("good", array())
    yield case("new-module", array(module="numpy._core.multiarray"))
    yield case("big-endian", array(order=text(">")))
    yield case("fortran", array(fortran=op.TRUE))
    for label, kind in (
        ("objects", "O8"),
        ("text", "U4"),
        ("bytes", "S4"),
        ("void", "V4"),
        ("time", "M8"),
        ("delta", "m8"),
        ("odd-size", "f3"),
        ("fields", "f4,f4"),
        ("named", "float32"),
        ("empty", ""),
        ("escape", "\x1b[2J"),
        ("float128", "f16"),
        ("int128", "i16"),
        ("complex256", "c32"),
        ("bool4", "b4"),
        ("subarray", "2f4"),
    ):
        yield case(f"dtype-{label}", array(kind=text(kind)))
    yield case("dtype-exec", array(kind=EXEC), None, *NAMES)
    yield case("dtype-none", array(kind=op.NONE))
    yield case("data-short", array(data=op.data(DATA[:-1])), wrong)
    yield case("data-long", array(data=op.data(DATA + b"x")), wrong)
    yield case("data-none", array(data=op.NONE))
    yield case("data-list", array(data=list_of(RUN)), None, *NAMES)
    yield case("data-text", array(data=text("x" * SIZE)))
    yield case(
        "data-not-latin",
        array(data=op.call(name("_codecs", "encode"), text("\u20ac" * SIZE), text("latin1"))),
        "pickle.bytes",
    )
    yield case(
        "data-rot13",
        array(data=op.call(name("_codecs", "encode"), text("x" * SIZE), text("rot13"))),
    )
    for label, shape in (
        ("negative", tuple_of(number(-3), number(-4))),
        ("text", text("3")),
        ("none", op.NONE),
        ("float", tuple_of(b"G" + bytes(8))),
        ("bool", tuple_of(op.TRUE)),
        ("huge", tuple_of(number(1 << 62), number(1 << 62))),
        ("product", tuple_of(number(1 << 40))),
        ("empty-huge", tuple_of(number(0), number(1 << 62))),
        ("rank-65", tuple_of(*[number(1)] * 65)),
        ("long", tuple_of(number(1 << 500))),
        ("nested", tuple_of(tuple_of(number(12)))),
    ):
        yield case(f"shape-{label}", array(shape=shape), wrong)
    for label, state in (
        ("none", op.NONE),
        ("short", tuple_of(number(1))),
        ("dict", dict_of()),
        ("list", list_of()),
        ("text", text("x")),
    ):
        yield case(f"state-{label}", array(state=state), wrong)
    unbuilt = op.call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"))
    yield case("no-state", unbuilt, wrong)
    rebuilt = op.call(name("numpy._core.numeric", "_frombuffer"), op.data(DATA))
    yield case("frombuffer-short", rebuilt, wrong)
    scalar = op.call(name("numpy.core.multiarray", "scalar"), EXEC, op.data(b"x"))
    yield case("scalar-exec", scalar, None, *NAMES)
    random = op.call(name("numpy.random._pickle", "__randomstate_ctor"), text("MT19937"))
    yield case("random-state", random)
    yield case("called-array", RUN + op.POP + array(), None, *NAMES)


def darknet_cases() -> Iterator[Case]:
    """Darknet files: by their name only, and only with a header that all readers agree on."""
    unknown = "not-a-checkpoint.unknown"

    def case(label: str, data: bytes, code: str | None, file: str = "case.weights") -> Case:
        return Case(f"D-{label}", data, file, code)

    floats = struct.pack("<4f", 1, 2, 3, 4)
    good = struct.pack("<3iq", 0, 2, 5, 32_013_312) + floats
    yield case("good", good, None)
    yield case("old", struct.pack("<4i", 0, 1, 0, 7) + floats, None)
    yield case("other-name", good, "unsupported.darknet", "case.bin")
    yield case("no-name", good, "unsupported.darknet", "weights")
    for left in (1, 2, 3):
        yield case(f"D02-odd-{left}", good + b"x" * left, "darknet.size")
    yield case("D02-empty", b"", "not-a-checkpoint.empty")
    yield case("D02-header-only", good[:20], None)
    yield case("D02-header-cut", good[:16], "format.truncated")
    yield case("D02-header-short", good[:12], unknown)
    for label, version in (
        ("negative", (-1, 2, 5)),
        ("zeros", (0, 0, 0)),
        ("thousand", (1000, 2, 5)),
        ("minor-thousand", (0, 1000, 5)),
        ("huge", ((1 << 31) - 1, 0, 0)),
        ("revision", (0, 2, 1 << 30)),
        ("least", (-(1 << 31), -(1 << 31), -(1 << 31))),
    ):
        yield case(f"D01-{label}", struct.pack("<3iq", *version, 7) + floats, "not-a-checkpoint")
    yield case("D04-text", b"hello, this is text\n", "not-a-checkpoint.text")
    yield case("D04-pickle", _pickled(RUN), None)
    yield case("D04-html", b"<html><title>\x1b[2J</title>", "not-a-checkpoint.html")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from legacy_cases()
    yield from tar_cases()
    yield from numpy_cases()
    yield from darknet_cases()
