"""Darknet and Detectron2 files: written, proven, and read by readers that are not ckptool's."""

from __future__ import annotations

import hashlib
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from cfgs_made import builtin, detector
from darknet_made import by_convolution, floats_in, read_file, write_file
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import ckptool
from ckptool import architectures
from ckptool.architectures import frozen
from ckptool.errors import (
    CkptError,
    OutputError,
    PlanError,
    UnsupportedError,
    VerificationError,
)

Arrays = dict[str, NDArray[Any]]

LAYERS = """
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
"""


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = tmp_path / "small.cfg"
    path.write_bytes(detector(LAYERS))
    return path


def random_state(arch: str, num_classes: int | None = None) -> Arrays:
    """Random values for a manifest, counters among them."""
    generator = numpy.random.default_rng(7)
    found: Arrays = {}
    for key, spec in architectures.find(arch).manifest(num_classes).items():
        if spec.dtype == "int64":
            found[key] = numpy.array(12_345)
        else:
            some = generator.normal(0, 0.05, min(spec.numel, 1 << 16)).astype("<f4")
            found[key] = numpy.resize(some, spec.shape)
    return found


def digest(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# Darknet


@pytest.mark.parametrize(
    ("classes", "between"),
    [
        (80, "y.safetensors"),
        (20, "y.pth"),
    ],
)
def test_yolov4_there_and_back_is_byte_identical(
    classes: int, between: str, tmp_path: Path
) -> None:
    source = write_file(tmp_path / "yolov4.weights", 63_998_605 + 5_385 * classes)

    there = ckptool.convert(source, tmp_path / between, arch="yolov4")
    back = ckptool.convert(there.output, tmp_path / "back.weights", arch="yolov4")

    assert there.fits_strict
    assert back.fits_strict
    assert digest(back.output) == digest(source)


@pytest.mark.parametrize("classes", [80, 20])
@pytest.mark.parametrize("between", ["y.safetensors", "y.pth"])
@pytest.mark.parametrize("version", [(0, 2, 5), (0, 1, 0), (1, 0, 0)])
def test_a_small_network_there_and_back_is_byte_identical(
    classes: int, between: str, version: tuple[int, int, int], tmp_path: Path
) -> None:
    """The header too, whose counter has 32 bits in old files; over two conversions, too."""
    cfg = tmp_path / "small.cfg"
    text = detector(LAYERS).decode().replace("classes=2", f"classes={classes}")
    cfg.write_text(text.replace("filters=7\n", f"filters={5 + classes}\n"))
    source = write_file(
        tmp_path / "a.weights", floats_in(cfg.read_text()), version=version, seen=64_123
    )
    arch = f"darknet:{cfg}"

    there = ckptool.convert(source, tmp_path / between, arch=arch)
    again = ckptool.convert(there.output, tmp_path / f"again.{between}", arch=arch)
    back = ckptool.convert(again.output, tmp_path / "back.weights", arch=arch)

    assert digest(back.output) == digest(source)


def test_an_independent_reader_reads_what_was_saved(tmp_path: Path) -> None:
    """A whole yolov4-tiny of torch's, with its counters, which darknet has no place for."""
    state = random_state("yolov4-tiny", 20)
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "t.pth")

    result = ckptool.convert(tmp_path / "t.pth", tmp_path / "t.weights")

    text = builtin("yolov4-tiny").decode().replace("filters=255", "filters=75")
    header, found = read_file(tmp_path / "t.weights", text)
    assert header == (0, 2, 5, 0)
    for ours, theirs in zip(found, by_convolution(state), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(numpy.array_equal(ours[name], theirs[name]) for name in ours)
    assert set(result.dropped) == {key for key in state if key.endswith("num_batches_tracked")}
    assert result.notes == (
        "the header is that of a new file (version 0.2.5, no images seen): the source has none",
    )


def test_what_is_read_can_be_written(tmp_path: Path) -> None:
    state = random_state("yolov4-tiny", 1)
    save_file(state, tmp_path / "t.safetensors")

    ckptool.write(ckptool.read(tmp_path / "t.safetensors"), tmp_path / "t.weights")

    text = builtin("yolov4-tiny").decode().replace("filters=255", "filters=18")
    _, found = read_file(tmp_path / "t.weights", text)
    for ours, theirs in zip(found, by_convolution(state), strict=True):
        assert all(numpy.array_equal(ours[name], theirs[name]) for name in ours)


def test_class_edits_and_casts_on_the_way(cfg: Path, tmp_path: Path) -> None:
    source = write_file(tmp_path / "a.weights", floats_in(cfg.read_text()))
    arch = f"darknet:{cfg}"
    half = ckptool.convert(
        source, tmp_path / "half.pth", arch=arch, dtype="fp16", num_classes=3, class_map="first"
    )
    with pytest.raises(UnsupportedError) as caught:
        ckptool.convert(half.output, tmp_path / "b.weights", arch=arch)
    assert caught.value.message.endswith("is float16, a darknet file holds float32 only")
    assert caught.value.hint == "--dtype fp32"

    result = ckptool.convert(half.output, tmp_path / "b.weights", arch=arch, dtype="fp32")

    wider = cfg.read_text().replace("filters=7\n", "filters=8\n")
    _, found = read_file(tmp_path / "b.weights", wider)
    _, before = read_file(source, cfg.read_text())
    assert result.fits_strict
    kept = before[-1]["conv.weight"].astype("float16").astype("float32")
    assert numpy.array_equal(found[-1]["conv.weight"][:7], kept)
    assert not numpy.array_equal(found[-1]["conv.weight"][7], 0 * found[-1]["conv.weight"][7])


def test_darknet_to_darknet_changes_the_class_count(cfg: Path, tmp_path: Path) -> None:
    source = write_file(tmp_path / "a.weights", floats_in(cfg.read_text()), seen=99)

    ckptool.convert(
        source, tmp_path / "b.weights", arch=f"darknet:{cfg}", num_classes=1, class_map="first"
    )

    header, found = read_file(
        tmp_path / "b.weights", cfg.read_text().replace("filters=7\n", "filters=6\n")
    )
    _, before = read_file(source, cfg.read_text())
    assert header == (0, 2, 5, 99)
    assert numpy.array_equal(found[-1]["conv.bias"], before[-1]["conv.bias"][:6])


def test_a_dialect_is_written_through_the_networks_own_keys(tmp_path: Path) -> None:
    state = random_state("yolov4-tiny", 2)
    save_file(state, tmp_path / "own.safetensors")
    ckptool.convert(
        tmp_path / "own.safetensors",
        tmp_path / "theirs.safetensors",
        arch="yolov4-tiny",
        to_dialect="bubbliiiing",
    )
    with pytest.raises(PlanError) as caught:
        ckptool.convert(tmp_path / "theirs.safetensors", tmp_path / "t.weights")
    assert caught.value.message == (
        "a darknet file is written from the keys of `yolov4-tiny` itself, not from those of the "
        "dialect `bubbliiiing-tiny`"
    )
    assert caught.value.hint == "--arch yolov4-tiny, which converts from that dialect"

    ckptool.convert(tmp_path / "theirs.safetensors", tmp_path / "t.weights", arch="yolov4-tiny")
    ckptool.convert(tmp_path / "own.safetensors", tmp_path / "o.weights", arch="yolov4-tiny")

    assert digest(tmp_path / "t.weights") == digest(tmp_path / "o.weights")


def test_only_a_darknet_network_has_an_order(tmp_path: Path) -> None:
    save_file({"a.weight": numpy.ones((2, 2), "f4")}, tmp_path / "a.safetensors")
    for path, options in (
        (tmp_path / "a.safetensors", {}),
        (Path("fixtures/d0.pth"), {"arch": "tf_efficientdet_d0"}),
    ):
        with pytest.raises(
            PlanError, match="only a network of darknet's tells the order"
        ) as caught:
            ckptool.convert(path, tmp_path / "out.weights", **options)
        assert caught.value.hint == "--arch yolov4, or --arch darknet:FILE.cfg"
    assert not (tmp_path / "out.weights").exists()


@pytest.mark.parametrize("name", ["out.weights", "out.pkl"])
def test_a_format_of_one_file_has_no_shards(name: str, cfg: Path, tmp_path: Path) -> None:
    source = write_file(tmp_path / "a.weights", floats_in(cfg.read_text()))

    with pytest.raises(OutputError, match="no reader of it knows shards"):
        ckptool.convert(source, tmp_path / name, arch=f"darknet:{cfg}", max_shard_size=100)


@pytest.mark.parametrize("at", [0, 12, 20, 400, -1])
def test_a_lying_disk_is_noticed(
    at: int, cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte that is not what was written: of the header, of a tensor, the last one."""
    from ckptool.formats import darknet_writer

    source = write_file(tmp_path / "a.weights", floats_in(cfg.read_text()))
    honest = darknet_writer.write

    def lying(output: Any, payload: Any) -> None:
        honest(output, payload)
        offset = at if at >= 0 else output.position - 1
        output.write_at(offset, b"\x01")

    monkeypatch.setattr(darknet_writer, "write", lying)
    with pytest.raises(VerificationError):
        ckptool.convert(source, tmp_path / "b.weights", arch=f"darknet:{cfg}")
    assert not (tmp_path / "b.weights").exists()


def test_a_header_that_no_file_can_have_is_not_taken_over(cfg: Path, tmp_path: Path) -> None:
    """What the provenance says is only a text in a file."""
    source = write_file(tmp_path / "a.weights", floats_in(cfg.read_text()))
    there = ckptool.convert(source, tmp_path / "a.safetensors", arch=f"darknet:{cfg}")
    tensors, texts = load_file(there.output), ckptool.read(there.output).contents.metadata
    text = texts["ckptool"].replace('"seen":"32013312"', '"seen":"-5"')
    assert text != texts["ckptool"]
    save_file(tensors, tmp_path / "forged.safetensors", {"ckptool": text})

    ckptool.convert(tmp_path / "forged.safetensors", tmp_path / "b.weights", arch=f"darknet:{cfg}")

    assert read_file(tmp_path / "b.weights", cfg.read_text())[0] == (0, 2, 5, 0)


# Detectron2


class Checkpointer:
    """How Detectron2 reads a file, retold.

    Source: Detectron2 at 02b5c4e `checkpoint/detection_checkpoint.py` (`_load_file`).
    """

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        if path.suffix == ".pkl":
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("error")
                data: dict[str, Any] = pickle.load(file, encoding="latin1")
            if "model" in data and "__author__" in data:
                return data
            data = data.get("blobs", data)
            data = {k: v for k, v in data.items() if not k.endswith("_momentum")}
            return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}
        loaded: dict[str, Any] = torch.load(path, weights_only=True)
        return loaded if "model" in loaded else {"model": loaded}


MASK = "detectron2:mask_rcnn_R_50_FPN_3x"


def frozen_specs(name: str) -> Mapping[str, Any]:
    architecture = frozen.find(name)
    assert architecture is not None
    return architecture.specs


def zoo_file(path: Path, state: Arrays, **more: Any) -> Path:
    arrays = {key: numpy.array(value) for key, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "the zoo", **more}))
    return path


def small_heads(classes: int = 4, *, prefix: str = "", agnostic: bool = False) -> Arrays:
    """The heads of a Mask R-CNN whose backbone is of no known architecture."""
    generator = numpy.random.default_rng(3)
    boxes = 4 if agnostic else 4 * classes
    rows = {
        "roi_heads.box_predictor.cls_score": (classes + 1, 6),
        "roi_heads.box_predictor.bbox_pred": (boxes, 6),
        "roi_heads.mask_head.predictor": (1 if agnostic else classes, 5, 1, 1),
    }
    state: Arrays = {
        f"{prefix}backbone.bottom_up.stem.conv1.weight": numpy.ones((2, 3, 1, 1), "f4")
    }
    for key, shape in rows.items():
        state[f"{prefix}{key}.weight"] = generator.normal(size=shape).astype("f4")
        state[f"{prefix}{key}.bias"] = generator.normal(size=shape[:1]).astype("f4")
    return state


def test_a_pickle_is_written_that_numpy_reads(tmp_path: Path) -> None:
    state = small_heads()
    state |= {
        "counter": numpy.array(7),
        "empty": numpy.zeros((0, 3), "f8"),
        "flags": numpy.array([True, False]),
        "half": numpy.arange(3, dtype="f2"),
        "bytes": numpy.arange(300, dtype="u1"),
        "complex": numpy.array([1 + 2j], "c8"),
    }
    source = zoo_file(tmp_path / "a.pkl", state)

    result = ckptool.convert(source, tmp_path / "b.pkl")

    assert result.verified
    loaded = Checkpointer.load(tmp_path / "b.pkl")
    assert list(loaded) == ["model", "__author__", "matching_heuristics", "ckptool"]
    assert (loaded["__author__"], loaded["matching_heuristics"]) == ("the zoo", False)
    assert list(loaded["model"]) == list(state)
    for key, value in state.items():
        found = loaded["model"][key]
        assert type(found) is numpy.ndarray
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert numpy.array_equal(found, value)
        assert found.flags.writeable
    assert ckptool.inspect(result.output).origin is not None


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_class_count_of_heads_is_changed_without_an_architecture(
    agnostic: bool, prefix: str, tmp_path: Path
) -> None:
    """The background is the last row of the scores; a class has four box rows and one mask."""
    state = small_heads(4, prefix=prefix, agnostic=agnostic)
    source = zoo_file(tmp_path / "a.pkl", state)

    ckptool.convert(source, tmp_path / "b.pkl", num_classes=2, class_map="first")

    found = Checkpointer.load(tmp_path / "b.pkl")["model"]
    heads = f"{prefix}roi_heads."
    for part in ("weight", "bias"):
        scores = state[f"{heads}box_predictor.cls_score.{part}"]
        assert numpy.array_equal(found[f"{heads}box_predictor.cls_score.{part}"], scores[[0, 1, 4]])
        for key, each in (("box_predictor.bbox_pred", 4), ("mask_head.predictor", 1)):
            before = state[f"{heads}{key}.{part}"]
            wanted = before if agnostic else before[: 2 * each]
            assert numpy.array_equal(found[f"{heads}{key}.{part}"], wanted)


def test_the_class_count_of_a_cascade_and_of_a_retinanet(tmp_path: Path) -> None:
    cascade: Arrays = {}
    for stage in range(3):
        name = f"roi_heads.box_predictor.{stage}"
        cascade[f"{name}.cls_score.weight"] = numpy.arange(5.0, dtype="f4").reshape(5, 1)
        cascade[f"{name}.bbox_pred.weight"] = numpy.ones((4, 1), "f4")
    retina: Arrays = {
        "head.cls_score.weight": numpy.arange(12.0, dtype="f4").reshape(12, 1, 1, 1),
        "head.cls_score.bias": numpy.arange(12.0, dtype="f4"),
        "head.bbox_pred.weight": numpy.ones((12, 1, 1, 1), "f4"),
    }
    ckptool.convert(
        zoo_file(tmp_path / "c.pkl", cascade), tmp_path / "c3.pkl", num_classes=3, class_map="first"
    )
    ckptool.convert(
        zoo_file(tmp_path / "r.pkl", retina), tmp_path / "r3.pkl", num_classes=3, class_map="first"
    )

    found = Checkpointer.load(tmp_path / "c3.pkl")["model"]
    for stage in range(3):
        rows = found[f"roi_heads.box_predictor.{stage}.cls_score.weight"]
        assert rows.ravel().tolist() == [0, 1, 2, 4]
    found = Checkpointer.load(tmp_path / "r3.pkl")["model"]
    assert found["head.cls_score.bias"].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert len(found["head.bbox_pred.weight"]) == 12


def test_casts_need_no_architecture(tmp_path: Path) -> None:
    source = zoo_file(tmp_path / "a.pkl", small_heads())

    ckptool.convert(source, tmp_path / "b.pkl", dtype="fp16")

    found = Checkpointer.load(tmp_path / "b.pkl")["model"]
    assert {value.dtype for value in found.values()} == {numpy.dtype("f2")}
    with pytest.raises(UnsupportedError) as caught:
        ckptool.convert(source, tmp_path / "c.pkl", dtype="bf16")
    assert caught.value.message.endswith("is bfloat16, which numpy does not have")
    assert caught.value.hint == "--dtype fp32, or -o OUT.pth"


def test_heads_that_disagree_are_not_guessed(tmp_path: Path) -> None:
    state = small_heads(4)
    state["roi_heads.box_predictor.bbox_pred.weight"] = numpy.ones((8, 6), "f4")
    source = zoo_file(tmp_path / "a.pkl", state)

    with pytest.raises(PlanError, match="fits no architecture that ckptool knows"):
        ckptool.convert(source, tmp_path / "b.pkl", num_classes=2)


def test_a_dialect_is_no_matter_of_heads(tmp_path: Path) -> None:
    source = zoo_file(tmp_path / "a.pkl", small_heads(4))

    with pytest.raises(PlanError, match="fits no architecture that ckptool knows"):
        ckptool.convert(source, tmp_path / "b.pkl", to_dialect="zylo117")


def test_a_zoo_file_fits_its_config_and_drops_the_buffers_of_older_ones(tmp_path: Path) -> None:
    state = {
        key: numpy.broadcast_to(numpy.float16(0.5), spec.shape)
        for key, spec in frozen_specs(MASK).items()
    }
    state |= {"pixel_mean": numpy.zeros((3, 1, 1)), "pixel_std": numpy.ones((3, 1, 1))}
    anchors = "proposal_generator.anchor_generator.cell_anchors"
    state |= {f"{anchors}.{level}": numpy.zeros((3, 4), "f4") for level in range(5)}
    source = zoo_file(tmp_path / "model_final.pkl", state)

    assert [c.arch for c in ckptool.identify(source).fitting] == [MASK]
    result = ckptool.convert(source, tmp_path / "b.pth", arch=MASK, num_classes=3)

    assert result.fits_strict
    assert set(result.dropped) == {k for k in state if "pixel" in k or "cell_anchors" in k}
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(loaded) == ["model"]
    assert {key: tuple(value.shape) for key, value in loaded["model"].items()} == {
        key: spec.shape for key, spec in architectures.find(MASK).manifest(3).items()
    }
    back = ckptool.convert(tmp_path / "b.pth", tmp_path / "c.pkl")
    loaded = Checkpointer.load(Path(back.output))
    assert (loaded["__author__"], loaded["matching_heuristics"]) == ("ckptool", False)


def blobs(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=2))
    return path


@pytest.mark.parametrize("wrap", [lambda state: {"blobs": state, "cfg": "x"}, dict])
def test_caffe2_blobs_stay_what_detectron2_renames(
    wrap: Callable[[Arrays], Any], tmp_path: Path
) -> None:
    state: Arrays = {"conv1_w": numpy.ones((2, 3), "f4"), "fc1000_b": numpy.ones(4, "f4")}
    momenta = {f"{key}_momentum": value + 1 for key, value in state.items()}
    source = blobs(tmp_path / "R-50.pkl", wrap({**state, **momenta}))

    result = ckptool.convert(source, tmp_path / "out.pkl")

    found, wanted = Checkpointer.load(tmp_path / "out.pkl"), Checkpointer.load(source)
    del found["ckptool"]
    assert found.keys() == wanted.keys()
    assert found["__author__"] == wanted["__author__"] == "Caffe2"
    assert found["matching_heuristics"] is wanted["matching_heuristics"] is True
    assert found["model"].keys() == wanted["model"].keys() == state.keys()
    assert all(numpy.array_equal(found["model"][key], state[key]) for key in state)
    assert result.verified


@pytest.mark.parametrize(("said", "kept"), [(True, True), (False, False), (None, False)])
def test_what_the_source_says_of_matching_is_kept(
    said: bool | None, kept: bool, tmp_path: Path
) -> None:
    state: Arrays = {"stem.conv1.weight": numpy.ones((2, 3, 1, 1), "f4")}
    more = {} if said is None else {"matching_heuristics": said}
    source = zoo_file(tmp_path / "r50.pkl", state, **more)

    ckptool.convert(source, tmp_path / "out.pkl")

    assert Checkpointer.load(tmp_path / "out.pkl")["matching_heuristics"] is kept


@pytest.mark.parametrize("author", ["\ud800", "a\nb", "", "x" * 1000, 7, None])
def test_an_author_that_is_no_name_is_not_taken_over(author: Any, tmp_path: Path) -> None:
    state: Arrays = small_heads(4)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": author}))

    ckptool.convert(path, tmp_path / "out.pkl")

    loaded = Checkpointer.load(tmp_path / "out.pkl")
    assert (loaded["__author__"], loaded["matching_heuristics"]) == ("ckptool", False)


def test_foreign_weights_are_matched_by_their_ends(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.ones(2, 3, 1, 1)}, tmp_path / "resnet.pth")

    ckptool.convert(tmp_path / "resnet.pth", tmp_path / "out.pkl")

    loaded = Checkpointer.load(tmp_path / "out.pkl")
    assert (loaded["__author__"], loaded["matching_heuristics"]) == ("ckptool", True)


def test_tied_arrays_are_one_array(tmp_path: Path) -> None:
    weight = torch.ones(2, 3)
    torch.save({"a": weight, "b": weight, "c": weight.clone()}, tmp_path / "a.pth")

    ckptool.convert(tmp_path / "a.pth", tmp_path / "b.pkl")

    found = Checkpointer.load(tmp_path / "b.pkl")["model"]
    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]


@pytest.mark.parametrize("step", [1, 7])
def test_a_cut_pickle_is_one_sentence(step: int, tmp_path: Path) -> None:
    """Whatever is missing of a written file, reading it says so, and nothing is executed."""
    source = zoo_file(tmp_path / "a.pkl", {"head.weight": numpy.ones((2, 2), "f4")})
    written = ckptool.convert(source, tmp_path / "b.pkl")
    data = Path(written.output).read_bytes()
    for end in range(0, len(data) - 1, 40 * step):
        (tmp_path / "cut.pkl").write_bytes(data[:end])
        with pytest.raises(CkptError) as caught:
            ckptool.read(tmp_path / "cut.pkl")
        assert "\n" not in caught.value.message


def test_an_array_shorter_than_its_shape_is_refused(tmp_path: Path) -> None:
    source = zoo_file(tmp_path / "a.pkl", {"head.weight": numpy.ones((2, 2), "f4")})
    ckptool.convert(source, tmp_path / "b.pkl")
    data = (tmp_path / "b.pkl").read_bytes()
    shape = b"J" + struct.pack("<i", 2)
    assert data.count(shape) == 2

    (tmp_path / "c.pkl").write_bytes(data.replace(shape, b"J" + struct.pack("<i", 1 << 20)))

    with pytest.raises(CkptError, match="an array of shape"):
        ckptool.read(tmp_path / "c.pkl")


def test_more_than_a_pickle_can_hold_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(()).expand(1 << 28)}, tmp_path / "a.pth")

    with pytest.raises(CkptError, match=r"too many for a pickle|out of all proportion"):
        ckptool.convert(tmp_path / "a.pth", tmp_path / "b.pkl")
    assert not (tmp_path / "b.pkl").exists()
