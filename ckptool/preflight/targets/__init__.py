"""Targets against a model, one module per family and its form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.preflight.findings import Finding
from ckptool.preflight.images import Batch
from ckptool.preflight.subject import EFFDET, TORCHVISION, YOLO, Subject
from ckptool.preflight.targets import effdet, torchvision, yolo

_FORMS = {EFFDET: effdet.check, TORCHVISION: torchvision.check, YOLO: yolo.check}


def check_targets(targets: Any, batch: Batch, subject: Subject) -> Iterator[Finding]:
    """The findings about targets; nothing is known about those of an unknown family."""
    form = _FORMS.get(subject.family)
    if form is not None:
        yield from form(targets, batch, subject)
