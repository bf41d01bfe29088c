"""Writing the `.pkl` that Detectron2 reads: a pickled dict of numpy arrays under `model`.

The arrays' data stand in the pickle itself, so everything around them is put together first and
the data are streamed into the gaps. Arrays are pickled as numpy 1 does, which numpy 2 reads too.

Source: numpy 2.4 (`array_reduce` in `numpy/_core/src/multiarray/methods.c`, `numpy/core`), CPython
3.11 `pickle.py` (protocol 3); Detectron2 at 02b5c4e (`checkpoint/detection_checkpoint.py`).
"""

from __future__ import annotations

from struct import pack

from ckptool.checkpoint import MADE_BY
from ckptool.dtypes import DTYPES, numpy_dtype
from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, check_keys, put_tensors, storages
from ckptool.formats.pickled import LARGEST
from ckptool.tensors import LazyTensor

_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
_NDARRAY = b"cnumpy\nndarray\n"
_DTYPE = b"cnumpy\ndtype\n"
_KINDS = "fiubc"  # of numpy's own element types


def write(output: Output, payload: Payload) -> None:
    """The arrays under `model`, then who made them and whether keys are to be matched.

    Raises: UnsupportedError for a type that numpy does not have, or for more than can be read.
    """
    tensors = payload.tensors
    check_keys(tensors)
    for key, tensor in tensors.items():
        if numpy_dtype(tensor.dtype).kind not in _KINDS or DTYPES[tensor.dtype].kind == "q":
            raise UnsupportedError(
                f"{quoted(key)} is {tensor.dtype}, which numpy does not have",
                hint="--dtype fp32, or -o OUT.pth",
                code="unsupported.dtype",
            )
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > LARGEST * 15 // 16:  # the rest is room for keys and provenance
        raise UnsupportedError(
            f"{total:,} bytes are too many for a pickle: at most {LARGEST * 15 // 16:,}",
            hint="--dtype fp16, or -o OUT.pth",
            code="unsupported.size",
        )
    pickle = _Pickle(output)
    pickle.put(b"\x80\x03}(" + _text("model") + b"}(")
    numbers = storages(tensors)
    for key, tensor in tensors.items():
        pickle.put(_text(key))
        pickle.array(tensor, numbers[key])
    put_tensors(output, pickle.places, payload)
    heuristics = b"\x88" if payload.metadata.get("heuristics") else b"\x89"
    pickle.put(b"u" + _text("__author__") + _text(payload.metadata.get("author", "ckptool")))
    pickle.put(_text("matching_heuristics") + heuristics)
    if payload.provenance is not None:
        pickle.put(_text(MADE_BY) + _text(payload.provenance(True)))
    pickle.put(b"u.")


class _Pickle:
    """A pickle being written: its memo, and the places of the arrays' data in the file."""

    def __init__(self, output: Output) -> None:
        self.places: list[tuple[LazyTensor, int]] = []
        self._output = output
        self._memo: dict[object, int] = {}

    def put(self, code: bytes) -> None:
        """Append to the pickle."""
        self._output.write(code)

    def array(self, tensor: LazyTensor, storage: int) -> None:
        """An array; tensors of one storage are one array."""
        if self._known(storage):
            return
        self._once(_RECONSTRUCT)
        self._once(_NDARRAY)
        self.put(b"K\x00\x85C\x01b\x87R(K\x01")
        self.put(_integers(tensor.shape))
        self._dtype(tensor.dtype)
        self.put(b"\x89B" + pack("<I", tensor.nbytes))
        self.places.append((tensor, self._output.position))
        self._output.position += tensor.nbytes
        self.put(b"tb")
        self._remember(storage)

    def _dtype(self, name: str) -> None:
        """The `numpy.dtype` of an element type, its byte order little-endian."""
        if self._known(name):
            return
        kind = numpy_dtype(name)
        order = b"<" if kind.itemsize > 1 else b"|"
        self._once(_DTYPE)
        self.put(
            _text(f"{kind.kind}{kind.itemsize}") + b"\x89\x88\x87R(K\x03" + _text(order.decode())
        )
        self.put(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        self._remember(name)

    def _once(self, code: bytes) -> None:
        """A global, by reference if it was written before."""
        if not self._known(code):
            self.put(code)
            self._remember(code)

    def _known(self, value: object) -> bool:
        """Whether a value was written before; it is referred to then."""
        if value not in self._memo:
            return False
        self.put(b"j" + pack("<I", self._memo[value]))
        return True

    def _remember(self, value: object) -> None:
        self._memo[value] = len(self._memo)
        self.put(b"r" + pack("<I", self._memo[value]))


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + pack("<I", len(data)) + data


def _integers(values: tuple[int, ...]) -> bytes:
    """A tuple of natural numbers."""
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes((len(data),)) + data
