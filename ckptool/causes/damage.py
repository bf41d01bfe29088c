"""Values that are no usable weights, whatever the architecture: shells, fragments, other things."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed, quoted


def not_tensors(situation: Situation) -> list[Cause]:
    """Entries of the state dict itself that are no tensors, such as an epoch beside the weights."""
    keys = situation.weights.others
    if not keys:
        return []
    return [
        Cause(
            "not-tensors",
            f"{counted(len(keys), 'entry', 'entries')} beside the weights "
            f"{'is no tensor' if len(keys) == 1 else 'are no tensors'}: {listed(keys)}; a strict "
            "load stumbles over them, a conversion leaves them out",
            automatic=True,
            keys=keys,
        )
    ]


def not_dense(situation: Situation) -> list[Cause]:
    """Tensors that are in the file but not as dense tensors."""
    refused = situation.weights.refused
    causes = []
    for kind in dict.fromkeys(value.kind for value in refused.values()):
        keys = [key for key, value in refused.items() if value.kind == kind]
        wanted = [key for key in keys if key in situation.wanted]
        first = refused[(wanted or keys)[0]]
        causes.append(
            Cause(
                "not-dense",
                f"{counted(len(keys), 'tensor is', 'tensors are')} in the file as {kind}, not as "
                f"dense tensors ({first.reason}): {listed(wanted or keys, 3)}",
                exact=False,
                automatic=not wanted,
                keys=tuple(keys),
            )
        )
    return causes


def empty_shells(situation: Situation) -> list[Cause]:
    """Tensors without elements, as DeepSpeed ZeRO-3 leaves them on the model that it saves."""
    found, wanted = situation.found, situation.wanted
    empty = [k for k in situation.reshaped if found[k].shape == (0,) and wanted[k].numel]
    if not empty:
        return []
    return [
        Cause(
            "zero3-shell",
            f"{counted(len(empty), 'tensor has', 'tensors have')} the shape (0,): DeepSpeed "
            "ZeRO-3 saved the empty shell of the model; its zero_to_fp32.py collects the weights "
            "from the files of all ranks",
            exact=False,
            keys=tuple(empty),
        )
    ]


def flat_parameters(situation: Situation) -> list[Cause]:
    """FSDP's flattened parameters."""
    flat = [key for key in situation.found if key.rpartition(".")[2].startswith("_flat_param")]
    if not flat:
        return []
    return [
        Cause(
            "flat-parameters",
            f"{counted(len(flat), 'tensor is', 'tensors are')} FSDP's flattened parameters "
            f"({quoted(flat[0])}): the file is one rank's part of the model; save with "
            "FULL_STATE_DICT instead",
            exact=False,
            whole=True,
        )
    ]
