"""Words for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptool.errors import counted, printable
from ckptool.render.words import wrapped

if TYPE_CHECKING:
    from ckptool.fleet.batch import Summary


def batch_json(found: Summary) -> dict[str, Any]:
    """The JSON of a summary."""
    causes = sorted(found.causes.values(), key=lambda cause: -cause.count)
    return {
        "files": found.files,
        "done": found.done,
        "skipped": found.skipped,
        "failed": found.failed + found.failed_before,
        "seconds": round(found.seconds, 3),
        "journal": found.journal,
        "causes": [
            {
                "code": cause.code,
                "count": cause.count,
                "example": {"input": cause.example.input, "reason": cause.example.reason},
            }
            for cause in causes
        ],
    }


def batch_text(found: Summary, width: int = 100) -> str:
    """The counts, the failures by their causes, and where all of it stands."""
    parts = [f"{found.done:,} converted"]
    if found.skipped:
        parts.append(f"{found.skipped:,} done before")
    if found.failed or found.failed_before:
        parts.append(f"{found.failed + found.failed_before:,} failed")
    lines = [f"{counted(found.files, 'file')}: {', '.join(parts)}{_pace(found)}"]
    causes = sorted(found.causes.values(), key=lambda cause: -cause.count)
    if causes:
        lines += ["", "failed, by cause"]
        for cause in causes:
            lines.append(f"{cause.count:>6,}  {cause.code}")
            lines += wrapped(printable(cause.example.reason or "", 200), width, " " * 8, " " * 8)
    lines += ["", f"journal: {found.journal}"]
    if found.failed_before:
        lines.append(f"{found.failed_before:,} failed before and were not tried again:")
        lines[-1] = f"{lines[-1][:-1]}; --retry-failed tries them"
    return "\n".join(lines)


def pace_text(found: Summary) -> str:
    """One line on how far it is: `1,234 of 2,020, 12 failed, 38 a second, 0:20 left`."""
    tried = found.done + found.failed
    rate = tried / found.seconds if found.seconds else 0.0
    left = (found.files - found.settled) / rate if rate else 0.0
    failed = f", {found.failed:,} failed" if found.failed else ""
    return (
        f"{found.settled:,} of {found.files:,}{failed}, {rate:,.1f} a second, {_clock(left)} left"
    )


def _pace(found: Summary) -> str:
    tried = found.done + found.failed
    if not tried or not found.seconds:
        return ""
    return f" ({_clock(found.seconds)}, {tried / found.seconds:,.1f} a second)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
