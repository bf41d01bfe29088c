"""Old keys that torchvision's classes rename as they load: `diff` says what `load_state_dict` says.

The old names are written out here, from torchvision before 0.14.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection

import ckptool
from ckptool.architectures import frozen

State = dict[str, torch.Tensor]
Metadata = dict[str, dict[str, int]]

OLD: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}."),
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", lambda m: f"{m[1]}."),
    (r"(rpn\.head\.conv)\.0\.0\.", lambda m: f"{m[1]}."),
    (r"(roi_heads\.mask_head)\.(\d)\.0\.", lambda m: f"{m[1]}.mask_fcn{int(m[2]) + 1}."),
)
RENAMED = {
    "retinanet_resnet50_fpn": 28,
    "maskrcnn_resnet50_fpn": 26,
    "fasterrcnn_mobilenet_v3_large_fpn": 10,
}


def models() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {
            name: getattr(detection, name)(weights=None, weights_backbone=None) for name in RENAMED
        }


@pytest.fixture(scope="module")
def live() -> dict[str, nn.Module]:
    return models()


def old_name(key: str) -> str:
    for pattern, rename in OLD:
        key = re.sub(f"^{pattern}", rename, key)
    return key


def old_state(model: nn.Module) -> State:
    """The state dict with old keys; values that cost nothing to save."""
    return {
        old_name(key): torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in model.state_dict().items()
    }


def versions(model: nn.Module, version: int | None = None) -> Metadata:
    """`_metadata` as the model writes it, with another version where the classes have 2."""
    found = model.state_dict()._metadata  # type: ignore[attr-defined]
    return {
        path: {"version": version if version and local.get("version") == 2 else 2}
        for path, local in found.items()
        if local
    }


def saved(state: State, metadata: Metadata | None, folder: Path) -> Path:
    value: Any = OrderedDict(state)
    if metadata is not None:
        value._metadata = OrderedDict(metadata)
    torch.save(value, folder / "old.pth")
    return folder / "old.pth"


def loads(model: nn.Module, path: Path) -> bool:
    """The verdict of the real class."""
    state = torch.load(path, weights_only=True)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError:
        return False
    return True


def without_metadata(state: State, metadata: Metadata) -> Metadata | None:
    return None


def of_version_1(state: State, metadata: Metadata) -> Metadata | None:
    return metadata


def said_to_be_new(state: State, metadata: Metadata) -> Metadata | None:
    return {path: {"version": 2} for path in metadata}


def one_module_new(state: State, metadata: Metadata) -> Metadata | None:
    metadata["backbone.fpn"] = {"version": 2}
    return metadata


def another_module_new(state: State, metadata: Metadata) -> Metadata | None:
    metadata["transform"] = {"version": 2}
    return metadata


def without_a_key(state: State, metadata: Metadata) -> Metadata | None:
    del state["backbone.fpn.inner_blocks.0.weight"]
    return None


def with_old_and_new(state: State, metadata: Metadata) -> Metadata | None:
    state["backbone.fpn.inner_blocks.0.0.weight"] = state["backbone.fpn.inner_blocks.0.weight"]
    return None


def of_another_shape(state: State, metadata: Metadata) -> Metadata | None:
    state["backbone.fpn.layer_blocks.1.bias"] = torch.zeros(3)
    return None


def one_key_new(state: State, metadata: Metadata) -> Metadata | None:
    state["backbone.fpn.layer_blocks.1.0.bias"] = state.pop("backbone.fpn.layer_blocks.1.bias")
    return None


MUTATIONS = (
    (without_metadata, True),
    (of_version_1, True),
    (said_to_be_new, False),
    (one_module_new, False),
    (another_module_new, True),
    (without_a_key, False),
    (with_old_and_new, True),
    (of_another_shape, False),
    (one_key_new, True),
)


@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize(("mutate", "wanted"), MUTATIONS, ids=[m.__name__ for m, _ in MUTATIONS])
def test_the_verdict_on_old_keys_is_that_of_the_real_class(
    name: str,
    mutate: Callable[[State, Metadata], Metadata | None],
    wanted: bool,
    live: dict[str, nn.Module],
    tmp_path: Path,
) -> None:
    state = old_state(live[name])
    metadata = versions(live[name], 1)
    chosen = mutate(state, metadata)
    path = saved(state, chosen, tmp_path)
    assert loads(live[name], path) is wanted

    found = ckptool.diff(path, arch=f"torchvision:{name}")

    assert found.fits_strict is wanted


@pytest.mark.parametrize("name", RENAMED)
def test_every_old_key_has_its_new_one(name: str, live: dict[str, nn.Module]) -> None:
    architecture = frozen.find(f"torchvision:{name}")
    assert architecture is not None
    known = {old: new for names in architecture.legacy.values() for old, new in names}

    wanted = {old_name(key): key for key in live[name].state_dict() if old_name(key) != key}

    assert {old: new for old, new in known.items() if new in live[name].state_dict()} == wanted
    assert len(wanted) == RENAMED[name]


def test_an_old_file_is_identified(live: dict[str, nn.Module], tmp_path: Path) -> None:
    path = saved(old_state(live["retinanet_resnet50_fpn"]), None, tmp_path)

    fitting = [candidate.arch for candidate in ckptool.identify(path).fitting]

    assert fitting == ["torchvision:retinanet_resnet50_fpn"]


def test_frozen_norms_take_no_counters(tmp_path: Path) -> None:
    """torchvision's FrozenBatchNorm2d leaves them out, whatever the version of the file."""
    from small_models import frozen_norm

    state = {f"1.{key}": value for key, value in nn.BatchNorm2d(4).state_dict().items()}
    state |= {"0.weight": torch.zeros(4, 3, 1, 1)}
    path = saved(state, {"1": {"version": 2}}, tmp_path)
    assert "1.num_batches_tracked" in state
    assert loads(frozen_norm(), path)

    found = ckptool.diff(path, arch="small_models:frozen_norm")

    assert found.fits_strict
    assert not found.counts["unexpected"]


def test_old_keys_in_a_file_that_says_it_is_new_are_renamed(
    live: dict[str, nn.Module], tmp_path: Path
) -> None:
    """torch does not, and refuses such a file; the converted one loads."""
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    state = old_state(live[name])
    path = saved(state, said_to_be_new(state, versions(live[name], 1)), tmp_path)

    found = ckptool.diff(path, arch=f"torchvision:{name}")
    assert [cause.code for cause in found.causes] == ["old-names"]
    assert found.causes[0].summary == (
        "10 keys are of an older version of the architecture "
        "(`backbone.fpn.inner_blocks.0.weight`, `backbone.fpn.inner_blocks.0.bias` and 8 more), "
        "while the file's `_metadata` says that it is of a newer one: its classes do not rename "
        "them as they load"
    )
    result = ckptool.convert(path, tmp_path / "new.pth", arch=f"torchvision:{name}")

    assert loads(live[name], Path(result.output))


def test_what_is_renamed_on_the_way_is_told(live: dict[str, nn.Module], tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    path = saved(old_state(live[name]), None, tmp_path)

    assert ckptool.diff(path, arch=f"torchvision:{name}").notes == (
        "10 keys of an older version (`backbone.fpn.inner_blocks.0.bias`, "
        "`backbone.fpn.inner_blocks.0.weight` and 8 more) are renamed or left out by the "
        "architecture's own classes as they load",
    )
