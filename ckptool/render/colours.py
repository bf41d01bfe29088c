"""Colours by meaning: which words of a text say that something is well, wrong or to be typed.

They only repeat what the words say: without them nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_GREEN, _RED, _YELLOW, _BLUE, _MAGENTA, _CYAN = 32, 31, 33, 34, 35, 36
_BOLD, _DIM = 1, 2

# What a line starts with or is, and the style of that part of it; the first that matches counts.
_LINES = [
    (re.compile(pattern), style)
    for pattern, style in (
        (r"error:", _RED),
        (r"(?:why it does not load|worth knowing|findings|not explained.*)$", _BOLD),
        (r"hint:|note:|page:", _CYAN),
        (
            r"it fits.*|(?:all|the) .*(?:bit-equal|equal within .*)|.* loads strictly into .*",
            _GREEN,
        ),
        (r".*(?:does NOT|does not load|NOT all finite).*|[0-9,]+ values? in .* differs?.*", _RED),
        (r"it loads, but .*", _YELLOW),
        (r"  (?:missing|near)(?= )", _RED),
        (r"  fits(?= )", _GREEN),
        (r"  unexpected(?= )", _MAGENTA),
        (r"  shape(?= )", _YELLOW),
        (r"  dtype(?= )", _BLUE),
        (r"\s+ckptool .*|\s+--[a-z].*", _BOLD),
        (r"error (?=[a-z-]+[:.])", _RED),
        (r"warning (?=[a-z-]+[:.])", _YELLOW),
        (r"  and [0-9,]+ more.*|not stored in any file.*|globals named.*", _DIM),
    )
]
# Words inside a line, once nothing about its start was said.
_WORDS = [
    (re.compile(pattern), style)
    for pattern, style in (
        (r"(?<= )exact(?=  )", _GREEN),
        (r"(?<= )selective(?=  )", _YELLOW),
        (r"(?<= )lossy(?=  )", _RED),
        (r"[█▏▎▍▌▋▊▉]+", _BLUE),
    )
]


def coloured(text: str) -> str:
    """The text with the escape codes of a terminal; its letters are the same."""
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    for pattern, style in _LINES:
        match = pattern.match(line)
        if match:
            return _painted(style)(match) + line[match.end() :]
    for pattern, style in _WORDS:
        line = pattern.sub(_painted(style), line)
    return line


def _painted(style: int) -> Callable[[re.Match[str]], str]:
    return lambda match: f"\x1b[{style}m{match[0]}\x1b[0m"
