"""Arrays in a pickle: what numpy writes for one, read without numpy.

Source: `numpy/_core/src/multiarray/methods.c` (`array_reduce`, `array_setstate`) and
`numpy/_core/numeric.py` (`_frombuffer`), numpy 2.4.
"""

from __future__ import annotations

import math
import re

from ckptool.checkpoint import Refused
from ckptool.dtypes import DTYPES, find
from ckptool.errors import FormatError
from ckptool.formats.nodes import Call, Global, arguments, called, integers, text
from ckptool.formats.rebuild import Storages
from ckptool.tensors import LazyTensor, TensorSpec, View, contiguous_strides, is_possible

_MODULES = ("numpy.core.multiarray.", "numpy._core.multiarray.")
_RECONSTRUCT = tuple(f"{module}_reconstruct" for module in _MODULES)
_FROMBUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_DTYPE = re.compile(r"([<>|=]?)([fiubc])(1|2|4|8|16)")
_NAMES = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


def is_array(node: Call) -> bool:
    """Whether a call would rebuild an array."""
    name = called(node)
    return name in _RECONSTRUCT or name in _FROMBUFFER


def array_of(node: Call, storages: Storages) -> LazyTensor | Refused:
    """The array that a call would rebuild.

    Raises: FormatError if its data is not as long as its shape and type say.
    """
    if called(node) in _FROMBUFFER:
        if len(arguments(node)) != 4:
            raise _bad("an array has the wrong arguments")
        data, kind, size, order = arguments(node)
        fortran = text(order) == "F"
    else:
        state = node.states[-1] if node.states else None
        if type(state) is not tuple or len(state) != 5:
            raise _bad("an array has no state")
        _, size, kind, fortran, data = state
    spec, byteorder = _dtype(kind)
    if spec is None:
        return Refused("array", "its element type is not a number")
    shape = integers(size)
    if shape is None or not is_possible(shape):
        raise _bad("the shape of an array is malformed")
    record = storages.value(data)
    if record is None:
        return Refused("array", "its elements are Python objects")
    if math.prod(shape) * DTYPES[spec].itemsize != record.nbytes:
        raise _bad(f"an array of shape {shape} and dtype {spec} has {record.nbytes:,} bytes")
    strides = contiguous_strides(shape[::-1])[::-1] if fortran else contiguous_strides(shape)
    if byteorder == "big":
        record = record._replace(byteorder="big")
    return LazyTensor(TensorSpec(spec, shape), View(record, 0, strides))


def _dtype(node: object) -> tuple[str | None, str]:
    """The canonical name of an array's element type, None if it is no number; the byte order."""
    if called(node) != "numpy.dtype" or type(node) is not Call or not arguments(node):
        return None, "little"
    kind = arguments(node)[0]
    if type(kind) is Global and kind.module == "ml_dtypes":
        extension = find(kind.name)
        return extension.name if extension else None, "little"
    order = None
    if node.states and type(node.states[-1]) is tuple and len(node.states[-1]) > 1:
        order = text(node.states[-1][1])
    return element_type(text(kind) or "", order)


def element_type(code: str, order: str | None = None) -> tuple[str | None, str]:
    """The canonical name of numpy's type code, `<f4`, and the byte order; None if it is no number.

    `order` is the byte order where it is told apart from the code.
    """
    match = _DTYPE.fullmatch(code)
    if match is None:
        return None, "little"
    own, letter, size = match.groups()
    order = order or own
    name = "bool" if letter == "b" else f"{_NAMES.get(letter, '')}{int(size) * 8}"
    if name not in DTYPES or (letter == "b" and size != "1"):
        return None, "little"
    return name, "big" if order == ">" else "little"


def _bad(what: str) -> FormatError:
    return FormatError(what, code="numpy.array")
