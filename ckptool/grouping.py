"""Keys grouped for people: `box_net.conv_rep.{0..4}.conv_dw.weight` stands for five of them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

_DIGITS = re.compile(r"(?<![^.])[0-9]+(?![^.])")

Shared = TypeVar("Shared", bound=Hashable)


def group(keys: Iterable[tuple[str, Shared]]) -> list[tuple[str, Shared, int]]:
    """Patterns with what they share and how many keys each stands for, in order of first keys.

    Two keys are in one group if they differ only in whole-number segments, or only in their last
    segment, and share the second value.
    """
    by_numbers: dict[tuple[str, Shared], list[tuple[str, ...]]] = {}
    for key, shared in keys:
        template = _DIGITS.sub("{}", key)
        by_numbers.setdefault((template, shared), []).append(tuple(_DIGITS.findall(key)))
    by_name: dict[tuple[str, Shared], list[tuple[str, int]]] = {}
    for (template, shared), numbers in by_numbers.items():
        pattern = _filled(template, numbers)
        module, _, name = pattern.rpartition(".")
        by_name.setdefault((module, shared), []).append((name, len(numbers)))
    groups = []
    for (module, shared), names in by_name.items():
        last = names[0][0] if len(names) == 1 else "{" + ",".join(n for n, _ in names) + "}"
        pattern = f"{module}.{last}" if module else last
        groups.append((pattern, shared, sum(count for _, count in names)))
    return groups


def _filled(template: str, rows: list[tuple[str, ...]]) -> str:
    """The template with each hole filled by the numbers that stand there."""
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
