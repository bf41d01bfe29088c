"""Reading and converting never import torch: it costs seconds, and files are not run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from clean_reader import read_elsewhere
from darknet_made import write_file
from safetensors.torch import save_file
from torch import nn

import ckptool

HOME = Path(ckptool.__file__).parent.parent
D0 = HOME / "fixtures" / "d0.pth"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every kind, with tensors that need gathering, swapping and inflating."""
    folder = tmp_path_factory.mktemp("kinds")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = model.to(memory_format=torch.channels_last)
    state = {
        **model.state_dict(),
        "b": torch.ones(3).bfloat16(),
        "f": torch.ones(2).to(torch.float8_e5m2),
    }
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(model, folder / "whole.pth")
    torch.save({"model": model, "ema": model}, folder / "two.pth")
    (folder / "pickled.pkl").write_bytes(pickle.dumps(state, 2))
    (folder / "numpy.pkl").write_bytes(pickle.dumps({"w": numpy.ones((2, 3), ">f4").T}, 2))
    (folder / "darknet.weights").write_bytes(struct.pack("<3iq4f", 0, 2, 5, 9, 1, 2, 3, 4))
    save_file({key: x.contiguous() for key, x in state.items()}, folder / "x.safetensors")
    index = {"weight_map": dict.fromkeys(state, "x.safetensors")}
    (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(folder / "script.pt")
    with tarfile.open(folder / "foreign.pth", "w") as archive:
        archive.add(folder / "zip.pth", arcname="zip.pth")
    return {path.stem if path.suffix != ".json" else "index": path for path in folder.iterdir()}


def test_every_kind_is_read_where_torch_cannot_be_imported(files: dict[str, Path]) -> None:
    found = read_elsewhere([*files.values()])
    formats = {
        Path(path).name: file.get("format", file.get("error")) for path, file in found.items()
    }
    assert formats == {
        "zip.pth": "torch-zip",
        "legacy.pth": "torch-legacy",
        "whole.pth": "torch-zip",
        "two.pth": "torch-zip",
        "pickled.pkl": "pickle",
        "numpy.pkl": "pickle",
        "darknet.weights": "darknet",
        "x.safetensors": "safetensors",
        "x.safetensors.index.json": "sharded safetensors",
        "script.pt": "torchscript",
        "foreign.pth": f"`{files['foreign']}`: this is a tar archive",
    }
    for name, path in files.items():
        sets = found[str(path)].get("sets", {})
        assert name == "foreign" or all(item["tensors"] for item in sets.values())


COMMANDS = {
    "inspect": ["inspect", D0, "--tree", "--keys", "--stats"],
    "inspect json": ["inspect", D0, "--json"],
    "inspect of a foreign file": ["inspect", __file__],
    "identify": ["identify", D0],
    "diff": ["diff", D0, "--arch", "tf_efficientdet_d0", "--num-classes", "20"],
    "diff like": ["diff", D0, "--like", D0],
    "plan": ["plan", D0, "--arch", "tf_efficientdet_d0", "--dtype", "fp32", "-o", "plan.json"],
    "convert": ["convert", D0, "--dtype", "fp32", "--num-classes", "20", "-o", "out.safetensors"],
    "convert to torch": ["convert", D0, "--dtype", "fp16", "-o", "out.pth"],
    "convert to a pickle": ["convert", D0, "--dtype", "fp16", "-o", "out.pkl"],
    "identify of a darknet file": ["identify", "tiny.weights"],
    "convert from darknet": ["convert", "tiny.weights", "-o", "tiny.pth"],
    "convert to darknet": ["convert", "tiny.pth", "-o", "back.weights"],
    "check": ["check", "--arch", "tf_efficientdet_d0", "--coco", "coco.json"],
    "check of a file": ["check", D0, "--arch", "tf_efficientdet_d0", "--coco", "coco.json"],
    "check of images": ["check", "--arch", "yolov4", "--coco", "coco.json", "--images", "."],
    "archs": ["archs"],
    "help": ["--help"],
}
CHILD = """
import json, sys
from ckptool.cli import main
codes = []
for words in json.load(sys.stdin):
    try:
        codes.append(main(words))
    except SystemExit as stop:
        codes.append(stop.code)
    codes.append(sorted({"torch", "timm", "effdet", "torchvision"} & {*sys.modules}))
print(json.dumps(codes), file=sys.stderr)
"""


def test_no_command_that_reads_or_converts_imports_torch(tmp_path: Path) -> None:
    write_file(tmp_path / "tiny.weights", 5_878_014 + 2_310, sparse=True)  # of one class
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    words = [[str(word) for word in command] for command in COMMANDS.values()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stderr.splitlines()[-1])
    imported = dict(zip(COMMANDS, answers[1::2], strict=True))
    assert imported == {name: [] for name in COMMANDS}
    codes = dict(zip(COMMANDS, answers[::2], strict=True))
    refused = {name for name, code in codes.items() if code == 2}
    assert refused == {"inspect of a foreign file"}
