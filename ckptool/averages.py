"""TensorFlow's moving averages, which stand beside the variables in one mapping.

Source: tensorflow 2.15 `python/training/moving_averages.py` (`ExponentialMovingAverage`); which of
them a model takes: google/automl `efficientdet/utils.py` (`get_ckpt_var_map_ema`).
"""

from __future__ import annotations

from dataclasses import replace

from ckptool.checkpoint import WeightSet

NAME = "ExponentialMovingAverage"
_SUFFIX = f"/{NAME}"


def is_average(key: str) -> bool:
    """Whether a key is that of a variable's average."""
    return key.endswith(_SUFFIX)


def split(found: WeightSet) -> tuple[WeightSet, ...]:
    """The variables as trained, and averaged; the set itself if there are no averages in it.

    A variable without an average is itself in both.
    """
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
