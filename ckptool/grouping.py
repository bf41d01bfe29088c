"""Keys grouped for people: `box_net.conv_rep.{0..4}.conv_dw.weight` stands for five of them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

_DIGITS = re.compile(r"(?<![^.])[0-9]+(?![^.])")

_DEEPEST = 6
# So many names of members are written out, as many as a BatchNorm has.
_MOST_NAMES = 5

Shared = TypeVar("Shared", bound=Hashable)


def group(
    keys: Iterable[tuple[str, Shared]], depth: int | None = None
) -> list[tuple[str, Shared, int]]:
    """Patterns with what they share and how many keys each stands for, in order of first keys.

    Two keys are in one group if they differ only in whole-number segments, or only in their last
    segment, and share the second value; with a `depth`, also if they differ only behind so many
    segments: `backbone.*`.
    """
    by_numbers: dict[tuple[str, Shared], list[tuple[str, ...]]] = {}
    firsts: dict[tuple[str, Shared], str] = {}
    for whole, shared in keys:
        key = whole if depth is None else _cut(whole, depth)
        template = _DIGITS.sub("{}", key)
        by_numbers.setdefault((template, shared), []).append(tuple(_DIGITS.findall(key)))
        firsts.setdefault((template, shared), whole)
    by_name: dict[tuple[str, Shared], list[tuple[str, int]]] = {}
    for (template, shared), numbers in by_numbers.items():
        alone = len(numbers) == 1
        pattern = firsts[template, shared] if alone else _filled(template, numbers)
        module, _, name = pattern.rpartition(".")
        by_name.setdefault((module, shared), []).append((name, len(numbers)))
    groups = []
    for (module, shared), names in by_name.items():
        last = _last([name for name, _ in names])
        pattern = f"{module}.{last}" if module else last
        groups.append((pattern, shared, sum(count for _, count in names)))
    return groups


def group_within(keys: Sequence[tuple[str, Shared]], most: int) -> list[tuple[str, Shared, int]]:
    """The groups, cut to the depth at which there are at most so many, as deep as can be.

    Where there are more at any depth, those of the outermost names.
    """
    groups = group(keys)
    if len(groups) <= most:
        return groups
    for depth in range(_DEEPEST, 0, -1):
        shorter = group(keys, depth)
        if len(shorter) <= most:
            break
    return shorter


def _last(names: list[str]) -> str:
    """The last segments of the keys in a group: written out, or what they start with."""
    if len(names) == 1:
        return names[0]
    if len(names) <= _MOST_NAMES:
        return "{" + ",".join(names) + "}"
    start = names[0]
    for name in names:
        while not name.startswith(start):
            start = start[:-1]
    return f"{start}*"


def _cut(key: str, depth: int) -> str:
    parts = key.split(".", depth)
    return key if len(parts) <= depth else ".".join([*parts[:depth], "*"])


def _filled(template: str, rows: list[tuple[str, ...]]) -> str:
    """The template with each hole filled by the numbers that stand there."""
    if "{}" not in template:
        return template
    parts = template.split("{}")
    filled = parts[0]
    for part, column in zip(parts[1:], zip(*rows, strict=True), strict=True):
        filled += _shown(sorted({int(number) for number in column})) + part
    return filled


def _shown(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    if len(numbers) > 4:
        return f"{{{numbers[0]},{numbers[1]},…,{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
