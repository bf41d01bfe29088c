"""The order in which the detectors look."""

from __future__ import annotations

from collections.abc import Callable

from ckptool.causes import Cause, Situation
from ckptool.causes.buffers import counters, derived
from ckptool.causes.damage import empty_shells, flat_parameters, refused
from ckptool.causes.heads import anchors, classes, input_channels
from ckptool.causes.identity import a_part, another_architecture, extra_modules, unrelated
from ckptool.causes.spelling import head_norms, renamed_members
from ckptool.causes.structure import (
    adapters,
    ema_mirror,
    fused_norms,
    redundant_biases,
    reparametrised,
)
from ckptool.causes.wrappers import prefix, segments

# What wraps or renames all keys comes first, then what makes it another network, in which case the
# rest is not worth a look; single tensors come last.
DETECTORS: tuple[Callable[[Situation], list[Cause]], ...] = (
    flat_parameters,
    empty_shells,
    refused,
    segments,
    prefix,
    renamed_members,
    ema_mirror,
    derived,
    another_architecture,
    a_part,
    adapters,
    reparametrised,
    fused_norms,
    unrelated,
    head_norms,
    redundant_biases,
    counters,
    extra_modules,
    input_channels,
    anchors,
    classes,
)
