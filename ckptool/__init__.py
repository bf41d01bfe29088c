"""Checkpoint surgery and conversion for PyTorch detectors.

Opens a file without running a byte of it, says why it does not fit an architecture, and rewrites
it so that `load_state_dict(strict=True)` works. The public names are those below; each is imported
when it is first used, so that `import ckptool` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` takes longer than all else here
if TYPE_CHECKING:
    from ckptool.architectures import archs
    from ckptool.checkpoint import Checkpoint
    from ckptool.conversion import convert, plan, write
    from ckptool.diagnose import Diff, diff
    from ckptool.errors import (
        ArchitectureError,
        CkptError,
        FormatError,
        LossError,
        NotACheckpointError,
        OutputError,
        PlanError,
        UnsupportedError,
        VerificationError,
        WeightsError,
    )
    from ckptool.fleet.batch import Summary, batch
    from ckptool.identification import identify
    from ckptool.inspection import inspect
    from ckptool.loading import load_into
    from ckptool.plans import Plan
    from ckptool.preflight import Finding, Report, check, check_dataset
    from ckptool.reading import read
    from ckptool.tensors import LazyTensor, TensorSpec
    from ckptool.verification import verify
    from ckptool.writing import Result

_HOMES = {
    "ArchitectureError": "errors",
    "Checkpoint": "checkpoint",
    "CkptError": "errors",
    "Diff": "diagnose",
    "Finding": "preflight",
    "FormatError": "errors",
    "LazyTensor": "tensors",
    "LossError": "errors",
    "NotACheckpointError": "errors",
    "OutputError": "errors",
    "Plan": "plans",
    "PlanError": "errors",
    "Report": "preflight",
    "Result": "writing",
    "Summary": "fleet.batch",
    "TensorSpec": "tensors",
    "UnsupportedError": "errors",
    "VerificationError": "errors",
    "WeightsError": "errors",
    "archs": "architectures",
    "batch": "fleet.batch",
    "check": "preflight",
    "check_dataset": "preflight",
    "convert": "conversion",
    "diff": "diagnose",
    "identify": "identification",
    "inspect": "inspection",
    "load_into": "loading",
    "plan": "conversion",
    "read": "reading",
    "verify": "verification",
    "write": "conversion",
}

__all__ = [
    "ArchitectureError",
    "Checkpoint",
    "CkptError",
    "Diff",
    "Finding",
    "FormatError",
    "LazyTensor",
    "LossError",
    "NotACheckpointError",
    "OutputError",
    "Plan",
    "PlanError",
    "Report",
    "Result",
    "Summary",
    "TensorSpec",
    "UnsupportedError",
    "VerificationError",
    "WeightsError",
    "archs",
    "batch",
    "check",
    "check_dataset",
    "convert",
    "diff",
    "identify",
    "inspect",
    "load_into",
    "plan",
    "read",
    "verify",
    "write",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from ckptool.version import VERSION

        return VERSION
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ckptool' has no attribute {name!r}")
    return getattr(import_module(f"ckptool.{home}"), name)
