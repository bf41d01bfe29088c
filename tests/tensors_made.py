"""Tensors of every dtype and layout, with random bytes, and how torch itself spells their bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
UNSIGNED = (torch.uint64, torch.uint32, torch.uint16)
COMPLEX = (torch.complex64, torch.complex128)
# Those that torch pickles on an untyped storage, by `_rebuild_tensor_v3`.
UNTYPED = (*FLOAT8, *UNSIGNED)
DTYPES = (*FLOATS, *FLOAT8, *INTEGERS, *UNSIGNED, torch.bool, *COMPLEX)

SHAPES = ((7,), (1,), (3, 5), (1, 6), (2, 3, 4), (2, 3, 4, 5), (3, 1, 2, 2))


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A contiguous tensor of random bytes: NaN payloads and subnormals occur as they come."""
    numel = int(numpy.prod(shape))
    raw = numpy.random.default_rng(seed).bytes(max(numel, 1) * dtype.itemsize)
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    return torch.frombuffer(bytearray(raw), dtype=dtype)[:numel].reshape(shape)


def _at_least_1d(x: torch.Tensor) -> torch.Tensor:
    return x if x.dim() else x.reshape(1)


def _oversized(x: torch.Tensor) -> torch.Tensor:
    """The same values as a window inside a storage that is larger on both sides."""
    storage = torch.zeros(x.numel() + 9, dtype=x.dtype)
    window = storage[4 : 4 + x.numel()]
    window.copy_(x.reshape(-1))
    return window.view(x.shape)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    if x.dim() != 4:
        return x.t() if x.dim() == 2 else x
    return x.contiguous(memory_format=torch.channels_last)


def _windows(x: torch.Tensor) -> torch.Tensor:
    """Overlapping windows over the elements, as `unfold` makes them."""
    return x.reshape(-1).unfold(0, 3, 2) if x.numel() >= 3 else x


def _conjugate(x: torch.Tensor) -> torch.Tensor:
    return x.conj() if x.is_complex() else x


def _negative(x: torch.Tensor) -> torch.Tensor:
    """A view with the neg bit: the imaginary part of a conjugate, as real code makes it."""
    return x.clone().conj().imag if x.is_complex() else x


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.permute(tuple(reversed(range(x.dim())))),
    "permuted": lambda x: x.movedim(0, -1) if x.dim() else x,
    "channels_last": _channels_last,
    "strided slice": lambda x: _at_least_1d(x)[..., ::2],
    "block slice": lambda x: x[x.shape[0] // 2 :, ..., 1:] if x.dim() > 1 else _at_least_1d(x)[1:],
    "offset": lambda x: x.reshape(-1)[x.numel() // 2 :],
    "oversized storage": _oversized,
    "expanded": lambda x: _at_least_1d(x)[:1].expand(4, *x.shape[1:]),
    "expanded inside": lambda x: x.reshape(-1, 1).expand(-1, 3),
    "windows": _windows,
    "diagonal": lambda x: x.diagonal() if x.dim() > 1 else x,
    "0-d": lambda x: x.reshape(-1)[x.numel() // 2],
    "empty": lambda x: _at_least_1d(x)[:0],
    "empty inside": lambda x: x.reshape(-1)[:0].reshape(3, 0, 2),
    "conj": _conjugate,
    "conj slice": lambda x: _conjugate(_at_least_1d(x))[..., ::2],
    "neg": _negative,
}


def bits(x: torch.Tensor) -> bytes:
    """The values as torch sees them, row-major: conj and neg bits carried out."""
    plain = x.detach().resolve_conj().resolve_neg().reshape(-1)
    # A fresh copy: one element may keep a stride that forbids to view it as bytes.
    return (
        torch.empty_like(plain, memory_format=torch.contiguous_format)
        .copy_(plain)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def dtype_name(x: torch.Tensor) -> str:
    """The canonical name, `float32`."""
    return str(x.dtype).removeprefix("torch.")
