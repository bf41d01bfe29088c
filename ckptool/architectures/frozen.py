"""The built-in architectures as they were measured once, read from package data without torch.

`frozen/index.json` has everything of an architecture but its manifest; a packed file beside it is
the manifest of all architectures whose keys and shapes are equal, named after the first of them.
They are written by `python -m ckptool.architectures.freezing`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from ckptool.architectures.spec import Architecture, ClassAxis, RowLayout, Summary
from ckptool.files import ByteFile
from ckptool.tensors import TensorSpec

FOLDER = os.path.join(os.path.dirname(__file__), "frozen")
INDEX = "index.json"


@cache
def index() -> Mapping[str, Mapping[str, Any]]:
    """Everything but the manifests, by name, in the order in which families list their names."""
    import json

    entries: dict[str, dict[str, Any]] = json.loads(_data(INDEX))
    return entries


@cache
def find(name: str) -> Architecture | None:
    """The architecture of a name, None if it is not built in; equal manifests are one object."""
    entry = index().get(name)
    if entry is None:
        return None
    return Architecture(
        name=name,
        family=entry["family"],
        num_classes=entry["num_classes"],
        specs=_manifest(entry["manifest"]),
        axes={key: ClassAxis(*fields) for key, fields in entry["axes"].items()},
        layouts={key: _layout(*fields) for key, fields in entry["layouts"].items()},
        parameters=entry["parameters"],
        aliases=tuple(tuple(keys) for keys in entry["aliases"]),
        derived=tuple(entry["derived"]),
        card=entry["card"],
        source=entry["source"],
        needs=tuple(entry["needs"]),
        legacy={
            module: tuple((old, new) for old, new in names)
            for module, names in entry.get("legacy", {}).items()
        },
    )


def summary(name: str) -> Summary:
    """The line of an architecture in `ckptool archs`; its manifest is not read."""
    entry = index()[name]
    size = entry["card"].get("image_size")
    return Summary(
        name=name,
        family=entry["family"],
        keys=entry["keys"],
        parameters=entry["parameters"],
        num_classes=entry["num_classes"],
        image_size=(size[0], size[1]) if size else None,
        needs=tuple(entry["needs"]),
    )


@cache
def _manifest(file: str) -> Mapping[str, TensorSpec]:
    import json

    content = json.loads(zlib.decompress(_data(file)))
    specs = [TensorSpec(dtype, tuple(shape)) for dtype, *shape in content["specs"]]
    return {key: specs[number] for key, number in content["keys"].items()}


def _layout(
    groups: int,
    kept: int,
    per_class: int,
    background: str | None,
    counted: bool,
    kind: str,
    numbers: list[float],
) -> RowLayout:
    return RowLayout(groups, kept, per_class, background, counted, (kind, tuple(numbers)))


def _data(name: str) -> bytes:
    file = ByteFile(os.path.join(FOLDER, name))
    return file.read(0, file.size)
