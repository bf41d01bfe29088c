"""The one table of element types agrees with torch, numpy, ml_dtypes and safetensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save
from tensors_made import DTYPES as TORCH_DTYPES
from tensors_made import dtype_name, filled

from ckptool.dtypes import BY_SAFETENSORS, BY_STORAGE, DTYPES, cast_target, find, numpy_dtype
from ckptool.errors import PlanError, UnsupportedError


@pytest.mark.parametrize("name", DTYPES)
def test_sizes_and_kinds_are_torchs(name: str) -> None:
    known, here = getattr(torch, name), DTYPES[name]
    assert here.itemsize == known.itemsize
    assert here.kind == (
        "b"
        if known is torch.bool
        else "c"
        if known.is_complex
        else "f"
        if known.is_floating_point
        else "q"
        if name.startswith("q")
        else "i"
        if known.is_signed
        else "u"
    )


@pytest.mark.parametrize("storage", BY_STORAGE)
def test_storage_classes_are_torchs(storage: str) -> None:
    assert getattr(torch, storage)._dtype == getattr(torch, BY_STORAGE[storage].name)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_safetensors_codes_are_the_references(dtype: torch.dtype) -> None:
    name = dtype_name(torch.empty(0, dtype=dtype))
    if dtype is torch.complex128:
        assert DTYPES[name].safetensors is None
        return
    header = save({"x": filled(dtype, (2,), 1)})
    assert f'"dtype":"{DTYPES[name].safetensors}"'.encode() in header
    assert BY_SAFETENSORS[str(DTYPES[name].safetensors)].name == name


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_numpy_types_have_the_same_name_and_size(dtype: torch.dtype) -> None:
    name = dtype_name(torch.empty(0, dtype=dtype))
    found = numpy_dtype(name)
    assert (found.name, found.itemsize) == (name, dtype.itemsize)


@pytest.mark.parametrize("name", ["complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"])
def test_types_without_a_numpy_form(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        numpy_dtype(name)
    assert caught.value.message == (
        f"dtype `{name}` has no numpy form, so its values cannot be computed with"
    )


@pytest.mark.parametrize("alias", "double float half long int short cfloat cdouble chalf".split())
def test_aliases_are_torchs_own(alias: str) -> None:
    found = find(alias)
    assert found is not None
    assert getattr(torch, alias) is getattr(torch, found.name)


def test_names_that_are_none() -> None:
    assert find("float31") is None
    assert find("") is None


@pytest.mark.parametrize(
    ("given", "name"),
    [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16"), ("fp64", "float64")]
    + [(name, name) for name in ("float32", "float16", "bfloat16", "float64")],
)
def test_cast_targets(given: str, name: str) -> None:
    assert cast_target(given) == name


@pytest.mark.parametrize("given", ["int8", "float8_e4m3fn", "complex64", "f\n32", ""])
def test_what_is_no_cast_target(given: str) -> None:
    with pytest.raises(PlanError) as caught:
        cast_target(given)
    assert caught.value.code == "plan.dtype"
    assert caught.value.message.endswith("is not one to cast to; wanted fp32, fp16, bf16 or fp64")
