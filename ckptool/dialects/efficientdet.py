"""What the tables of EfficientDet's dialects have in common: how effdet numbers its modules.

The canonical spelling is effdet's, with the norms of the heads by repeat and then by level.

Source: effdet 0.4.1 `efficientdet.py`; its EfficientNet backbones are timm's 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ckptool.architectures.spec import Architecture

FAMILIES = ("effdet",)
# The weights of a cell's fusion by the node that they belong to, and how many inputs that has, as
# zylo117 and mmdet name them.
EDGES = {
    **{f"p{level}_w1": (f"{level}_up", 2) for level in (6, 5, 4, 3)},
    **{f"p{level}_w2": (f"{level}_down", 3) for level in (4, 5, 6)},
    "p7_w2": ("7_down", 2),
}

_BLOCKS = "backbone.blocks."
# The nodes of the first cell that bring a backbone's map to the width of the BiFPN, and its level.
_WIDENED = {"5_up": 2, "4_up": 1, "3_up": 0, "4_down": 1, "5_down": 2}


def expanding(architecture: Architecture) -> dict[str, str]:
    """The blocks that widen their input first: number over all stages to stage and block."""
    return {number: block for number, block, widens in _blocks(architecture) if widens}


def plain(architecture: Architecture) -> dict[str, str]:
    """The blocks that do not."""
    return {number: block for number, block, widens in _blocks(architecture) if not widens}


def every(architecture: Architecture) -> dict[str, str]:
    """All blocks."""
    return {number: block for number, block, _ in _blocks(architecture)}


def nodes(architecture: Architecture) -> dict[str, str]:
    """The nodes of a BiFPN cell by level and direction, `6_up`, to effdet's number."""
    low, high = _levels(architecture)
    up = [f"{level}_up" for level in range(high - 1, low - 1, -1)]
    down = [f"{level}_down" for level in range(low + 1, high + 1)]
    return {name: str(number) for number, name in enumerate(up + down)}


def levels(architecture: Architecture) -> dict[str, str]:
    """The pyramid's levels, `3`, to their index."""
    low, high = _levels(architecture)
    return {str(level): str(index) for index, level in enumerate(range(low, high + 1))}


def edges(architecture: Architecture) -> dict[str, str]:
    """The weights of a cell's fusion by their names in EDGES, to the node's number."""
    numbers = nodes(architecture)
    live = EDGES if weighs_edges(architecture) else {}
    return {name: numbers[node] for name, (node, _) in live.items()}


def resampled(*names: str) -> Callable[[Architecture], dict[str, str]]:
    """The table of the convolutions in front of the BiFPN, to effdet's path below `fpn`.

    `names` are that of the one which makes level 6, then those of 5_up, 4_up, 3_up, 4_down and
    5_down; `{node}` in them is the node's number, `{input}` that of its result.
    """

    def table(architecture: Architecture) -> dict[str, str]:
        numbers, count = nodes(architecture), len(levels(architecture))
        first, *others = names
        found = {first: "resample.3"}
        for name, (node, level) in zip(others, _WIDENED.items(), strict=True):
            number = numbers[node]
            own = name.replace("{node}", number).replace("{input}", str(count + int(number)))
            found[own] = f"cell.0.fnode.{number}.combine.resample.{level}"
        return found

    return table


def weighs_edges(architecture: Architecture) -> bool:
    """Whether the BiFPN weighs its inputs; D6 and larger, and lite, add them up."""
    return "fpn.cell.0.fnode.0.combine.edge_weights" in architecture.specs


def _levels(architecture: Architecture) -> tuple[int, int]:
    found = architecture.card["levels"]
    assert isinstance(found, list)
    return found[0], found[1]


def _blocks(architecture: Architecture) -> Iterator[tuple[str, str, bool]]:
    paths = dict.fromkeys(
        ".".join(key.split(".")[2:4]) for key in architecture.specs if key.startswith(_BLOCKS)
    )
    for number, path in enumerate(paths):
        yield str(number), path, f"{_BLOCKS}{path}.conv_pwl.weight" in architecture.specs
