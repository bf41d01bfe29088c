"""The frozen architectures against live models of the real classes: every one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptool import architectures
from ckptool.architectures import detectron2, effdet, freezing, frozen, torchvision, yolov4
from ckptool.architectures.live import quiet
from ckptool.architectures.spec import Architecture
from ckptool.tensors import TensorSpec

with quiet():
    import effdet as effdet_package

EFFDET = tuple(name for name, entry in frozen.index().items() if entry["family"] == "effdet")


@pytest.fixture(scope="module")
def measured() -> dict[str, Architecture]:
    return freezing.measured()


def frozen_one(name: str) -> Architecture:
    found = frozen.find(name)
    assert found is not None
    return found


def fastest(action: Callable[[], object], before: Callable[[], object]) -> float:
    """The least of a few runs, in seconds: other work on the machine only adds to it."""
    times = []
    for _ in range(7):
        before()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def forget() -> None:
    for cached in (frozen.index, frozen.find, frozen._manifest):
        cached.cache_clear()


def test_every_architecture_instantiated_is_what_is_frozen(
    measured: dict[str, Architecture], count: Callable[[str, int], None]
) -> None:
    assert list(measured) == list(frozen.index())
    for name, live in measured.items():
        found = frozen_one(name)
        assert list(found.specs.items()) == list(live.specs.items()), name
        assert found == live, name
    count("frozen architectures that equal live ones", len(measured))


def test_freezing_again_changes_no_file(measured: dict[str, Architecture], tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    shutil.copytree(frozen.FOLDER, folder)

    assert freezing.write(str(folder), freezing.contents(measured)) == ()


def test_freezing_writes_what_changed_and_removes_what_is_gone(
    measured: dict[str, Architecture], tmp_path: Path
) -> None:
    folder = tmp_path / "frozen"
    shutil.copytree(frozen.FOLDER, folder)
    (folder / "index.json").write_text("{}")
    (folder / "old.z").write_bytes(b"")

    changed = freezing.write(str(folder), freezing.contents(measured))

    assert changed == ("index.json", "old.z")
    compared = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert compared == {path.name: path.read_bytes() for path in Path(frozen.FOLDER).iterdir()}


def test_all_families_are_frozen_whole() -> None:
    names = (*effdet.names(), *yolov4.NAMES, *torchvision.names(), *detectron2.NAMES)

    assert tuple(frozen.index()) == names
    assert len(effdet.names()) == len(EFFDET) == 47


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 6 == 0 else pytest.mark.sweep)
        for number, name in enumerate(EFFDET)
    ],
)
def test_manifest_at_any_class_count_is_what_effdet_builds(name: str) -> None:
    found = frozen_one(name)
    with torch.device("meta"):
        model = effdet_package.create_model(name, pretrained=False, pretrained_backbone=False)
        for classes in (1, 2, 20, 200):
            # What create_model(num_classes=...) does after it has built the default model.
            model.reset_head(num_classes=classes)
            real = {
                key: TensorSpec(str(tensor.dtype)[6:], tuple(tensor.shape))
                for key, tensor in model.state_dict().items()
            }
            assert list(found.manifest(classes).items()) == list(real.items())


def test_equal_manifests_are_stored_once_and_are_one_object() -> None:
    files = {entry["manifest"] for entry in frozen.index().values()}

    assert frozen_one("tf_efficientdet_d6").specs is frozen_one("tf_efficientdet_d7").specs
    assert sorted(os.listdir(frozen.FOLDER)) == sorted([frozen.INDEX, *files])
    assert sum(path.stat().st_size for path in Path(frozen.FOLDER).iterdir()) < 300_000


def test_one_architecture_loads_in_15_ms_and_all_in_120_ms() -> None:
    one = fastest(lambda: frozen.find("tf_efficientdet_d7"), forget)
    everything = fastest(lambda: [frozen.find(name) for name in frozen.index()], forget)

    assert one < 0.015
    assert everything < 0.120


def test_finding_and_listing_import_nothing_heavy() -> None:
    """In a process of its own: no numpy, no torch, and no package that is measured."""
    script = (
        "import sys\n"
        "from ckptool import architectures\n"
        "assert 'json' not in sys.modules and 'ckptool.architectures.live' not in sys.modules\n"
        "found = architectures.find('tf_efficientdet_d7')\n"
        "architectures.lookalikes(found), architectures.version_notes(found)\n"
        "found.manifest(20)\n"
        "assert 'importlib.metadata' not in sys.modules\n"
        "architectures.archs('*')\n"
        "heavy = {'numpy', 'torch', 'timm', 'effdet', 'torchvision', 'ml_dtypes'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_live_measures_a_frozen_architecture_anew() -> None:
    live = architectures.find("tf_efficientdet_lite0", live=True)

    assert live is not frozen.find("tf_efficientdet_lite0")
    assert live == frozen.find("tf_efficientdet_lite0")
