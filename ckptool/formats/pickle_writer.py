"""The pickle of a state dict as torch writes it: an OrderedDict of tensors on storages.

Source: what `torch.save` of torch 2.15 writes for a state dict: protocol 2, in the order of
`pickle.Pickler` (CPython 3.11), whose memo and batches of 1,000 items are followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import pack

from ckptool.dtypes import DTYPES
from ckptool.tensors import TensorSpec, contiguous_strides

_BATCH = 1_000


def dump_state_dict(
    entries: Iterable[tuple[str, TensorSpec, str]],
    versions: Mapping[str, int] | None = None,
    wrapper: str | None = None,
) -> bytes:
    """The pickled OrderedDict of (key, spec, storage key); `versions` becomes its `_metadata`.

    With `wrapper` it is the only entry, of that key, of a dict.

    Each tensor is contiguous from the start of its storage; equal storage keys share one.
    """
    writer = _Writer()
    writer.data += b"\x80\x02"
    if wrapper is not None:
        writer.data += b"}"
        writer.put()
        writer.text(wrapper)
    writer.ordered_dict()
    writer.items((key, _Tensor(spec, storage)) for key, spec, storage in entries)
    if versions is not None:
        writer.data += b"}"
        writer.put()
        writer.text("_metadata")
        writer.ordered_dict()
        writer.items(versions.items())
        writer.data += b"sb"
    writer.data += b"." if wrapper is None else b"s."
    return bytes(writer.data)


class _Tensor:
    __slots__ = ("spec", "storage")

    def __init__(self, spec: TensorSpec, storage: str) -> None:
        self.spec = spec
        self.storage = storage


class _Writer:
    """The bytes so far, and the memo of the strings and globals in them.

    Python's pickler knows strings by their identity: a storage's key is none of the other strings.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.texts: dict[str, int] = {}
        self.storages: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.count = 0

    def put(self) -> int:
        """Memoise the value just written; its index."""
        index = self.count
        self.data += b"q" + bytes((index,)) if index < 256 else b"r" + pack("<I", index)
        self.count += 1
        return index

    def get(self, index: int) -> None:
        """The memoised value of an index."""
        self.data += b"h" + bytes((index,)) if index < 256 else b"j" + pack("<I", index)

    def text(self, value: str) -> None:
        """A string, by reference if it was written before."""
        self._text(value, self.texts)

    def _text(self, value: str, memo: dict[str, int]) -> None:
        if value in memo:
            self.get(memo[value])
        else:
            data = value.encode("utf-8")
            self.data += b"X" + pack("<I", len(data)) + data
            memo[value] = self.put()

    def name(self, module: str, name: str) -> None:
        """A global, by reference if it was written before."""
        line = f"{module}\n{name}\n"
        if line in self.names:
            self.get(self.names[line])
        else:
            self.data += b"c" + line.encode("ascii")
            self.names[line] = self.put()

    def integer(self, value: int) -> None:
        """A natural number."""
        if value < 1 << 8:
            self.data += b"K" + bytes((value,))
        elif value < 1 << 16:
            self.data += b"M" + pack("<H", value)
        elif value < 1 << 31:
            self.data += b"J" + pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little")
            self.data += b"\x8a" + bytes((len(data),)) + data

    def integers(self, values: tuple[int, ...]) -> None:
        """A tuple of natural numbers."""
        if not values:
            self.data += b")"
            return
        if len(values) > 3:
            self.data += b"("
        for value in values:
            self.integer(value)
        self.data += (b"\x85", b"\x86", b"\x87", b"t")[min(len(values), 4) - 1]
        self.put()

    def ordered_dict(self) -> None:
        """An empty OrderedDict."""
        self.name("collections", "OrderedDict")
        self.data += b")R"
        self.put()

    def items(self, entries: Iterable[tuple[str, _Tensor | int]]) -> None:
        """The items of the dict just written, in batches."""
        batch: list[tuple[str, _Tensor | int]] = []
        for entry in entries:
            batch.append(entry)
            if len(batch) == _BATCH:
                self._batch(batch)
                batch = []
        if batch:
            self._batch(batch)

    def _batch(self, entries: list[tuple[str, _Tensor | int]]) -> None:
        self.data += b"(" if len(entries) > 1 else b""
        for key, value in entries:
            self.text(key)
            if isinstance(value, _Tensor):
                self.tensor(value.spec, value.storage)
            else:
                self.version(value)
        self.data += b"u" if len(entries) > 1 else b"s"

    def version(self, value: int) -> None:
        """The metadata of one module: `{'version': value}`."""
        self.data += b"}"
        self.put()
        self.text("version")
        self.integer(value)
        self.data += b"s"

    def tensor(self, spec: TensorSpec, storage: str) -> None:
        """A call of `_rebuild_tensor_v2`, or v3 for types that have no storage class."""
        dtype = DTYPES[spec.dtype]
        typed = dtype.storage is not None
        self.name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.data += b"(("
        self.text("storage")
        if dtype.storage is not None:
            self.name("torch", dtype.storage)
        else:
            self.name("torch.storage", "UntypedStorage")
        self._text(storage, self.storages)
        self.text("cpu")
        self.integer(spec.numel if typed else spec.nbytes)
        self.data += b"t"
        self.put()
        self.data += b"QK\x00"
        self.integers(spec.shape)
        self.integers(contiguous_strides(spec.shape))
        self.data += b"\x89"
        self.ordered_dict()
        if not typed:
            self.name("torch", spec.dtype)
        self.data += b"t"
        self.put()
        self.data += b"R"
        self.put()
