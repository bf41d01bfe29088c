"""Darknet files and networks: the size says which, the layers say which float is what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from cfgs_made import builtin, detector
from darknet_made import by_convolution, floats_in, read_file, write_file

import ckptool
from ckptool import architectures
from ckptool.architectures import darknet_files, frozen
from ckptool.errors import (
    ArchitectureError,
    CkptError,
    FormatError,
    PlanError,
    UnsupportedError,
)

# The floats of a file: so many, and so many more for each class.
# Source: AlexeyAB/darknet README (the sizes of its files), the cfgs in its `cfg/`.
SIZES = {
    "yolov4": (63_998_605, 5_385),
    "yolov4-tiny": (5_878_014, 2_310),
    "yolov4-csp": (52_555_405, 5_385),
    "yolov4x-mish": (99_308_717, 6_729),
    "yolov4-p5": (70_343_068, 7_180),
    "yolov4-p6": (126_814_640, 11_280),
}
CONV_137 = (170_038_676 - 20) // 4
SMALL = """
[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=mish
[convolutional]
filters=4
groups=2
size=1
activation=leaky
[route]
layers=-1,-2
[convolutional]
batch_normalize=1
filters=6
size=1
activation=leaky
"""


def sized(folder: Path, count: int, name: str = "x.weights") -> str:
    return str(write_file(folder / name, count, sparse=True))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("classes", [1, 20, 80])
def test_the_size_says_the_network_and_its_class_count(
    name: str, classes: int, tmp_path: Path
) -> None:
    base, each = SIZES[name]
    path = sized(tmp_path, base + classes * each)

    found = {c.arch: c for c in ckptool.identify(path).fitting}

    assert found[name].num_classes == classes
    assert found[name].dialect == "darknet-weights"
    assert found[name].missing == found[name].unexpected == found[name].shape == 0
    with_counters = sum("num_batches" not in key for key in frozen.find(name).specs)  # type: ignore[union-attr]
    assert found[name].matched == with_counters


def test_networks_of_one_size_are_all_named(tmp_path: Path) -> None:
    """The two csp cfgs have the same layers in another order."""
    base, each = SIZES["yolov4-csp"]
    path = sized(tmp_path, base + 80 * each)

    names = [c.arch for c in ckptool.identify(path).fitting]
    assert names == ["yolov4-csp", "yolov4-csp-swish"]
    with pytest.raises(PlanError) as caught:
        ckptool.convert(path, tmp_path / "out.safetensors")
    assert caught.value.message == (
        "a darknet file has no keys, and several networks have files of its size: `yolov4-csp`, "
        "`yolov4-csp-swish`"
    )
    assert caught.value.hint == "--arch yolov4-csp"
    assert caught.value.code == "plan.ambiguous"


def test_a_size_that_is_of_no_network(tmp_path: Path) -> None:
    path = sized(tmp_path, 1_234_567)

    assert ckptool.identify(path).candidates == ()
    with pytest.raises(PlanError) as caught:
        ckptool.convert(path, tmp_path / "out.safetensors")
    assert caught.value.message == (
        "a darknet file has no keys, and its size is that of no network that ckptool knows"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("--arch darknet:FILE.cfg")


def test_keys_shapes_and_values_are_those_of_the_cfg(tmp_path: Path) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_bytes(detector(SMALL))
    path = write_file(tmp_path / "small.weights", floats_in(cfg.read_text()))
    arch = f"darknet:{cfg}"

    result = ckptool.convert(path, tmp_path / "small.safetensors", arch=arch)

    assert result.fits_strict
    _, wanted = read_file(path, cfg.read_text())
    written = ckptool.read(result.output)
    found = by_convolution({key: tensor.numpy() for key, tensor in written.items()})
    assert len(found) == len(wanted) == 4
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, floats in theirs.items():
            assert numpy.array_equal(ours[name], floats), name
    assert ckptool.verify(result.output, arch=arch).strict_load


def test_a_cfg_tells_any_class_count(tmp_path: Path) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_bytes(detector(SMALL))
    text = cfg.read_text().replace("filters=7\n", "filters=16\n").replace("classes=2", "classes=11")
    path = write_file(tmp_path / "eleven.weights", floats_in(text))

    found = ckptool.diff(path, arch=f"darknet:{cfg}")

    assert "the file has 11 classes" in next(
        cause.summary for cause in found.causes if cause.code == "class-count"
    )
    assert ckptool.diff(path, arch=f"darknet:{cfg}", num_classes=11).fits_strict


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (5, "with 2 classes 5 floats are left over, with 3 it is short by 2"),
        (-1, "with 1 class 6 floats are left over, with 2 it is short by 1"),
    ],
)
def test_floats_left_over_and_short(extra: int, message: str, tmp_path: Path) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_bytes(detector(SMALL))
    count = floats_in(cfg.read_text()) + extra
    path = write_file(tmp_path / "off.weights", count)

    with pytest.raises(FormatError) as caught:
        ckptool.diff(path, arch=f"darknet:{cfg}")

    name = f"darknet:{cfg}"
    assert caught.value.message == f"`{path}`: {count:,} floats are no file of `{name}`: {message}"
    assert caught.value.code == "darknet.size"


def test_the_wrong_network_is_told_with_the_right_one(tmp_path: Path) -> None:
    base, each = SIZES["yolov4"]
    path = sized(tmp_path, base + 80 * each)

    with pytest.raises(FormatError) as caught:
        ckptool.convert(path, tmp_path / "out.pth", arch="yolov4-tiny")
    assert caught.value.message == (
        f"`{path}`: 64,429,405 floats are no file of `yolov4-tiny`: with 80 classes it has "
        "6,062,814, so 58,366,591 are left over"
    )
    assert caught.value.hint == "--arch yolov4: its size is that of `yolov4`, `yolov4_new`"

    with pytest.raises(ArchitectureError, match="does not tell which they are") as refused:
        ckptool.diff(path, arch="tf_efficientdet_d0")
    assert refused.value.hint == "--arch yolov4: its size is that of `yolov4`, `yolov4_new`"


def test_too_few_floats_for_any_class(tmp_path: Path) -> None:
    path = sized(tmp_path, 1_000_000)

    with pytest.raises(FormatError) as caught:
        ckptool.diff(path, arch="yolov4-tiny")

    assert caught.value.message == (
        f"`{path}`: 1,000,000 floats are neither the first layers of `yolov4-tiny` nor all of "
        "them: with 1 class it has 5,880,324, so the file is short by 4,880,324"
    )


def test_the_first_layers_are_read_under_any_name_once_the_network_is_said(tmp_path: Path) -> None:
    """`yolov4.conv.137`, from which darknet starts a training."""
    path = sized(tmp_path, CONV_137, "yolov4.conv.137")
    with pytest.raises(UnsupportedError, match="could be a darknet file"):
        ckptool.identify(path)

    found = ckptool.diff(path, arch="yolov4")

    # The head: 15 convolutions with a norm, whose counters torch starts itself, 3 with a bias.
    assert found.counts["missing"] == 15 * 5 + 3 * 2
    assert found.counts["unexpected"] == found.counts["shape"] == 0
    assert found.notes[0] == (
        "a darknet file without keys: its floats are the first 137 layers of `yolov4`"
    )
    named = sized(tmp_path, CONV_137)
    parts = [c.arch for c in ckptool.identify(named).candidates if not c.fits]
    assert parts == ["yolov4", "yolov4_new"]


def test_the_first_layers_can_be_had_under_their_keys(tmp_path: Path) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_bytes(detector(SMALL))
    first = (8 * 3 * 9 + 4 * 8) + (4 * 4 + 4)
    path = write_file(tmp_path / "small.conv.2", first)

    result = ckptool.convert(path, tmp_path / "part.safetensors", arch=f"darknet:{cfg}")

    assert result.fits_strict is False
    written = ckptool.read(result.output)
    assert list(written)[-2:] == ["models.1.conv2.weight", "models.1.conv2.bias"]
    assert sum(tensor.numel for tensor in written.values()) == first


def test_a_file_cut_anywhere_is_no_whole_one(
    tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    """Where the cut is between two layers it is the first of them, and said to be."""
    cfg = tmp_path / "small.cfg"
    cfg.write_bytes(detector(SMALL))
    architecture = architectures.find(f"darknet:{cfg}")
    data = write_file(tmp_path / "whole.weights", floats_in(cfg.read_text())).read_bytes()
    path = tmp_path / "cut.weights"
    ends = [*range(40), *range(40, len(data), 3), len(data) - 1]
    parts = []
    for end in ends:
        path.write_bytes(data[:end])
        try:
            found = darknet_files.keyed(ckptool.read(path), architecture)
        except CkptError as error:
            assert "\n" not in error.message
        else:
            assert darknet_files.is_part(found.weights)
            parts.append(end)
    assert parts
    assert set(parts) <= {20 + 4 * 248, 20 + 4 * (248 + 20), 20 + 4 * (248 + 20 + 96)}
    count("darknet files cut short", len(ends))


def test_a_file_loads_into_a_live_network(tmp_path: Path) -> None:
    base, each = SIZES["yolov4-tiny"]
    path = write_file(tmp_path / "yolov4-tiny.weights", base + 20 * each)
    model = architectures.build("yolov4-tiny", 20)

    loaded = ckptool.load_into(model, path)

    assert loaded.tensors == 99
    _, wanted = read_file(path, _with_classes(20))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for ours, theirs in zip(by_convolution(state), wanted, strict=True):
        assert all(numpy.array_equal(ours[name], theirs[name]) for name in theirs)


def test_another_class_count_loads_with_a_class_map(tmp_path: Path) -> None:
    base, each = SIZES["yolov4-tiny"]
    path = write_file(tmp_path / "yolov4-tiny.weights", base + 20 * each)
    model = architectures.build("yolov4-tiny", 3)

    ckptool.load_into(model, path, class_map="first")

    _, convolutions = read_file(path, _with_classes(20))
    old = torch.from_numpy(convolutions[-1]["conv.weight"].copy()).reshape(3, 25, -1)
    new = model.state_dict()["models.36.conv21.weight"].reshape(3, 8, -1)
    assert torch.equal(new, old[:, :8])


def test_a_live_network_that_is_not_known_says_what_to_do(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.weights", 12)
    model = torch.nn.Conv2d(1, 1, 3)
    before = model.weight.clone()

    with pytest.raises(ArchitectureError) as caught:
        ckptool.load_into(model, path)

    assert caught.value.message == (
        f"`{path}`: the floats of a darknet file have no keys, and a network that ckptool does not "
        "know does not tell which they are"
    )
    assert caught.value.hint == (
        "`ckptool convert` takes --arch darknet:FILE.cfg; load what it writes"
    )
    assert torch.equal(model.weight, before)


def test_inspect_says_what_the_size_is_of(tmp_path: Path) -> None:
    path = sized(tmp_path, CONV_137)

    findings = [item.message for item in ckptool.inspect(path).findings]

    assert "version 0.2.5, 32,013,312 images seen in training" in findings
    assert (
        "its size is that of the first 137 layers of `yolov4`, the first 137 layers of `yolov4_new`"
    ) in findings


def test_a_stored_plan_is_carried_out(tmp_path: Path) -> None:
    base, each = SIZES["yolov4-tiny"]
    path = write_file(tmp_path / "tiny.weights", base + 4 * each)
    plan = ckptool.plan(path, arch="yolov4-tiny", dtype="fp16")

    result = ckptool.convert(path, tmp_path / "out.pth", plan=plan)

    assert result.fits_strict
    assert ckptool.read(result.output)["models.0.conv1.weight"].dtype == "float16"


def test_another_file_to_be_like_needs_keys(tmp_path: Path) -> None:
    path = sized(tmp_path, SIZES["yolov4-tiny"][0] + 4 * SIZES["yolov4-tiny"][1])

    for one, other in (("fixtures/d0.pth", path), (path, "fixtures/d0.pth")):
        with pytest.raises(ArchitectureError, match="a darknet file have no keys") as caught:
            ckptool.diff(one, like=other)
        assert caught.value.message.startswith(f"`{path}`: ")
        assert caught.value.hint == "--arch yolov4-tiny: its size is that of `yolov4-tiny`"


def test_two_darknet_files_of_a_known_network_are_compared_by_its_keys(tmp_path: Path) -> None:
    base, each = SIZES["yolov4"]
    one, other = (sized(tmp_path, base + n * each, f"{n}.weights") for n in (80, 20))

    assert ckptool.diff(one, like=one).counts["matched"] == 541
    found = ckptool.diff(one, like=other)

    assert [cause.code for cause in found.causes] == ["class-count"]
    assert "the file has 80 classes" in found.causes[0].summary
    assert found.counts["shape"] == 6


def test_two_darknet_files_of_one_unknown_size_are_compared_as_they_are(tmp_path: Path) -> None:
    """So are those of csp, of which two networks have files of one size in another order."""
    base, each = SIZES["yolov4-csp"]
    for count in (50, base + 80 * each):
        path = sized(tmp_path, count)
        assert ckptool.diff(path, like=path).counts["matched"] == 1
        assert ckptool.diff(path, like=path).fits_strict


def test_darknet_files_of_two_networks_are_not_compared(tmp_path: Path) -> None:
    base, each = SIZES["yolov4-tiny"]
    tiny, other = sized(tmp_path, base + 80 * each, "t.weights"), sized(tmp_path, 51, "o.weights")

    with pytest.raises(ArchitectureError, match="a darknet file have no keys"):
        ckptool.diff(tiny, like=other)


def _with_classes(classes: int) -> str:
    """The cfg text of yolov4-tiny for another class count."""
    text = builtin("yolov4-tiny").decode()
    return text.replace("filters=255", f"filters={3 * (5 + classes)}")
