"""The order in which the detectors look."""

from __future__ import annotations

from collections.abc import Callable

from ckptool.causes import Cause, Situation, buffers, heads, wrappers

DETECTORS: tuple[Callable[[Situation], list[Cause]], ...] = (
    wrappers.segments,
    wrappers.prefix,
    buffers.derived,
    buffers.counters,
    heads.classes,
)
