"""A pickled model without its code: the salvaged dict is `model.state_dict()`, key for key."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from clean_reader import read_elsewhere
from tensors_made import bits, dtype_name
from torch import nn

from ckptool.reading import read

HERE = Path(__file__).parent
VANISHED = "vanished.models"  # the name the classes are pickled under; no such module can be found


def _vanished() -> ModuleType:
    spec = importlib.util.spec_from_file_location(VANISHED, HERE / "models_made.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["vanished"] = ModuleType("vanished")
    sys.modules[VANISHED] = module
    spec.loader.exec_module(module)
    return module


made = _vanished()

Save = Callable[[Path, object, int], None]


def _zip(path: Path, value: object, protocol: int) -> None:
    torch.save(value, path, pickle_protocol=protocol)


def _legacy(path: Path, value: object, protocol: int) -> None:
    """With the source code of every class in the stream."""
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def _plain(path: Path, value: object, protocol: int) -> None:
    path.write_bytes(pickle.dumps(value, protocol))


STORING: dict[str, tuple[Save, int]] = {
    "zip 2": (_zip, 2),
    "zip 3": (_zip, 3),
    "zip 4": (_zip, 4),
    "zip 5": (_zip, 5),
    "legacy 2": (_legacy, 2),
    "legacy 4": (_legacy, 4),
    "pickle 2": (_plain, 2),
    "pickle 5": (_plain, 5),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Making and saving models warns of old names; that is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trained(model: nn.Module) -> nn.Module:
    """The model with every floating value replaced, so that none is at its initial one."""
    torch.manual_seed(len(list(model.modules())))
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            if x.is_floating_point() and x.numel():
                x.copy_(torch.randn(x.shape))
    return model


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    model = made.Plain()
    prune.l1_unstructured(model.conv, "weight", amount=0.5)
    prune.random_structured(model.head, "weight", amount=1, dim=0)
    return model


def _distributed() -> nn.Module:
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(made.Plain())


def _averaged() -> nn.Module:
    from torch.optim.swa_utils import AveragedModel

    model = AveragedModel(made.Plain())
    model.update_parameters(made.Plain())
    return model


def _timm_ema(version: str) -> nn.Module:
    import timm.utils

    return getattr(timm.utils, version)(made.Plain())


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **options)


def _detection(name: str) -> nn.Module:
    import torchvision

    build = getattr(torchvision.models.detection, name)
    return build(weights=None, weights_backbone=None, num_classes=3)


def _effdet() -> nn.Module:
    import effdet

    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    config.num_classes = 2
    return effdet.DetBenchPredict(effdet.EfficientDet(config, pretrained_backbone=False))


def _channels_last() -> nn.Module:
    return made.Plain().to(memory_format=torch.channels_last)


def _materialised() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    model(torch.zeros(1, 3, 8, 8))
    return model


def _subclassed() -> nn.Module:
    """Parameters with an attribute of their own, and one on a window of a larger storage."""
    model = nn.Linear(4, 4)
    model.weight.tensor_parallel = True
    model.bias = nn.Parameter(torch.randn(20)[3:17:4])
    return model


def _views_of_one_storage() -> nn.Module:
    """All parameters in one flat storage, as fused optimizers leave them."""
    model = made.Plain()
    flat = torch.cat([x.detach().reshape(-1) for x in model.parameters()])
    at = 0
    for x in model.parameters():
        x.data = flat[at : at + x.numel()].view(x.shape)
        at += x.numel()
    return model


def _frozen_and_complex() -> nn.Module:
    model = made.Buffers()
    model.weight.requires_grad_(False)
    model.spectrum = nn.Parameter(torch.randn(3, dtype=torch.complex64).conj().resolve_conj())
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": made.Plain,
    "sequential": lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU()),
    "nested": made.Nested,
    "tied": made.Tied,
    "shared submodules": made.Shared,
    "buffers of all kinds": made.Buffers,
    "frozen, complex": _frozen_and_complex,
    "parameter lists": made.Lists,
    "partials, numpy, enums": made.Luggage,
    "own getstate": made.OwnState,
    "slots": made.Slotted,
    "hooks": made.Hooked,
    "lightning-like": made.LightningLike,
    "ultralytics-like": made.DetectLike,
    "half": lambda: made.Plain().half(),
    "bfloat16": lambda: made.Plain().bfloat16(),
    "double": lambda: made.Plain().double(),
    "float8 buffer": lambda: _with_buffer(torch.ones(3).to(torch.float8_e4m3fn)),
    "uint16 buffer": lambda: _with_buffer(torch.ones(3, dtype=torch.uint16)),
    "transposed buffer": lambda: _with_buffer(torch.arange(6.0).reshape(2, 3).t()),
    "expanded buffer": lambda: _with_buffer(torch.arange(3.0).expand(4, 3)),
    "channels last": _channels_last,
    "one flat storage": _views_of_one_storage,
    "attributes on parameters": _subclassed,
    "weight_norm": lambda: nn.utils.weight_norm(nn.Conv1d(2, 3, 2)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 4)),
    "pruned": _pruned,
    "lazy, materialised": _materialised,
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 8),
    "batchnorm without affine": lambda: nn.BatchNorm2d(3, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "sync batchnorm": lambda: nn.SyncBatchNorm(3),
    "data parallel": lambda: nn.DataParallel(made.Plain()),
    "distributed data parallel": _distributed,
    "averaged model": _averaged,
    "timm ema v2": lambda: _timm_ema("ModelEmaV2"),
    "timm ema v3": lambda: _timm_ema("ModelEmaV3"),
    "traced by fx": lambda: torch.fx.symbolic_trace(made.Plain()),
    "fx inside a model": lambda: nn.Sequential(torch.fx.symbolic_trace(made.Plain())),
    "compiled": lambda: torch.compile(made.Plain()),
    "compiled inside a model": lambda: nn.Sequential(torch.compile(made.Plain()), nn.ReLU()),
    "timm resnet": lambda: _timm("test_resnet"),
    "timm efficientnet": lambda: _timm("test_efficientnet"),
    "timm vit": lambda: _timm("test_vit"),
    "torchvision mobilenet": lambda: _torchvision("mobilenet_v3_small", num_classes=4),
    "torchvision ssdlite": lambda: _detection("ssdlite320_mobilenet_v3_large"),
    "effdet": _effdet,
}
LARGE = ("torchvision mobilenet", "torchvision ssdlite", "effdet")


def _with_buffer(x: torch.Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("extra", x)
    return model


@pytest.fixture(scope="module")
def salvaged(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], tuple[dict[str, Any], list[list[Any]]]]:
    """For each model and way of storing: what the clean process read, what was wanted.

    One process reads all files; it can import neither torch nor the classes.
    """
    folder = tmp_path_factory.mktemp("models")
    files, wanted = {}, {}
    for name, build in MODELS.items():
        with _quiet():
            model = build()
            if "buffer" not in name:
                model = _trained(model)
            wanted[name] = _described(model.state_dict())
            for storing, (save, protocol) in STORING.items():
                if name in LARGE and storing not in ("zip 2", "legacy 4"):
                    continue
                path = folder / f"{len(files)}.pth"
                save(path, model, protocol)
                files[name, storing] = path
    found = read_elsewhere(list(files.values()))
    return {key: (found[str(path)], wanted[key[0]]) for key, path in files.items()}


def _described(state: dict[str, Any]) -> list[list[Any]]:
    return [
        [key, dtype_name(x), list(x.shape), hashlib.sha256(bits(x)).hexdigest()]
        for key, x in state.items()
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_salvaged_dict_is_the_state_dict(
    name: str, salvaged: dict[Any, Any], count: Callable[[str, int], None]
) -> None:
    stored = [storing for model, storing in salvaged if model == name]
    assert stored
    for storing in stored:
        found, wanted = salvaged[name, storing]
        assert list(found.get("sets", found)) == ["."], storing
        assert found["sets"]["."]["tensors"] == wanted, storing
        assert found["sets"]["."]["refused"] == {}, storing
    count("whole-model pickles salvaged without their classes", len(stored))


def test_there_are_at_least_forty_models() -> None:
    assert len(MODELS) >= 40


def test_the_classes_are_named_and_their_overrides_are_not_promised(
    salvaged: dict[Any, Any],
) -> None:
    found, _ = salvaged["nested", "zip 2"]
    assert found["sets"]["."]["origin"] == "vanished.models.Nested"
    assert found["sets"]["."]["findings"]["salvaged-module"] == (
        "rebuilt from the pickled module `vanished.models.Nested` without its class; if "
        "`vanished.models.Nested`, `vanished.models.Plain` override state_dict(), its keys differ"
    )
    assert "vanished.models.Nested" in found["globals"]


def test_hooks_that_were_not_run_are_mentioned(salvaged: dict[Any, Any]) -> None:
    found, _ = salvaged["hooks", "zip 2"]
    assert found["sets"]["."]["findings"]["state-dict-hooks"] == (
        "`vanished.models.Hooked` had state_dict hooks, which were not run"
    )


def test_the_legacy_format_gives_the_class_and_not_its_source(salvaged: dict[Any, Any]) -> None:
    found, _ = salvaged["plain", "legacy 2"]
    assert found["format"] == "torch-legacy"
    assert found["sets"]["."]["origin"] == "vanished.models.Plain"


def test_extra_state_is_made_by_code_and_so_is_not_there(tmp_path: Path) -> None:
    model = made.ExtraState()
    torch.save(model, tmp_path / "x.pth")
    assert list(model.state_dict()) == ["_extra_state", "fc.weight", "fc.bias"]
    assert list(read(tmp_path / "x.pth")) == ["fc.weight", "fc.bias"]


def test_a_parameter_that_was_never_given_a_shape_is_refused(tmp_path: Path) -> None:
    with _quiet():
        torch.save(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    assert list(ckpt) == ["1.weight", "1.bias"]
    assert {key: item.kind for key, item in ckpt.weights.refused.items()} == {
        "0.weight": "uninitialised",
        "0.bias": "uninitialised",
    }


def test_a_module_that_pickles_itself_as_something_else_is_refused_not_skipped(
    tmp_path: Path,
) -> None:
    class Hidden(nn.Linear):
        def __reduce__(self) -> tuple[Any, ...]:
            return made.Point, (1, 2)

    torch.save(nn.Sequential(nn.Linear(2, 2), Hidden(2, 2)), tmp_path / "x.pth")
    ckpt = read(tmp_path / "x.pth")
    assert list(ckpt) == ["0.weight", "0.bias"]
    refused = ckpt.weights.refused["1"]
    assert refused.kind == "module"
    assert (
        refused.reason == "`vanished.models.Point` pickles itself in a way that hides its tensors"
    )


def test_training_checkpoints_with_modules_inside(tmp_path: Path) -> None:
    """Ultralytics-like in fp16, YOLOv5-like and timm-like: each module is a set of its own."""
    model, ema = _trained(made.DetectLike()).half(), _trained(made.DetectLike()).half()
    wanted = {"model": _described(model.state_dict()), "ema": _described(ema.state_dict())}
    files = {
        "both": {"epoch": 3, "model": model, "ema": ema, "updates": 7, "optimizer": None},
        "stripped": {"epoch": -1, "model": model, "ema": None, "train_args": {"lr0": 0.01}},
        "final": {"model": None, "ema": ema, "date": "2026-11-22", "best_fitness": None},
        "object": {"model": model, "ema": made.ModelEMA(ema), "opt": made.Settings()},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / f"{name}.pt")
    answer = read_elsewhere([tmp_path / f"{name}.pt" for name in files])
    found = {Path(path).stem: file["sets"] for path, file in answer.items()}
    tensors = {
        name: {key: item["tensors"] for key, item in sets.items()} for name, sets in found.items()
    }
    assert tensors == {
        "both": wanted,
        "stripped": {"model": wanted["model"]},
        "final": {"ema": wanted["ema"]},
        "object": {"model": wanted["model"], "ema.ema": wanted["ema"]},
    }
    assert read(tmp_path / "both.pt").weights.name == "ema"


def test_the_weights_of_a_quantised_layer_are_listed(tmp_path: Path) -> None:
    """They are an attribute, packed by a kernel, and no parameter."""
    with _quiet():
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1))
        )
        torch.save(model, tmp_path / "x.pth")
        assert "0._packed_params._packed_params" in model.state_dict()
    ckpt = read(tmp_path / "x.pth")
    assert list(ckpt) == ["1.weight", "1.bias"]
    assert {key: item.kind for key, item in ckpt.weights.refused.items()} == {
        "0._packed_params._packed_params": "quantised"
    }
