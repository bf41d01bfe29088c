"""Buffers that follow from something else: BatchNorm's counters, anchors, counters of profilers."""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.causes import Cause, Situation
from ckptool.compare import COUNTER
from ckptool.errors import listed
from ckptool.identification import DERIVED, PROFILED, is_named


def counters(situation: Situation) -> list[Cause]:
    """BatchNorm's `num_batches_tracked`: missing, superfluous, or of shape (1,)."""
    found, wanted = situation.weights.specs, situation.target.specs
    causes = []
    missing = {key: wanted[key].dtype for key in wanted if _counts(key) and key not in found}
    if missing and any(_module(key) in _modules(found) for key in missing):
        causes.append(
            Cause(
                "bn-counters-missing",
                f"the file lacks {len(missing):,} BatchNorm counters (`{COUNTER}`), as files from "
                "before torch 0.4.1 do; they only matter for training without momentum",
                "fill",
                {"zeros": {key: [dtype, []] for key, dtype in missing.items()}},
                None,
                automatic=True,
            )
        )
    extra = [key for key in found if _counts(key) and key not in wanted]
    if extra and any(_module(key) in _modules(wanted) for key in extra):
        causes.append(
            Cause(
                "bn-counters-unexpected",
                f"the file has {len(extra):,} BatchNorm counters (`{COUNTER}`), the architecture "
                "has none",
                "drop",
                {"drop": extra},
                f"--drop '*.{COUNTER}'",
                automatic=True,
            )
        )
    shaped = [key for key in found if _counts(key) and key in wanted and found[key] != wanted[key]]
    shaped = [key for key in shaped if found[key].shape == (1,) and wanted[key].shape == ()]
    if shaped:
        causes.append(
            Cause(
                "bn-counters-shape",
                f"{len(shaped):,} BatchNorm counters have the shape (1,) instead of (), which "
                "torch accepts",
                "reshape",
                {"shapes": {key: [] for key in shaped}},
                None,
                automatic=True,
                keys=tuple(shaped),
            )
        )
    return causes


def derived(situation: Situation) -> list[Cause]:
    """Buffers that the architecture computes itself, and what a profiler left behind."""
    found, wanted = situation.weights.specs, situation.target.specs
    causes = []
    own = situation.target.architecture.derived if situation.target.architecture else ()
    names = (*DERIVED, *own)
    extra = [key for key in found if key not in wanted and is_named(key, names)]
    if extra:
        causes.append(
            Cause(
                "derived-buffers",
                f"{listed(extra, 3)} follow from the configuration: the model computes them itself",
                "drop",
                {"drop": extra},
                " ".join(f"--drop {key}" for key in extra[:3]),
                automatic=True,
            )
        )
    counted = [key for key in found if key not in wanted and is_named(key, PROFILED)]
    if counted:
        causes.append(
            Cause(
                "profiler-counters",
                f"{len(counted):,} tensors are counters that `thop.profile` left on the model",
                "drop",
                {"drop": counted},
                "--drop '*total_ops' --drop '*total_params'",
                automatic=True,
            )
        )
    return causes


def _counts(key: str) -> bool:
    return key == COUNTER or key.endswith(f".{COUNTER}")


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _modules(keys: Iterable[str]) -> set[str]:
    """The modules that have running statistics."""
    return {_module(key) for key in keys if key.endswith(("running_mean", "running_var"))}
