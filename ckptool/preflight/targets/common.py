"""What the targets of all families have: tensors on a device, labels in a range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, listed, quoted
from ckptool.preflight.findings import Finding, error
from ckptool.preflight.images import MADE_DENSE, name_of, shape_text, special_layout
from ckptool.preflight.subject import Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# The keys of the other family, to name whose form it is.
_FOREIGN = {
    frozenset({"boxes", "labels"}): "torchvision's form",
    frozenset({"bbox", "cls"}): "effdet's form",
    frozenset({"bboxes", "labels"}): "albumentations' form",
}


@dataclass(frozen=True, slots=True)
class Labels:
    """Class labels, and which of them the model has rows for.

    `first` and `last` are the labels of the first and the last row that means a class; `background`
    says what the model makes of the labels below `first`, None where it has no such label.
    """

    values: Array
    first: int
    last: int
    where: Callable[[int], str]
    background: str | None = None


def check_labels(labels: Labels) -> Iterator[Finding]:
    """The findings about labels that no row, or the wrong one, stands for."""
    import numpy as np

    values = labels.values
    if not len(values):
        return
    wanted = f"wanted {labels.first} … {labels.last}"
    finite = np.isfinite(values)
    broken = ~finite | (np.where(finite, values, 0) % 1 != 0)
    if broken.any():
        at = int(broken.nonzero()[0][0])
        yield error(
            "label-whole",
            f"{_share(broken)} are not whole numbers, such as {values[at]:g}, {wanted}",
            where=labels.where(at),
            count=int(broken.sum()),
            fix="look at what is stacked into the labels: a score, or a box",
        )
    below = ~broken & (values < labels.first)
    if labels.background is not None:
        background = below & (values == labels.first - 1)
        below &= ~background
        if background.any():
            yield _background(labels, background, wanted)
    above = ~broken & (values > labels.last)
    outside = below | above
    if outside.any():
        at = int(outside.nonzero()[0][0])
        one_based = labels.first == 0 and values.max() == labels.last + 1 and values.min() >= 1
        yield error(
            "label-range",
            f"found labels from {values[finite].min():g} to {values[finite].max():g}, {wanted}: "
            f"{_share(outside)} have no row in the head",
            where=labels.where(at),
            count=int(outside.sum()),
            fix="labels - 1: here classes count from 0"
            if one_based
            else f"map the class ids to {labels.first} … {labels.last}, or build the head for "
            "more classes",
        )


def tensor_findings(
    tensors: Mapping[str, Any], subject: Subject, device: str | None
) -> Iterator[Finding]:
    """Targets that are no tensors, or not on the model's device; by where they stand."""
    import torch

    plain = [where for where, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if plain:
        kind = type(tensors[plain[0]]).__name__
        yield error(
            "target-type",
            f"found `{kind}`, wanted a tensor",
            where=plain[0],
            count=len(plain),
            fix="torch.as_tensor",
        )
        return
    special = {where: special_layout(value) for where, value in tensors.items()}
    held = [where for where, kind in special.items() if kind]
    if held:
        yield error(
            "target-type",
            f"found a {special[held[0]]} tensor, wanted a dense one",
            where=held[0],
            count=len(held),
            fix=MADE_DENSE[special[held[0]]],
        )
        return
    away = [where for where, value in tensors.items() if str(value.device) != device]
    if device is not None and away:
        yield error(
            "target-device",
            f"found targets on {quoted(str(tensors[away[0]].device))}, wanted {quoted(device)}, "
            "where the model is",
            where=away[0],
            count=len(away),
            fix=f"move the targets with the images: .to({device!r})",
        )


def missing_keys(
    target: Mapping[str, Any], wanted: Sequence[str], where: str, count: int = 1
) -> Iterator[Finding]:
    """Keys that the model reads and the target does not have."""
    keys = frozenset(wanted)
    missing = [key for key in wanted if key not in target]
    if not missing:
        return
    has = frozenset(map(str, target))
    foreign = next((form for own, form in _FOREIGN.items() if own <= has - keys), None)
    found = f"found the keys {listed(sorted(has))}" + (f", {foreign}" if foreign else "")
    yield error(
        "target-keys",
        f"{found if has else 'found no keys'}, wanted {listed(missing)} too",
        where=where,
        count=count,
        fix="rename what is there under another name" if foreign else None,
    )


def wrong_shape(what: str, shape: Any, wanted: str, where: str, fix: str | None = None) -> Finding:
    """A finding about the shape of a target's tensor."""
    return error(
        "target-shape", f"found {what} of shape {shape_text(shape)}, wanted {wanted}", where=where,
        fix=fix,
    )  # fmt: skip


def device_of(subject: Subject) -> str | None:
    """The device of the model's parameters, None if they are on several, or there are none."""
    devices = {str(parameter.device) for parameter in subject.core.parameters()}
    return devices.pop() if len(devices) == 1 else None


def numbers(tensor: Any) -> Array:
    """The values as float64."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array


def dtype_of(tensor: Any) -> str:
    """A tensor's dtype without `torch.`."""
    return name_of(tensor.dtype)


def _background(labels: Labels, mask: Array, wanted: str) -> Finding:
    at = int(mask.nonzero()[0][0])
    shifted = labels.values.max() < labels.last
    return error(
        "label-background",
        f"{_share(mask)} are {labels.first - 1}, {wanted}: {labels.background}",
        where=labels.where(at),
        count=int(mask.sum()),
        fix="labels + 1: 0 is the background here" if shifted else "give every box a class",
    )


def _share(mask: Array) -> str:
    return f"{int(mask.sum()):,} of {counted(len(mask), 'label')}"
