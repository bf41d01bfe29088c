"""Write the frozen architectures anew from the installed packages.

`python -m ckptool.architectures.freezing` changes a file only if its content changed, whatever
bytes this machine's zlib would pack it into.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

from ckptool.architectures import detectron2, effdet, frozen, torchvision, yolov4
from ckptool.architectures.frozen import FOLDER, INDEX
from ckptool.architectures.spec import Architecture
from ckptool.errors import ArchitectureError
from ckptool.files import ByteFile, names_in
from ckptool.formats.atomic import Output, replace_file
from ckptool.tensors import TensorSpec

_PACKED = ".z"


def main() -> None:
    """Measure every built-in architecture and bring the package data up to date."""
    write(FOLDER, contents(measured()))


def measured() -> dict[str, Architecture]:
    """Every built-in architecture, instantiated."""
    found = [effdet.measure(name) for name in effdet.names()]
    found += [yolov4.measure(name) for name in yolov4.NAMES]
    found += [torchvision.measure(name) for name in torchvision.names()]
    found += [_measured_or_frozen(name) for name in detectron2.NAMES]
    return {architecture.name: architecture for architecture in found}


def _measured_or_frozen(name: str) -> Architecture:
    """The architecture as it is instantiated, or as it was where the package is not installed."""
    try:
        return detectron2.measure(name)
    except ArchitectureError:
        found = frozen.find(name)
        if found is None:
            raise
        return found


def contents(architectures: Mapping[str, Architecture]) -> dict[str, bytes]:
    """The frozen files by name, not packed: the index, and each distinct manifest once.

    The index has one line for each architecture, so that a change shows as one line.
    """
    manifests: dict[bytes, str] = {}
    lines = []
    for name, architecture in architectures.items():
        file = manifests.setdefault(_manifest(architecture.specs), name.replace(":", "-") + _PACKED)
        lines.append(f"{_json(name)}:{_json(_entry(architecture, file))}")
    index = "{\n" + ",\n".join(lines) + "\n}\n"
    return {INDEX: index.encode(), **{file: text for text, file in manifests.items()}}


def write(folder: str, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Make the folder hold these files and no others; the names of those that changed."""
    os.makedirs(folder, exist_ok=True)
    present = set(names_in(folder))
    changed = [
        name
        for name, content in files.items()
        if name not in present or unpacked(os.path.join(folder, name)) != content
    ]
    for name in changed:
        content = files[name]
        data = zlib.compress(content, 9) if name.endswith(_PACKED) else content
        _replace(os.path.join(folder, name), data)
    left = sorted(present - set(files))
    for name in left:
        os.remove(os.path.join(folder, name))
    return (*changed, *left)


def unpacked(path: str) -> bytes:
    """The content of a frozen file."""
    file = ByteFile(path)
    data = file.read(0, file.size)
    return zlib.decompress(data) if path.endswith(_PACKED) else data


def _entry(architecture: Architecture, file: str) -> dict[str, Any]:
    """Everything of an architecture but its manifest, which is in a file; see `frozen.find`."""
    return {
        "family": architecture.family,
        "num_classes": architecture.num_classes,
        "keys": len(architecture.specs),
        "parameters": architecture.parameters,
        "manifest": file,
        "axes": {key: [a.axis, a.scale, a.offset] for key, a in architecture.axes.items()},
        "layouts": {
            key: [y.groups, y.kept, y.per_class, y.background, y.counted, *y.init]
            for key, y in architecture.layouts.items()
        },
        "aliases": architecture.aliases,
        "derived": architecture.derived,
        "card": architecture.card,
        "source": architecture.source,
        "needs": architecture.needs,
        **({"legacy": architecture.legacy} if architecture.legacy else {}),
    }


def _manifest(specs: Mapping[str, TensorSpec]) -> bytes:
    """The distinct specs, and for each key in order the number of its spec."""
    numbers: dict[TensorSpec, int] = {}
    keys = {key: numbers.setdefault(spec, len(numbers)) for key, spec in specs.items()}
    content = {"specs": [[spec.dtype, *spec.shape] for spec in numbers], "keys": keys}
    return _json(content).encode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _replace(path: str, data: bytes) -> None:
    def fill(output: Output) -> None:
        output.write(data)

    def check(_: str) -> None:
        """Nothing to check: the next test run compares the files with live models."""

    replace_file(path, fill, check, force=True)


if __name__ == "__main__":
    main()
