"""What a check says: findings in the order of their weight, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckptool.errors import printable
from ckptool.preflight.summary import Summary

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    An `error` will raise, or train on garbage. `message` is a sentence with what was found and
    what was wanted; `where` the first place, `count` how many places (boxes, images, tensors).
    """

    code: str
    severity: str
    message: str
    where: str = ""
    count: int = 1
    fix: str | None = None

    def __str__(self) -> str:
        fix = f"; {self.fix}" if self.fix else ""
        return printable(f"{self.severity} {self.code}: {self.message}{fix}", 2 * _LONGEST)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a check, errors first.

    `arch` and `num_classes` (counted as the architecture counts) are what was checked against, None
    where that is not known; `summary` is what a data set holds, None for a batch.
    """

    arch: str | None
    num_classes: int | None
    findings: tuple[Finding, ...]
    summary: Summary | None = None

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return self.counted(ERROR)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return self.counted(WARNING)

    def counted(self, severity: str) -> int:
        """How many findings have a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "no findings"


def error(
    code: str, message: str, *, where: str = "", count: int = 1, fix: str | None = None
) -> Finding:
    """A finding that will raise or train on garbage."""
    return Finding(code, ERROR, message, where, count, fix)


def warning(
    code: str, message: str, *, where: str = "", count: int = 1, fix: str | None = None
) -> Finding:
    """A finding that is likely a mistake and does not stop anything."""
    return Finding(code, WARNING, message, where, count, fix)


def note(
    code: str, message: str, *, where: str = "", count: int = 1, fix: str | None = None
) -> Finding:
    """A finding that is worth knowing."""
    return Finding(code, NOTE, message, where, count, fix)


def by_weight(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; within these as they came."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
