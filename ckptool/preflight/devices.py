"""Dtypes and devices: images against weights, and the weights among each other.

What runs and what raises was measured on torch 2.15, CPU: a convolution takes inputs of its own
dtype only; a batch norm takes half and bfloat16 with parameters of the same dtype or float32;
under autocast the inputs and weights of convolutions are cast, unless one is float64 or integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ckptool.errors import counted, quoted
from ckptool.grouping import group_within
from ckptool.preflight.findings import Finding, error, note, warning
from ckptool.preflight.images import Batch, name_of
from ckptool.preflight.subject import TORCHVISION, Module, Subject

_SHORT = ("float16", "bfloat16")
_CAST = ("float16", "bfloat16", "float32")
_MOST_GROUPS = 3

Tensors = Mapping[str, Any]


def check_devices(batch: Batch | None, subject: Subject) -> Iterator[Finding]:
    """The findings about devices."""
    tensors = dict(_tensors(subject.model))
    by_device = _grouped((key, str(tensor.device)) for key, tensor in tensors.items())
    if len(by_device) > 1:
        spread = getattr(subject.model, "hf_device_map", None) is not None
        made = note if spread else error
        yield made(
            "model-devices",
            f"the model is on {counted(len(by_device), 'device')}, wanted one: {_told(by_device)}",
            where=next(iter(list(by_device.values())[-1])),
            count=len(tensors) - max(map(len, by_device.values())),
            fix=None if spread else "model.to(device)",
        )
        return
    if batch is None or not by_device or _scatters(subject.model):
        return
    (device,) = by_device
    others = [name for name in batch.devices if name != device]
    if others:
        yield error(
            "image-device",
            f"found images on {quoted(others[0])}, wanted {quoted(device)}, where the model is",
            where="images",
            count=sum(str(image.device) != device for image in batch.images),
            fix="the model has no values yet: load_state_dict(…, assign=True)"
            if device == "meta"
            else f"images.to({device!r})",
        )


def check_dtypes(batch: Batch | None, subject: Subject) -> Iterator[Finding]:
    """The findings about dtypes."""
    weights, norms = _compute(subject.model)
    if not weights:
        return
    device = next(iter(weights.values())).device.type
    cast = _autocast(device)
    by_dtype = _grouped((key, name_of(tensor.dtype)) for key, tensor in weights.items())
    mixed = list(_mixed(subject, by_dtype, norms, cast))
    yield from mixed
    main = max(by_dtype, key=lambda dtype: len(by_dtype[dtype]))
    if batch is not None:
        first = next(iter(by_dtype)) if mixed else main
        yield from _image_dtype(batch, first, cast)
    if len(by_dtype) == 1 and device == "cpu":
        yield from _on_cpu(subject, main)
    anchors = subject.core.anchors.boxes if subject.is_bench else None
    if anchors is not None and name_of(anchors.dtype) != "float32":
        yield error(
            "anchors-dtype",
            f"found `anchors.boxes` in {name_of(anchors.dtype)}, wanted float32: effdet's labeler "
            "takes no other, and the anchors lose pixels",
            where="anchors.boxes",
            fix="bench.model.half() in place of bench.half(), or autocast",
        )


def _image_dtype(batch: Batch, weights: str, cast: str | None) -> Iterator[Finding]:
    """Images of a dtype that the first convolution does not take."""
    integer = [image for image in batch.images if not image.is_floating_point()]
    if integer:
        name = name_of(integer[0].dtype)
        yield error(
            "image-dtype",
            f"found {name} images, wanted {weights}, the dtype of the weights",
            where="images",
            count=len(integer),
            fix="images.float() / 255" if name == "uint8" else f"images.to(torch.{weights})",
        )
        return
    found = name_of(batch.images[0].dtype)
    if cast is None and found != weights:
        wider = weights in _SHORT and found == "float32"
        yield error(
            "image-dtype",
            f"found {found} images and {weights} weights, wanted one dtype: no autocast is in "
            "force",
            where="images",
            count=len(batch.images),
            fix=f"images.to(torch.{weights})" + (", or model.float()" if wider else ""),
        )
    elif cast is not None and found not in _CAST:
        yield error(
            "image-dtype",
            f"found {found} images, wanted float32: autocast to {cast} is in force, and leaves "
            f"{found} as it is",
            where="images",
            count=len(batch.images),
            fix="images.float()",
        )


def _mixed(
    subject: Subject, by_dtype: Mapping[str, list[str]], norms: Tensors, cast: str | None
) -> Iterator[Finding]:
    """Weights of several dtypes where nothing casts between them."""
    wide = "float64" in by_dtype if cast else len(by_dtype) > 1
    if wide:
        made = error if subject.family else warning
        yield made(
            "model-dtypes",
            f"the weights are of {counted(len(by_dtype), 'dtype')}"
            + (", wanted one: " if cast is None else f", wanted {cast} or float32: ")
            + _told(by_dtype),
            where=list(by_dtype.values())[-1][0],
            count=sum(map(len, by_dtype.values())) - max(map(len, by_dtype.values())),
            fix="model.float(), or .half() on all of it",
        )
        return
    (weights, *_) = by_dtype
    allowed = {"float32", cast} if cast else {weights}
    if weights in _SHORT:
        allowed.add("float32")
    wrong = {k: name_of(t.dtype) for k, t in norms.items() if name_of(t.dtype) not in allowed}
    if wrong:
        made = error if subject.family else warning
        yield made(
            "model-dtypes",
            f"the norms are {_told(_grouped(wrong.items()))} and the convolutions {weights}, "
            f"wanted {' or '.join(sorted(name for name in allowed if name))}",
            where=next(iter(wrong)),
            count=len(wrong),
            fix="model.float(), or .half() on all of it",
        )


def _on_cpu(subject: Subject, dtype: str) -> Iterator[Finding]:
    """Types that a CPU has no kernel for, or only slow ones."""
    if dtype in ("float32", "float64"):
        return
    missing = [name for name, run in _kernels(subject).items() if not _runs(run, dtype)]
    if missing:
        yield error(
            "kernel-missing",
            f"the weights are {dtype}, and this torch has no {dtype} kernel of "
            f"{' and '.join(quoted(name) for name in missing)} for the CPU",
            where="model",
            fix="model.float(), or move model and images to a GPU",
        )
    elif dtype == "float16":
        yield warning(
            "half-on-cpu",
            "all weights are float16 and on the CPU, wanted float32: there float16 is many times "
            "slower and not more exact",
            where="model",
            fix="model.float(); for a file `ckptool convert FILE --dtype fp32`",
        )


def _kernels(subject: Subject) -> dict[str, Callable[[Any], object]]:
    """The kernels that the model will call, each on the smallest input there is."""
    import torch

    kernels: dict[str, Callable[[Any], object]] = {
        "conv2d": lambda dtype: torch.conv2d(*torch.ones(2, 1, 1, 1, 1).to(dtype)),
    }
    # In training only the region proposals are suppressed, in evaluation all detections.
    if subject.family == TORCHVISION and (
        subject.kind == "GeneralizedRCNN" or not subject.training
    ):
        from torchvision.ops import nms

        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        kernels["nms"] = lambda dtype: nms(box.to(dtype), torch.ones(1).to(dtype), 0.5)
    return kernels


def _runs(kernel: Callable[[Any], object], dtype: str) -> bool:
    import torch

    try:
        with torch.no_grad():
            kernel(getattr(torch, dtype))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _autocast(device: str) -> str | None:
    """The dtype that autocast casts to on a device type now, None where it is not in force."""
    import torch

    try:
        if torch.is_autocast_enabled(device):
            return name_of(torch.get_autocast_dtype(device))
    except (RuntimeError, TypeError):  # a device without autocast, such as meta
        pass
    return None


def _compute(model: Module) -> tuple[Tensors, Tensors]:
    """The weights of convolutions and linear layers, and those of norms, by key."""
    import torch

    layers = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and isinstance(module, (*layers, *norms)):
            key = f"{path}.weight" if path else "weight"
            found[isinstance(module, norms)][key] = weight
    return found


def _tensors(model: Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _scatters(model: Module) -> bool:
    """Whether a wrapper moves its inputs to the model's device."""
    name = type(model).__name__
    return name == "DataParallel" or bool(
        name == "DistributedDataParallel" and getattr(model, "device_ids", None)
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(name, []).append(key)
    return groups


def _told(groups: Mapping[str, list[str]]) -> str:
    """Groups of keys for people: `float16 (56 tensors: `backbone.*`)`."""
    parts = []
    for name, keys in groups.items():
        shown = group_within([(key, name) for key in keys], _MOST_GROUPS)
        patterns = ", ".join(quoted(pattern) for pattern, _, _ in shown[:_MOST_GROUPS])
        more = ", …" if len(shown) > _MOST_GROUPS else ""
        parts.append(f"{name} ({counted(len(keys), 'tensor')}: {patterns}{more})")
    return ", ".join(parts)
