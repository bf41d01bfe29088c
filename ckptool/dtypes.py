"""One table of element types: names, sizes, and what other libraries call them.

Source: torch 2.15 (`torch.serialization`, storage classes), safetensors 0.8.0 (`Dtype` of the Rust
core), numpy 2 and ml_dtypes 0.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ckptool.errors import PlanError, UnsupportedError, quoted

if TYPE_CHECKING:
    import numpy as np


class DType(NamedTuple):
    """An element type.

    `kind` is f(loat), i(nt), u(nsigned), b(ool), c(omplex) or q(uantised); `numpy` is a numpy or
    ml_dtypes name, None where neither has the type; `storage` is torch's storage class and
    `safetensors` the code in a safetensors header, None where there is none.
    """

    name: str
    itemsize: int
    kind: str
    numpy: str | None
    storage: str | None
    safetensors: str | None


_TABLE = (
    DType("float64", 8, "f", "float64", "DoubleStorage", "F64"),
    DType("float32", 4, "f", "float32", "FloatStorage", "F32"),
    DType("float16", 2, "f", "float16", "HalfStorage", "F16"),
    DType("bfloat16", 2, "f", "bfloat16", "BFloat16Storage", "BF16"),
    DType("float8_e4m3fn", 1, "f", "float8_e4m3fn", None, "F8_E4M3"),
    DType("float8_e5m2", 1, "f", "float8_e5m2", None, "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "f", "float8_e4m3fnuz", None, "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "f", "float8_e5m2fnuz", None, "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "f", "float8_e8m0fnu", None, "F8_E8M0"),
    DType("int64", 8, "i", "int64", "LongStorage", "I64"),
    DType("int32", 4, "i", "int32", "IntStorage", "I32"),
    DType("int16", 2, "i", "int16", "ShortStorage", "I16"),
    DType("int8", 1, "i", "int8", "CharStorage", "I8"),
    DType("uint64", 8, "u", "uint64", None, "U64"),
    DType("uint32", 4, "u", "uint32", None, "U32"),
    DType("uint16", 2, "u", "uint16", None, "U16"),
    DType("uint8", 1, "u", "uint8", "ByteStorage", "U8"),
    DType("bool", 1, "b", "bool", "BoolStorage", "BOOL"),
    DType("complex64", 8, "c", "complex64", "ComplexFloatStorage", "C64"),
    DType("complex128", 16, "c", "complex128", "ComplexDoubleStorage", None),
    DType("complex32", 4, "c", None, None, None),
    DType("qint8", 1, "q", None, "QInt8Storage", None),
    DType("quint8", 1, "q", None, "QUInt8Storage", None),
    DType("qint32", 4, "q", None, "QInt32Storage", None),
    DType("quint4x2", 1, "q", None, "QUInt4x2Storage", None),
    DType("quint2x4", 1, "q", None, "QUInt2x4Storage", None),
)

DTYPES = {dtype.name: dtype for dtype in _TABLE}
BY_STORAGE = {dtype.storage: dtype for dtype in _TABLE if dtype.storage}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE if dtype.safetensors}

# torch has two names for some types: `torch.half` pickles as `float16`, but old files vary.
_ALIASES = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "chalf": "complex32",
}

# The types that `--dtype` accepts, with their short names.
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
CAST_TARGETS = tuple(SHORT)
# Significant bits and largest finite value of each of them.
PRECISION = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
}


def find(name: str) -> DType | None:
    """The type of a canonical or alias name, None if the table has no such name."""
    return DTYPES.get(_ALIASES.get(name, name))


def cast_target(name: str) -> str:
    """The canonical name of a type that `--dtype` accepts; PlanError for any other."""
    canonical = _ALIASES.get(name, name)
    if canonical not in CAST_TARGETS:
        raise PlanError(
            f"dtype {quoted(name)} is not one to cast to; wanted fp32, fp16, bf16 or fp64",
            hint="ckptool convert FILE --dtype fp32",
            code="plan.dtype",
        )
    return canonical


def widens(found: str, wanted: str) -> bool:
    """Whether every value of one floating type is a value of the other."""
    if found.startswith("float8"):
        return wanted in ("float32", "float64") or (
            wanted == "float16" and found != "float8_e8m0fnu"
        )
    if wanted.startswith("float8"):
        return False
    return (
        PRECISION[found] <= PRECISION[wanted]
        and LARGEST[found] <= LARGEST[wanted]
        and (found, wanted) != ("float16", "bfloat16")
    )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The little-endian numpy (or ml_dtypes) type; UnsupportedError where neither has one."""
    import numpy

    native = DTYPES[name].numpy
    if native is None:
        raise UnsupportedError(
            f"dtype {quoted(name)} has no numpy form, so its values cannot be computed with",
            code="unsupported.dtype",
        )
    if native.startswith(("bfloat", "float8")):
        import ml_dtypes

        extension: np.dtype[Any] = numpy.dtype(getattr(ml_dtypes, native))
        return extension
    return numpy.dtype(native).newbyteorder("<")
