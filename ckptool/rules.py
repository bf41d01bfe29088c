"""Key patterns with named holes: match a key, rewrite it, turn the rule round.

`{i}` stands for digits, `{*}` or `{*name}` for any text. A rule uses each hole of one side on the
other, so that it can be inverted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ckptool.errors import PlanError, listed, quoted

_HOLE = re.compile(r"\{(\*?)([A-Za-z_][A-Za-z0-9_]*|)\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewriting of keys, from one pattern to another.

    Raises: PlanError if the two patterns do not have the same holes.
    """

    old: str
    new: str

    def __post_init__(self) -> None:
        if holes(self.old) != holes(self.new):
            raise PlanError(
                f"rule {quoted(f'{self.old}={self.new}')}: both sides must have the same holes",
                code="plan.rule",
            )

    def rewrite(self, key: str) -> str | None:
        """The rewritten key, None if the rule does not match it."""
        match = _pattern(self.old).fullmatch(key)
        return None if match is None else _filled(self.new, match.groupdict())

    @property
    def inverse(self) -> Rule:
        """The rule that undoes this one."""
        return Rule(self.new, self.old)


def holes(pattern: str) -> frozenset[str]:
    """The names of the holes of a pattern; PlanError if one stands twice."""
    names = [match[2] or "_" for match in _HOLE.finditer(pattern)]
    if len(set(names)) < len(names):
        raise PlanError(
            f"pattern {quoted(pattern)}: a hole stands twice",
            hint="name them apart: {*a} and {*b}",
            code="plan.rule",
        )
    return frozenset(names)


def user_rule(text: str) -> Rule:
    """The rule of `--rename OLD=NEW`.

    With holes it is a pattern, with `*` a glob; else OLD is a prefix if it ends with a dot, and a
    key or a module's path if not.

    Raises: PlanError.
    """
    old, equals, new = text.partition("=")
    if not equals or not old or "=" in new:
        raise PlanError(
            f"found {quoted(text)}, wanted OLD=NEW", hint="--rename 'neek.=neck.'", code="plan.rule"
        )
    if "*" in _HOLE.sub("", old):
        numbered_old, numbered_new = (_glob(side) for side in (old, new))
        return Rule(numbered_old, numbered_new)
    if old.endswith(".") and not _HOLE.search(old):
        return Rule(f"{old}{{*}}", f"{new}{{*}}")
    return Rule(old, new)


def rename_all(keys: Iterable[str], rules: Iterable[Rule]) -> dict[str, str]:
    """Each key's new name by the first rule that matches it; its own where none does.

    Raises: PlanError if two keys would get one name.
    """
    ordered = list(rules)
    names: dict[str, str] = {}
    for key in keys:
        rewritten = (rule.rewrite(key) for rule in ordered)
        names[key] = next((name for name in rewritten if name is not None), key)
    check_distinct(names)
    return names


def check_distinct(names: dict[str, str]) -> None:
    """Refuse a renaming that gives two keys one name."""
    seen: dict[str, str] = {}
    for key, name in names.items():
        if name in seen:
            raise PlanError(
                f"both {listed((seen[name], key))} would be called {quoted(name)}",
                code="plan.collision",
            )
        seen[name] = key


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    parts = []
    at = 0
    for match in _HOLE.finditer(text):
        parts.append(re.escape(text[at : match.start()]))
        parts.append(f"(?P<{match[2] or '_'}>{'.+' if match[1] else '[0-9]+'})")
        at = match.end()
    return re.compile("".join(parts) + re.escape(text[at:]), re.DOTALL)


def _filled(pattern: str, values: dict[str, str]) -> str:
    return _HOLE.sub(lambda match: values[match[2] or "_"], pattern)


def _glob(side: str) -> str:
    """A glob as a pattern: the n-th star is the hole `{*n}`."""
    parts = side.split("*")
    return "".join(
        f"{part}{{*s{number}}}" if number < len(parts) else part
        for number, part in enumerate(parts, 1)
    )
