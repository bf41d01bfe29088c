"""`diff` as a whole: what fits, what fits as well, what no file stores, JSON and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints_made import Held, cast, effdet, held, prefixed, tensors, versions, write
from effdet.config.model_config import efficientdet_model_param_dict

import ckptool
from ckptool import architectures
from ckptool.cli import main

NAMES = tuple(efficientdet_model_param_dict)
YOLOV4 = tuple(a.name for a in ckptool.archs() if a.family == "yolov4")
D0, D6, D7 = "tf_efficientdet_d0", "tf_efficientdet_d6", "tf_efficientdet_d7"


@pytest.mark.parametrize("name", [*NAMES, *YOLOV4])
def test_what_the_real_class_saves_fits(name, tmp_path, capsys, count):
    if name in NAMES:
        model = effdet(name)
    else:
        with torch.device("meta"):
            model = architectures.build(name)
    state = held(model)
    path = write(state, tmp_path / "weights.pth", versions(model))
    assert main(["diff", str(path), "--arch", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits_strict"]
    assert (found["entries"], found["causes"], found["unexplained"]) == ([], [], [])
    assert found["counts"]["matched"] == len(state)
    assert found["fix"] is None
    count("checkpoints of real classes that fit", 1)


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        (D7, (D6,)),
        (D6, (D7,)),
        (D0, ("tf_efficientdet_d0_ap",)),
        ("efficientdet_d4", ("tf_efficientdet_d4", "tf_efficientdet_d4_ap")),
        ("efficientdet_d1", ()),
    ],
)
def test_what_fits_as_well(name, alike, tmp_path):
    found = ckptool.diff(write(held(effdet(name)), tmp_path / "weights.pth"), arch=name)
    assert found.also_fits == alike
    assert all(found.distinguished[other] for other in alike)


def test_what_distinguishes_d6_from_d7(tmp_path):
    found = ckptool.diff(write(held(effdet(D7)), tmp_path / "weights.pth"), arch=D7)
    assert found.distinguished[D6] == {
        "image_size": ([1536, 1536], [1280, 1280]),
        "anchor_scale": (5.0, 4.0),
    }
    assert found.not_in_file["anchor_scale"] == 5.0
    assert (
        "  tf_efficientdet_d6: image size 1280×1280 instead of 1536×1536, anchor scale 4 instead "
        "of 5"
    ) in str(found).splitlines()


@pytest.mark.parametrize(("asked", "scale"), [(D6, 4.0), (D6, 5.0), (D7, 4.0), (D7, 5.0)])
def test_anchors_in_the_file_tell(asked, scale, tmp_path):
    """The first box of D6's first level has the side 32, of D7's 40."""
    state = prefixed(held(effdet(asked)), "model.")
    half = scale * 2**3 / 2
    state["anchors.boxes"] = torch.tensor([[4 - half, 4 - half, 4 + half, 4 + half]])
    found = ckptool.diff(write(state, tmp_path / "weights.pth"), arch=asked)
    of = D6 if scale == 4.0 else D7
    if of == asked:
        assert found.also_fits == ()
        assert found.notes == ()
    else:
        assert found.also_fits == (of,)
        assert found.notes == (
            f"the anchors in the file are not those of {asked}: the first has the side "
            f"{8 * scale:g}, as in `{of}`",
        )


def test_the_json_of_diff(tmp_path, capsys):
    state = prefixed(held(effdet(D0, 20)), "module.")
    state["module.backbone.conv_stem.weight"] = Held(torch.float16, (32, 3, 3, 3))
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "state_dict": tensors(state)}, path)
    assert main(["diff", str(path), "--arch", D0, "--num-classes", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    entries, causes = found.pop("entries"), found.pop("causes")
    assert found.pop("not_in_file")["image_size"] == [512, 512]
    assert found == {
        "file": str(path),
        "format": "torch-zip",
        "weights": "state_dict",
        "arch": D0,
        "num_classes": 1,
        "fits_strict": False,
        "counts": {"matched": 0, "missing": 676, "unexpected": 784, "shape": 0, "dtype": 0},
        "unexplained": [],
        "also_fits": ["tf_efficientdet_d0_ap"],
        "notes": [
            "--num-classes 1 starts every class row anew, unless --class-map says which are kept; "
            "--num-classes 20 compares the file as it is"
        ],
        "fix": f"ckptool convert {path} --arch {D0} --num-classes 1",
    } | {name: found[name] for name in found if name == "values"}
    assert len(entries) == 676 + 784
    assert entries[0] == {
        "key": "backbone.conv_stem.weight",
        "kind": "missing",
        "found": None,
        "wanted": {"dtype": "float32", "shape": [32, 3, 3, 3]},
    }
    assert entries[676] == {
        "key": "module.backbone.conv_stem.weight",
        "kind": "unexpected",
        "found": {"dtype": "float16", "shape": [32, 3, 3, 3]},
        "wanted": None,
    }
    assert [cause["code"] for cause in causes] == ["wrapper-prefix", "class-count", "dtype"]
    assert {name: causes[1][name] for name in ("keys", "fix", "exact")} == {
        "keys": ["class_net.predict.conv_pw.weight", "class_net.predict.conv_pw.bias"],
        "fix": "--num-classes 1",
        "exact": False,
    }
    assert causes[2]["keys"] == ["backbone.conv_stem.weight"]


def test_a_difference_of_shape_or_dtype_has_both_sides(tmp_path, capsys):
    state = held(effdet(D0))
    state["backbone.conv_stem.weight"] = Held(torch.float16, (32, 3, 3, 3))
    state["fpn.cell.0.fnode.0.combine.edge_weights"] = Held(torch.float32, (7,))
    path = write(state, tmp_path / "weights.safetensors")
    assert main(["diff", str(path), "--arch", D0, "--json"]) == 1
    assert [
        (entry["kind"], entry["found"], entry["wanted"])
        for entry in json.loads(capsys.readouterr().out)["entries"]
    ] == [
        (
            "dtype",
            {"dtype": "float16", "shape": [32, 3, 3, 3]},
            {"dtype": "float32", "shape": [32, 3, 3, 3]},
        ),
        (
            "shape",
            {"dtype": "float32", "shape": [7]},
            {"dtype": "float32", "shape": [2]},
        ),
    ]


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict-dtype"], 1)])
def test_dtypes_count_only_if_asked_for(options, code, tmp_path, capsys):
    path = write(cast(held(effdet(D0)), torch.float16), tmp_path / "weights.pth")
    assert main(["diff", str(path), "--arch", D0, "--json", *options]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["fits_strict"] == (code == 0)
    assert found["counts"] == {
        "matched": 784,
        "missing": 0,
        "unexpected": 0,
        "shape": 0,
        "dtype": 676,
    }


def test_limit_is_the_number_of_lines_and_0_shows_every_key(tmp_path, capsys):
    path = write(held(effdet("tf_efficientdet_d2")), tmp_path / "weights.pth")
    command = ["diff", str(path), "--arch", D0, "--limit"]

    def shown(limit: str) -> list[str]:
        main([*command, limit])
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("  shape ", "  unexpected "))]

    assert [len(shown(limit)) for limit in ("1", "5", "30")] == [1, 5, 30]
    every = shown("0")
    assert len(every) == 292 + 579
    assert not any("{" in line or "…" in line for line in every)
    assert "  unexpected  fpn.cell.4.fnode.7.after_combine.conv.bn.num_batches_tracked" in every


def test_live_measures_the_installed_package(tmp_path, capsys):
    path = write(held(effdet(D0)), tmp_path / "weights.pth")
    assert main(["diff", str(path), "--arch", D0, "--live"]) == 0
    assert "784 tensors match" in capsys.readouterr().out


def test_one_line_more_is_one(tmp_path, capsys):
    state = {**held(effdet(D0)), "one.a": Held(torch.float32, ()), "two.a": Held(torch.float32, ())}
    path = write(state, tmp_path / "weights.pth")
    main(["diff", str(path), "--arch", D0, "--limit", "1"])
    assert "\n  and 1 more line; --limit 0 shows every key\n" in capsys.readouterr().out


def test_like_compares_two_files(tmp_path, capsys):
    one = write(held(effdet(D0)), tmp_path / "one.pth")
    other = write(held(effdet(D0)), tmp_path / "other.safetensors")
    assert main(["diff", str(one), "--like", str(other)]) == 0
    assert f"against {other}\n784 tensors match\n" in capsys.readouterr().out
    assert ckptool.diff(ckptool.read(one), like=ckptool.read(other)).fits_strict


def test_like_has_the_class_count_of_the_other_file(tmp_path):
    """Another one that is asked for is refused, not passed over."""
    path = write(held(effdet(D0)), tmp_path / "one.pth")
    assert ckptool.diff(path, like=path, num_classes=90).fits_strict
    with pytest.raises(ckptool.CkptError, match="has 90 classes, 20 are asked for") as e:
        ckptool.diff(path, like=path, num_classes=20)
    assert e.value.hint == "--arch ARCH instead of --like"


REFUSED = {
    "--arch tf_efficientdet_d0 --num-classes 99999999999": (
        "`tf_efficientdet_d0` cannot have 99,999,999,999 classes",
        None,
    ),
    "--arch tf_efficientdet_d77": (
        "no architecture is called `tf_efficientdet_d77`",
        "the closest are `tf_efficientdet_d7`, `tf_efficientdet_d7x`, `tf_efficientdet_d6`; "
        "`ckptool archs` lists all",
    ),
    "--arch small_models:raising": (
        "`small_models:raising` cannot be built: ValueError: no weights for you",
        None,
    ),
    "--arch small_models:absent": ("`small_models` has no `absent`", None),
    "--arch no_such_module:net": ("there is no module `no_such_module`", "ckptool archs"),
    "--arch darknet:odd.cfg": ("`odd.cfg`", None),
    "--arch darknet:none.cfg": ("`none.cfg`: no such file", None),
    "": (
        "give one of --arch ARCH and --like FILE2",
        "ckptool diff [OPTIONS] FILE",
    ),
    f"--arch {D0} --like weights.pth": (
        "give one of --arch ARCH and --like FILE2",
        "ckptool diff [OPTIONS] FILE",
    ),
    f"--arch {D0} --num-classes 0": ("invalid value for '--num-classes'", None),
    f"--arch {D0} --weights ema": ("`ema`", None),
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_compared_is_one_sentence(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd.cfg").write_text("[net]\nwidth=32\nheight=32\nchannels=3\n[wobble]\nx=1\n")
    write(held(effdet(D0)), Path("weights.pth"))
    message, hint = REFUSED[options]
    assert main(["diff", "weights.pth", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) in (1, 3)
    if hint is not None:
        assert lines[1:] == ["", f"hint: {hint}"]
    assert main(["diff", "weights.pth", *options.split(), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert set(told) == {"code", "message", "hint"}
    assert message in told["message"]


def test_an_extra_that_is_not_installed_is_one_sentence(tmp_path, capsys, monkeypatch):
    path = write(held(effdet(D0)), tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["diff", str(path), "--arch", "timm:resnet18"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3
    assert "`timm:resnet18` needs" in err[0]
    assert err[2].startswith("hint: pip install ")


CHILD = """
import json, sys, time
from ckptool.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "numpy", "ml_dtypes", "safetensors", "timm", "effdet"} & {*sys.modules})
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps([code, heavy, time.process_time(), peak / 1024]), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
@pytest.mark.parametrize(
    "words", [["diff", "d7.pth", "--arch", D7], ["identify", "d7.pth"], ["archs"]]
)
def test_the_largest_network_is_compared_in_a_moment(words, tmp_path):
    """A whole process, without torch or numpy: bounds that a busy machine keeps too."""
    write(held(effdet(D7)), tmp_path / "d7.pth", versions(effdet(D7)))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(ckptool.__file__).parents[1])},
    )
    code, heavy, seconds, mebibytes = json.loads(done.stderr)
    assert code == 0
    assert heavy == []
    assert seconds < 1.5
    assert mebibytes < 60
