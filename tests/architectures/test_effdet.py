"""What no file of an EfficientDet stores, against effdet's own code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from ckptool import architectures
from ckptool.architectures import frozen
from ckptool.architectures.live import quiet
from ckptool.architectures.spec import Architecture

with quiet():
    import effdet
    from effdet.anchors import Anchors
    from effdet.bench import _post_process
    from effdet.efficientdet import HeadNet, _init_weight

NAMES = tuple(name for name, entry in frozen.index().items() if entry["family"] == "effdet")
CONFIGS = {name: effdet.get_efficientdet_config(name) for name in NAMES}
DISTINGUISHED_BY = {
    ("tf_efficientdet_d6", "tf_efficientdet_d7"): {"image_size", "anchor_scale"},
    ("tf_efficientdet_d0", "tf_efficientdet_d0_ap"): {"mean", "std"},
    ("efficientdet_d4", "tf_efficientdet_d4"): {"backbone", "backbone_padding", "backbone_bn_eps"},
    ("tf_efficientdet_d5", "tf_efficientdet_d5_ap"): {"mean", "std"},
}


def class_head(name: str, classes: int) -> Any:
    """effdet's class head with effdet's initialisation, as its constructor gives it."""
    config = effdet.get_efficientdet_config(name)
    torch.manual_seed(1)
    head = HeadNet(config, num_outputs=classes)
    for path, module in head.named_modules(prefix="class_net"):
        _init_weight(module, path)
    return head


def differing(one: Architecture, other: Architecture) -> set[str]:
    return {field for field in one.card if one.card[field] != other.card[field]}


def test_cards_tell_all_architectures_with_equal_manifests_apart() -> None:
    groups: dict[int, list[Architecture]] = {}
    for name in NAMES:
        found = architectures.find(name)
        groups.setdefault(id(found.specs), []).append(found)

    twins = [group for group in groups.values() if len(group) > 1]
    pairs = [pair for group in twins for pair in itertools.combinations(group, 2)]
    assert len(twins) == 7
    for one, other in pairs:
        assert differing(one, other), (one.name, other.name)
        assert other.name in architectures.lookalikes(one)


@pytest.mark.parametrize(
    ("pair", "fields"), DISTINGUISHED_BY.items(), ids=map("-".join, DISTINGUISHED_BY)
)
def test_card_says_what_distinguishes(pair: tuple[str, str], fields: set[str]) -> None:
    one, other = (architectures.find(name) for name in pair)

    assert differing(one, other) == fields


@pytest.mark.parametrize("name", NAMES)
def test_card_is_effdets_config(name: str) -> None:
    card, config = architectures.find(name).card, CONFIGS[name]

    assert card["image_size"] == list(config.image_size)
    assert card["anchor_scale"] == config.anchor_scale
    assert card["levels"] == [config.min_level, config.max_level]
    assert card["mean"] == list(config.get("mean", (0.485, 0.456, 0.406)))
    assert (card["bn_eps"], card["bn_momentum"]) == (0.001, 0.01)
    assert card["padding"] == ("same" if config.pad_type == "same" else "symmetric")
    tensorflow = name.startswith("tf_")
    assert card["backbone_bn_eps"] == (0.001 if tensorflow else 1e-5)
    assert card["backbone_padding"] == ("same" if tensorflow else "symmetric")


@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "tf_efficientdet_d7"])
def test_card_is_enough_for_the_anchors(name: str) -> None:
    """effdet's anchors from the card alone are those of its bench."""
    card = architectures.find(name).card
    low, high = card["levels"]
    made = Anchors(
        low, high, card["num_scales"], card["aspect_ratios"], card["anchor_scale"],
        tuple(card["image_size"]),
    )  # fmt: skip

    assert torch.equal(made.boxes, Anchors.from_config(CONFIGS[name]).boxes)


@pytest.mark.parametrize("name", NAMES)
def test_new_rows_start_as_effdet_starts_them(name: str) -> None:
    """The bias is exact; the weight has the mean, spread and shape of the stated normal."""
    layouts = architectures.find(name).layouts
    head = class_head(name, 200)
    for key, parameter in head.predict.named_parameters():
        layout = layouts.get(f"class_net.predict.{key}")
        if layout is None:
            assert key == "conv_dw.weight"
            continue
        kind, (number,) = layout.init_for(tuple(parameter.shape))
        values = parameter.detach().double()
        if key.endswith("bias"):
            assert kind == "constant"
            assert set(parameter.tolist()) == {torch.tensor(number).item()}
        else:
            assert kind == "normal"
            assert values.numel() > 50_000
            assert abs(values.mean().item()) < 0.02 * number
            assert values.std().item() == pytest.approx(number, rel=0.02)
            # The fourth moment of a normal is 3; of a uniform 1.8, of a truncated normal 2.4.
            assert (values / number).pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "resdet50"])
def test_class_rows_are_anchor_major_without_a_background(name: str) -> None:
    """A class map that holds the number of each row, through effdet's own reading of it."""
    found, config = architectures.find(name), CONFIGS[name]
    bias = next(key for key in found.layouts if key.endswith("bias"))
    layout, classes = found.layouts[bias], 7
    rows = torch.arange(layout.groups * classes, dtype=torch.float32)
    levels = config.num_levels
    maps = [rows.view(1, -1, 1, 1).expand(1, -1, 2, 2) for _ in range(levels)]
    boxes = [torch.zeros(1, layout.groups * 4, 2, 2) for _ in range(levels)]

    everything = levels * 4 * len(rows)
    values, _, places, chosen = _post_process(maps, boxes, levels, classes, everything)

    anchors = places[0] % layout.groups
    assert len(set(values.flatten().tolist())) == len(rows)
    assert torch.equal(values[0, :, 0], (anchors * classes + chosen[0]).float())


def test_a_bench_is_recognised_inside_another_module(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way people train: a bench in a wrapper; its anchors are derived, its head is known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrapped_effdet.py").write_text(
        "import effdet, torch\n"
        "class Wrapper(torch.nn.Module):\n"
        "    def __init__(self, num_classes=20):\n"
        "        super().__init__()\n"
        "        self.model = effdet.create_model('tf_efficientdet_d0', bench_task='train',\n"
        "            num_classes=num_classes, pretrained=False, pretrained_backbone=False)\n"
    )

    found = architectures.find("wrapped_effdet:Wrapper")

    bare = architectures.find("tf_efficientdet_d0")
    own = {key for key in found.specs if key.startswith("model.model.")}
    assert set(found.specs) - own == {"model.anchors.boxes"}
    assert found.derived == ("model.anchors.boxes",)
    assert {key.removeprefix("model.model."): layout for key, layout in found.layouts.items()} == (
        bare.layouts
    )
    assert found.num_classes == 20
    assert found.card == bare.card
