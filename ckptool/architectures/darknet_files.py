"""What the floats of a darknet file are, once a network is known: tensors under its keys.

A `.weights` file says neither keys nor shapes. Its size does: with the layers of a network it gives
the class count, or how many of the first layers the file holds.

Source: AlexeyAB/darknet `src/parser.c` (`load_weights_upto`: the layers one after another, as far
as the file goes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import Checkpoint, Finding, WeightSet
from ckptool.errors import ArchitectureError, FormatError, counted, listed, quoted
from ckptool.formats.darknet import KEY
from ckptool.tensors import LazyTensor, TensorSpec, View, contiguous_strides

if TYPE_CHECKING:
    from ckptool.architectures.darknet_keys import Slot

DIALECT = "darknet-weights"  # of a file whose tensors have no keys at all
PART, CUT = "darknet-part", "darknet-cut"  # findings
FAMILIES = ("yolov4", "darknet")

_PREFIX = "darknet:"
_COUNTER = "num_batches_tracked"
_MOST_CLASSES = 10_000  # YOLO9000 has 9,418


@dataclass(frozen=True, slots=True)
class Fit:
    """How the floats of a file fit a network.

    `num_classes` is None for a file of the first `layers` layers, which do not depend on it;
    `layers` is None for a whole file.
    """

    num_classes: int | None
    layers: int | None = None


def is_darknet(name: str | None) -> bool:
    """Whether an architecture of that name may be what a darknet file holds."""
    if name is None:
        return False
    entry = frozen.index().get(name)
    return name.startswith(_PREFIX) or (entry is not None and entry["family"] in FAMILIES)


def flat(weights: WeightSet) -> LazyTensor | None:
    """The floats of a darknet file, None for weights that have keys."""
    return weights.tensors.get(KEY) if len(weights.tensors) == 1 else None


def fit(floats: int, architecture: Architecture) -> Fit | None:
    """How a number of floats fits a network, None if it does not."""
    base, each = _sizes(architecture)
    count, rest = divmod(floats - base, each)
    if not rest and 1 <= count <= _most(architecture):
        return Fit(count)
    if floats >= base:
        return None
    layers = next((n for n, size in _parts(architecture) if size == floats), None)
    return None if layers is None else Fit(None, layers)


def fitting(floats: int) -> dict[str, Fit]:
    """The built-in networks that a number of floats fits, by name: whole files, then parts."""
    found: dict[str, Fit] = {}
    for name, entry in frozen.index().items():
        architecture = frozen.find(name) if entry["family"] in FAMILIES else None
        fits = fit(floats, architecture) if architecture else None
        if fits is not None:
            found[name] = fits
    return dict(sorted(found.items(), key=lambda item: item[1].layers is not None))


def keyed(opened: Checkpoint, architecture: Architecture | None) -> Checkpoint:
    """The checkpoint of a darknet file with the network's keys; any other one as it is.

    Raises: FormatError if the file has more or fewer floats than the network; ArchitectureError if
    the architecture is none of darknet's.
    """
    floats = flat(opened.weights)
    if floats is None:
        return opened
    if architecture is None or architecture.family not in FAMILIES:
        named = (
            "a network that ckptool does not know" if architecture is None else architecture.name
        )
        raise ArchitectureError(
            f"{quoted(opened.path)}: the floats of a darknet file have no keys, and {named} does "
            "not tell which they are",
            hint=_better(floats.numel),
            code="darknet.architecture",
        )
    try:
        weights = _cut(opened.weights, floats, architecture)
    except FormatError as error:
        raise error.located(quoted(opened.path)) from None
    return replace(opened, weights=weights, sets=(weights,))


def told(weights: WeightSet) -> tuple[str, ...]:
    """What the keys of a darknet file were taken from; nothing for another file."""
    return tuple(found.message for found in weights.findings if found.code in (PART, CUT))


def is_part(weights: WeightSet) -> bool:
    """Whether the weights are only the first layers of a network."""
    return any(found.code == PART for found in weights.findings)


def by_size(
    floats: LazyTensor,
) -> Iterator[tuple[str, bool, str, int | None, str, str, int, int, int, int]]:
    """The networks that the floats fit, whole or in part: the fields of a candidate of each."""
    for name, fits in fitting(floats.numel).items():
        slots = find_slots(name, fits.num_classes)
        there = sum(fits.layers is None or slot.layer < fits.layers for slot in slots)
        lacks = len(slots) - there
        yield name, not lacks, DIALECT, fits.num_classes, "", floats.dtype, there, lacks, 0, 0


def paired(one: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints that can be compared: two darknet files get the keys of a network of both.

    Where networks of different orders have files of both sizes, those of one size get none.

    Raises: ArchitectureError if only one of them is a darknet file, or if they have no network in
    common.
    """
    floats = [flat(checkpoint.weights) for checkpoint in (one, other)]
    sizes = [tensor.numel for tensor in floats if tensor is not None]
    if len(sizes) == 2:
        first, second = map(fitting, sizes)
        common = [name for name in first if name in second]
        orders = {tuple(slot.shape for slot in find_slots(name)) for name in common}
        if len(orders) == 1:
            return keyed(one, frozen.find(common[0])), keyed(other, frozen.find(common[0]))
        if sizes[0] == sizes[1]:
            return one, other
    return keyed(one, None), keyed(other, None)


def find_slots(name: str, num_classes: int | None = None) -> tuple[Slot, ...]:
    """The runs of a file's floats in order, under the network's own keys."""
    # Only where it is needed: layer tables take a while.
    from ckptool.architectures import yolov4

    return yolov4.find_slots(name, num_classes)


def _cut(weights: WeightSet, floats: LazyTensor, architecture: Architecture) -> WeightSet:
    """The weights under the network's keys, in its order, each a window on the file's floats."""
    fits = fit(floats.numel, architecture)
    if fits is None:
        raise FormatError(
            _mismatch(floats.numel, architecture), hint=_better(floats.numel), code="darknet.size"
        )
    source = floats.source
    assert isinstance(source, View)
    tensors: dict[str, LazyTensor] = {}
    at = 0
    for slot in find_slots(architecture.name, fits.num_classes):
        if at == floats.numel:
            break
        spec = TensorSpec("float32", slot.shape)
        view = View(source.record, source.offset + at, contiguous_strides(slot.shape))
        tensors[slot.key] = LazyTensor(spec, view)
        at += spec.numel
    ordered = {key: tensors[key] for key in architecture.specs if key in tensors}
    return replace(
        weights, tensors=ordered, findings=(*weights.findings, _told(fits, architecture))
    )


def _told(fits: Fit, architecture: Architecture) -> Finding:
    name = quoted(architecture.name)
    if fits.layers is not None:
        return Finding(
            PART,
            f"a darknet file without keys: its floats are the first {fits.layers:,} layers "
            f"of {name}",
        )
    classes = counted(fits.num_classes or 0, "class", "classes")
    return Finding(
        CUT,
        f"a darknet file without keys: its size is that of {name} with {classes}, whose "
        "layers say which float is what",
    )


def _sizes(architecture: Architecture) -> tuple[int, int]:
    """The floats of a file of no class, and those that each class adds."""
    specs, default = architecture.specs, architecture.num_classes or 0
    total = sum(spec.numel for key, spec in specs.items() if not key.endswith(_COUNTER))
    each = sum(
        axis.scale * specs[key].numel // specs[key].shape[axis.axis]
        for key, axis in architecture.axes.items()
    )
    return total - default * each, each


def _most(architecture: Architecture) -> int:
    """The most classes that a size is taken to mean."""
    return max(_MOST_CLASSES, architecture.num_classes or 0)


def _parts(architecture: Architecture) -> Iterator[tuple[int, int]]:
    """The layers before each convolution and their floats, up to the first that classes need."""
    size, layer = 0, 0
    for slot in find_slots(architecture.name):
        if slot.layer != layer and size:
            yield slot.layer, size
        if slot.key in architecture.axes:
            return
        layer = slot.layer
        size += TensorSpec("float32", slot.shape).numel


def _mismatch(floats: int, architecture: Architecture) -> str:
    """What is left over or missing with the class counts on both sides of the file's size."""
    base, each = _sizes(architecture)
    name, count = quoted(architecture.name), (floats - base) // each
    if count < 1:
        return (
            f"{floats:,} floats are neither the first layers of {name} nor all of them: with 1 "
            f"class it has {base + each:,}, so the file is short by {base + each - floats:,}"
        )
    if count > _most(architecture):
        count = architecture.num_classes or 1
        whole = base + count * each
        return (
            f"{floats:,} floats are no file of {name}: with {counted(count, 'class', 'classes')} "
            f"it has {whole:,}, so {floats - whole:,} are left over"
        )
    more = base + (count + 1) * each - floats
    return (
        f"{floats:,} floats are no file of {name}: with {counted(count, 'class', 'classes')} "
        f"{floats - base - count * each:,} floats are left over, with {count + 1:,} it is short "
        f"by {more:,}"
    )


def _better(floats: int) -> str:
    """What to type for a file of that size."""
    found = fitting(floats)
    if found:
        return f"--arch {next(iter(found))}: its size is that of {listed(found)}"
    return (
        "download it again if it may be cut short; else --arch darknet:FILE.cfg, with the cfg that "
        "it was trained with"
    )


def described(found: Mapping[str, Fit]) -> str:
    """The networks and what the size says of each: `yolov4` with 80 classes."""
    words = (
        f"{quoted(name)} with {counted(fits.num_classes, 'class', 'classes')}"
        if fits.num_classes is not None
        else f"the first {fits.layers:,} layers of {quoted(name)}"
        for name, fits in found.items()
    )
    return ", ".join(words)
