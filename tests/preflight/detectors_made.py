"""Small live detectors of each family, correct batches for them, and their losses."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptool.architectures import build
from ckptool.architectures.darknet_layers import Network

SIZE, CLASSES = 128, 80
YOLO_SIZE, YOLO_CLASSES = 64, 20
TORCHVISION_CLASSES = 21
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": 64, "max_size": 96},
    "retinanet_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "fcos_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "ssdlite320_mobilenet_v3_large": {},
}
FASTER, RETINA, FCOS, SSD = TORCHVISION


@cache
def _effdet(name: str, classes: int, size: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from effdet import DetBenchTrain, EfficientDet, get_efficientdet_config

        config = get_efficientdet_config(name)
        config.image_size, config.num_classes = (size, size), classes
        torch.manual_seed(0)
        return DetBenchTrain(EfficientDet(config, pretrained_backbone=False)).train()


def bench(name: str = "tf_efficientdet_d0", classes: int = CLASSES, size: int = SIZE) -> nn.Module:
    """An effdet training bench that several tests share: nobody may change it."""
    return _effdet(name, classes, size)


class _Given(nn.Module):
    """A network that gives what it gave before, in no time."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> Any:
        return self.outputs


@cache
def bench_of_losses() -> nn.Module:
    """The shared bench with its labeler and its loss, and outputs that were computed once."""
    made = copied(bench())
    with torch.no_grad():
        made.model = _Given(bench().model(effdet_batch()[0]))
    return made


@cache
def torchvision_model(name: str = FASTER) -> nn.Module:
    """A torchvision detector for small images, in training mode, shared."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": TORCHVISION_CLASSES}
    return get_model(name, **options, **TORCHVISION[name]).train()


@cache
def yolo(name: str = "yolov4-tiny") -> nn.Module:
    """A darknet network, shared."""
    torch.manual_seed(0)
    return build(name, YOLO_CLASSES).train()


def copied(model: nn.Module) -> nn.Module:
    """A model that a test may change."""
    return copy.deepcopy(model)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images from 0 to 1 with large shapes, as photographs have: not white noise."""
    random = seeded(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=random)
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.rand(smooth.shape, generator=random)).clamp(0, 1)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def corners(count: int, height: int, width: int, seed: int) -> Tensor:
    """Boxes x1, y1, x2, y2 inside an image, at least 8 pixels a side."""
    random = seeded(seed)
    sides = torch.tensor([width, height]) - 8
    first = torch.rand(count, 2, generator=random) * sides
    room = torch.tensor([width, height]) - first - 8
    return torch.cat((first, first + 8 + torch.rand(count, 2, generator=random) * room), 1)


def labels(count: int, first: int, last: int, seed: int) -> Tensor:
    return torch.randint(first, last + 1, (count,), generator=seeded(seed))


def effdet_batch(
    seed: int = 0, *, count: int = 2, boxes: int = 3, size: int = SIZE, classes: int = CLASSES
) -> tuple[Tensor, dict[str, Any]]:
    """Normalised images and targets as effdet's loader makes them, filled up with -1."""
    yxyx = torch.stack([corners(boxes, size, size, seed * 9 + i) for i in range(count)])
    bbox = torch.full((count, boxes + 2, 4), -1.0)
    bbox[:, :boxes] = yxyx[..., [1, 0, 3, 2]]
    cls = torch.full((count, boxes + 2), -1.0)
    cls[:, :boxes] = torch.stack([labels(boxes, 1, classes, seed * 9 + i) for i in range(count)])
    targets = {
        "bbox": bbox,
        "cls": cls,
        "img_scale": torch.ones(count),
        "img_size": torch.full((count, 2), float(size)),
    }
    return normalised(pictures(count, size, size, seed)), targets


def torchvision_batch(
    seed: int = 0, *, sizes: tuple[tuple[int, int], ...] = ((96, 80), (64, 96)), boxes: int = 3
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images from 0 to 1 of several sizes, and a dict for each."""
    images = [pictures(1, *size, seed + i)[0] for i, size in enumerate(sizes)]
    targets = [
        {
            "boxes": corners(boxes, *size, seed * 9 + i),
            "labels": labels(boxes, 1, TORCHVISION_CLASSES - 1, seed * 9 + i),
        }
        for i, size in enumerate(sizes)
    ]
    return images, targets


def yolo_batch(
    seed: int = 0,
    *,
    count: int = 2,
    boxes: int = 3,
    height: int = YOLO_SIZE,
    width: int = YOLO_SIZE,
) -> tuple[Tensor, Tensor]:
    """Images from 0 to 1, and rows of image, class, centre x, centre y, width, height."""
    rows = []
    for image in range(count):
        xyxy = corners(boxes, height, width, seed * 9 + image) / torch.tensor([width, height] * 2)
        box = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), 1)
        classes = labels(boxes, 0, YOLO_CLASSES - 1, seed * 9 + image).float()
        rows.append(torch.cat((torch.full((boxes, 1), float(image)), classes[:, None], box), 1))
    return pictures(count, height, width, seed), torch.cat(rows)


def losses(model: nn.Module, images: Any, targets: Any) -> dict[str, float]:
    """The losses of effdet's bench or of a torchvision detector, without gradients."""
    torch.manual_seed(0)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            given = model(images, targets)
    finally:  # the statistics of the norms: other tests share the model
        for buffer, value in before:
            buffer.copy_(value)
    return {name: float(value) for name, value in given.items() if value.numel() == 1}


def yolo_targets(network: Network, maps: tuple[Tensor, ...], rows: Tensor) -> list[Tensor]:
    """What YOLO's loss trains for: objectness, class and offsets in the cell of each centre.

    Each box goes to the anchor of the nearest shape, as darknet's `yolo_layer.c` picks it.
    """
    anchors = [a for head in network.heads for a in head.anchors]
    sizes = torch.tensor(anchors)
    wanted = []
    for head, found in zip(network.heads, maps, strict=True):
        count, _, height, width = found.shape
        wanted.append(torch.zeros(count, len(head.anchors), 5 + head.classes, height, width))
    scale = torch.tensor([network.shape[2], network.shape[1]])
    for image, label, x, y, w, h in rows.tolist():
        pixels = torch.tensor([w, h]) * scale
        both = torch.minimum(sizes, pixels).prod(1)
        best = int((both / (sizes.prod(1) + pixels.prod() - both)).argmax())
        level = next(
            i for i in range(len(wanted)) if best < sum(t.shape[1] for t in wanted[: i + 1])
        )
        at = best - sum(t.shape[1] for t in wanted[:level])
        target = wanted[level]
        row, column = int(y * target.shape[3]), int(x * target.shape[4])
        if row < 0 or column < 0 or label < 0 or image < 0:
            raise IndexError("a negative index would wrap around")
        cell = target[int(image), at, :, row, column]
        cell[:2] = torch.tensor([x * target.shape[4] - column, y * target.shape[3] - row])
        cell[2:4] = torch.log(pixels / sizes[best])
        cell[4] = 1
        cell[5 + int(label)] = 1
    return wanted


def yolo_loss(model: Any, images: Tensor, rows: Tensor) -> dict[str, float]:
    """A small reference loss of YOLO, without gradients."""
    with torch.no_grad():
        maps = model(images)
    total = torch.zeros(())
    for found, wanted in zip(maps, yolo_targets(model.network, maps, rows), strict=True):
        read = found.reshape(wanted.shape)
        here = wanted[:, :, 4:5] > 0
        logits = functional.binary_cross_entropy_with_logits(
            read[:, :, 4:].float(), wanted[:, :, 4:], reduction="sum"
        )
        offsets = ((read[:, :, :4].float() - wanted[:, :, :4]) * here).pow(2).sum()
        total = total + logits + offsets
    return {"loss": float(total)}
