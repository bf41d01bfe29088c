"""Before the first step: inputs, labels, devices and dtypes against a model or an architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptool.preflight.dataset import check_dataset
from ckptool.preflight.devices import check_devices, check_dtypes
from ckptool.preflight.findings import Finding, Report, by_weight
from ckptool.preflight.heads import check_heads
from ckptool.preflight.images import check_images
from ckptool.preflight.outputs import check_outputs
from ckptool.preflight.subject import subject_of
from ckptool.preflight.summary import Summary
from ckptool.preflight.targets import check_targets

if TYPE_CHECKING:
    import torch

__all__ = ["Finding", "Report", "Summary", "check", "check_dataset"]


def check(
    model: torch.nn.Module,
    images: Any,
    targets: Any = None,
    *,
    arch: str | None = None,
    run: bool = False,
) -> Report:
    """What would break training or inference of a live model with one real batch.

    Images and targets are as the model takes them: for effdet's bench one tensor N×C×H×W, and a
    dict with `bbox` and `cls`; for torchvision's detectors lists with an entry for each image; for
    YOLO one tensor N×C×H×W, and rows of image, class, centre x, centre y, width, height. `arch`
    tells what a model is that cannot be recognised. With `run` the model computes one forward pass,
    without gradients, and is left as it was; without it nothing is run.

    Raises: ArchitectureError if there is no architecture of that name; CkptError if the model is
    none.
    """
    subject = subject_of(model, arch)
    findings, batch = check_images(images, subject)
    findings += check_dtypes(batch, subject)
    findings += check_devices(batch, subject)
    findings += check_heads(subject)
    if targets is not None and batch is not None:
        findings += check_targets(targets, batch, subject)
    if run:
        findings += check_outputs(images, targets, batch, subject, findings)
    return Report(subject.name, subject.num_classes, by_weight(findings))
