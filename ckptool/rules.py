"""Key patterns with named holes: match a key, rewrite it, turn the rule round.

`{i}` stands for digits, `{*}` or `{*name}` for any text. A rule uses each hole of one side on the
other, so that it can be inverted. A hole may have a table: then it stands for what the table lists
on that side, and is filled with its partner on the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from ckptool.errors import PlanError, quoted

_HOLE = re.compile(r"\{(\*?)([A-Za-z_][A-Za-z0-9_]*|)\}")
_SPAN = re.compile(r"([0-9]+)\.\.([0-9]+)")
_DIGITS = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
_MOST_TEMPLATES = 50


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


@dataclass(frozen=True, slots=True)
class Bound:
    """A rule and the tables of its holes: hole to what stands there before and after."""

    rule: Rule
    tables: Mapping[str, Mapping[str, str]]
    head: str
    pattern: re.Pattern[str]

    def rewrite(self, key: str) -> str | None:
        """The rewritten key, None if the rule does not match it."""
        if not key.startswith(self.head):
            return None
        match = self.pattern.fullmatch(key)
        if match is None:
            return None
        values = match.groupdict()
        for name, table in self.tables.items():
            if values[name] not in table:
                return None
            values[name] = table[values[name]]
        return _filled(self.rule.new, values)


def bind(rules: Iterable[Rule], tables: Mapping[str, Mapping[str, str]]) -> tuple[Bound, ...]:
    """The rules with the tables that their holes have; a rule with an empty one never matches."""
    bound = []
    for rule in rules:
        own = {name: tables[name] for name in holes(rule.old) if name in tables}
        if all(own.values()):
            pattern = _compiled(rule.old, own)
            bound.append(Bound(rule, own, _HOLE.split(rule.old, 1)[0], pattern))
    return tuple(bound)


def expanded(words: str) -> tuple[str, ...]:
    """The words with their braces expanded as a shell does: `a.{0..2} b.{x,y{1,2}}`."""
    return tuple(name for word in words.split() for name in _alternatives(word))


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
                f"{quoted(seen[name])} and {quoted(key)} would both be called {quoted(name)}",
                hint="--drop, or another name, for one of them",
                code="plan.collision",
            )
        seen[name] = key


def globs(chosen: Collection[str], everything: Collection[str]) -> list[str]:
    """Few globs that together match the chosen keys and no others of everything there is."""
    wanted = set(chosen)
    kept_modules = {module for key in everything if key not in wanted for module in _modules(key)}
    by_module: dict[str, list[str]] = {}
    for key in chosen:
        free = next((module for module in _modules(key) if module not in kept_modules), None)
        by_module.setdefault(key if free is None else f"{free}.", []).append(key)
    by_template: dict[str, list[str]] = {}
    for module, keys in by_module.items():
        glob = _escaped(keys[0]) if len(keys) == 1 else f"{_escaped(module)}*"
        by_template.setdefault(_NUMBER.sub("*", glob), []).append(glob)
    short: list[str] = []
    for template, members in by_template.items():
        if len(members) > 1 and len(short) < _MOST_TEMPLATES:
            matches = re.compile(translate(template)).match
            members = members if any(map(matches, set(everything) - wanted)) else [template]
        short += members
    start = _shared_start(chosen) if len(short) > 1 else ""
    if start and not any(key.startswith(start) for key in everything if key not in wanted):
        return [f"{_escaped(start)}*"]
    return short


def _shared_start(keys: Collection[str]) -> str:
    """What all keys start with, up to the last dot or underscore in it."""
    first, last = min(keys), max(keys)
    same = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return first[: max(first.rfind(".", 0, same), first.rfind("_", 0, same)) + 1]


def _modules(key: str) -> list[str]:
    """The paths of the modules above a key, the outermost first."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _escaped(key: str) -> str:
    """The key as a glob that matches nothing else."""
    return re.sub(r"([*?[])", r"[\1]", key)


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return _compiled(text, {})


def _compiled(text: str, tables: Mapping[str, Iterable[str]]) -> re.Pattern[str]:
    parts = []
    at = 0
    for match in _HOLE.finditer(text):
        parts.append(re.escape(text[at : match.start()]))
        name, anything = match[2] or "_", ".+" if match[1] else "[0-9]+"
        parts.append(f"(?P<{name}>{_any_of(tables[name]) if name in tables else anything})")
        at = match.end()
    return re.compile("".join(parts) + re.escape(text[at:]), re.DOTALL)


def _any_of(values: Iterable[str]) -> str:
    """A pattern for the values and others that differ in their numbers: a hundred alternatives
    take longer to compile than all keys to match. The longest is first: `cv1.conv` before `cv1`."""
    patterns = dict.fromkeys(_DIGITS.sub("[0-9]+", re.escape(value)) for value in values)
    return "|".join(sorted(patterns, key=len, reverse=True))


def _alternatives(word: str) -> list[str]:
    """A word with its first braces expanded, what follows expanded for each."""
    start = word.find("{")
    if start < 0:
        return [word]
    parts, depth, at = [""], 1, start
    while depth:
        at += 1
        depth += {"{": 1, "}": -1}.get(word[at], 0)
        if depth == 1 and word[at] == ",":
            parts.append("")
        elif depth:
            parts[-1] += word[at]
    span = _SPAN.fullmatch(parts[0])
    inner = (
        [str(number) for number in range(int(span[1]), int(span[2]) + 1)]
        if span
        else [name for part in parts for name in _alternatives(part)]
    )
    rest = _alternatives(word[at + 1 :])
    return [f"{word[:start]}{name}{end}" for name in inner for end in rest]


def _filled(pattern: str, values: dict[str, str]) -> str:
    return _HOLE.sub(lambda match: values[match[2] or "_"], pattern)


def _glob(side: str) -> str:
    """A glob as a pattern: the n-th star is the hole `{*n}`."""
    parts = side.split("*")
    return "".join(
        f"{part}{{*s{number}}}" if number < len(parts) else part
        for number, part in enumerate(parts, 1)
    )
