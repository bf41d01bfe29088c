"""Bare pickles: Detectron2 and Caffe2 files, numpy arrays of every kind, streams of Python 2."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch

from ckptool.checkpoint import Refused
from ckptool.containers import left_aside
from ckptool.errors import CkptError, FormatError
from ckptool.reading import open_file, read

TYPES = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 c8 c16 ?".split()
PROTOCOLS = (0, 1, 2, 3, 4, 5)


def dumped(folder: Path, value: object, protocol: int = 4) -> Path:
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def arrays(kind: str) -> dict[str, numpy.ndarray[Any, Any]]:
    """An element type in every layout and byte order."""
    numbers = numpy.random.default_rng(3).integers(0, 100, (2, 3, 4))
    x = numbers.astype(kind)
    return {
        "c": x,
        "fortran": numpy.asfortranarray(x),
        "transposed": x.T,
        "slice": x[:, ::2, 1:],
        "reversed": x[::-1],
        "big-endian": x.astype(numpy.dtype(kind).newbyteorder(">")),
        "big-endian fortran": numpy.asfortranarray(x.astype(numpy.dtype(kind).newbyteorder(">"))),
        "0-d": numpy.array(x[0, 0, 0]),
        "empty": x[:, :0],
        "broadcast": numpy.broadcast_to(x[0], (3, 3, 4)),
        "large": numpy.resize(x, (70, 80)),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_array_is_what_numpy_unpickles(kind: str, protocol: int, tmp_path: Path) -> None:
    path = dumped(tmp_path, {"model": arrays(kind), "__author__": "someone"}, protocol)
    ckpt = read(path)
    assert ckpt.contents.format == "pickle"
    assert ckpt.weights.name == "model"
    wanted = pickle.loads(path.read_bytes())["model"]
    assert list(ckpt) == list(wanted)
    for key, x in wanted.items():
        little = numpy.ascontiguousarray(x).astype(x.dtype.newbyteorder("<")).reshape(x.shape)
        assert (ckpt[key].dtype, ckpt[key].shape) == (little.dtype.name, x.shape)
        assert ckpt[key].tobytes() == little.tobytes()
        assert b"".join(ckpt[key].chunks(7)) == little.tobytes()
        assert ckpt[key].numpy().tolist() == x.tolist()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_arrays_of_ml_dtypes(kind: str, protocol: int, tmp_path: Path) -> None:
    x = numpy.arange(6.0).reshape(2, 3).astype(getattr(ml_dtypes, kind))
    found = read(dumped(tmp_path, {"x": x, "t": x.T}, protocol))
    assert (found["x"].dtype, found["x"].tobytes()) == (kind, x.tobytes())
    assert found["t"].numpy().tolist() == x.T.tolist()


def test_a_detectron2_file(tmp_path: Path) -> None:
    model = {
        "backbone.fpn_lateral2.weight": numpy.ones((4, 4, 1, 1), "f4"),
        "roi_heads.box_predictor.cls_score.bias": numpy.zeros(81, "f4"),
        "pixel_mean": numpy.array([[[103.53]], [[116.28]], [[123.675]]]),
    }
    path = dumped(tmp_path, {"model": model, "__author__": "Detectron2 Model Zoo"})
    ckpt = read(path)
    assert list(ckpt) == list(model)
    assert ckpt["pixel_mean"].dtype == "float64"
    assert {item.code for item in ckpt.contents.findings} == {"no-checksums"}


def test_a_caffe2_file(tmp_path: Path) -> None:
    blobs = {
        "conv1_w": numpy.ones((2, 3), "f4"),
        "conv1_w_momentum": numpy.zeros((2, 3), "f4"),
        "weight_order": "ignored",
    }
    ckpt = read(dumped(tmp_path, {"blobs": blobs, "cfg": "MODEL:\n  TYPE: rcnn\n"}, 2))
    assert ckpt.weights.name == "blobs"
    assert list(ckpt) == ["conv1_w"]
    aside = left_aside(ckpt.contents.root, ckpt.weights, ckpt.nbytes)
    assert [item.name for item in aside] == ["cfg", "blobs.conv1_w_momentum", "blobs.weight_order"]


def test_arrays_that_hold_no_numbers_are_listed(tmp_path: Path) -> None:
    value = {
        "w": numpy.ones(2, "f4"),
        "v": numpy.ones(2, "f4"),
        "names": numpy.array(["a", "b"]),
        "objects": numpy.array([{}, None], dtype=object),
        "record": numpy.zeros(2, [("x", "f4"), ("y", "i4")]),
        "dates": numpy.array(["2026-11-22"], "M8[D]"),
    }
    ckpt = read(dumped(tmp_path, value))
    assert list(ckpt) == ["w", "v"]
    no_number = Refused("array", "its element type is not a number")
    assert dict(ckpt.weights.refused) == {
        "names": no_number,
        "objects": no_number,
        "record": no_number,
        "dates": no_number,
    }


def test_numpy_scalars_are_no_weights(tmp_path: Path) -> None:
    value = {"model": {"w": numpy.ones(2)}, "best": numpy.float32(0.5), "epoch": numpy.int64(3)}
    assert list(read(dumped(tmp_path, value))) == ["w"]


def test_a_shared_array_is_an_alias(tmp_path: Path) -> None:
    x = numpy.arange(9_000, dtype="f4")
    for protocol in (2, 3, 5):
        assert read(dumped(tmp_path, {"a": x, "b": x, "c": x[1:]}, protocol)).aliases == (
            ("a", "b"),
        )


def test_large_arrays_stay_in_the_file(tmp_path: Path) -> None:
    x = numpy.arange(50_000, dtype="f4")
    path = dumped(tmp_path, {"a": x, "b": x[::-1].copy()}, 5)
    extent = read(path)["a"].extent()
    assert extent is not None
    assert path.read_bytes()[extent.offset : extent.offset + extent.nbytes] == x.tobytes()


def test_bytes_behind_the_end_are_mentioned(tmp_path: Path) -> None:
    path = dumped(tmp_path, {"w": numpy.ones(2)})
    with path.open("ab") as stream:
        stream.write(b"123")
    findings = {item.code: item.message for item in open_file(path).contents.findings}
    assert findings["trailing-bytes"] == "3 bytes behind the pickle's end belong to nothing"


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    for protocol in PROTOCOLS:
        path = dumped(tmp_path, {"w": numpy.arange(3.0), "t": torch.ones(2)}, protocol)
        data = path.read_bytes()
        for size in range(0, len(data), 3):
            path.write_bytes(data[:size])
            with pytest.raises(CkptError):
                read(path)


def test_cut_short_says_so(tmp_path: Path) -> None:
    path = dumped(tmp_path, {"w": numpy.arange(30_000.0)})
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.code == "pickle.truncated"


# What Python 2 wrote, opcode by opcode: byte strings for text, old names, persistent ids as bytes.


def short(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2_array(values: list[float]) -> bytes:
    """`cPickle.dumps(numpy.array(values, 'f4'), 2)`, without the PROTO and STOP around it."""
    data = struct.pack(f"<{len(values)}f", *values)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
        b"(K\x01K" + bytes([len(values)]) + b"\x85"
        b"cnumpy\ndtype\n" + short(b"f4") + b"K\x00K\x01\x87R"
        b"(K\x03" + short(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + short(data) + b"tb"
    )


def test_a_caffe2_file_of_python_2(tmp_path: Path) -> None:
    """Judged by `pickle.load(encoding="latin1")`, which is how Detectron2 reads it."""
    data = (
        b"\x80\x02}"
        + short(b"blobs")
        + b"}("
        + short(b"conv1_w")
        + python2_array([1.5, -2])
        + short(b"conv1_b")
        + python2_array([3])
        + b"us."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(data)
    wanted = pickle.loads(data, encoding="latin1")["blobs"]
    ckpt = read(path)
    assert ckpt.weights.name == "blobs"
    assert {key: x.numpy().tolist() for key, x in ckpt.items()} == {
        key: x.tolist() for key, x in wanted.items()
    }


def test_an_ordered_dict_of_python_2_is_a_call_with_pairs(tmp_path: Path) -> None:
    data = (
        b"\x80\x02ccollections\nOrderedDict\n](]("
        + short(b"b")
        + python2_array([1])
        + b"e]("
        + short(b"a")
        + python2_array([2])
        + b"ee\x85R."
    )
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    assert list(pickle.loads(data, encoding="latin1")) == ["b", "a"]
    assert [(key, x.numpy().tolist()) for key, x in read(path).items()] == [("b", [1]), ("a", [2])]


def test_a_torch_file_of_python_2(tmp_path: Path) -> None:
    """The legacy stream with byte strings in its persistent ids, judged by torch.load."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = (
        b"\x80\x02}("
        + short(b"protocol_version")
        + b"M\xe9\x03"
        + short(b"little_endian")
        + b"\x88u."
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + short(b"storage")
        + b"ctorch\nFloatStorage\n"
        + short(b"94")
        + short(b"cpu")
        + b"K\x03NtQ"
        b"K\x01K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n]\x85RtR"
    )
    body = b"\x80\x02}" + short(b"conv.weight") + tensor + b"s."
    keys = b"\x80\x02]" + short(b"94") + b"a."
    path = tmp_path / "x.pth"
    path.write_bytes(magic + system + body + keys + struct.pack("<q3f", 3, 1, 2, 3))
    wanted = torch.load(path, weights_only=False, encoding="latin1")
    ckpt = read(path)
    assert ckpt.contents.format == "torch-legacy"
    assert {key: x.numpy().tolist() for key, x in ckpt.items()} == {
        key: x.tolist() for key, x in wanted.items()
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_that_are_no_text_cannot_pass_for_text(protocol: int, tmp_path: Path) -> None:
    value = OrderedDict([(0, numpy.ones(1)), ("0", numpy.ones(2)), (("a", 1), numpy.ones(3))])
    assert [(key, x.shape) for key, x in read(dumped(tmp_path, value, protocol)).items()] == [
        ("int:0", (1,)),
        ("0", (2,)),
        ("tuple#2", (3,)),
    ]
