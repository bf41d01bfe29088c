"""Architectures by name: the listing, unknown names, missing packages, other packages' names."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ckptool import architectures
from ckptool.architectures import frozen
from ckptool.architectures.spec import Summary
from ckptool.cli import main
from ckptool.errors import ArchitectureError

PLUGIN = """
from functools import partial
from ckptool.architectures.live import measure_model

def names():
    return ["tiny_det"]

def build(name, num_classes=None):
    from torch import nn
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, num_classes or 10, 1))

def measure(name):
    return measure_model(name, "mine", partial(build, name))
"""


def install(folder: Path, package: str, code: str) -> None:
    """An installed package with the entry point, as pip leaves one."""
    (folder / f"{package}.py").write_text(code)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[ckptool.architectures]\nown = {package}\n")


def forget(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had not been imported yet."""
    for loaded in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)


def remove(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""

    class Absent:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    forget(package, monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    install(tmp_path, "tiny_det_plugin", PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_det_plugin", raising=False)
    return "tiny_det_plugin"


def test_archs_lists_every_built_in_architecture() -> None:
    listed = architectures.archs()

    assert [line.name for line in listed] == list(frozen.index())
    families = {line.family for line in listed}
    assert families == {"effdet", "yolov4", "torchvision", "detectron2"}
    for line in listed:
        found = architectures.find(line.name)
        assert (line.keys, line.parameters) == (len(found.specs), found.parameters)
        assert line == architectures.summary(found)


def test_archs_says_what_a_person_chooses_by() -> None:
    assert architectures.archs("tf_efficientdet_d7") == (
        Summary(
            "tf_efficientdet_d7",
            "effdet",
            keys=1818,
            parameters=51_871_782,
            num_classes=90,
            image_size=(1536, 1536),
            needs=("effdet", "timm", "torch"),
        ),
        Summary(
            "tf_efficientdet_d7x",
            "effdet",
            keys=2210,
            parameters=77_147_166,
            num_classes=90,
            image_size=(1536, 1536),
            needs=("effdet", "timm", "torch"),
        ),
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("tf_*_d0*", ["tf_efficientdet_d0", "tf_efficientdet_d0_ap"]),
        ("D7X", ["tf_efficientdet_d7x"]),
        ("yolov4", [name for name in frozen.index() if "yolov4" in name]),
        ("yolov?", ["yolov4"]),
        ("*retina*_v2", ["torchvision:retinanet_resnet50_fpn_v2"]),
        ("no such", []),
    ],
)
def test_a_pattern_is_a_glob_or_a_part_of_the_name(pattern: str, names: list[str]) -> None:
    assert [line.name for line in architectures.archs(pattern)] == names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "efficientdet-d9",
            "the closest are `efficientdet_d5`, `efficientdet_d4`, `efficientdet_d3`; "
            "`ckptool archs` lists all",
        ),
        (
            "lite3x",
            "the closest are `tf_efficientdet_lite3x`; `ckptool archs` lists all",
        ),
        ("resnet", "the closest are `torchvision:fasterrcnn_resnet50_fpn`, "
         "`torchvision:fasterrcnn_resnet50_fpn_v2`, `torchvision:fcos_resnet50_fpn`; "
         "`ckptool archs` lists all"),
        ("zzz", "`ckptool archs` lists all"),
        ("my/Net.cfg", "`darknet:my/Net.cfg`"),
        ("detectron2:no_such_config", "`ckptool archs` lists all"),
    ],
)  # fmt: skip
def test_an_unknown_name_comes_with_the_closest(name: str, hint: str) -> None:
    for call in (architectures.find, architectures.build):
        with pytest.raises(ArchitectureError) as caught:
            call(name)
        assert caught.value.message == f"no architecture is called `{name}`"
        assert caught.value.hint == hint
        assert caught.value.code == "architecture.unknown"


def test_a_name_is_shown_escaped() -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find("a\x1b[31m\nb")

    assert caught.value.message == "no architecture is called `a\\x1b[31m\\x0ab`"


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("tf_efficientdet_d0", "effdet"),
        ("timm:resnet18", "timm"),
        ("torchvision:resnet18", "torchvision"),
        ("own_models:Net", "torch"),
    ],
)
def test_a_package_that_is_not_installed_is_one_sentence(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(package, monkeypatch)
    with pytest.raises(ArchitectureError) as caught:
        architectures.find(name, live=True)

    assert caught.value.message == f"`{name}` needs `{package}`, which is not installed"
    assert caught.value.hint == "pip install 'ckptool[live]'"
    assert caught.value.code == "architecture.not-installed"


def test_a_package_that_does_not_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "effdet.py").write_text("raise RuntimeError('operator does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget("effdet", monkeypatch)
    with pytest.raises(ArchitectureError) as caught:
        architectures.build("tf_efficientdet_d0")

    assert caught.value.message == (
        "`tf_efficientdet_d0` needs `effdet`, which does not import: RuntimeError: operator does "
        "not exist"
    )


def test_frozen_architectures_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "effdet", "timm", "torchvision"):
        remove(package, monkeypatch)
    for cached in (frozen.index, frozen.find, frozen._manifest):
        cached.cache_clear()

    for name in frozen.index():
        assert architectures.find(name).manifest()


def test_another_installed_version_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = architectures.find("tf_efficientdet_d0")
    assert architectures.version_notes(found) == ()
    (tmp_path / "effdet-9.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    assert architectures.version_notes(found) == (
        "tf_efficientdet_d0 was measured with effdet 0.4.1; effdet 9.1 is installed, which "
        "`--live` measures",
    )
    assert architectures.version_notes(replace(found, source={"not_installed": "1.0"})) == ()


def test_build_gives_the_real_class_with_any_class_count() -> None:
    model = architectures.build("tf_efficientdet_lite0", 3)

    wanted = architectures.find("tf_efficientdet_lite0").manifest(3)
    assert type(model).__module__ == "effdet.efficientdet"
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == {
        key: spec.shape for key, spec in wanted.items()
    }
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_another_package_adds_names(plugin: str) -> None:
    found = architectures.find("tiny_det")

    assert (found.family, found.num_classes) == ("mine", 10)
    assert list(found.axes) == ["1.weight", "1.bias"]
    assert architectures.build("tiny_det", 4)[1].weight.shape == (4, 4, 1, 1)
    assert architectures.names()[-1] == "tiny_det"
    assert architectures.archs("tiny*") == (
        Summary("tiny_det", "mine", 4, 162, 10, None, ("torch",)),
    )


def test_another_package_is_not_opened_for_a_built_in_name(plugin: str) -> None:
    architectures.find("tf_efficientdet_d0")

    assert plugin not in sys.modules


def test_a_close_name_of_another_package_is_offered(plugin: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        architectures.find("tiny_dets")

    assert caught.value.hint == "the closest are `tiny_det`; `ckptool archs` lists all"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("x = 1", "AttributeError: module 'bad_plugin' has no attribute 'names'"),
    ],
)
def test_another_package_that_does_not_load_is_named(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "bad_plugin", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_plugin", raising=False)
    with pytest.raises(ArchitectureError) as caught:
        architectures.archs()

    assert caught.value.message == (
        f"the architectures of the package `bad_plugin` do not load: {reason}"
    )
    assert caught.value.hint == "pip uninstall bad_plugin"


def test_what_another_package_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def names():\n    return ['sad_det']\ndef measure(name):\n    raise KeyError(name)\n"
    install(tmp_path, "sad_plugin", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArchitectureError) as caught:
        architectures.find("sad_det")

    assert caught.value.message == "`sad_det` cannot be built: KeyError: 'sad_det'"


def test_the_json_of_archs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archs", "*_d7", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["archs"]
    assert "effdet" in found.pop("dialects")
    assert found == {
        "name": "tf_efficientdet_d7",
        "family": "effdet",
        "keys": 1818,
        "parameters": 51871782,
        "num_classes": 90,
        "image_size": [1536, 1536],
        "needs": ["effdet", "timm", "torch"],
    }
