"""Reading cfg texts: what they mean, and one sentence for each thing that is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from cfgs_made import HEAD, NET, builtin, detector
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptool.architectures.darknet_cfg import read_sections
from ckptool.architectures.darknet_keys import darknet_spelling
from ckptool.architectures.darknet_layers import Network, network
from ckptool.architectures.darknet_net import DarknetNet
from ckptool.errors import ArchitectureError


def read(text: bytes) -> Network:
    return network(read_sections(text))


def test_blanks_comments_case_of_options_and_line_ends() -> None:
    """Blanks around `=`, comments, Windows line ends, a byte order mark, aliases of sections."""
    text = (
        "\ufeff# a comment\r\n[network]\r\n width = 32 # wide\r\nheight=32\r\nchannels=3\r\n"
        "; another\r\n[conv]\r\nfilters = 8\r\nsize=3\r\npad=1\r\nbatch_normalize=1\r\n"
        "activation= mish\r\n[max]\r\nsize=2\r\nstride=2\r\n"
    ) + HEAD
    net = read(text.encode())
    assert [layer.kind for layer in net.layers] == ["convolutional", "maxpool", *_HEAD_KINDS]
    assert net.layers[0].activation == "mish"
    assert [layer.shape for layer in net.layers] == [(8, 32, 32), (8, 16, 16), *[(7, 16, 16)] * 2]


def test_first_of_two_options_counts() -> None:
    """As in darknet, whose lookup ends at the first option of a name."""
    net = read(NET.encode() + b"width=64\n" + HEAD.encode())
    assert net.shape == (3, 32, 32)


def test_defaults_are_those_of_darknet() -> None:
    """A convolution: one filter, 1×1, no pad, logistic; a pool: stride 1, size = stride."""
    net = read(detector("[convolutional]\n[maxpool]\nstride=2\n[maxpool]\n[route]\nlayers=0\n"))
    first, pool, still, route, *_ = net.layers
    assert (first.shape, first.activation, first.normalized) == ((1, 32, 32), "logistic", False)
    assert (pool.size, pool.padding, pool.shape) == (2, 1, (1, 16, 16))
    assert still.shape == (1, 16, 16)
    assert route.inputs == (0,)


def test_layers_are_named_from_the_front_or_back() -> None:
    layers = "[convolutional]\nfilters=4\n" * 3 + "[route]\nlayers=-1, 0\n[shortcut]\nfrom=-1\n"
    net = read(detector(layers))
    assert net.layers[3].inputs == (2, 0)
    assert net.layers[3].shape == (8, 32, 32)
    assert net.layers[4].inputs == (3, 3)


def test_groups_of_a_route_cut_every_map() -> None:
    layers = "[convolutional]\nfilters=8\n[route]\nlayers=-1\ngroups=4\ngroup_id=3\n"
    layer = read(detector(layers)).layers[1]
    assert (layer.shape, layer.groups, layer.group_id) == ((2, 32, 32), 4, 3)


def test_every_layer_has_its_shape() -> None:
    layers = (
        "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\n[local_avgpool]\nsize=3\nstride=2\n"
        "[upsample]\nstride=2\n[reorg]\nstride=2\n[reorg3d]\nstride=2\n[dropout]\n[avgpool]\n"
        "[scale_channels]\nfrom=-2\n[sam]\nfrom=-3\n[convolutional]\nfilters=4\ngroups=4\nsize=2\n"
    )
    assert [layer.shape for layer in read(detector(layers)).layers[:-2]] == [
        *[(8, 16, 16), (8, 8, 8), (8, 16, 16), (32, 8, 8), (128, 4, 4), (128, 4, 4), (128, 1, 1)],
        *[(128, 4, 4), (128, 4, 4), (4, 3, 3)],
    ]
    assert read(detector(layers)).layers[9].kernel == (4, 32, 2, 2)


def test_region_of_yolov2_has_anchors_in_cells() -> None:
    text = (
        NET + "[convolutional]\nfilters=14\nsize=8\nstride=8\n[region]\nnum=2\nclasses=2\n"
        "anchors=1,2, 0.5,1.5\nsoftmax=1\n"
    )
    (head,) = read(text.encode()).heads
    assert (head.kind, head.stride, head.softmax) == ("region", 8, True)
    assert head.anchors == ((8.0, 16.0), (4.0, 12.0))


def test_another_class_count_changes_heads_only() -> None:
    """All other layers stay as they are; the read network is not touched."""
    net = read(builtin("yolov4-tiny"))
    other = net.with_classes(7)
    changed = [i for i, (a, b) in enumerate(zip(net.layers, other.layers, strict=True)) if a != b]
    assert changed == [29, 30, 36, 37]
    assert [other.layers[index].shape[0] for index in (29, 36)] == [36, 36]
    assert (net.num_classes, other.num_classes) == (80, 7)


@pytest.mark.parametrize("count", [0, -3, 1_000_000_000])
def test_class_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ArchitectureError) as caught:
        read(builtin("yolov4-tiny")).with_classes(count)
    assert caught.value.message == f"found {count:,} classes, wanted 1 to 21,840"


CONV = "[convolutional]\nfilters=4\n"
REFUSED: list[tuple[str, bytes, str, str | None]] = [
    ("empty", b"", "the first section is nothing, wanted `[net]`", None),
    ("no net", b"[yolo]\n", "the first section is `[yolo]`, wanted `[net]`", None),
    ("option first", b"\nwidth=3\n", "line 2: found `width=3`, wanted `[net]`", None),
    (
        "not an option",
        NET.encode() + b"hello\n",
        "line 5: found `hello`, wanted `option=value`",
        None,
    ),
    ("no width", b"[net]\nheight=8\n", "line 1: `[net]` has no `width`", None),
    (
        "width 0",
        b"[net]\nheight=8\nwidth=0\n",
        "line 1: `[net]` has `width=0`, wanted 1 to 16,384",
        None,
    ),
    (
        "unknown layer",
        detector("[gru]\n"),
        "line 5: layer 0 is `[gru]`, which ckptool does not know",
        "it knows `convolutional`, `maxpool`, `avgpool`, `local_avgpool`, `upsample`, `reorg`, "
        "`reorg3d`, `dropout`, `route`, `shortcut`, `sam`, `scale_channels`, `yolo`, `region`",
    ),
    (
        "odd name",
        detector("[\x1b[31m]\n"),
        "line 5: layer 0 is `[\\x1b[31m]`, which ckptool does not know",
        None,
    ),
    (
        "not a number",
        detector("[convolutional]\nfilters=1e9\n"),
        "line 5: `[convolutional]` (layer 0) has `1e9` in `filters`, wanted a whole number",
        None,
    ),
    (
        "1e9 filters",
        detector("[convolutional]\nfilters=1000000000\n"),
        "line 5: `[convolutional]` (layer 0) has `filters=1,000,000,000`, wanted 1 to 65,536",
        None,
    ),
    (
        "endless digits",
        detector("[convolutional]\nfilters=" + "9" * 5000 + "\n"),
        "line 5: `[convolutional]` (layer 0) has `" + "9" * 39 + "…` in `filters`, "
        "wanted a whole number",
        None,
    ),
    (
        "unknown activation",
        detector("[convolutional]\nactivation=hardtan\n"),
        "line 5: `[convolutional]` (layer 0) has an unknown activation, `hardtan`",
        "known are `linear`, `leaky`, `mish`, `swish`, `logistic`, `relu`, `relu6`, `tanh`, `elu`",
    ),
    (
        "other function",
        detector("[convolutional]\nxnor=1\n"),
        "line 5: `[convolutional]` (layer 0) has `xnor`, which ckptool does not support",
        None,
    ),
    (
        "shared weights",
        detector(CONV + "[convolutional]\nshare_index=0\n"),
        "line 7: `[convolutional]` (layer 1) has `share_index`, which ckptool does not support",
        None,
    ),
    (
        "dilation",
        detector("[convolutional]\nsize=3\ndilation=2\n"),
        "line 5: `[convolutional]` (layer 0) has `dilation=2`, wanted 1",
        None,
    ),
    (
        "groups",
        detector("[convolutional]\ngroups=2\n"),
        "line 5: `[convolutional]` (layer 0) cannot cut 3 channels into 2 groups",
        None,
    ),
    (
        "kernel too large",
        detector("[convolutional]\nsize=40\n"),
        "line 5: `[convolutional]` (layer 0) gives a map of 1 × -7 × -7",
        None,
    ),
    (
        "map too large",
        detector("[upsample]\nstride=255\n" * 3),
        "line 7: `[upsample]` (layer 1) gives a map of 3 × 2,080,800 × 2,080,800: too large",
        None,
    ),
    (
        "too many weights",
        detector("[convolutional]\nfilters=65536\nsize=3\n" * 3),
        "line 8: `[convolutional]` (layer 1) brings the network to 38,656,475,136 weights: "
        "too many",
        None,
    ),
    (
        "a loop",
        detector(CONV + "[route]\nlayers=1\n"),
        "line 7: `[route]` (layer 1) reads layer 1: there is none before it",
        None,
    ),
    (
        "from the future",
        detector(CONV + "[shortcut]\nfrom=9\n"),
        "line 7: `[shortcut]` (layer 1) reads layer 9: there is none before it",
        None,
    ),
    (
        "from before the start",
        detector(CONV + "[route]\nlayers=-1,-3\n"),
        "line 7: `[route]` (layer 1) reads layer -3: there is none before it",
        None,
    ),
    (
        "nothing to route",
        detector("[route]\n"),
        "line 5: `[route]` (layer 0) has no `layers`",
        None,
    ),
    (
        "sizes differ",
        detector(CONV + "[maxpool]\nstride=2\n[route]\nlayers=-1,0\n"),
        "line 9: `[route]` (layer 2) joins maps of 4 × 16 × 16 and 4 × 32 × 32",
        None,
    ),
    (
        "odd groups",
        detector("[convolutional]\nfilters=5\n[route]\nlayers=0\ngroups=2\n"),
        "line 7: `[route]` (layer 1) cannot cut 5 channels into 2 groups",
        None,
    ),
    (
        "group too high",
        detector(CONV + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n"),
        "line 7: `[route]` (layer 1) has `group_id=2`, wanted 0 to 1",
        None,
    ),
    (
        "sums of unlike maps",
        detector(CONV + "[maxpool]\nstride=2\n[shortcut]\nfrom=0\n"),
        "line 9: `[shortcut]` (layer 2) adds maps of 4 × 16 × 16 and 4 × 32 × 32",
        None,
    ),
    (
        "weighted sums",
        detector(CONV + CONV + "[shortcut]\nfrom=0\nweights_type=per_feature\n"),
        "line 9: `[shortcut]` (layer 2) has `weights_type`, which ckptool does not support",
        None,
    ),
    (
        "gate",
        detector(CONV + "[scale_channels]\nfrom=0\n"),
        "line 7: `[scale_channels]` (layer 1) multiplies a map of 4 × 32 × 32 by one of "
        "4 × 32 × 32, wanted 4 × 1 × 1",
        None,
    ),
    (
        "reorg",
        detector("[reorg]\nstride=2\n"),
        "line 5: `[reorg]` (layer 0) cannot cut a map of 3 × 32 × 32 by 2",
        None,
    ),
    (
        "filters and classes",
        (NET + HEAD.replace("filters=7", "filters=255")).encode(),
        "line 8: `[yolo]` (layer 1) wants 1 · (5 + 2) = 7 channels; layer 0 gives 255",
        "set `filters=7` in the `[convolutional]` before it",
    ),
    (
        "no such anchor",
        (NET + HEAD.replace("mask=0", "mask=6,7,8")).encode(),
        "line 8: `[yolo]` (layer 1) wants anchor 6; `anchors` has 1",
        None,
    ),
    (
        "odd anchors",
        (NET + HEAD.replace("4,4", "4,nan")).encode(),
        "line 8: `[yolo]` (layer 1) has `nan` in `anchors`, wanted a number",
        None,
    ),
    (
        "detection of nothing",
        (NET + "[yolo]\nmask=0\nanchors=1,1\n").encode(),
        "line 5: `[yolo]` (layer 0) does not follow a `[convolutional]`",
        None,
    ),
    (
        "after the end",
        detector("") + CONV.encode(),
        "line 12: `[convolutional]` (layer 2) reads layer 1, where a detection ends",
        None,
    ),
    (
        "before the end",
        detector("") + b"[route]\nlayers=0\n",
        "line 12: `[route]` (layer 2) reads layer 0, where a detection ends",
        None,
    ),
    (
        "unequal class counts",
        detector(CONV)
        + b"[route]\nlayers=0\n"
        + HEAD.replace("=2", "=3").replace("=7", "=8").encode(),
        "the detection layers disagree about the class count: 2, 3",
        "give each the same `classes=`",
    ),
    (
        "no detection",
        (NET + CONV).encode(),
        "found no `[yolo]` or `[region]`: this is not a detection network",
        None,
    ),
    (
        "zero byte",
        NET.encode() + b"\0" + HEAD.encode(),
        "found a zero byte at byte 36: this is not a cfg text",
        None,
    ),
    (
        "too many layers",
        detector("[dropout]\n" * 1999),
        "2,001 layers are too many: at most 2,000",
        None,
    ),
    (
        "too long",
        NET.encode() + b"#" * (1 << 20),
        "1,048,612 bytes are too many for a cfg: at most 1,048,576",
        None,
    ),
]


@pytest.mark.parametrize(("name", "text", "message", "hint"), REFUSED, ids=[x[0] for x in REFUSED])
def test_what_is_wrong_is_said_in_one_sentence(
    name: str, text: bytes, message: str, hint: str | None
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        read(text)
    assert caught.value.message == message
    if hint is not None:
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    "text",
    [
        detector("[convolutional]\nfilters=4\n" + "[route]\nlayers=-1,-1\n" * 1990),
        detector("[route]\nlayers=" + "-1," * 340_000 + "-1\n"),
        detector("[convolutional]\nfilters=3\n" + "[shortcut]\nfrom=-2\n" * 1990),
        detector("[dropout]\n" + "a=1\n" * 250_000),
        detector("[" * 1_000_000 + "\n"),
        (NET + HEAD.replace("4,4", "4,4" + ",1e1" * 200_000)).encode(),
        b"\xff\xfe" * 500_000,
    ],
    ids=["doubling", "one long route", "deep chain", "options", "brackets", "anchors", "utf-16"],
)
def test_large_texts_are_answered_quickly(text: bytes) -> None:
    """A megabyte that is meant to be slow takes no more than two seconds."""
    start = time.process_time()
    try:
        net = read(text)
    except ArchitectureError as error:
        assert len(error.message) < 400
    else:
        assert len(net.layers) <= 2_000
    assert time.process_time() - start < 2


_PIECES = ["[", "]", "=", ",", "-", "#", "\n", "\0", "-1", "[route]", "[yolo]", "1e9", "é"]
_VALUES = ["", "0", "1", "2", "3", "7", "-1", "-2,-1", "0,1", "65536", "9" * 30, "mish", "1.5"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_texts_are_read_or_refused(data: st.DataObject, count: Callable[..., None]) -> None:
    """Pieces cut out of a real cfg, or put in: an ArchitectureError is all that may come."""
    text = bytearray(builtin("yolov4-tiny"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 40))
        text[at : at + length] = data.draw(st.sampled_from(_PIECES)).encode()
    try:
        read(bytes(text))
    except ArchitectureError as error:
        assert error.code in ("cfg", "cfg.layer")
    count("damaged darknet cfgs", 1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_read_computes_maps_of_the_shapes_it_says(
    data: st.DataObject, count: Callable[..., None]
) -> None:
    """Options of a cfg with every layer get other values: refused, or the live module agrees."""
    sections = read_sections(EVERY_LAYER)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sections) - 1))
        name = data.draw(st.sampled_from(sorted({*sections[at].options, "stride", "padding"})))
        sections[at] = sections[at].with_option(name, data.draw(st.sampled_from(_VALUES)))
    try:
        net = network(sections)
    except ArchitectureError as error:
        assert error.code in ("cfg", "cfg.layer")
        count("darknet cfgs refused", 1)
        return
    with torch.device("meta"):
        live = DarknetNet(net, darknet_spelling(net.layers))
        maps = live(torch.empty(1, *net.shape))
    ends = [layer.shape for layer in net.layers if layer.head]
    assert [tuple(found.shape[1:]) for found in maps] == ends
    count("darknet cfgs built", 1)


EVERY_LAYER = detector(
    "[convolutional]\nfilters=8\nsize=3\nstride=1\npad=1\nbatch_normalize=1\nactivation=mish\n"
    "[maxpool]\nsize=2\nstride=2\n[local_avgpool]\nsize=3\nstride=1\n"
    "[upsample]\nstride=2\n[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n"
    "[shortcut]\nfrom=0\nactivation=leaky\n[reorg]\nstride=2\n[reorg3d]\nstride=2\n"
    "[dropout]\nprobability=.5\n[avgpool]\n[scale_channels]\nfrom=-2\nscale_wh=0\n"
    "[sam]\nfrom=-1\n[convolutional]\nfilters=8\nsize=3\ngroups=4\nactivation=relu\n"
)
_HEAD_KINDS = ("convolutional", "yolo")
