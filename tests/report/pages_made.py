"""Small checkpoints that bring up all that a page can show, and a page of each command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from ckptool.cli import main

HOSTILE = "<script>alert(1)</script>"
QUOTES = "quotes\"'><img src=x onerror=alert(2)>"


def tensors() -> dict[str, Any]:
    random = numpy.random.default_rng(0)
    made = {
        f"{module}.{layer}.{name}": random.standard_normal(shape).astype("f4")
        for module in ("backbone", "neck")
        for layer in range(3)
        for name, shape in (("conv.weight", (16, 16, 3, 3)), ("conv.bias", (16,)))
    }
    made["backbone.bn.running_var"] = numpy.ones(16, "f4")
    made["head.weight"] = random.standard_normal((90, 16)).astype("f4")
    return made


def pages_in(folder: Path) -> dict[str, Path]:
    """A page of each command by its name."""
    wanted = tensors()
    found = dict(wanted)
    found[f"{HOSTILE}.weight"] = numpy.ones((64, 64), "f4")
    found[f"head.{QUOTES}"] = numpy.ones(4, "f4")
    found["head.bidi\u202e.weight"] = numpy.ones(4, "f4")
    found["head.weight"] = found["head.weight"][:20].copy()
    found["neck.0.conv.weight"] = found["neck.0.conv.weight"].astype("f2")
    del found["neck.2.conv.bias"]
    broken = {**wanted, f"{HOSTILE}.weight": numpy.full((64, 64), 1e6, "f4")}
    broken["neck.0.conv.weight"] = wanted["neck.0.conv.weight"].copy()
    broken["neck.0.conv.weight"].flat[:7] = numpy.nan
    broken["backbone.bn.running_var"] = numpy.full(16, -1, "f4")
    tuned = {key: value * numpy.float32(1.01) for key, value in wanted.items() if "neck" in key}
    files = {
        "wanted": wanted,
        "found": found,
        "broken": broken,
        "tuned": {**wanted, **tuned},
    }
    for name, made in files.items():
        save_file(made, folder / f"{name}.safetensors")
    annotations = folder / "annotations.json"
    image = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 0, 30], "area": 0}
    categories = [{"id": 1, "name": f"cat {HOSTILE}"}]
    annotations.write_text(
        json.dumps({"images": [image], "annotations": [box], "categories": categories})
    )
    commands = {
        "diff": ["diff", "found", "--like", "wanted"],
        "values": ["diff", "tuned", "--like", "wanted", "--values"],
        "inspect": ["inspect", "broken", "--stats"],
        "convert": ["convert", "wanted", "--dtype", "fp16", "-o", str(folder / "o.safetensors")],
        "check": ["check", "--arch", "tf_efficientdet_d0", "--coco", str(annotations)],
    }
    made_pages = {}
    for name, (command, *words) in commands.items():
        paths = [str(folder / f"{word}.safetensors") if word in files else word for word in words]
        made_pages[name] = folder / f"{name}.html"
        assert main([command, *paths, "--html", str(made_pages[name])]) in (0, 1)
    return made_pages
