"""Values that are no usable weights, whatever the architecture: shells, fragments, other things."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed, quoted


def not_tensors(situation: Situation) -> list[Cause]:
    """Entries of the state dict itself that are no tensors, such as an epoch beside the weights."""
    keys = situation.weights.others
    wanted = [key for key in keys if key in situation.wanted]
    beside = [key for key in keys if key not in situation.wanted]
    causes = []
    if beside:
        them = "it" if len(beside) == 1 else "them"
        causes.append(
            Cause(
                "not-tensors",
                f"{counted(len(beside), 'entry', 'entries')} beside the weights "
                f"{'is no tensor' if len(beside) == 1 else 'are no tensors'}: {listed(beside)}; a "
                f"strict load stumbles over {them}, a conversion leaves {them} out",
                automatic=True,
                keys=tuple(beside),
            )
        )
    if wanted:
        causes.append(
            Cause(
                "not-tensors",
                f"{counted(len(wanted), 'entry', 'entries')} that the architecture wants "
                f"{'is no tensor' if len(wanted) == 1 else 'are no tensors'}: {listed(wanted)}",
                exact=False,
                keys=tuple(wanted),
            )
        )
    return causes


def not_dense(situation: Situation) -> list[Cause]:
    """Tensors that are in the file but not as dense tensors."""
    refused = situation.weights.refused
    causes = []
    for kind in dict.fromkeys(value.kind for value in refused.values()):
        keys = [key for key, value in refused.items() if value.kind == kind]
        wanted = [key for key in keys if key in situation.wanted]
        for chosen in (wanted, [key for key in keys if key not in wanted]):
            if not chosen:
                continue
            many = len(chosen) > 1
            causes.append(
                Cause(
                    "not-dense",
                    f"{listed(chosen, 3)} {'are' if many else 'is'} in the file as {kind}, not as "
                    f"{'dense tensors' if many else 'a dense tensor'} "
                    f"({refused[chosen[0]].reason})"
                    + (
                        ""
                        if chosen is wanted
                        else ": a conversion leaves "
                        f"{'them' if many else 'it'} out, which the architecture does not want"
                    ),
                    exact=chosen is not wanted,
                    automatic=chosen is not wanted,
                    keys=tuple(chosen),
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
