"""Which image sizes an architecture runs on, and how large its maps are then.

Source: effdet 0.4.1 (`anchors.get_feat_sizes`; the resampling of the pyramid is built for the
configured size), torchvision 0.29 (`ssdlite.py`: six maps, the first of stride 16).
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptool.architectures import yolov4
from ckptool.architectures.darknet_layers import Network, network
from ckptool.errors import ArchitectureError
from ckptool.preflight.findings import Finding, error, warning
from ckptool.preflight.subject import EFFDET, YOLO, Subject

Size = tuple[int, int]

_SSDLITE_MAPS, _SSDLITE_STRIDE = 6, 16


def wanted_size(subject: Subject, size: Size) -> Finding | None:
    """What is wrong with a (height, width), None if it is right or any is."""
    if min(size) < 1:
        return error("image-size", f"found images of {_text(size)}, wanted at least one pixel")
    if subject.family == EFFDET:
        return _effdet_size(subject, size)
    if subject.family == YOLO:
        return _yolo_size(subject, size)
    return None


def halved(size: Size, levels: int) -> list[Size]:
    """The sizes of the maps of level 0 … `levels`, each half of the one before, rounded up."""
    sizes = [size]
    for _ in range(levels):
        height, width = sizes[-1]
        sizes.append(((height - 1) // 2 + 1, (width - 1) // 2 + 1))
    return sizes


def maps_of_one_cell(subject: Subject, size: Size) -> bool:
    """Whether a batch norm reads a map of 1×1 for an image of this size."""
    if subject.family == EFFDET:
        first, last = subject.card["levels"]
        return (1, 1) in halved(size, last)[first:]
    if subject.family == YOLO:
        net = network_of(subject)
        try:
            layers = at_size(net, size).layers if net else ()
        except ArchitectureError:
            return False
        return any(layer.normalized and layer.shape[1:] == (1, 1) for layer in layers)
    fixed = subject.card.get("image_size")
    if subject.kind == "SSD" and fixed and subject.card.get("anchor_steps") is None:
        first = (-(-fixed[0] // _SSDLITE_STRIDE), -(-fixed[1] // _SSDLITE_STRIDE))
        return (1, 1) in halved(first, _SSDLITE_MAPS - 1)
    return False


def network_of(subject: Subject) -> Network | None:
    """The layer table of a darknet network, None if there is none."""
    if subject.kind == "DarknetNet":
        found: Network = subject.core.network
        return found
    if subject.architecture is not None and subject.family == YOLO:
        return yolov4.find_network(subject.architecture.name)
    return None


def at_size(net: Network, size: Size) -> Network:
    """The layer table for images of a (height, width).

    Raises: ArchitectureError that says which maps do not meet.
    """
    first, *rest = net.sections
    return network([first.with_option("height", size[0]).with_option("width", size[1]), *rest])


def _effdet_size(subject: Subject, size: Size) -> Finding | None:
    wanted = tuple(int(side) for side in subject.card["image_size"])
    if size == wanted:
        return None
    last = int(subject.card["levels"][1])
    step = 2**last
    message = (
        f"found images of {_text(size)} (height × width), wanted {_text(wanted)}, "
        "for which the pyramid and the anchors are built"
    )
    near = tuple(max(step, round(side / step) * step) for side in size)
    fix = f"resize and pad to {_text(wanted)}, or create_model(…, image_size={near})"
    if halved(size, last)[1:] == halved(wanted, last)[1:]:  # type: ignore[arg-type]
        return warning("image-size", message, fix=fix)
    return error("image-size", message, fix=fix)


def _yolo_size(subject: Subject, size: Size) -> Finding | None:
    step = max(subject.card["strides"])
    if not size[0] % step and not size[1] % step:
        return None
    near = tuple(-(-side // step) * step for side in size)
    message = f"found images of {_text(size)} (height × width), wanted multiples of {step}"
    fix = f"resize or pad to {_text(near)}"
    net = network_of(subject)
    try:
        if net is not None:
            at_size(net, size)
    except ArchitectureError:
        return error("image-size", f"{message}: the maps of its branches do not meet", fix=fix)
    return warning("image-size", message, fix=fix)


def _text(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
