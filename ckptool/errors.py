"""The exceptions of ckptool, and how a value from a file may be shown.

CkptError
├── FormatError          the bytes break the rules of their format (hostile, damaged, cut short)
├── NotACheckpointError  the file is something else: a web page, a pointer, an archive
├── UnsupportedError     a legal file or tensor that ckptool does not read or write
├── WeightsError         no weight set in the file, or several and none chosen
├── ArchitectureError    an architecture is unknown, not installed, or fails to build
├── PlanError            the options or the stored plan cannot be carried out
├── LossError            a value would be lost, and no option allows it
├── OutputError          the output cannot be written, or must not be
└── VerificationError    what was written is not what was planned

Every message says where (file, key, byte offset), what was found and what was wanted; the hint
says what to type. Both are safe to print: one line, printable, bounded.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_MESSAGE = 1_000


class CkptError(Exception):
    """Anything that ckptool refuses or cannot do; `code` is stable, for scripts."""

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        self.message = printable(message, LONGEST_MESSAGE)
        self.hint = None if hint is None else printable(hint, LONGEST_MESSAGE)
        self.code = code or type(self).code
        super().__init__(self.message)
        if self.hint is not None:  # a traceback shows it below the message, from Python 3.11 on
            self.__notes__ = [f"hint: {self.hint}"]

    def located(self, where: str) -> CkptError:
        """The same error with the place in front; deep code raises without the file's name."""
        if self.message.startswith(f"{where}: "):
            return self
        return type(self)(f"{where}: {self.message}", hint=self.hint, code=self.code)


class FormatError(CkptError):
    """The bytes break the rules of their format."""

    code = "format"


class NotACheckpointError(CkptError):
    """The file is something else than a checkpoint."""

    code = "not-a-checkpoint"


class UnsupportedError(CkptError):
    """A legal file or tensor that ckptool does not handle."""

    code = "unsupported"


class WeightsError(CkptError):
    """No weight set was found, or several and none was chosen."""

    code = "weights"


class ArchitectureError(CkptError):
    """An architecture is unknown, not installed, or fails to build."""

    code = "architecture"


class PlanError(CkptError):
    """The options or the stored plan cannot be carried out."""

    code = "plan"


class LossError(CkptError):
    """A value would be lost, and no option allows it."""

    code = "loss"


class OutputError(CkptError):
    """The output cannot be written, or must not be."""

    code = "output"


class VerificationError(CkptError):
    """What was written is not what was planned."""

    code = "verification"


def printable(text: str, longest: int = 200) -> str:
    """The text on one line: what a terminal could act on is escaped, what is too long is cut."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    escaped = "".join(c if c.isprintable() else _escape(c) for c in cut)
    return escaped if len(escaped) <= longest else escaped[: longest - 1] + "…"


def quoted(value: str, longest: int = 120) -> str:
    """A value from a file or the command line, safe to print, in backticks."""
    return f"`{printable(value, longest)}`"


def listed(values: Iterable[str], most: int = 5) -> str:
    """The first few values, quoted, and how many more there are."""
    names = list(values)
    shown = ", ".join(quoted(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 key`, `2,000 keys`; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _escape(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
