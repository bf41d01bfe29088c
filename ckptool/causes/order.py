"""The order in which the detectors look."""

from __future__ import annotations

from collections.abc import Callable

from ckptool.causes import Cause, Situation
from ckptool.causes.buffers import anchors_missing, counters, derived, profiled
from ckptool.causes.copies import adapters, ema_mirror
from ckptool.causes.damage import empty_shells, flat_parameters, not_dense, not_tensors
from ckptool.causes.dialects import other_dialect, unknown_dialect
from ckptool.causes.heads import anchors, classes, input_channels
from ckptool.causes.identity import another_size, extra_modules, part_only, unrelated
from ckptool.causes.legacy import old_names
from ckptool.causes.spelling import head_norms, norm_spelling, renamed_members, unit_axes
from ckptool.causes.structure import fused_norms, redundant_biases, reparametrised
from ckptool.causes.wrappers import mixed_copies, prefix, segments

Detector = Callable[[Situation], list[Cause]]

# What stands around the weights or is not of the network, whatever network it is.
AROUND: tuple[Detector, ...] = (
    not_tensors,
    flat_parameters,
    segments,
    other_dialect,
    mixed_copies,
    prefix,
    not_dense,
    empty_shells,
    renamed_members,
    norm_spelling,
    ema_mirror,
    adapters,
    derived,
    anchors_missing,
    profiled,
    unknown_dialect,
)
# How the same network may differ from what is wanted.
INSIDE: tuple[Detector, ...] = (
    old_names,
    head_norms,
    reparametrised,
    fused_norms,
    redundant_biases,
    counters,
    unit_axes,
    input_channels,
    anchors,
    classes,
    extra_modules,
    part_only,
)
# What else may be said where that leaves something open and no architecture fits.
REST: tuple[Detector, ...] = (another_size, unrelated)
