"""Darknet cfg texts for tests."""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.architectures import yolov4_cfgs
from ckptool.architectures.darknet_cfg import Section

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
HEAD = "[convolutional]\nfilters=7\nactivation=linear\n[yolo]\nmask=0\nanchors=4,4\nclasses=2\n"


def text_of(sections: Iterable[Section]) -> bytes:
    """Sections as the text of a cfg."""
    lines = []
    for section in sections:
        lines += [f"[{section.kind}]", *(f"{k}={v}" for k, v in section.options.items()), ""]
    return "\n".join(lines).encode()


def builtin(name: str) -> bytes:
    """The cfg text of a network that ckptool knows by name."""
    return text_of(yolov4_cfgs.sections(name))


def detector(layers: str, *, net: str = NET) -> bytes:
    """A cfg with some layers, and a detection of two classes behind them."""
    return (net + layers + HEAD).encode()
