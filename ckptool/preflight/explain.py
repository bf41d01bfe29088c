"""What an exception of a forward pass means, and which findings explain it.

The texts are those of torch 2.15, torchvision 0.29 and effdet 0.4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptool.errors import printable, quoted
from ckptool.preflight.findings import Finding, error

_LONGEST = 240

# The text of an exception, the codes that explain it with the likeliest first, and what it means.
_MEANINGS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        r"stack expects each tensor to be equal size|Sizes of tensors must match",
        ("image-size",),
        "maps that should meet differ in size, as for an image of a size that the model is not "
        "built for",
    ),
    (
        r"to have \d+ channels, but got|must match the size of tensor b \(3\)",
        ("image-nhwc", "image-channels", "image-rank"),
        "the first axis but the batch is not the channels that the convolution reads",
    ),
    (
        r"Expected \dD \(unbatched\)|expected \dD input|not enough values to unpack|to be H and W"
        r"|list of 3d tensors",
        ("image-rank",),
        "the images have another number of dimensions",
    ),
    (
        r"argument 'input'|must be Tensor, not|invalid combination of arguments|has no attribute",
        ("image-type", "target-type"),
        "something is no tensor",
    ),
    (
        r"Expected more than 1 value per channel",
        ("image-batch",),
        "a batch norm in training sees a single value",
    ),
    (
        r"Tensor on device|on the same device|found at least two devices|is on meta device",
        ("image-device", "model-devices", "target-device"),
        "tensors are on several devices",
    ),
    (
        r"not implemented for",
        ("kernel-missing", "image-dtype"),
        "this device has no kernel for this dtype",
    ),
    (
        r"expected scalar type|and (weight|bias) type|mixed dtype|floating type|same dtype",
        ("image-dtype", "model-dtypes", "anchors-dtype", "target-dtype"),
        "tensors of several dtypes meet, and no autocast is in force",
    ),
    (
        r"should be tf.float32|target labels must|expected target dtype|used as indices must"
        r"|source and destination dtypes",
        ("target-dtype", "anchors-dtype", "target-type"),
        "a target has another dtype than the loss takes",
    ),
    (
        r"Target -?\d+ is out of bounds",
        ("label-range", "label-whole"),
        "a label has no row in the head",
    ),
    (
        r"positive height and width",
        ("box-negative", "box-empty", "box-order"),
        "a box has no area",
    ),
    (
        r"targets should not be none|indices must be integers|KeyError|should have a \w+ key"
        r"|list index out of range",
        ("target-keys", "target-type", "target-count"),
        "the targets do not have the form that the loss reads",
    ),
    (
        r"Expected target boxes|Invalid dimensions for box|shape of the mask",
        ("target-shape", "target-dtype", "target-count"),
        "a target has another shape than the loss reads",
    ),
    (
        r"is invalid for input of size|must be the same as input size",
        ("head-rows", "target-count"),
        "the head gives another number of rows than is read",
    ),
)
_INDEX = re.compile(r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)")


def explained(
    raised: BaseException, findings: Iterable[Finding], num_classes: int | None
) -> Finding:
    """The finding about a forward pass that raises: what it means, and which finding says why."""
    text = f"{type(raised).__name__}: {raised}".strip()
    codes, meaning = _meaning(text, num_classes)
    present = {finding.code for finding in findings if finding.severity == "error"}
    known = next((code for code in codes if code in present), None)
    said = quoted(printable(" ".join(text.split()), _LONGEST), _LONGEST)
    if known:
        return error(
            "forward-raises",
            f"the forward pass raises {said}; {quoted(known)} explains it",
            where="model",
        )
    why = f": {meaning}" if meaning else ", which no check explains"
    return error("forward-raises", f"the forward pass raises {said}{why}", where="model")


def _meaning(text: str, num_classes: int | None) -> tuple[tuple[str, ...], str]:
    index = _INDEX.search(text)
    if index:
        at, axis, size = map(int, index.groups())
        reads = f"entry {at} of axis {axis} is read, which has {size}"
        if size == 1:
            reads += f", as if anchor {at} were read of a head with one anchor"
        elif size == num_classes:
            reads += ", one for each class: a label is too large"
        return ("label-range", "label-whole", "head-rows", "target-count"), reads
    for pattern, codes, meaning in _MEANINGS:
        if re.search(pattern, text):
            return codes, meaning
    return (), ""
