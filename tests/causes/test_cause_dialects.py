"""The network as another implementation spells it, as one cause."""

from __future__ import annotations

import torch
from checkpoints_made import held, prefixed
from diffs_made import Bench, codes, only
from torch import nn

from ckptool import architectures


def built(arch: str) -> nn.Module:
    with torch.device("meta"):
        return architectures.build(arch)


def test_yolov4_as_the_cfg_s_class_spells_it(bench: Bench):
    """Tianxiaomo's Darknet class numbers the layers, Yolov4 names them: 1,189 keys, one cause."""
    found = bench.diff(held(built("yolov4_new")), arch="yolov4")
    cause = only(found, "dialect")
    assert cause.summary == (
        "the file has the network in the dialect `darknet`, the architecture is spelled in "
        "`tianxiaomo`"
    )
    assert len(cause.keys) == found.counts["missing"] + found.counts["unexpected"]
    assert cause.fix == "--arch yolov4"
    assert cause.exact
    assert found.fix == f"ckptool convert {bench.path} --arch yolov4"


def test_behind_a_wrapper(bench: Bench):
    found = bench.diff(prefixed(held(built("yolov4_new")), "module."), arch="yolov4")
    assert codes(found) == ["dialect"]
    assert "in the dialect `darknet`, behind the prefix `module.`, the" in found.causes[0].summary
    assert found.fix is not None
