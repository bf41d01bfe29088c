"""Models of timm, measured live."""

from __future__ import annotations

import pytest
import torch

from ckptool import architectures
from ckptool.architectures.live import quiet
from ckptool.errors import ArchitectureError
from ckptool.tensors import TensorSpec

with quiet():
    import timm


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet18.a1_in1k", "tf_efficientnet_b0", "cspdarknet53", "vit_tiny_patch16_224"],
)
def test_manifest_is_what_timm_builds(name: str) -> None:
    found = architectures.find(f"timm:{name}")
    for classes in (None, 7):
        options = {} if classes is None else {"num_classes": classes}
        model = timm.create_model(name, pretrained=False, **options)
        real = {
            key: TensorSpec(str(tensor.dtype)[6:], tuple(tensor.shape))
            for key, tensor in model.state_dict().items()
        }
        assert list(found.manifest(classes).items()) == list(real.items())
    assert found.num_classes == 1000
    assert found.parameters == sum(
        parameter.numel() for parameter in timm.create_model(name).parameters()
    )


def test_card_is_timms_configuration() -> None:
    card = architectures.find("timm:tf_efficientnet_b0").card
    found = timm.create_model("tf_efficientnet_b0").pretrained_cfg

    assert card["image_size"] == list(found["input_size"][1:])
    assert (card["mean"], card["std"]) == (list(found["mean"]), list(found["std"]))
    assert (card["bn_eps"], card["padding"]) == (0.001, "same")
    assert card["activation"] == "sigmoid, silu"


def test_build_gives_the_live_model_on_the_cpu() -> None:
    model = architectures.build("timm:resnet18", 3)

    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "timm:resnet81",
            "no architecture is called `timm:resnet81`",
            "the closest are `timm:resnet18`, `timm:resnet61q`, `timm:resnet51q`",
        ),
        (
            "timm:resnet18.no_such_tag",
            "`timm:resnet18.no_such_tag` cannot be built: RuntimeError: Invalid pretrained tag "
            "(no_such_tag) for resnet18.",
            None,
        ),
        # A name that timm would look up on a hub: nothing is looked up.
        ("timm:hf-hub:timm/resnet18", "no architecture is called `timm:hf-hub:timm/resnet18`", ""),
    ],
)
def test_what_timm_cannot_build_is_one_sentence(name: str, message: str, hint: str | None) -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find(name)

    assert caught.value.message == message
    assert hint == "" or caught.value.hint == hint
