"""Class heads: the rows of kept classes compute what they computed, all others are new or gone."""

from __future__ import annotations

import hashlib
import math
import sys
import types

import pytest
import torch
import torchvision
from nets import effdet, image, outputs, randomised
from torch import nn

import ckptool
from ckptool import architectures
from ckptool.architectures.spec import RowLayout
from ckptool.labels import class_map
from ckptool.plugins import apply
from ckptool.plugins.heads import NEW, options_for, picked_rows

PRIOR = -math.log((1 - 0.01) / 0.01)
VOC = class_map("coco90:voc20", 90, 20).rows


def voc_of(spec, old):
    """Where the 20 classes of VOC stand among the old ones."""
    rows = class_map(spec, old, 20).rows
    assert None not in rows
    return list(rows)


def convert(tmp_path, model, arch, **options):
    """A strictly loaded state dict's source: the converted file, and the result."""
    torch.save(model.state_dict(), tmp_path / "in.pth")
    result = ckptool.convert(tmp_path / "in.pth", tmp_path / "out.pth", arch=arch, **options)
    return torch.load(tmp_path / "out.pth", weights_only=True), result


@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientdet_d0",
        pytest.param("tf_efficientdet_d7", marks=pytest.mark.sweep),
        "efficientdet_es",  # its head is not separable
        pytest.param("cspresdet50", marks=pytest.mark.sweep),
    ],
)
def test_effdet_computes_the_kept_classes_as_before(tmp_path, name):
    """The logits of VOC's 20 classes are bit for bit those of their COCO classes; so are boxes."""
    before, after = effdet(name), effdet(name, 20)
    state, result = convert(tmp_path, before, name, num_classes=20, class_map="coco90:voc20")
    after.load_state_dict(state, strict=True)
    old, new = outputs(before, image()), outputs(after, image())
    levels = len(old) // 2
    for wanted, found in zip(old[:levels], new[:levels], strict=True):
        kept = wanted.unflatten(1, (9, 90))[:, :, VOC]
        assert float((found.unflatten(1, (9, 20)) - kept).abs().max()) == 0
    assert all(torch.equal(a, b) for a, b in zip(old[levels:], new[levels:], strict=True))
    assert result.plan.steps[0].grade == "selective"
    assert result.notes == ("20 of 20 classes kept",)


@pytest.mark.parametrize("name", ["yolov4", "yolov4-tiny"])
def test_yolov4_computes_the_kept_classes_and_boxes_as_before(tmp_path, name):
    """The five rows of box and objectness of each anchor are bit for bit the old ones."""
    before, after = (randomised(architectures.build(name, count)) for count in (80, 20))
    state, result = convert(tmp_path, before, name, num_classes=20, class_map="coco80:voc20")
    after.load_state_dict(state, strict=True)
    classes = voc_of("coco80:voc20", 80)
    for wanted, found in zip(outputs(before, image(64)), outputs(after, image(64)), strict=True):
        old, new = wanted.unflatten(1, (3, 85)), found.unflatten(1, (3, 25))
        assert torch.equal(new[:, :, :5], old[:, :, :5])
        assert torch.equal(new[:, :, 5:], old[:, :, 5:][:, :, classes])
    assert result.fits_strict


def _loaded(head, weights, prefix):
    own = {key.removeprefix(prefix): t.torch() for key, t in weights.tensors.items()}
    head.load_state_dict(own, strict=True)
    return head.eval()


def _dense(scores):
    """(N, anchors, classes) for one or several levels."""
    return torch.cat(list(scores), 1) if isinstance(scores, (list, tuple)) else scores


_D = torchvision.models.detection
_FEATURES = [torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2)]
TORCHVISION = {
    "retinanet_resnet50_fpn": (
        "head.classification_head.",
        lambda n: _D.retinanet.RetinaNetClassificationHead(8, 9, n),
        lambda head: head(_FEATURES),
    ),
    "fcos_resnet50_fpn": (
        "head.classification_head.",
        lambda n: _D.fcos.FCOSClassificationHead(32, 1, n),
        lambda head: head([torch.rand(1, 32, 3, 3, generator=torch.Generator().manual_seed(1))]),
    ),
    "ssd300_vgg16": (
        "head.classification_head.",
        lambda n: _D.ssd.SSDClassificationHead([8] * 6, [4, 6, 6, 6, 4, 4], n),
        lambda head: head([_FEATURES[0]] * 6),
    ),
    "ssdlite320_mobilenet_v3_large": (
        "head.classification_head.",
        lambda n: _D.ssdlite.SSDLiteClassificationHead([8] * 6, [6] * 6, n, nn.BatchNorm2d),
        lambda head: head([_FEATURES[0]] * 6),
    ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_s_dense_heads_compute_the_kept_classes_as_before(tmp_path, name):
    """Row 0 of each anchor is the background's, is counted, and is carried over by itself."""
    prefix, build, run = TORCHVISION[name]
    torch.manual_seed(0)
    before = randomised(build(91))
    torch.save({prefix + k: v for k, v in before.state_dict().items()}, tmp_path / "in.pth")
    options = options_for(architectures.find(f"torchvision:{name}"), 91, 21)
    options["map"] = list(VOC)
    found = apply("heads", options, ckptool.read(tmp_path / "in.pth").weights)
    after = _loaded(build(21), found.weights, prefix)
    with torch.no_grad():
        old, new = _dense(run(before)), _dense(run(after))
    kept = old[..., [0, *(row + 1 for row in VOC)]]
    assert float((new - kept).abs().max()) < 1e-5  # as near as two widths of one convolution are
    for key, axis in architectures.find(f"torchvision:{name}").axes.items():
        assert axis.axis == 0
        groups = options["tensors"][key]["layout"]["groups"]
        one, other = (
            state[key.removeprefix(prefix)].unflatten(0, (groups, -1))
            for state in (before.state_dict(), after.state_dict())
        )
        assert torch.equal(other, one[:, [0, *(row + 1 for row in VOC)]])


def test_torchvision_s_region_heads_compute_the_kept_classes_as_before(tmp_path):
    """Faster and Mask R-CNN: scores, four box rows for each class, and masks."""
    torch.manual_seed(0)

    def build(n):
        return nn.ModuleDict(
            {
                "box_predictor": _D.faster_rcnn.FastRCNNPredictor(1024, n),
                "mask_predictor": _D.mask_rcnn.MaskRCNNPredictor(8, 8, n),
            }
        )

    before, prefix = randomised(build(91)), "roi_heads."
    torch.save({prefix + k: v for k, v in before.state_dict().items()}, tmp_path / "in.pth")
    options = options_for(architectures.find("torchvision:maskrcnn_resnet50_fpn"), 91, 21)
    options["map"] = list(VOC)
    found = apply("heads", options, ckptool.read(tmp_path / "in.pth").weights)
    after = _loaded(build(21), found.weights, prefix)
    kept = [0, *(row + 1 for row in VOC)]
    x = torch.rand(5, 1024)
    with torch.no_grad():
        scores, boxes = before["box_predictor"](x)
        new_scores, new_boxes = after["box_predictor"](x)
        masks = before["mask_predictor"](_FEATURES[0])
        new_masks = after["mask_predictor"](_FEATURES[0])
    assert torch.equal(new_scores, scores[:, kept])
    assert torch.equal(new_boxes.unflatten(1, (21, 4)), boxes.unflatten(1, (91, 4))[:, kept])
    assert torch.equal(new_masks, masks[:, kept])


class FastRCNNOutputLayers(nn.Module):
    """The tensors of Detectron2's class, with the background last and no box rows for it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(6, num_classes + 1)
        self.bbox_pred = nn.Linear(6, num_classes * 4)
        self.box2box_transform = types.SimpleNamespace(weights=(10.0, 10.0, 5.0, 5.0))

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


class MaskRCNNConvUpsampleHead(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.predictor = nn.Conv2d(6, num_classes, 1)


class RetinaNetHead(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Conv2d(6, 9 * num_classes, 3)
        self.bbox_pred = nn.Conv2d(6, 9 * 4, 3)


class DETR(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(6, num_classes + 1)


class Detectors(nn.Module):
    """All of them in one, so that one file and one architecture has every layout."""

    def __init__(self, num_classes: int = 80) -> None:
        super().__init__()
        self.box = FastRCNNOutputLayers(num_classes)
        self.mask = MaskRCNNConvUpsampleHead(num_classes)
        self.dense = RetinaNetHead(num_classes)
        self.detr = DETR(num_classes)


@pytest.fixture
def detectors(monkeypatch):
    """The classes under the names that their packages give them; `detectors:Detectors` is found."""
    roi = "detectron2.modeling.roi_heads"
    for own, home in (
        (FastRCNNOutputLayers, f"{roi}.fast_rcnn"),
        (MaskRCNNConvUpsampleHead, f"{roi}.mask_head"),
        (RetinaNetHead, "detectron2.modeling.meta_arch.retinanet"),
        (DETR, "models.detr"),
    ):
        monkeypatch.setattr(own, "__module__", home)
    module = types.ModuleType("own_detectors")
    module.Detectors = Detectors
    monkeypatch.setitem(sys.modules, "own_detectors", module)
    return "own_detectors:Detectors"


def test_detectron2_and_detr_have_the_background_last(tmp_path, detectors):
    """Background and no object stay the last row; boxes and masks have none for it."""
    before, after = randomised(Detectors(80)), Detectors(20).eval()
    state, result = convert(tmp_path, before, detectors, num_classes=20, class_map="coco80:voc20")
    after.load_state_dict(state, strict=True)
    kept = voc_of("coco80:voc20", 80)
    x, y = torch.rand(5, 6), torch.rand(1, 6, 3, 3)
    with torch.no_grad():
        (scores, boxes), (new_scores, new_boxes) = before.box(x), after.box(x)
        assert torch.equal(new_scores, scores[:, [*kept, 80]])
        assert torch.equal(new_boxes.unflatten(1, (20, 4)), boxes.unflatten(1, (80, 4))[:, kept])
        assert torch.equal(after.mask(y), before.mask(y)[:, kept])
        old, new = before.dense.cls_score(y), after.dense.cls_score(y)
        assert torch.equal(new.unflatten(1, (9, 20)), old.unflatten(1, (9, 80))[:, :, kept])
        assert torch.equal(after.dense.bbox_pred(y), before.dense.bbox_pred(y))
        logits = before.detr.class_embed(x)
        assert torch.equal(after.detr.class_embed(x), logits[:, [*kept, 80]])
    assert result.plan.steps[0].keys == 10


@pytest.mark.parametrize("count", [1, 200])
def test_new_rows_start_as_the_architecture_starts_them(tmp_path, count):
    """effdet: the bias is the logit of a prior of 0.01, the weights have the spread of its own."""
    before = effdet("tf_efficientdet_d0")
    state, result = convert(tmp_path, before, "tf_efficientdet_d0", num_classes=count)
    key = "class_net.predict.conv_pw"
    wanted = torch.tensor(PRIOR, dtype=torch.float32)
    assert state[f"{key}.bias"].equal(wanted.expand(9 * count))
    own = effdet("tf_efficientdet_d0", count).state_dict()[f"{key}.weight"]
    assert state[f"{key}.weight"].shape == own.shape
    assert float(state[f"{key}.weight"].std()) == pytest.approx(float(own.std()), rel=0.15)
    assert abs(float(state[f"{key}.weight"].mean())) < 0.02
    old = before.state_dict()
    untouched = [k for k in state if k not in (f"{key}.weight", f"{key}.bias")]
    assert all(state[k].equal(old[k]) for k in untouched)
    (note,) = result.notes
    assert note.startswith(f"0 of {count} classes kept, {count} newly initialised; `--class-map` ")
    assert result.plan.steps[0].grade == "lossy"
    assert result.measured[f"{key}.bias"]["new_rows"] == 9 * count


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_new_rows_are_made_in_the_type_that_is_asked_for(tmp_path, dtype):
    """Half precision is widened first: the bias of a new class is not rounded to it."""
    before = effdet("tf_efficientdet_d0").to(dtype)
    state, _ = convert(tmp_path, before, "tf_efficientdet_d0", num_classes=1, dtype="fp32")
    wanted = torch.tensor(PRIOR, dtype=torch.float32)
    assert state["class_net.predict.conv_pw.bias"].equal(wanted.expand(9))


def test_a_seed_gives_the_same_file_each_time(tmp_path):
    """And another one other rows, but only those of new classes."""
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "in.pth")
    hashes, states = [], []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = tmp_path / f"{name}.pth"
        options = {"num_classes": 100, "class_map": "first", "seed": seed}
        ckptool.convert(tmp_path / "in.pth", output, arch="tf_efficientdet_d0", **options)
        hashes.append(hashlib.sha256(output.read_bytes()).hexdigest())
        states.append(torch.load(output, weights_only=True))
    assert hashes[0] == hashes[1] != hashes[2]
    key = "class_net.predict.conv_pw.weight"
    differing = [k for k in states[0] if not states[0][k].equal(states[2][k])]
    assert differing == [key]
    one, other = (states[n][key].unflatten(0, (9, 100)) for n in (0, 2))
    assert one[:, :90].equal(other[:, :90])
    assert not (one[:, 90:] == other[:, 90:]).any()


def test_first_keeps_the_first_classes_and_lists_the_new_ones(tmp_path):
    before = effdet("tf_efficientdet_d0", 3)
    state, result = convert(
        tmp_path, before, "tf_efficientdet_d0", num_classes=5, class_map="first"
    )
    key = "class_net.predict.conv_pw.weight"
    old = before.state_dict()[key].unflatten(0, (9, 3))
    assert state[key].unflatten(0, (9, 5))[:, :3].equal(old)
    assert result.notes == ("3 of 5 classes kept, 2 newly initialised: `3`, `4`",)


def test_label_files_map_by_name_and_new_classes_are_named(tmp_path):
    """`aeroplane` is COCO's airplane; a drone is new."""
    (tmp_path / "sky.txt").write_text("drone\naeroplane\nbird\n")
    before = effdet("tf_efficientdet_d0")
    spec = f"coco90:{tmp_path}/sky.txt"
    state, result = convert(tmp_path, before, "tf_efficientdet_d0", num_classes=3, class_map=spec)
    (step,) = result.plan.steps
    assert step.options["map"] == [None, 4, 15]
    assert result.notes == ("2 of 3 classes kept, 1 newly initialised: `drone`",)
    key = "class_net.predict.conv_pw.weight"
    old, new = before.state_dict()[key].unflatten(0, (9, 90)), state[key].unflatten(0, (9, 3))
    assert new[:, 1:].equal(old[:, [4, 15]])


def test_a_map_between_sets_of_one_size_reorders(tmp_path):
    """The class count stays, and the map is not ignored."""
    (tmp_path / "old.txt").write_text("cat\ndog\ncow\n")
    (tmp_path / "new.txt").write_text("cow\ncat\ndog\n")
    before, after = effdet("tf_efficientdet_d0", 3), effdet("tf_efficientdet_d0", 3)
    spec = f"{tmp_path}/old.txt:{tmp_path}/new.txt"
    state, result = convert(tmp_path, before, "tf_efficientdet_d0", class_map=spec)
    after.load_state_dict(state, strict=True)
    old, new = outputs(before, image())[0], outputs(after, image())[0]
    assert new.unflatten(1, (9, 3)).equal(old.unflatten(1, (9, 3))[:, :, [2, 0, 1]])
    assert result.plan.steps[0].options["map"] == [2, 0, 1]


@pytest.mark.parametrize("spec", ["first", "coco90:coco90"])
def test_a_map_that_changes_nothing_is_no_step(tmp_path, spec):
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "in.pth")
    plan = ckptool.plan(tmp_path / "in.pth", arch="tf_efficientdet_d0", class_map=spec)
    assert plan.steps == ()


def test_the_first_rows_of_the_tensor_are_not_the_first_classes():
    """Taking `W[:9 * 20]` loads strictly, and is wrong: the rows are anchor-major."""
    layout = RowLayout(groups=9)
    rows = picked_rows(layout, 90, range(20))
    assert rows[:21] == (*range(20), 90)
    assert rows != tuple(range(180))


@pytest.mark.parametrize(
    ("layout", "old", "mapping", "wanted"),
    [
        (RowLayout(), 3, [2, None], (2, NEW)),
        (RowLayout(groups=2), 3, [0, 2], (0, 2, 3, 5)),
        (RowLayout(groups=2, kept=5), 2, [1], (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 13)),
        (RowLayout(background="first", counted=True), 4, [2, 0], (0, 3, 1)),
        (RowLayout(background="first"), 3, [2, 0], (0, 3, 1)),
        (RowLayout(background="last"), 3, [2, None], (2, NEW, 3)),
        (RowLayout(background="last", counted=True), 4, [2, None], (2, NEW, 3)),
        (RowLayout(per_class=4), 3, [1], (4, 5, 6, 7)),
        (
            RowLayout(per_class=4, background="first", counted=True),
            3,
            [1, None],
            (0, 1, 2, 3, 8, 9, 10, 11, NEW, NEW, NEW, NEW),
        ),
    ],
)
def test_rows_are_picked_by_layout(layout, old, mapping, wanted):
    assert picked_rows(layout, old, mapping) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": [90]}, "the class map names the old class 90, there are 0 … 89"),
        ({"map": [-1]}, "the class map names the old class -1, there are 0 … 89"),
        ({"from": 80}, "found the shape (810, 64, 1, 1), 80 classes have 720 rows along axis 0"),
        ({"from": "90"}, "`from` is '90', wanted a whole number"),
        ({"seed": -1}, "`seed` is -1, wanted a whole number"),
        ({"tensors": {"gone": {"axis": 0, "layout": {}}}}, "the head tensor `gone` is not in"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(tmp_path, change, message):
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "in.pth")
    options = options_for(architectures.find("tf_efficientdet_d0"), 90, 1)
    with pytest.raises(ckptool.PlanError) as caught:
        apply("heads", {**options, **change}, ckptool.read(tmp_path / "in.pth").weights)
    assert message in caught.value.message


@pytest.mark.parametrize("change", [{"groups": "9"}, {"init": ["xavier", []]}, {"rows": 3}])
def test_a_layout_that_is_none_is_refused(tmp_path, change):
    torch.save(effdet("tf_efficientdet_d0").state_dict(), tmp_path / "in.pth")
    options = options_for(architectures.find("tf_efficientdet_d0"), 90, 1)
    for fields in options["tensors"].values():
        fields["layout"].update(change)
    with pytest.raises(ckptool.PlanError):
        apply("heads", options, ckptool.read(tmp_path / "in.pth").weights)


def test_heads_that_are_one_tensor_stay_one(tmp_path):
    """And so do their new rows: the seed of a tied head is that of one key."""
    weight = torch.randn(4, 3)
    torch.save({"a.weight": weight, "b.weight": weight}, tmp_path / "in.pth")
    layout = {
        "groups": 1,
        "kept": 0,
        "per_class": 1,
        "background": None,
        "counted": False,
        "init": ["normal", [0.1]],
    }
    tensors = {key: {"axis": 0, "layout": layout} for key in ("a.weight", "b.weight")}
    options = {"from": 4, "to": 2, "map": [3, None], "seed": 0, "tensors": tensors}
    found = apply("heads", options, ckptool.read(tmp_path / "in.pth").weights)
    assert found.weights.aliases == (("a.weight", "b.weight"),)


def test_a_head_of_unknown_order_is_not_touched(tmp_path, monkeypatch):
    """Eight rows a class, in nobody knows what order: no row can be kept, so nothing is guessed."""

    class Own(nn.Module):
        def __init__(self, num_classes: int = 4) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)))
            self.boxes = nn.Linear(5, 8 * num_classes)

    module = types.ModuleType("own_head")
    module.Own = Own
    monkeypatch.setitem(sys.modules, "own_head", module)
    torch.save(Own(4).state_dict(), tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError, match=r"of its heads .* not known, so none can be kept"):
        ckptool.plan(tmp_path / "in.pth", arch="own_head:Own", num_classes=2)


def test_a_wrong_row_does_not_pass_the_proof(tmp_path, monkeypatch):
    """Rows that were swapped behind the edit's back are found in the written file."""
    from ckptool.plugins.heads import Rows

    honest = Rows.chunks

    def swapped(self, spec, step):
        (data,) = honest(self, spec, step)
        half = len(data) // 2
        yield memoryview(bytes(data[half:]) + bytes(data[:half]))

    monkeypatch.setattr(Rows, "chunks", swapped)
    model = effdet("tf_efficientdet_d0", 4)
    with pytest.raises(ckptool.VerificationError, match="row 0 is not old row 0"):
        convert(tmp_path, model, "tf_efficientdet_d0", num_classes=2, class_map="first")
    assert not (tmp_path / "out.pth").exists()
