"""The same network under other names or shapes: renamed members, swapped indices, axes of one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, quoted
from ckptool.rules import Rule

# Members that a repository renamed without converting its published files.
# Source: Tianxiaomo/pytorch-YOLOv4 at 52e1ef2 (2021-06-29).
RENAMED = (Rule("neek.{*}", "neck.{*}"), Rule("neck.{*}", "neek.{*}"))

_HEAD_NORM = re.compile(r"((?:.*\.)?(?:class|box)_net)\.bn_rep\.([0-9]+)\.([0-9]+)\.(bn\.)?[^.]+")

# How the two spellings of a parametrized weight name its parts: the older one first.
# Source: torch 2.15 `torch/nn/utils/{weight_norm,spectral_norm,parametrizations}.py`.
_SPELLINGS = (
    ("weight_norm", {"_g": "original0", "_v": "original1"}),
    ("spectral_norm", {"_orig": "original", "_u": "0._u", "_v": "0._v"}),
)


def renamed_members(situation: Situation) -> list[Cause]:
    """A member that has another name in other versions of the same repository."""
    wanted = situation.wanted
    for rule in RENAMED:
        hits = [key for key in situation.extra if rule.rewrite(key) in wanted]
        if hits:
            old, new = (side.removesuffix("{*}") for side in (rule.old, rule.new))
            when = "newer" if rule is RENAMED[0] else "older"
            return [
                Cause(
                    "renamed-member",
                    f"{counted(len(hits), 'key starts', 'keys start')} with {quoted(old)}, which "
                    f"{when} code of the same repository calls {quoted(new)}",
                    "rename",
                    {"rules": [[rule.old, rule.new]]},
                    f"--rename '{old}={new}'",
                    automatic=True,
                )
            ]
    return []


@dataclass(frozen=True, slots=True)
class _Grid:
    """How the norms of effdet's heads are numbered: the two indices, and whether `.bn.` follows.

    `nets` are the heads that have them; two grids are equal if they number alike.
    """

    first: int
    second: int
    inner: bool
    nets: tuple[str, ...] = field(compare=False)

    @property
    def order(self) -> str:
        """What the first index counts."""
        return "repeat first" if self.inner else "level first"


def head_norms(situation: Situation) -> list[Cause]:
    """The norms of effdet's heads, ordered level first or repeat first.

    effdet writes `bn_rep.{repeat}.{level}.bn.weight` or, with `head_bn_level_first`,
    `bn_rep.{level}.{repeat}.weight`. With five levels and five repeats (D6, D7) both have the same
    shapes, and only the `.bn.` tells them apart: to cut it out would transpose the norms.

    Source: effdet 0.4.1 `efficientdet.py` (`HeadNet`, `toggle_bn_level_first`).
    """
    found, wanted = _grid(situation.found), _grid(situation.wanted)
    if found is None or wanted is None or found == wanted:
        return []
    square = found.first == found.second
    swapped = (found.first, found.second) == (wanted.second, wanted.first)
    plain = (found.first, found.second) == (wanted.first, wanted.second)
    if (square and found.inner == wanted.inner) or not (swapped or plain):
        return []
    old = "bn_rep.{a}.{b}." + "bn." * found.inner + "{*}"
    new = ("bn_rep.{b}.{a}." if swapped else "bn_rep.{a}.{b}.") + "bn." * wanted.inner + "{*}"
    count = sum(_HEAD_NORM.fullmatch(key) is not None for key in situation.found)
    norms = counted(count, "tensor", "tensors") + " of the heads' norms"
    if not swapped:
        what = f"{norms} have {'a' if found.inner else 'no'} `.bn.` in their keys, against the "
        what += f"architecture's: {quoted(old)} is {quoted(new)}"
    else:
        what = f"{norms} are ordered {found.order}, the architecture orders them {wanted.order}"
    if square and not found.inner:
        what += (
            f"; with {found.first} levels and {found.second} repeats only the missing `.bn.` says "
            "so: if somebody cut it out of the keys, they are repeat first already, which nothing "
            "in the file can tell"
        )
    return [
        Cause(
            "head-norms",
            what,
            "rename",
            {"rules": [[f"{net}.{old}", f"{net}.{new}"] for net in found.nets]},
            automatic=True,
        )
    ]


def norm_spelling(situation: Situation) -> list[Cause]:
    """The parts of a weight_norm or spectral_norm under torch's older or newer names."""
    wanted = situation.wanted
    names: dict[str, str] = {}
    kinds: dict[str, None] = {}
    for key in (*situation.extra, *_accepted(situation)):
        for kind, parts in _SPELLINGS:
            for old, new in _renamings(key, parts):
                if new in wanted and new not in situation.found and old not in names:
                    names[old], kinds[kind] = new, None
    if not names:
        return []
    newer = ".parametrizations." not in f".{next(iter(names))}"
    harmless = not set(names) & set(situation.extra)
    return [
        Cause(
            "norm-spelling",
            f"{counted(len(names), 'part', 'parts')} of {' and '.join(kinds)} "
            f"{'is' if len(names) == 1 else 'are'} spelled as "
            f"{'older' if newer else 'newer'} torch spells "
            f"{'it' if len(names) == 1 else 'them'}: {quoted(next(iter(names)))} is "
            f"{quoted(next(iter(names.values())))}"
            + (", which torch puts right by itself" if harmless else ""),
            "rename",
            {"map": names},
            automatic=True,
            harmless=harmless,
            keys=tuple(names.values()) if harmless else (),
        )
    ]


def unit_axes(situation: Situation) -> list[Cause]:
    """Tensors whose shapes differ only by axes of length 1: the same elements in the same order."""
    found, wanted = situation.found, situation.wanted
    blocking = [
        key
        for key in situation.reshaped
        if _without_ones(found[key].shape) == _without_ones(wanted[key].shape)
    ]
    keys = (*blocking, *(key for key in situation.tolerated if key in found))
    if not keys:
        return []
    first = keys[0]
    counters = all(key.endswith("num_batches_tracked") for key in keys)
    kind = "BatchNorm counter" if counters else "tensor"
    return [
        Cause(
            "unit-axes",
            f"{counted(len(keys), kind)} with the same elements in another shape: {quoted(first)} "
            f"is {_shape(found[first].shape)}, wanted is {_shape(wanted[first].shape)}"
            + ("" if blocking else ", which torch puts right by itself"),
            "reshape",
            {"shapes": {key: list(wanted[key].shape) for key in keys}},
            automatic=True,
            harmless=not blocking,
            keys=() if blocking else keys,
        )
    ]


def _grid(keys: Iterable[str]) -> _Grid | None:
    """The numbering of the heads' norms, None without heads."""
    numbered = (_HEAD_NORM.fullmatch(key) for key in keys if "_net.bn_rep." in key)
    matches = [match for match in numbered if match]
    if not matches:
        return None
    return _Grid(
        1 + max(int(match[2]) for match in matches),
        1 + max(int(match[3]) for match in matches),
        any(match[4] for match in matches),
        tuple(dict.fromkeys(match[1] for match in matches)),
    )


def _accepted(situation: Situation) -> list[str]:
    """Keys that torch renames as it loads: in the file, not wanted, and no difference."""
    if not any(".original" in key for key in situation.wanted):
        return []
    extra = set(situation.extra)
    return [
        key
        for key in situation.found
        if key.endswith(("_g", "_v")) and key not in situation.wanted and key not in extra
    ]


def _renamings(key: str, parts: dict[str, str]) -> Iterable[tuple[str, str]]:
    """The other spelling of a part of a parametrized weight, if it can be one."""
    module, dot, name = key.rpartition(".")
    for old, new in parts.items():
        if name.endswith(old) and len(name) > len(old):
            yield key, f"{module}{dot}parametrizations.{name.removesuffix(old)}.{new}"
        if key.endswith(f".{new}"):
            above = key.removesuffix(f".{new}")
            outer, _, weight = above.rpartition(".")
            if outer == "parametrizations" or outer.endswith(".parametrizations"):
                yield key, f"{outer.removesuffix('parametrizations')}{weight}{old}"


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
