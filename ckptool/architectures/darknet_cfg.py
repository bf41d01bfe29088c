"""Darknet's cfg text: sections with options, and what their values mean.

A cfg is a list of `[section]`s with `option=value` lines; `[net]` comes first, then one section per
layer. Where an option stands twice the first one counts, as in darknet. Nothing else is opened,
whatever the text names.

Source: AlexeyAB/darknet `src/parser.c`, `src/option_list.c`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ckptool.errors import ArchitectureError, quoted

MOST_BYTES = 1 << 20

_ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "local_avg": "local_avgpool",
}
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its kind, its options, the layer it makes (-1 for `[net]`).

    `line` is where it starts in its text, 0 for one that ckptool made.
    """

    kind: str
    options: Mapping[str, str]
    layer: int
    line: int = 0

    def with_option(self, name: str, value: object) -> Section:
        """The same section with one option set."""
        return replace(self, options={**self.options, name: str(value)})

    def text(self, name: str, default: str) -> str:
        """An option as it stands."""
        return self.options.get(name, default)

    def whole(self, name: str, default: int | None, least: int, most: int) -> int:
        """A whole number from `least` to `most`; without a default the option must be there."""
        text = self.options.get(name)
        if text is None:
            if default is None:
                raise self.refused(f"has no `{name}`")
            return default
        (value,) = self._numbers(name, [text], _WHOLE, int)
        if not least <= value <= most:
            wanted = f"{least:,} to {most:,}" if least < most else f"{least:,}"
            raise self.refused(f"has `{name}={value:,}`, wanted {wanted}")
        return value

    def wholes(self, name: str) -> list[int]:
        """A list of whole numbers with commas between; empty if the option is missing."""
        return self._numbers(name, self._list(name), _WHOLE, int)

    def decimal(self, name: str, default: float) -> float:
        """A number."""
        text = self.options.get(name)
        return default if text is None else self._numbers(name, [text], _DECIMAL, float)[0]

    def decimals(self, name: str) -> list[float]:
        """A list of numbers with commas between; empty if the option is missing."""
        return self._numbers(name, self._list(name), _DECIMAL, float)

    def reject(self, *names: str) -> None:
        """Refuse options that change what the layer computes; `0` is what it is without them."""
        for name in names:
            if self.text(name, "0") not in ("0", "none"):
                raise self.refused(f"has `{name}`, which ckptool does not support")

    def refused(self, what: str, hint: str | None = None) -> ArchitectureError:
        """An error that says where it is; `what` goes on after the name of the section."""
        where = f"line {self.line:,}: `[{self.kind}]`"
        if self.layer >= 0:
            where += f" (layer {self.layer})"
        return invalid(f"{where} {what}", hint)

    def _list(self, name: str) -> list[str]:
        text = self.text(name, "")
        return [part.strip() for part in text.split(",")] if text else []

    def _numbers(
        self,
        name: str,
        texts: Sequence[str],
        pattern: re.Pattern[str],
        kind: Callable[[str], _Number],
    ) -> list[_Number]:
        for text in texts:
            if not pattern.fullmatch(text):
                wanted = "a whole number" if pattern is _WHOLE else "a number"
                raise self.refused(f"has {quoted(text, 40)} in `{name}`, wanted {wanted}")
        return [kind(text) for text in texts]


def read_sections(data: bytes) -> list[Section]:
    """The sections of a cfg text, `[net]` first.

    Raises: ArchitectureError that names the line.
    """
    if len(data) > MOST_BYTES:
        raise invalid(f"{len(data):,} bytes are too many for a cfg: at most {MOST_BYTES:,}")
    if b"\0" in data:
        raise invalid(f"found a zero byte at byte {data.index(0):,}: this is not a cfg text")
    sections: list[Section] = []
    options: dict[str, str] = {}
    for line, raw in enumerate(data.decode("utf-8-sig", "replace").split("\n"), start=1):
        text = re.split("[#;]", raw, maxsplit=1)[0].strip()
        if text.startswith("[") and text.endswith("]"):
            kind, options = text[1:-1].strip(), {}
            kind = _ALIASES.get(kind, kind)
            sections.append(Section(kind, options, len(sections) - 1, line))
        elif text:
            name, equals, value = text.partition("=")
            if not equals or not sections:
                wanted = "`option=value`" if sections else "`[net]`"
                raise invalid(f"line {line:,}: found {quoted(text, 60)}, wanted {wanted}")
            options.setdefault(name.strip(), value.strip())
    if not sections or sections[0].kind != "net":
        found = quoted(f"[{sections[0].kind}]", 40) if sections else "nothing"
        raise invalid(f"the first section is {found}, wanted `[net]`")
    return sections


def invalid(message: str, hint: str | None = None) -> ArchitectureError:
    """The error for a text that is not the cfg of a network that can be built."""
    return ArchitectureError(message, hint=hint, code="cfg")
