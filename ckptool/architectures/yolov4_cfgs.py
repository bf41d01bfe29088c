"""The YOLOv4 networks of AlexeyAB/darknet, described block by block.

Each function writes the sections of a cfg, layer by layer in darknet's order: the order decides
where a layer's floats lie in a `.weights` file. Methods of `_Cfg` return the index of their layer.

Source: AlexeyAB/darknet `cfg/yolov4*.cfg` (layer order, widths, routes, anchors, image sizes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptool.architectures.darknet_cfg import Section

# Three scales of three, in pixels at 512 to 640; tiny has its own at 416.
_ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"
_ANCHORS_TINY = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
_ANCHORS_P5 = (
    "13,17, 31,25, 24,51, 61,45, 48,102, 119,96, 97,189, 217,184, 171,384, 324,451, 616,618, "
    "800,800"
)
_ANCHORS_P6 = (
    "13,17, 31,25, 24,51, 61,45, 61,45, 48,102, 119,96, 97,189, 97,189, 217,184, 171,384, "
    "324,451, 324,451, 545,357, 616,618, 1024,1024"
)
_CLASSES = 80


class _Cfg:
    """The sections of a network that is being written down."""

    def __init__(self, side: int, activation: str, anchors: str, per_head: int = 3) -> None:
        options = {"width": str(side), "height": str(side), "channels": "3"}
        self.sections = [Section("net", options, -1)]
        self.activation = activation
        self.anchors = anchors
        self.per_head = per_head

    @property
    def last(self) -> int:
        """The index of the layer added last."""
        return self.sections[-1].layer

    def add(self, kind: str, **options: object) -> int:
        """Add a layer."""
        texts = {name: str(value) for name, value in options.items()}
        self.sections.append(Section(kind, texts, self.last + 1))
        return self.last

    def conv(self, filters: int, size: int = 1, stride: int = 1) -> int:
        """A convolution with batch norm and the network's activation."""
        return self.add(
            "convolutional",
            batch_normalize=1,
            filters=filters,
            size=size,
            stride=stride,
            pad=1,
            activation=self.activation,
        )

    def route(self, *layers: int, **options: int) -> int:
        """The maps of layers, one behind the other."""
        return self.add("route", layers=",".join(map(str, layers)), **options)

    def residual(self, width: int, inner: int, depth: int) -> None:
        """`depth` times: 1×1, 3×3, add."""
        for _ in range(depth):
            self.conv(inner)
            self.conv(width, 3)
            self.add("shortcut", **{"from": -3}, activation="linear")

    def bottlenecks(self, narrow: int, wide: int, depth: int) -> None:
        """`depth` times: 1×1, 3×3, without a sum."""
        for _ in range(depth):
            self.conv(narrow)
            self.conv(wide, 3)

    def pool_pyramid(self) -> None:
        """The map behind its maxima over 13, 9 and 5 cells."""
        start = self.last
        pools = [self.add("maxpool", size=5, stride=1)]
        for size in (9, 13):
            self.route(start)
            pools.append(self.add("maxpool", size=size, stride=1))
        self.route(*reversed(pools), start)

    def csp_stage(self, width: int, depth: int, half: int, inner: int) -> int:
        """Halve the map; split; residuals on one side, nothing on the other; join."""
        start = self.conv(width, 3, 2)
        bypass = self.conv(half)
        self.route(start)
        self.conv(half)
        self.residual(half, inner, depth)
        self.route(self.conv(half), bypass)
        return self.conv(width)

    def csp_block(self, width: int, depth: int) -> int:
        """Split; bottlenecks on one side, nothing on the other; join."""
        start = self.conv(width)
        bypass = self.conv(width)
        self.route(start)
        self.bottlenecks(width, width, depth)
        self.route(self.last, bypass)
        return self.conv(width)

    def up(self, width: int, side: int) -> None:
        """Double the map and put it behind the map of layer `side`, both at `width`."""
        self.conv(width)
        doubled = self.add("upsample", stride=2)
        self.route(side)
        self.route(self.conv(width), doubled)

    def down(self, width: int, side: int) -> None:
        """Halve the map and put the map of layer `side` behind it."""
        self.route(self.conv(width, 3, 2), side)

    def head(self, first: int, scale_x_y: float, *, new_coords: bool = False) -> int:
        """The last 1×1 and the detection layer, with anchors from `first` on."""
        mask = range(first, first + self.per_head)
        self.add(
            "convolutional",
            filters=self.per_head * (5 + _CLASSES),
            activation="logistic" if new_coords else "linear",
        )
        return self.add(
            "yolo",
            mask=",".join(map(str, mask)),
            anchors=self.anchors,
            classes=_CLASSES,
            scale_x_y=scale_x_y,
            new_coords=int(new_coords),
        )


def _yolov4(scales: tuple[float, float, float], *, new_coords: bool = False) -> _Cfg:
    cfg = _Cfg(608, "mish", _ANCHORS)
    cfg.conv(32, 3)
    cfg.csp_stage(64, 1, half=64, inner=32)
    _, third, fourth, _ = (
        cfg.csp_stage(width, depth, width // 2, width // 2) for width, depth in _STAGES
    )
    cfg.activation = "leaky"
    cfg.bottlenecks(512, 1024, 1)
    cfg.conv(512)
    cfg.pool_pyramid()
    cfg.bottlenecks(512, 1024, 1)
    top = cfg.conv(512)
    cfg.up(256, fourth)
    cfg.bottlenecks(256, 512, 2)
    middle = cfg.conv(256)
    cfg.up(128, third)
    cfg.bottlenecks(128, 256, 2)
    cfg.conv(128)
    cfg.conv(256, 3)
    cfg.head(0, scales[0], new_coords=new_coords)
    for width, side, first in ((256, middle, 3), (512, top, 6)):
        # Back to the map before the head: its 3×3, its 1×1 and the detection lie between.
        cfg.route(cfg.last - 3)
        cfg.down(width, side)
        cfg.bottlenecks(width, 2 * width, 2)
        cfg.conv(width)
        cfg.conv(2 * width, 3)
        cfg.head(first, scales[first // 3], new_coords=new_coords)
    return cfg


def _scaled(
    cfg: _Cfg,
    stem: tuple[int, int],
    stages: Sequence[tuple[int, int]],
    depth: int,
    *,
    split_stem: bool = False,
    before: int = 1,
    after: int = 1,
    heads_between: bool = False,
) -> _Cfg:
    """A network of the Scaled-YOLOv4 family, with CSP blocks in the neck too.

    `stem` is (width, inner width) of the first stage, which `split_stem` makes a CSP stage;
    `stages` are (width, depth) of the others. `depth` is that of the neck's blocks, `before` and
    `after` that of the bottlenecks around the pooling. The detection layers stand at the end, or
    between the blocks.
    """
    cfg.conv(32, 3)
    if split_stem:
        cfg.csp_stage(stem[0], 1, half=stem[1], inner=stem[1])
    else:
        cfg.conv(stem[0], 3, 2)
        cfg.residual(*stem, 1)
    sides = [cfg.csp_stage(width, deep, width // 2, width // 2) for width, deep in stages][1:]
    widths = [width // 2 for width, _ in stages[1:]]

    top = sides.pop()
    bypass = cfg.conv(widths[-1])
    cfg.route(top)
    cfg.bottlenecks(widths[-1], widths[-1], before)
    cfg.conv(widths[-1])
    cfg.pool_pyramid()
    cfg.bottlenecks(widths[-1], widths[-1], after)
    cfg.route(cfg.last, bypass)
    maps = [cfg.conv(widths[-1])]
    for width, side in zip(widths[-2::-1], reversed(sides), strict=True):
        cfg.up(width, side)
        maps.append(cfg.csp_block(width, depth))

    ends = []
    for level, width in enumerate(widths):
        side = maps.pop()
        if level:
            cfg.down(width, side)
            side = cfg.csp_block(width, depth)
        ends.append(side)
        if heads_between:
            cfg.conv(2 * width, 3)
            cfg.head(level * cfg.per_head, 2.0, new_coords=True)
            if level + 1 < len(widths):
                cfg.route(side)
    if not heads_between:
        for level, (width, end) in enumerate(zip(widths, ends, strict=True)):
            cfg.route(end)
            cfg.conv(2 * width, 3)
            cfg.head(level * cfg.per_head, 2.0, new_coords=True)
    return cfg


def _tiny(side: int, anchors: str, heads: Sequence[int]) -> _Cfg:
    """`heads` are the first anchors of the detection layers, coarsest map first."""
    cfg = _Cfg(side, "leaky", anchors)
    cfg.conv(32, 3, 2)
    cfg.conv(64, 3, 2)
    joins = []
    for width in (64, 128, 256):
        start = cfg.conv(width, 3)
        cfg.route(start, groups=2, group_id=1)
        first = cfg.conv(width // 2, 3)
        cfg.route(cfg.conv(width // 2, 3), first)
        joins.append(cfg.conv(width))
        cfg.route(start, joins[-1])
        cfg.add("maxpool", size=2, stride=2)
    cfg.conv(512, 3)
    end = cfg.conv(256)
    cfg.conv(512, 3)
    cfg.head(heads[0], 1.05)
    for width, first in zip((128, 64), heads[1:], strict=False):
        cfg.route(end)
        cfg.conv(width)
        cfg.route(cfg.add("upsample", stride=2), joins.pop())
        end = cfg.conv(2 * width, 3)
        cfg.head(first, 1.05)
    return cfg


_STAGES = ((128, 2), (256, 8), (512, 8), (1024, 4))
_STAGES_S = ((64, 1), (128, 1), (256, 1), (512, 1))
_STAGES_X = ((160, 3), (320, 10), (640, 10), (1280, 5))
_STAGES_P5 = ((128, 3), (256, 15), (512, 15), (1024, 7))
_STAGES_P6 = (*_STAGES_P5, (1024, 7))

_NETWORKS: Mapping[str, Callable[[], _Cfg]] = {
    "yolov4": lambda: _yolov4((1.2, 1.1, 1.05)),
    "yolov4_new": lambda: _yolov4((2.0, 2.0, 2.0), new_coords=True),
    "yolov4-tiny": lambda: _tiny(416, _ANCHORS_TINY, (3, 1)),
    "yolov4-tiny-3l": lambda: _tiny(608, _ANCHORS, (6, 3, 0)),
    "yolov4-csp": lambda: _scaled(
        _Cfg(512, "mish", _ANCHORS), (64, 32), _STAGES, 2, heads_between=True
    ),
    "yolov4-csp-swish": lambda: _scaled(_Cfg(640, "swish", _ANCHORS), (64, 32), _STAGES, 2),
    "yolov4-csp-s-mish": lambda: _scaled(
        _Cfg(640, "mish", _ANCHORS), (32, 32), _STAGES_S, 1, before=0
    ),
    "yolov4-csp-x-mish": lambda: _scaled(
        _Cfg(640, "mish", _ANCHORS), (80, 40), _STAGES_X, 3, after=2
    ),
    "yolov4x-mish": lambda: _scaled(
        _Cfg(640, "mish", _ANCHORS), (80, 40), _STAGES_X, 3, after=2, heads_between=True
    ),
    "yolov4-p5": lambda: _scaled(
        _Cfg(896, "mish", _ANCHORS_P5, per_head=4), (64, 32), _STAGES_P5, 3, split_stem=True
    ),
    "yolov4-p6": lambda: _scaled(
        _Cfg(1280, "mish", _ANCHORS_P6, per_head=4), (64, 32), _STAGES_P6, 3, split_stem=True
    ),
}

NAMES = tuple(_NETWORKS)


def sections(name: str) -> list[Section]:
    """The cfg of a network in `NAMES`, with 80 classes."""
    return _NETWORKS[name]().sections
