"""What stands beside the weights in one mapping: TensorFlow's moving averages, Caffe2's momenta.

Source: tensorflow 2.15 `python/training/moving_averages.py` (`ExponentialMovingAverage`); which of
them a model takes: google/automl `efficientdet/utils.py` (`get_ckpt_var_map_ema`); Detectron2 at
02b5c4e `checkpoint/detection_checkpoint.py` (momenta).
"""

from __future__ import annotations

from dataclasses import replace

from ckptool.checkpoint import WeightSet

NAME = "ExponentialMovingAverage"
_SUFFIX = f"/{NAME}"
_MOMENTUM = "_momentum"


def is_average(key: str) -> bool:
    """Whether a key is that of a variable's average."""
    return key.endswith(_SUFFIX)


def split(found: WeightSet) -> tuple[WeightSet, ...]:
    """The variables as trained, and averaged; the set itself if there are no averages in it.

    A variable without an average is itself in both. Momenta belong to training and are in none.
    """
    found = _without_momenta(found)
    averages = {
        key.removesuffix(_SUFFIX): tensor
        for key, tensor in found.tensors.items()
        if is_average(key)
    }
    if not averages:
        return (found,)
    trained = {key: tensor for key, tensor in found.tensors.items() if not is_average(key)}
    name = NAME if found.name == "." else f"{found.name}.{NAME}"
    return (
        replace(found, tensors=trained, averaged=False),
        replace(found, name=name, tensors={**trained, **averages}, averaged=True),
    )


def _without_momenta(found: WeightSet) -> WeightSet:
    """The set without the momentum of each blob."""
    tensors = found.tensors
    momenta = {key for key in tensors if key.endswith(_MOMENTUM)}
    momenta = {key for key in momenta if key.removesuffix(_MOMENTUM) in tensors}
    if not momenta:
        return found
    return replace(found, tensors={k: t for k, t in tensors.items() if k not in momenta})
