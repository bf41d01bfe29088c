"""Input channels: as timm adapts them, and what that means for a grey image."""

from __future__ import annotations

import pytest
import torch
from nets import effdet, furthest, image, outputs
from timm.models import adapt_input_conv

import ckptool
from ckptool.plugins import apply

STEM = "backbone.conv_stem.weight"


def converted(tmp_path, model, channels):
    torch.save(model.state_dict(), tmp_path / "in.pth")
    return ckptool.convert(
        tmp_path / "in.pth",
        tmp_path / "out.pth",
        arch="tf_efficientdet_d0",
        in_chans=channels,
        force=True,
    )


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 9])
def test_from_three_channels_it_is_what_timm_does(tmp_path, channels):
    model = effdet("tf_efficientdet_d0")
    result = converted(tmp_path, model, channels)
    found = torch.load(tmp_path / "out.pth", weights_only=True)[STEM]
    wanted = adapt_input_conv(channels, model.state_dict()[STEM].double())
    torch.testing.assert_close(found, wanted.float(), rtol=2e-6, atol=1e-7)
    (step,) = result.plan.steps
    assert (step.edit, step.keys, step.grade) == ("channels", 1, "lossy")
    assert result.fits_strict
    effdet("tf_efficientdet_d0", backbone_args={"in_chans": channels}).load_state_dict(
        torch.load(tmp_path / "out.pth", weights_only=True), strict=True
    )


@pytest.mark.parametrize("channels", [1, 6])
def test_a_grey_image_gives_the_same_outputs(tmp_path, channels):
    """Fed once to one channel, or as often as there are channels."""
    before = effdet("tf_efficientdet_d0")
    converted(tmp_path, before, channels)
    after = effdet("tf_efficientdet_d0", backbone_args={"in_chans": channels})
    after.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    grey = image(channels=1)
    wanted = outputs(before, grey.expand(1, 3, -1, -1))
    assert furthest(outputs(after, grey.expand(1, channels, -1, -1)), wanted) < 1e-5


@pytest.mark.parametrize("channels", [6, 9])
def test_there_and_back_is_the_same(tmp_path, channels):
    """From N channels, which are three repeated, to three again."""
    model = effdet("tf_efficientdet_d0")
    converted(tmp_path, model, channels)
    torch.save(torch.load(tmp_path / "out.pth", weights_only=True), tmp_path / "wide.pth")
    ckptool.convert(
        tmp_path / "wide.pth", tmp_path / "back.pth", arch="tf_efficientdet_d0", in_chans=3
    )
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    torch.testing.assert_close(back[STEM], model.state_dict()[STEM], rtol=1e-6, atol=0)


def test_it_is_not_done_without_being_asked_for(tmp_path):
    """The message has the option."""
    wide = effdet("tf_efficientdet_d0", backbone_args={"in_chans": 4})
    torch.save(wide.state_dict(), tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError) as caught:
        ckptool.plan(tmp_path / "in.pth", arch="tf_efficientdet_d0")
    assert f"the first convolution `{STEM}` takes 4 channels in the file" in caught.value.message
    assert caught.value.hint == "--in-chans 3"


@pytest.mark.parametrize(
    "options",
    [
        {"key": "gone", "to": 1},
        {"key": "v", "to": 1},
        {"key": "w", "to": 0},
        {"key": "w", "to": 9999},
    ],
    ids=str,
)
def test_what_is_no_convolution_is_refused(tmp_path, options):
    torch.save({"w": torch.ones(4, 3, 1, 1), "v": torch.ones(12)}, tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError, match="is not the weight of a convolution that could"):
        apply("channels", options, ckptool.read(tmp_path / "in.pth").weights)
