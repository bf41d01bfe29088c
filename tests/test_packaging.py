"""What is packed: the wheel and the sdist, and a wheel that works with the light core alone."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md")


def run(command: list[str], folder: Path, **environment: str) -> str:
    found = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert found.returncode in (0, 1), found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a checkout holds, in a folder that may be built in."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ckptool", "docs", "fixtures", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (*PARTS, "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    run([*command, "--no-build-isolation", "--wheel-dir", "dist", "."], sources)
    (found,) = (sources / "dist").glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Modules, frozen manifests, label sets, the template of the page, the mark of the types."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = next(name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    package = {name for name in names if name.startswith("ckptool/")}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ckptool").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert package == wanted
    assert {"ckptool/py.typed", "ckptool/label_sets/voc20.txt"} < package
    assert {name.split("/")[0] for name in names - package} == {metadata.split("/")[0]}
    assert "Description-Content-Type: text/markdown" in text


def test_the_sdist_can_be_built_from_and_has_no_tests(sources: Path, wheel: Path) -> None:
    run([sys.executable, "setup.py", "--quiet", "sdist"], sources)
    (found,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(PARTS) < names
    assert {name for name in names if name.startswith("ckptool/")} > {
        "ckptool/architectures/frozen/index.json",
        "ckptool/report/template/page.html",
    }
    assert not [name for name in names if re.match("tests|fixtures|benchmarks|docs", name)]


def test_every_extra_that_a_hint_names_exists() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {
        name
        for path in [*(ROOT / "ckptool").rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for names in re.findall(r"ckptool\[([a-z,]+)\]", path.read_text())
        for name in names.split(",")
    }
    assert "live" in named
    assert named <= set(config["options.extras_require"])


@pytest.mark.sweep
def test_the_wheel_works_with_the_light_core_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment without torch: the main job, from an installed package."""
    core = run([str(ROOT / ".ci" / "env"), "core"], tmp_path).strip()
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*install, "--target", str(site), str(wheel)], tmp_path)
    shutil.copy(ROOT / "fixtures" / "d0.pth", tmp_path / "weights.pth")

    def ckptool(words: str) -> str:
        return run([core, "-m", "ckptool", *words.split()], tmp_path, PYTHONPATH=str(site))

    where = run(
        [core, "-c", "import ckptool; print(ckptool.__file__)"], tmp_path, PYTHONPATH=str(site)
    )
    assert where.startswith(str(site))
    assert "784" in ckptool("inspect weights.pth")
    assert "why it does not load" in ckptool("diff weights.pth --arch tf_efficientdet_d0")
    convert = "convert weights.pth --dtype fp32 --num-classes 20 --class-map coco90:voc20"
    assert "read back and proven" in ckptool(convert)
    fits = "diff weights.fp32.c20.safetensors --arch tf_efficientdet_d0 --num-classes 20"
    assert "it fits: load_state_dict(strict=True) succeeds" in ckptool(fits)
