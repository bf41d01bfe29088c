"""The pickle machine: a byte string in, a graph of inert nodes out.

Nothing that the stream names is imported, called, hashed, compared or printed. A global is a pair
of strings, a call is a node that says what would have been called, a dict is a list. The machine
accepts the data and construction opcodes of protocols 0 to 5 and refuses those that reach outside
the stream (the EXT registry, out-of-band buffers). It acts on nothing before it has seen STOP.

Source: the opcode descriptions in `pickletools` (CPython 3.11). Memory and time are linear in the
length of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

from ckptool.errors import FormatError
from ckptool.files import AGAIN
from ckptool.formats.nodes import (
    Call,
    Container,
    DictNode,
    Global,
    ListNode,
    PersistentId,
    SetNode,
    Span,
)
from ckptool.formats.pickle_text import bad, line, memoise, no_mark, recall, text_opcode, underflow

_LARGE = 1 << 12  # bytes values above this stay in the stream, as a Span
_LONGEST_INTEGER = 64  # bytes; a larger one is metadata that nobody computes with

# What torch wraps a storage's bytes in: a call of it loads another pickle.
_LOADER = Global("torch.storage", "_load_from_bytes")

_KINDS = {DictNode: "a dict", ListNode: "a list", SetNode: "a set"}

_uint16 = Struct("<H").unpack_from
_uint32 = Struct("<I").unpack_from
_int32 = Struct("<i").unpack_from
_uint64 = Struct("<Q").unpack_from
_float64 = Struct(">d").unpack_from


@dataclass(frozen=True, slots=True)
class Pickle:
    """One pickle: its root, the globals and persistent ids in stream order, the end of its STOP.

    `data` is what it was read from; `nested` are the calls that would load a pickle from bytes.
    """

    data: bytes
    root: object
    globals: tuple[Global, ...]
    persistent: tuple[PersistentId, ...]
    nested: tuple[Call, ...]
    end: int


def load(data: bytes, start: int = 0) -> Pickle:
    """The first pickle at `start`.

    Raises: FormatError for every stream that does not begin with a well-formed pickle.
    """
    try:
        return _run(data, start)
    except (IndexError, StructError):
        what = f"the pickle ends at byte {len(data):,} without its STOP opcode"
        raise FormatError(what, hint=AGAIN, code="pickle.truncated") from None
    except UnicodeDecodeError:
        raise FormatError("the pickle holds text that is not UTF-8", code="pickle.text") from None


def _run(data: bytes, i: int) -> Pickle:
    first = i
    stack: list[object] = []
    marks: list[int] = []
    floor = 0  # the stack depth at the innermost mark: nothing below it may be popped
    memo: list[object] = []
    persistent: list[PersistentId] = []
    nested: list[Call] = []
    names: dict[tuple[str, str], Global] = {}
    size = len(data)
    no_frame = 1 << 65  # further than any length can lead
    frame_end = no_frame

    while True:
        if i >= frame_end:
            if i > frame_end:
                raise bad(i, "frame", "an operand crosses the end of its frame")
            frame_end = no_frame
        op = data[i]
        i += 1
        # The order is by frequency in checkpoints, not by number.
        if op == 0x72:  # LONG_BINPUT
            index = _uint32(data, i)[0]
            i += 4
            if len(stack) == floor:
                raise underflow(i)
            if index == len(memo):
                memo.append(stack[-1])
            else:
                memoise(memo, index, stack[-1], i)
        elif op == 0x68:  # BINGET
            stack.append(recall(memo, data[i], i))
            i += 1
        elif op == 0x4B:  # BININT1
            stack.append(data[i])
            i += 1
        elif op == 0x28:  # MARK
            floor = len(stack)
            marks.append(floor)
        elif op == 0x58:  # BINUNICODE
            end = i + 4 + _uint32(data, i)[0]
            if end > size:
                raise IndexError
            stack.append(str(data[i + 4 : end], "utf-8", "surrogatepass"))
            i = end
        elif op == 0x74:  # TUPLE
            if not marks:
                raise no_mark(i)
            stack[floor:] = [tuple(stack[floor:])]
            marks.pop()
            floor = marks[-1] if marks else 0
        elif op == 0x85:  # TUPLE1
            if len(stack) - floor < 1:
                raise underflow(i)
            stack[-1] = (stack[-1],)
        elif op == 0x52:  # REDUCE
            if len(stack) - floor < 2:
                raise underflow(i)
            args = stack.pop()
            stack[-1] = made = Call(stack[-1], args)
            if made.function is _LOADER:
                nested.append(made)
        elif op == 0x51:  # BINPERSID
            if len(stack) == floor:
                raise underflow(i)
            stack[-1] = reference = PersistentId(stack[-1])
            persistent.append(reference)
        elif op == 0x89:  # NEWFALSE
            stack.append(False)
        elif op == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif op == 0x71:  # BINPUT
            index = data[i]
            i += 1
            if len(stack) == floor:
                raise underflow(i)
            if index == len(memo):
                memo.append(stack[-1])
            else:
                memoise(memo, index, stack[-1], i)
        elif op == 0x94:  # MEMOIZE
            if len(stack) == floor:
                raise underflow(i)
            memo.append(stack[-1])
        elif op == 0x6A:  # LONG_BINGET
            stack.append(recall(memo, _uint32(data, i)[0], i))
            i += 4
        elif op == 0x8C:  # SHORT_BINUNICODE
            end = i + 1 + data[i]
            if end > size:
                raise IndexError
            stack.append(str(data[i + 1 : end], "utf-8", "surrogatepass"))
            i = end
        elif op == 0x4D:  # BININT2
            stack.append(_uint16(data, i)[0])
            i += 2
        elif op == 0x4A:  # BININT
            stack.append(_int32(data, i)[0])
            i += 4
        elif op == 0x86:  # TUPLE2
            if len(stack) - floor < 2:
                raise underflow(i)
            stack[-2:] = [(stack[-2], stack[-1])]
        elif op == 0x87:  # TUPLE3
            if len(stack) - floor < 3:
                raise underflow(i)
            stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
        elif op == 0x88:  # NEWTRUE
            stack.append(True)
        elif op == 0x4E:  # NONE
            stack.append(None)
        elif op == 0x7D:  # EMPTY_DICT
            stack.append(DictNode())
        elif op == 0x5D:  # EMPTY_LIST
            stack.append(ListNode())
        elif op == 0x8F:  # EMPTY_SET
            stack.append(SetNode())
        elif op == 0x75:  # SETITEMS
            if not marks:
                raise no_mark(i)
            at = marks.pop()
            floor = marks[-1] if marks else 0
            if (len(stack) - at) % 2:
                raise bad(i, "operand", "SETITEMS finds a key without a value")
            _extend(stack, at, floor, i, DictNode)
        elif op == 0x65:  # APPENDS
            if not marks:
                raise no_mark(i)
            at = marks.pop()
            floor = marks[-1] if marks else 0
            _extend(stack, at, floor, i, ListNode)
        elif op == 0x90:  # ADDITEMS
            if not marks:
                raise no_mark(i)
            at = marks.pop()
            floor = marks[-1] if marks else 0
            _extend(stack, at, floor, i, SetNode)
        elif op == 0x73:  # SETITEM
            _extend(stack, len(stack) - 2, floor, i, DictNode)
        elif op == 0x61:  # APPEND
            _extend(stack, len(stack) - 1, floor, i, ListNode)
        elif op == 0x63:  # GLOBAL
            module, i = line(data, i)
            name, i = line(data, i)
            stack.append(_intern(names, str(module, "utf-8"), str(name, "utf-8")))
        elif op == 0x93:  # STACK_GLOBAL
            if len(stack) - floor < 2:
                raise underflow(i)
            called, owner = stack.pop(), stack[-1]
            if type(called) is not str or type(owner) is not str:
                raise bad(i, "operand", "STACK_GLOBAL wants two strings")
            stack[-1] = _intern(names, owner, called)
        elif op == 0x81:  # NEWOBJ
            if len(stack) - floor < 2:
                raise underflow(i)
            args = stack.pop()
            stack[-1] = Call(stack[-1], args)
        elif op == 0x92:  # NEWOBJ_EX
            if len(stack) - floor < 3:
                raise underflow(i)
            kwargs, args = stack.pop(), stack.pop()
            stack[-1] = Call(stack[-1], args, kwargs)
        elif op == 0x62:  # BUILD
            if len(stack) - floor < 2:
                raise underflow(i)
            state = stack.pop()
            target = stack[-1]
            if type(target) is not Call:
                raise bad(i, "operand", "BUILD wants an object that the stream has built")
            if target.states is None:
                target.states = []
            target.states.append(state)
        elif op == 0x47:  # BINFLOAT
            stack.append(_float64(data, i)[0])
            i += 8
        elif op == 0x8A:  # LONG1
            end = i + 1 + data[i]
            stack.append(_integer(data, i + 1, end))
            i = end
        elif op == 0x8B:  # LONG4
            length = _int32(data, i)[0]
            if length < 0:
                raise bad(i, "operand", "LONG4 declares a negative size")
            stack.append(_integer(data, i + 4, i + 4 + length))
            i += 4 + length
        elif op == 0x43:  # SHORT_BINBYTES
            end = i + 1 + data[i]
            stack.append(data[i + 1 : end])
            i = end
        elif op == 0x42:  # BINBYTES
            end = i + 4 + _uint32(data, i)[0]
            stack.append(_bytes(data, i + 4, end))
            i = end
        elif op in (0x8E, 0x96):  # BINBYTES8, BYTEARRAY8
            end = i + 8 + _uint64(data, i)[0]
            stack.append(_bytes(data, i + 8, end))
            i = end
        elif op == 0x8D:  # BINUNICODE8
            end = i + 8 + _uint64(data, i)[0]
            if end > size:
                raise IndexError
            stack.append(str(data[i + 8 : end], "utf-8", "surrogatepass"))
            i = end
        elif op == 0x55:  # SHORT_BINSTRING: text or bytes of Python 2
            end = i + 1 + data[i]
            stack.append(data[i + 1 : end])
            i = end
        elif op == 0x54:  # BINSTRING
            length = _int32(data, i)[0]
            if length < 0:
                raise bad(i, "operand", "BINSTRING declares a negative size")
            stack.append(_bytes(data, i + 4, i + 4 + length))
            i += 4 + length
        elif op == 0x80:  # PROTO
            if i != first + 1:
                raise bad(i, "protocol", "PROTO is not the first opcode")
            if data[i] > 5:
                raise bad(i, "protocol", f"found protocol {data[i]}, wanted 0 to 5")
            i += 1
        elif op == 0x95:  # FRAME
            length = _uint64(data, i)[0]
            i += 8
            if frame_end != no_frame:
                raise bad(i, "frame", "a frame starts inside a frame")
            frame_end = i + length
            if frame_end > size:
                raise IndexError
        elif op == 0x2E:  # STOP
            if len(stack) != 1 or marks:
                raise bad(i, "stack", f"STOP finds {len(stack):,} values, wanted 1")
            if frame_end not in (no_frame, i):
                raise bad(i, "frame", "STOP stands inside a frame")
            return Pickle(
                data, stack[0], tuple(names.values()), tuple(persistent), tuple(nested), i
            )
        elif op == 0x30:  # POP: of a mark too, as CPython has it
            if len(stack) > floor:
                stack.pop()
            elif marks:
                marks.pop()
                floor = marks[-1] if marks else 0
            else:
                raise underflow(i)
        elif op == 0x31:  # POP_MARK
            if not marks:
                raise no_mark(i)
            del stack[marks.pop() :]
            floor = marks[-1] if marks else 0
        elif op == 0x32:  # DUP
            if len(stack) == floor:
                raise underflow(i)
            stack.append(stack[-1])
        elif op in (0x64, 0x6C, 0x91):  # DICT, LIST, FROZENSET: the values since the mark
            if not marks:
                raise no_mark(i)
            items = stack[floor:]
            if op == 0x64 and len(items) % 2:
                raise bad(i, "operand", "DICT finds a key without a value")
            node = (DictNode if op == 0x64 else ListNode if op == 0x6C else SetNode)(items or None)
            stack[floor:] = [node]
            marks.pop()
            floor = marks[-1] if marks else 0
        elif op in (0x69, 0x6F):  # INST, OBJ: called with the values since the mark
            if not marks:
                raise no_mark(i)
            if op == 0x69:
                module, i = line(data, i)
                name, i = line(data, i)
                stack.insert(floor, _intern(names, str(module, "utf-8"), str(name, "utf-8")))
            if len(stack) == floor:
                raise underflow(i)
            made = Call(stack[floor], tuple(stack[floor + 1 :]))
            if made.function is _LOADER:
                nested.append(made)
            stack[floor:] = [made]
            marks.pop()
            floor = marks[-1] if marks else 0
        elif op == 0x50:  # PERSID
            name, i = line(data, i)
            reference = PersistentId(str(name, "utf-8", "surrogatepass"))
            stack.append(reference)
            persistent.append(reference)
        else:
            i = text_opcode(op, data, i, stack, memo, floor)


def _extend(stack: list[object], at: int, floor: int, i: int, kind: type[Container]) -> None:
    """Move what stands from `at` into the container below it, which stands above the last mark."""
    if at <= floor:
        raise underflow(i)
    target = stack[at - 1]
    if type(target) is Call:
        if target.items is None:
            target.items = kind()
        target = target.items
    if type(target) is not kind:
        raise bad(i, "operand", f"items are added to something that is not {_KINDS[kind]}")
    if target.items is None:
        target.items = stack[at:]
    else:
        target.items += stack[at:]
    del stack[at:]


def _intern(names: dict[tuple[str, str], Global], module: str, name: str) -> Global:
    known = names.get((module, name))
    if known is None:
        known = Global(module, name)
        known = names[(module, name)] = _LOADER if known.path == _LOADER.path else known
    return known


def _integer(data: bytes, start: int, stop: int) -> object:
    if stop - start > _LONGEST_INTEGER:
        return Span(start, stop)
    return int.from_bytes(data[start:stop], "little", signed=True)


def _bytes(data: bytes, start: int, stop: int) -> object:
    if stop - start > _LARGE:
        return Span(start, stop)
    return data[start:stop]
