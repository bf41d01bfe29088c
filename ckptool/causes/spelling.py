"""The same network under other names: members that were renamed, heads with swapped indices."""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.causes import Cause, Situation
from ckptool.errors import quoted
from ckptool.rules import Rule

# Members that a repository renamed without converting its published files.
# Source: Tianxiaomo/pytorch-YOLOv4 at 52e1ef2 (2021-06-29).
RENAMED = (Rule("neek.{*}", "neck.{*}"), Rule("neck.{*}", "neek.{*}"))

_NORMS = ("class_net.bn_rep.", "box_net.bn_rep.")
_TO_REPEAT_FIRST = [
    [f"{net}.bn_rep.{{level}}.{{rep}}.{{*}}", f"{net}.bn_rep.{{rep}}.{{level}}.bn.{{*}}"]
    for net in ("class_net", "box_net")
]
_TO_LEVEL_FIRST = [[new, old] for old, new in _TO_REPEAT_FIRST]


def renamed_members(situation: Situation) -> list[Cause]:
    """A member that has another name in other versions of the same repository."""
    found, wanted = situation.weights.specs, situation.target.specs
    for rule in RENAMED:
        hits = [key for key in found if key not in wanted and rule.rewrite(key) in wanted]
        if hits:
            old, new = (side.removesuffix("{*}") for side in (rule.old, rule.new))
            return [
                Cause(
                    "renamed-member",
                    f"{len(hits):,} keys start with {quoted(old)}, which newer code of the same "
                    f"repository calls {quoted(new)}"
                    if old == "neek."
                    else f"{len(hits):,} keys start with {quoted(old)}, which the architecture "
                    f"calls {quoted(new)}",
                    "rename",
                    {"rules": [[rule.old, rule.new]]},
                    f"--rename '{old}={new}'",
                    automatic=True,
                )
            ]
    return []


def head_norms(situation: Situation) -> list[Cause]:
    """effdet's heads with their norms ordered level first, or repeat first.

    With five levels and five repeats (D6, D7) both orders have the same shapes: only the `.bn.` in
    the keys tells them apart, and dropping it without the swap would transpose the norms.
    Source: effdet 0.4.1 `efficientdet.py` (`toggle_head_bn_level_first`).
    """
    found = _order(situation.weights.tensors)
    wanted = _order(situation.target.specs)
    if found is None or wanted is None or found == wanted:
        return []
    rules = _TO_REPEAT_FIRST if found == "level" else _TO_LEVEL_FIRST
    count = sum(key.startswith(_NORMS) for key in situation.weights.tensors)
    return [
        Cause(
            "head-norms",
            f"{count:,} norms of the heads are ordered {found} first, the architecture orders "
            f"them {wanted} first",
            "rename",
            {"rules": rules},
            None,
            automatic=True,
        )
    ]


def _order(keys: Iterable[str]) -> str | None:
    """`level` or `repeat`: what the first index of the heads' norms counts; None without heads."""
    inside = [key for key in keys if key.startswith(_NORMS)]
    if not inside:
        return None
    return "repeat" if any(".bn." in key.partition(".bn_rep.")[2] for key in inside) else "level"
