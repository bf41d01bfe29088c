"""The way of a tensor goes forward: a module imports only from lower layers, or its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptool

PACKAGE = Path(ckptool.__file__).parent
MOST_LINES = 400

# Lowest first; a name may be a module or a folder.
LAYERS = (
    "errors dtypes version interrupts grouping derived threads ahead lease",
    "rounding rules files remote places records tensors labels",
    "checkpoint salvage averages candidates containers statistics",
    "formats",
    "reading",
    "architectures",
    "dialects",
    "anchors compare strict straight pairing guessing identification changes values",
    "plugins causes",
    "plans solving",
    "planning",
    "diagnose provenance",
    "outputs verification proof",
    "destinations",
    "adapting",
    "writing conversion fleet loading inspection preflight",
    "render traffic",
    "report",
    "completion options terminal",
    "batch_command",
    "cli",
    "__init__ __main__",
)
# `str(diff)` is what the command line prints, and a notebook shows tables: asked for, the words
# are fetched from above.
UPWARD = {
    ("diagnose", "render.diff"),
    ("checkpoint", "render.notebook"),
    ("diagnose", "render.notebook"),
    ("plans", "render.notebook"),
}
# Modules that are torch's own kind, and so are imported only where a live model is built.
LIVE = ("architectures.darknet_net",)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`formats.torch_zip`; `formats` for its `__init__`; `__init__` for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The package's modules that a module imports, inside functions too, and the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            names = [
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "ckptool":
                yield name.partition(".")[2] or "__init__", node.lineno


def is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    name = dotted(path)
    assert name.partition(".")[0] in LAYER, "a new module: say in LAYERS where it stands"
    own = LAYER[name.partition(".")[0]]
    for other, line in imported(path):
        theirs = LAYER.get(other.partition(".")[0], len(LAYERS))
        assert theirs <= own or (name, other) in UPWARD, (
            f"{path.name}:{line} imports {other}, of a higher layer"
        )


def test_no_modules_import_each_other() -> None:
    """In one layer, too, the way goes forward."""
    graph = {
        name: {other for other, _ in imported(path) if (name, other) not in UPWARD}
        for name, path in ((dotted(path), path) for path in MODULES)
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_fits_on_a_few_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_exports_are_sorted(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert list(names) == sorted(names)
            assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_heavy_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    """Only inside functions, or for types: start-up time is a feature."""
    heavy = {"torch", "numpy", "ml_dtypes", "timm", "effdet", "torchvision", "safetensors"}
    heavy |= {"jinja2", "markupsafe"}
    live = {f"ckptool.{name}" for name in LIVE}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        else:
            continue
        assert not live & names, f"line {node.lineno}"
        if dotted(path) not in LIVE:
            assert not heavy & {name.partition(".")[0] for name in names}, f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_one_module_opens_files_to_read_and_one_to_write(path: Path) -> None:
    """`open` and `os.open` stand in files.py and formats/atomic.py; a journal is added to."""
    if dotted(path) in ("files", "formats.atomic", "fleet.journal"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            nothing = any(ast.unparse(argument) == "os.devnull" for argument in node.args)
            assert name not in ("open", "os.open", "io.open") or nothing, f"line {node.lineno}"
            assert not name.endswith((".read_bytes", ".write_bytes", ".write_text")), name


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, ckptool; print(*sorted({'torch', 'numpy', 'timm', 'effdet'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout.strip() == ""
