"""The network as another implementation spells it, as one cause."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import effdet, held, prefixed, write
from diffs_made import Bench, codes, only
from torch import nn

import ckptool
from ckptool import architectures

D0 = "tf_efficientdet_d0"


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


@pytest.mark.parametrize("classes", [90, 20])
def test_another_checkpoint_in_another_dialect(bench: Bench, classes: int):
    """What the other file is of tells that it is the same network, there and back."""
    own = write(held(effdet(D0)), bench.folder / "own.pth")
    zylo = bench.folder / "zylo.pth"
    options = {} if classes == 90 else {"num_classes": classes}
    ckptool.convert(own, zylo, arch=D0, to_dialect="zylo117", **options)
    found = bench.diff(held(effdet(D0)), like=zylo)
    more = [] if classes == 90 else ["class-count"]
    assert codes(found) == ["dialect", *more]
    assert found.causes[0].summary == (
        "the file has the network in the dialect `effdet`, the architecture is spelled in `zylo117`"
    )
    assert found.causes[0].fix == f"--like {zylo}"
    assert found.unexplained == ()
    count = f" --num-classes {classes}" if more else ""
    assert found.fix == f"ckptool convert {bench.path} --like {zylo}{count}"
    made = bench.run(found.fix.partition(f"{bench.path} ")[2])
    again = ckptool.diff(bench.folder / "out.pth", like=zylo)
    assert again.fits_strict
    assert len(made) == len(again.wanted)
    back = ckptool.diff(zylo, like=own)
    assert [cause.code for cause in back.causes] == codes(found)
    assert (back.arch, back.also_fits, back.not_in_file) == (str(own), (), {})
