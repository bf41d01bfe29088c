"""Tensors that are not dense, and the odd ways in which torch pickles the dense ones."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors_made import bits
from torch import nn

from ckptool.checkpoint import Refused
from ckptool.errors import FormatError
from ckptool.reading import read

X = torch.arange(6.0).reshape(2, 3)


class Wrapper(torch.Tensor):
    """A subclass that holds its data in another tensor, as torchao's do."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError


def _distributed_tensor() -> torch.Tensor:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return distribute_tensor(X, init_device_mesh("cpu", (1,)), [Shard(0)])


def _per_channel(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    zeros = torch.zeros_like(scale)
    return torch.quantize_per_channel(torch.ones(2, 4), scale, zeros, 0, dtype)


QUANTISED = Refused("quantised", "its integers mean nothing without a scale")
SPARSE = Refused("sparse", "only its non-zero values are stored")
NESTED = Refused("nested", "its rows have different shapes")
WRAPPED = Refused("wrapper", "its data is inside another object")
META = Refused("meta", "the file holds no data for it")
STORAGE = Refused("storage", "a storage on its own, without a shape")


def _unknown(dtype: str) -> Refused:
    return Refused("dtype", f"its element type `torch.{dtype}` is not known here")


KINDS: dict[str, tuple[Callable[[], Any], Refused]] = {
    "qint8": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), QUANTISED),
    "qint32": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint32), QUANTISED),
    "quint8 per channel": (lambda: _per_channel(torch.tensor([0.1, 0.2]), torch.quint8), QUANTISED),
    "quint4x2": (lambda: _per_channel(torch.tensor([0.1, 0.2]), torch.quint4x2), QUANTISED),
    "sparse coo": (X.to_sparse, SPARSE),
    "sparse csr": (X.to_sparse_csr, SPARSE),
    "sparse csc": (X.to_sparse_csc, SPARSE),
    "sparse bsr": (lambda: torch.ones(4, 4).to_sparse_bsr((2, 2)), SPARSE),
    "meta": (lambda: X.to("meta"), META),
    "meta parameter": (lambda: nn.Parameter(X.to("meta")), META),
    "nested": (lambda: torch.nested.nested_tensor([X[0], X[0, :2]]), NESTED),
    "jagged": (lambda: torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged), NESTED),
    "wrapper subclass": (lambda: Wrapper(X), WRAPPED),
    "masked": (lambda: torch.masked.masked_tensor(X, X > 2), WRAPPED),
    "DTensor": (
        _distributed_tensor,
        Refused(
            "sharded",
            "`torch.distributed.tensor.DTensor`: this file has one rank's part of it",
        ),
    ),
    "float4": (lambda: _retyped(torch.float4_e2m1fn_x2), _unknown("float4_e2m1fn_x2")),
    "bits8": (lambda: _retyped(torch.bits8), _unknown("bits8")),
    "bits16": (lambda: torch.zeros(4, dtype=torch.int16).view(torch.bits16), _unknown("bits16")),
    "typed storage": (X.storage, STORAGE),
    "untyped storage": (lambda: torch.ones(3).untyped_storage(), STORAGE),
    "lazy parameter": (
        lambda: nn.LazyLinear(3).weight,
        Refused("uninitialised", "it never got a shape"),
    ),
}


def _retyped(dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(4, dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("storing", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dense_tensor_is_listed_and_the_rest_is_read(
    kind: str, storing: str, tmp_path: Path
) -> None:
    make, reason = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = OrderedDict(before=X.t(), it=make(), after=torch.tensor(3))
        if storing == "pickle":
            (tmp_path / "x").write_bytes(pickle.dumps(value, 4))
        else:
            torch.save(value, tmp_path / "x", _use_new_zipfile_serialization=storing == "zip")
    ckpt = read(tmp_path / "x")
    assert dict(ckpt.weights.refused) == {"it": reason}
    assert list(ckpt) == ["before", "after"]
    assert ckpt["before"].tobytes() == bits(X.t())
    assert ckpt["after"].numpy().item() == 3


def test_a_model_with_quantised_weights_keeps_its_dense_ones(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].register_buffer("packed", torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))
    torch.save(model, tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    assert list(ckpt) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert dict(ckpt.weights.refused) == {"0.packed": QUANTISED}


class Call:
    """Pickles as a call of a function by name, with any arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def saved_call(folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    torch.save({"x": Call(function, *arguments), "y": X}, folder / "x.pth")
    return read(folder / "x.pth")


def test_rebuild_functions_of_every_age(tmp_path: Path) -> None:
    storage = torch.storage.TypedStorage(
        wrap_storage=X.untyped_storage(), dtype=torch.float32, _internal=True
    )
    window = (storage, 1, (2, 2), (3, 1))
    wanted = X.as_strided((2, 2), (3, 1), 1)
    utils = torch._utils
    for function, arguments in (
        (utils._rebuild_tensor, window),
        (utils._rebuild_tensor_v2, (*window, False, OrderedDict())),
        (utils._rebuild_tensor_v2, (*window, False, OrderedDict(), None)),
        (utils._rebuild_tensor_v2, (*window, False, OrderedDict(), {})),
        (utils._rebuild_parameter, (wanted, True, OrderedDict())),
        (utils._rebuild_parameter_with_state, (wanted, True, OrderedDict(), {"note": 1})),
        (torch._tensor._rebuild_from_type_v2, (utils._rebuild_tensor, torch.Tensor, window, {})),
        (nn.Parameter, (wanted, False)),
        (utils._rebuild_device_tensor_from_cpu_tensor, (wanted, torch.float32, "xla:0", False)),
    ):
        found = saved_call(tmp_path, function, *arguments)["x"]
        assert (found.shape, found.tobytes()) == ((2, 2), bits(wanted)), function


def test_a_call_that_no_torch_here_has_is_listed(tmp_path: Path) -> None:
    """A new kind of tensor, of a later torch: listed, for it may be the weights."""
    path = tmp_path / "x.pkl"
    stream = pickle.dumps({"x": Call(torch._utils._rebuild_tensor, X), "y": X}, 2)
    path.write_bytes(stream.replace(b"_rebuild_tensor\n", b"_rebuild_tensor_v9\n"))
    ckpt = read(path)
    assert list(ckpt) == ["y"]
    assert dict(ckpt.weights.refused) == {
        "x": Refused(
            "unknown", "`torch._utils._rebuild_tensor_v9` is of a torch that is not known here"
        )
    }


def test_a_plain_view_on_quantised_elements_is_no_tensor_of_numbers(tmp_path: Path) -> None:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4, dtype=torch.int8).untyped_storage(),
        dtype=torch.qint8,
        _internal=True,
    )
    arguments = (storage, 0, (4,), (1,), False, OrderedDict())
    ckpt = saved_call(tmp_path, torch._utils._rebuild_tensor_v2, *arguments)
    assert dict(ckpt.weights.refused) == {"x": QUANTISED}


@pytest.mark.parametrize(
    ("window", "code", "message"),
    [
        ((0, (2, 4), (3, 1)), "bounds", "a tensor of shape (2, 4) reaches element 6 of storage"),
        ((5, (2,), (1,)), "bounds", "a tensor of shape (2,) reaches element 6 of storage"),
        ((-1, (1,), (1,)), "view", "offset, size or stride of a tensor is negative"),
        ((0, (-1,), (1,)), "view", "offset, size or stride of a tensor is negative"),
        ((0, (2,), (-1,)), "view", "offset, size or stride of a tensor is negative"),
        ((0, (2, 1), (1,)), "rank", "a tensor has 2 sizes and 1 strides"),
        ((0, (2.0,), (1,)), "view", "offset, size and stride of a tensor are not integers"),
        ((0, (1 << 48,), (0,)), "numel", "a tensor declares 281,474,976,710,656 elements"),
    ],
)
def test_a_window_outside_its_storage_is_an_error(
    window: tuple[Any, ...], code: str, message: str, tmp_path: Path
) -> None:
    storage = X.untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    with pytest.raises(FormatError) as caught:
        saved_call(tmp_path, torch._utils._rebuild_tensor, typed, *window)
    assert caught.value.code == f"tensor.{code}"
    assert message in caught.value.message


def test_an_empty_tensor_may_look_anywhere(tmp_path: Path) -> None:
    """torch itself leaves offsets beyond the storage on empty slices."""
    empty = torch.ones(4)[4:]
    torch.save({"x": empty, "y": X}, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth")["x"].shape == (0,)
