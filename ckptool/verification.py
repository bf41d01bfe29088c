"""The proof of a conversion: the written file, opened by the ordinary reader, against the plan.

What no edit touched is compared byte for byte with the source file; what one did is checked by the
edit's own `check`, which works from the written values back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.errors import VerificationError, listed, quoted
from ckptool.reading import read
from ckptool.tensors import LazyTensor, rechunk

_BLOCK = 1 << 22


def prove(
    path: str, planned: WeightSet, progress: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """What the edits cost, by key, measured from the written file.

    Raises: VerificationError if the file is not what was planned.
    """
    written = read(path, weights=".")
    if list(written) != list(planned.tensors):
        missing = [key for key in planned.tensors if key not in written]
        foreign = [key for key in written if key not in planned.tensors]
        raise VerificationError(
            f"the written file has other keys: {listed([*missing, *foreign]) or 'in other order'}",
            code="verification.keys",
        )
    measured: dict[str, dict[str, float]] = {}
    seen: dict[tuple[Any, Any], None] = {}
    for key, wanted in planned.tensors.items():
        found = written[key]
        if found.spec != wanted.spec:
            raise VerificationError(
                f"{quoted(key)}: found {found.dtype} {found.shape}, "
                f"wanted {wanted.dtype} {wanted.shape}",
                code="verification.spec",
            )
        pair = (found.source, wanted.source)
        if pair in seen:
            continue  # the same bytes under another key
        seen[pair] = None
        check: Callable[..., Mapping[str, float]] | None = getattr(wanted.source, "check", None)
        if check is None:
            _compare_bytes(key, found, wanted)
        else:
            measured[key] = dict(check(wanted.spec, found))
        if progress is not None:
            progress(found.nbytes)
    return measured


def _compare_bytes(key: str, found: LazyTensor, wanted: LazyTensor) -> None:
    blocks = zip(
        rechunk(found.chunks(_BLOCK), _BLOCK), rechunk(wanted.chunks(_BLOCK), _BLOCK), strict=True
    )
    for number, (one, other) in enumerate(blocks):
        if one != other:
            raise VerificationError(
                f"{quoted(key)}: its bytes differ from the source's, from byte "
                f"{number * _BLOCK:,} on",
                code="verification.bytes",
            )
