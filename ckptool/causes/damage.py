"""Files that hold no usable weights, whatever the architecture: shells and fragments."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.errors import listed


def empty_shells(situation: Situation) -> list[Cause]:
    """Tensors without elements, as DeepSpeed ZeRO-3 leaves them on the model it saves."""
    found, wanted = situation.weights.specs, situation.target.specs
    empty = [
        k for k, spec in found.items() if spec.shape == (0,) and k in wanted and wanted[k].numel
    ]
    if not empty:
        return []
    return [
        Cause(
            "zero3-shell",
            f"{len(empty):,} tensors have the shape (0,): DeepSpeed ZeRO-3 saved the empty shell "
            "of the model; zero_to_fp32.py collects the weights from the ranks' files",
            exact=False,
            ends=True,
            keys=tuple(empty),
        )
    ]


def flat_parameters(situation: Situation) -> list[Cause]:
    """FSDP's flattened parameters."""
    flat = [key for key in situation.weights.tensors if key.split(".")[-1] == "_flat_param"]
    if not flat:
        return []
    return [
        Cause(
            "flat-parameters",
            f"{len(flat):,} tensors are flattened parameters of FSDP ({listed(flat, 2)}): the "
            "file is one rank's part; save with FULL_STATE_DICT instead",
            exact=False,
            ends=True,
            keys=tuple(flat),
        )
    ]


def refused(situation: Situation) -> list[Cause]:
    """Tensors that are in the file but not as dense tensors."""
    keys = [key for key in situation.weights.refused if key in situation.target.specs]
    if not keys:
        return []
    first = situation.weights.refused[keys[0]]
    return [
        Cause(
            "not-dense",
            f"{len(keys):,} tensors are in the file as {first.kind} tensors ({first.reason}): "
            f"{listed(keys, 3)}",
            exact=False,
            keys=tuple(keys),
        )
    ]
