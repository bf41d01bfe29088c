"""Errors say where, what and what to type, on one printable line of bounded length."""

from __future__ import annotations

import inspect
import sys
import traceback

import pytest

from ckptool import errors
from ckptool.errors import LONGEST_MESSAGE, CkptError, FormatError, listed, printable, quoted

TREE = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CkptError)
]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no notes before 3.11")
def test_a_traceback_ends_with_the_hint() -> None:
    shown = traceback.format_exception(CkptError("message", hint="pip install x"))
    assert shown[-2:] == ["ckptool.errors.CkptError: message\n", "hint: pip install x\n"]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_a_ckpt_error_with_a_code_of_its_own(kind: type[CkptError]) -> None:
    error = kind("message", hint="hint")
    assert (str(error), error.message, error.hint) == ("message", "message", "hint")
    assert error.code == kind.code
    assert [other.code for other in TREE].count(kind.code) == 1
    assert kind is CkptError or kind.__bases__ == (CkptError,)


def test_the_tree_is_drawn_at_the_top() -> None:
    drawn = [
        line.split()[1] for line in str(errors.__doc__).splitlines() if line[:1] in "├└" and line
    ]
    assert sorted(drawn) == sorted(kind.__name__ for kind in TREE if kind is not CkptError)


def test_a_place_is_put_in_front() -> None:
    error = FormatError("broken", hint="again", code="zip.end").located("`x.pth`")
    assert isinstance(error, FormatError)
    assert (error.message, error.hint, error.code) == ("`x.pth`: broken", "again", "zip.end")


def test_messages_and_hints_are_one_printable_bounded_line() -> None:
    error = CkptError("a\nb\x1b[2J" + "x" * 5_000, hint="\x00" * 5_000)
    assert len(error.message) == LONGEST_MESSAGE
    assert len(str(error.hint)) <= LONGEST_MESSAGE
    assert error.message.isprintable()
    assert str(error.hint).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("épée 重み", "épée 重み"),
        ("a\tb\r\n", r"a\x09b\x0d\x0a"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("", ""),
    ],
)
def test_what_a_terminal_could_act_on_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert quoted(text) == f"`{shown}`"


def test_what_is_too_long_is_cut() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert printable("\n" * 11, 10) == r"\x0a\x0a\…"[:9] + "…"


def test_a_list_shows_the_first_few() -> None:
    assert listed([]) == ""
    assert listed(["a", "b"]) == "`a`, `b`"
    assert listed(map(str, range(1_008)), 3) == "`0`, `1`, `2` and 1,005 more"
