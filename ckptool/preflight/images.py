"""Images against a model: type, rank, channels, size, batch, values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckptool.errors import counted
from ckptool.preflight.findings import Finding, error, warning
from ckptool.preflight.sizes import maps_of_one_cell, wanted_size
from ckptool.preflight.subject import TORCHVISION, Module, Subject

# What a value above tells: no normalised image has it, every image of 0 … 255 does.
_BYTES = 20.0
# At most so many values are looked at for their distribution.
_SAMPLE = 1 << 20
_TOLERANCE = 0.1
_OUTSIDE, _INSIDE = 0.25, 0.98
_NEGATIVE = 0.1
# What makes a plain tensor of a special one.
MADE_DENSE = {
    "nested": "torch.stack, once all have one shape",
    "quantised": ".dequantize()",
    "sparse": ".to_dense()",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that can be looked at: the tensors C×H×W, and their (height, width)."""

    images: tuple[Any, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the images, each once."""
        return tuple(dict.fromkeys(str(image.device) for image in self.images))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the images, each once."""
        return tuple(dict.fromkeys(name_of(image.dtype) for image in self.images))


def check_images(images: Any, subject: Subject) -> tuple[list[Finding], Batch | None]:
    """The findings about the images, and the images if they have the rank that is wanted."""
    found = _type(images, subject)
    if found is None and not _special(images):
        found = _rank(images, subject)
    if found:
        return [found], None
    if _special(images):  # for a network that is none of pictures
        return [], None
    if not len(images):
        return [warning("image-batch", "found no image, wanted at least 1", where="images")], None
    found = _channels(tuple(images), subject)
    first = 0 if found and found.code == "image-nhwc" else 1
    # Where nothing is known of a model, its inputs may be no images at all.
    sizes = tuple((i.shape[first], i.shape[first + 1]) for i in images if i.dim() == 3)
    batch = Batch(tuple(images), sizes)
    if found is None or found.code == "image-gray":
        findings = [found] if found else []
        findings += [f for f in (_size(batch, subject), _one_value(batch, subject)) if f]
    else:
        findings = [found]
    return [*findings, *_values(batch, subject)], batch


def first_convolution(model: Module) -> Module | None:
    """The convolution that was registered first: in the known models the one that reads images."""
    return next(_convolutions(model), None)


def _convolutions(model: Module) -> Iterator[Module]:
    """The convolutions; a block around one may have numbers of these names too, and lists."""
    for part in model.modules():
        channels, kernel = getattr(part, "in_channels", 0), getattr(part, "kernel_size", None)
        if type(channels) is int and channels and type(kernel) is tuple:
            yield part


def special_layout(tensor: Any) -> str:
    """What a tensor is whose values do not stand in rows and columns; empty for most."""
    import torch

    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.layout is torch.strided else "sparse"


def name_of(dtype: Any) -> str:
    """A torch dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    """A shape for people: `1×3×512×512`."""
    return "×".join(str(int(length)) for length in shape) or "()"


def _type(images: Any, subject: Subject) -> Finding | None:
    """Images that are no tensors, or a list where one tensor is wanted."""
    import torch

    listed = isinstance(images, (list, tuple))
    many = subject.family == TORCHVISION
    if isinstance(images, torch.Tensor) or (
        many and listed and all(isinstance(image, torch.Tensor) for image in images)
    ):
        special = _special(images)
        known = subject.family or first_convolution(subject.model) is not None
        if not special or not known:
            return None
        return error(
            "image-type",
            f"found a {special} tensor, wanted a dense one",
            where="images",
            fix=MADE_DENSE[special],
        )
    wanted = "a list of tensors, one for each image" if many else "one tensor"
    fix = "torch.as_tensor, and channels first"
    found = f"found {_kind(images)}"
    if listed:
        inside = next((i for i in images if not isinstance(i, torch.Tensor)), None)
        found = f"found a {type(images).__name__} of {counted(len(images), 'item')}"
        found += "" if inside is None else f", among them {_kind(inside)}"
        fix = "torch.stack(images)" if inside is None else fix
    return error("image-type", f"{found}, wanted {wanted}", where="images", fix=fix)


def _special(images: Any) -> str:
    """The special layout of images, empty if all of them are dense."""
    each = images if isinstance(images, (list, tuple)) else (images,)
    return next(filter(None, map(special_layout, each)), "")


def _kind(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"`{name}`"


def _rank(images: Any, subject: Subject) -> Finding | None:
    """Images with another number of dimensions than the model reads."""
    if isinstance(images, (list, tuple)):
        for at, image in enumerate(images):
            if image.dim() != 3:
                return error(
                    "image-rank",
                    f"found an image of shape {shape_text(image.shape)}, "
                    f"{counted(image.dim(), 'dimension')}, wanted 3, channels × height × width",
                    where=f"images[{at}]",
                    count=sum(image.dim() != 3 for image in images),
                    fix="one entry of the list for each image",
                )
        return None
    if not subject.family:
        convolution = first_convolution(subject.model)
        if convolution is None:
            return None
        axes = len(convolution.kernel_size)
        if axes != 2:
            return _other_rank(images, axes)
    if images.dim() == 4:
        return None
    fix = "what the loader yields is no batch of images: torch.stack([image, …])"
    if images.dim() == 3:
        fix = "a batch of one image is `images[None]`"
    found = counted(images.dim(), "dimension")
    return error(
        "image-rank",
        f"found images of shape {shape_text(images.shape)}, {found}, wanted 4 dimensions, "
        "batch × channels × height × width",
        where="images",
        fix=fix,
    )


def _other_rank(images: Any, axes: int) -> Finding | None:
    """The rank for convolutions along another number of axes, which take one item without batch."""
    if images.dim() in (axes + 1, axes + 2):
        return None
    return error(
        "image-rank",
        f"found inputs of shape {shape_text(images.shape)}, {counted(images.dim(), 'dimension')}, "
        f"wanted {axes + 2}: batch × channels × {counted(axes, 'more axis', 'more axes')}",
        where="images",
    )


def _channels(images: tuple[Any, ...], subject: Subject) -> Finding | None:
    """Another number of channels than the first convolution reads, or channels behind."""
    wanted = _wanted_channels(subject)
    if wanted is None:
        return None
    convolution = first_convolution(subject.model)
    axes = 0 if convolution is None else len(convolution.kernel_size)
    if axes and any(image.dim() != axes + 1 for image in images):
        return None  # one item without a batch
    wrong = [at for at, image in enumerate(images) if image.shape[0] not in wanted]
    if not wrong:
        return None
    first = images[wrong[0]]
    known = next(iter(wanted))
    where = "images" if len(wrong) == len(images) else f"images[{wrong[0]}]"
    if first.shape[-1] in wanted:
        return error(
            "image-nhwc",
            f"found images of shape {shape_text(first.shape)}, height × width × channels, wanted "
            f"the {counted(known, 'channel')} first",
            where=where,
            count=len(wrong),
            fix="images.permute(0, 3, 1, 2), or image.permute(2, 0, 1) for one",
        )
    if subject.family == TORCHVISION and first.shape[0] == 1:
        return warning(
            "image-gray",
            f"found 1 channel, wanted {known}: the model's own normalisation repeats it",
            where=where,
            count=len(wrong),
            fix="image.expand(3, -1, -1) says that it is meant",
        )
    return error(
        "image-channels",
        f"found images of {counted(int(first.shape[0]), 'channel')}, wanted {known}, which the "
        "first convolution reads",
        where=where,
        count=len(wrong),
        fix="image.convert('RGB') when it is opened"
        if known == 3
        else f"images of {counted(known, 'channel')}, or a model that reads {first.shape[0]}",
    )


def _wanted_channels(subject: Subject) -> tuple[int, ...] | None:
    """The channel counts that can be read, None if that is not known."""
    if subject.family == TORCHVISION:
        return (len(subject.card["mean"]),) if subject.card.get("mean") else None
    if subject.family:
        convolution = first_convolution(subject.core)
        return None if convolution is None else (int(convolution.in_channels),)
    # Which convolution of an unknown model reads the images is not known.
    counts = [convolution.in_channels for convolution in _convolutions(subject.model)]
    return tuple(dict.fromkeys(counts)) or None


def _size(batch: Batch, subject: Subject) -> Finding | None:
    """Images of another height and width than the architecture can take."""
    for at, size in enumerate(batch.sizes):
        found = wanted_size(subject, size)
        if found is not None:
            at_all = len(set(batch.sizes)) == 1
            return Finding(
                "image-size",
                found.severity,
                found.message,
                "images" if at_all else f"images[{at}]",
                fix=found.fix,
            )
    return None


def _one_value(batch: Batch, subject: Subject) -> Finding | None:
    """A batch of one in training, where a batch norm would see a single value."""
    import torch

    norm = torch.nn.modules.batchnorm._BatchNorm
    training = any(isinstance(m, norm) and m.training for m in subject.core.modules())
    if len(batch.images) != 1 or not training or not maps_of_one_cell(subject, batch.sizes[0]):
        return None
    return error(
        "image-batch",
        "found a batch of 1 in training mode, wanted 2 at least: the smallest map of an image of "
        f"{shape_text(batch.sizes[0])} is 1×1, and a batch norm has no variance of one value",
        where="images",
        fix="a larger batch, drop_last=True in the loader, or model.eval()",
    )


def _values(batch: Batch, subject: Subject) -> Iterator[Finding]:
    """Values that are not finite, constant, or in another range than the model was trained on."""
    import torch

    # The dtypes of a byte have no arithmetic, and no network takes them.
    looked = [
        image
        for image in batch.images
        if image.is_floating_point()
        and image.dtype.itemsize > 1
        and not image.is_meta
        and image.numel()
    ]
    if not looked:
        return
    broken = [at for at, image in enumerate(batch.images) if not _finite(image)]
    if broken:
        yield error(
            "image-not-finite",
            f"found values that are NaN or infinite in {counted(len(broken), 'image')} of "
            f"{len(batch.images):,}, wanted finite ones",
            where=f"images[{broken[0]}]",
            count=len(broken),
            fix="look for a division by 0 in the normalisation",
        )
        return
    low = min(float(image.min()) for image in looked)
    high = max(float(image.max()) for image in looked)
    if low == high:
        yield warning(
            "image-constant",
            f"found {low:g} in every place, wanted pictures",
            where="images",
            fix="look at what the loader reads",
        )
        return
    mean, std = subject.card.get("mean"), subject.card.get("std")
    if not mean or not std:
        return
    step = max(1, sum(image.numel() for image in looked) // _SAMPLE)
    sample = torch.cat([image.detach().flatten()[::step].float().cpu() for image in looked])
    inside = subject.family == TORCHVISION
    yield from _range(low, high, sample, None if inside else (mean, std))


def _finite(image: Any) -> bool:
    return image.is_meta or not image.is_floating_point() or bool(image.isfinite().all())


def _range(
    low: float, high: float, sample: Any, normalisation: tuple[Any, Any] | None
) -> Iterator[Finding]:
    """The range of the values; `normalisation` is the caller's part, None if it is the model's."""
    mean, std = normalisation or ((0.0,), (1.0,))
    plain = all(m == 0 for m in mean) and all(s == 1 for s in std)
    lowest = min((0 - m) / s for m, s in zip(mean, std, strict=True))
    highest = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    found = f"found values from {low:.3g} to {high:.3g}"
    numbers = f"mean {_numbers(mean)}, std {_numbers(std)}"
    wanted = "wanted 0 to 1" if plain else f"wanted about {lowest:.2g} to {highest:.2g}"
    by = "" if plain else f" ({numbers})"
    if high > _BYTES:
        yield error(
            "image-range",
            f"{found}, {wanted}{by}: these look like 0 … 255",
            where="images",
            fix="images / 255" + ("" if plain else ", then the mean and std"),
        )
    elif plain and float((sample < 0).float().mean()) > _NEGATIVE:
        why = (
            ": the model normalises by itself, this would be the second time"
            if normalisation is None
            else ""
        )
        yield warning(
            "image-normalised",
            f"{found}, {wanted}{why}",
            where="images",
            fix="leave the normalisation out",
        )
    elif not plain and low >= -0.01 and high <= 1.01:
        yield warning(
            "image-normalised",
            f"{found}, {wanted}{by}",
            where="images",
            fix=f"normalise with {numbers}",
        )
    elif not plain and _twice(sample, mean, std, (lowest, highest)):
        yield warning(
            "image-normalised",
            f"{found}, {wanted}{by}: they are normalised twice",
            where="images",
            fix="normalise once",
        )


def _twice(sample: Any, mean: Any, std: Any, once: tuple[float, float]) -> bool:
    """Whether values are far from what one normalisation gives, and near what two give."""
    outside = (sample < once[0] - _TOLERANCE) | (sample > once[1] + _TOLERANCE)
    lowest = min((once[0] - m) / s for m, s in zip(mean, std, strict=True))
    highest = max((once[1] - m) / s for m, s in zip(mean, std, strict=True))
    near = (sample > lowest - _TOLERANCE) & (sample < highest + _TOLERANCE)
    return float(outside.float().mean()) > _OUTSIDE and float(near.float().mean()) > _INSIDE


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
