"""effdet's own spellings: the norms of its heads by repeat and level, or by level and repeat."""

from __future__ import annotations

from ckptool.dialects.efficientdet import FAMILIES
from ckptool.dialects.spec import BATCH_NORM, Dialect
from ckptool.rules import Rule

_SOURCE = "effdet 0.4.1 `efficientdet.py` (`HeadNet`, `toggle_head_bn_level_first`)"
_SAME = (
    Rule("backbone.{*}", "backbone.{*}"),
    Rule("fpn.{*}", "fpn.{*}"),
    Rule("{net}.conv_rep.{*}", "{net}.conv_rep.{*}"),
    Rule("{net}.predict.{*}", "{net}.predict.{*}"),
)
_TABLES = {
    "net": {"class_net": "class_net", "box_net": "box_net"},
    "norm": {name: name for name in BATCH_NORM},
}
_NORMS = "{net}.bn_rep.{rep}.{level}.bn.{norm}"

DIALECTS = (
    Dialect(
        "effdet",
        FAMILIES,
        ("*",),
        marks=("class_net.bn_rep.0.0.bn.weight", "box_net.bn_rep.0.0.bn.weight"),
        rules=(*_SAME, Rule(_NORMS, _NORMS)),
        tables=_TABLES,
        source=_SOURCE,
    ),
    Dialect(
        "effdet-level-first",
        FAMILIES,
        ("*",),
        marks=("class_net.bn_rep.0.0.weight", "box_net.bn_rep.0.0.weight"),
        rules=(*_SAME, Rule("{net}.bn_rep.{level}.{rep}.{norm}", _NORMS)),
        tables=_TABLES,
        source=_SOURCE,
    ),
)
