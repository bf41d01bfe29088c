"""How the implementations of an architecture spell its keys: every dialect by its name.

One module per implementation, each with its DIALECTS; MODULES is the list. Other packages add
theirs by an entry point of the group `ckptool.dialects`: an object that is a `Dialect`, or a module
with DIALECTS.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture
from ckptool.dialects.links import Link, Place, canonical_specs, links
from ckptool.dialects.spec import Dialect
from ckptool.dialects.yolo import same_layers, same_network
from ckptool.errors import PlanError, listed, quoted
from ckptool.tensors import TensorSpec

GROUP = "ckptool.dialects"
# The modules by the family of architectures that they spell; its own spellings come first.
MODULES = {
    "effdet": ("effdet", "zylo117", "mmdet", "automl"),
    "yolov4": (
        *("tianxiaomo", "darknet", "wongkinyiu", "bubbliiiing", "argusswift"),
        *("timm", "u5"),
    ),
}
_FAMILY = {"darknet": "yolov4"}


def built_in(family: str | None = None) -> Iterator[Dialect]:
    """The dialects of this package that are of a family of architectures, or all."""
    chosen = MODULES if family is None else (_FAMILY.get(family, family),)
    for each in chosen:
        for name in MODULES.get(each, ()):
            found: tuple[Dialect, ...] = import_module(f"ckptool.dialects.{name}").DIALECTS
            yield from found


@cache
def added() -> tuple[Dialect, ...]:
    """The dialects of other packages.

    Raises: PlanError for an entry point that does not load.
    """
    from importlib.metadata import entry_points

    found: list[Dialect] = []
    for point in entry_points(group=GROUP):
        try:
            value = point.load()
            found += (value,) if isinstance(value, Dialect) else value.DIALECTS
        except Exception as error:
            raise PlanError(
                f"the dialect {quoted(point.name)} does not load: {type(error).__name__}: {error}",
                code="dialect.plugin",
            ) from None
    return tuple(found)


def dialects_of(architecture: Architecture) -> tuple[Dialect, ...]:
    """The dialects that spell an architecture."""
    return tuple(d for d in _known(architecture.family) if spells(d, architecture))


def named(family: str, name: str) -> tuple[str, ...]:
    """The names of the dialects that spell a built-in architecture."""
    known = (dialect for dialect in _known(family) if family in dialect.families)
    return tuple(d.name for d in known if any(fnmatchcase(name, glob) for glob in d.archs))


def find(name: str, architecture: Architecture) -> Dialect:
    """The dialect of a name or another name of it, in upper or lower case.

    Raises: PlanError if the architecture is not spelled so.
    """
    wanted = name.lower()
    for named in (_is_called, _is_also_called):
        for dialect in _known(architecture.family):
            if named(dialect, wanted) and spells(dialect, architecture):
                return dialect
    names = [dialect.name for dialect in dialects_of(architecture)]
    raise PlanError(
        f"{quoted(architecture.name)} is not spelled in a dialect {quoted(name)}; it is in "
        f"{listed(names, 20) or 'none that ckptool knows'}",
        code="dialect.unknown",
    )


def spells(dialect: Dialect, architecture: Architecture) -> bool:
    """Whether an architecture is spelled in a dialect."""
    if architecture.family not in dialect.families:
        return False
    name = architecture.name
    if any(fnmatchcase(name, glob) for glob in dialect.archs):
        return True
    # A cfg that describes a built-in network is spelled as that is.
    known = same_network(architecture) if "darknet" in dialect.families else name
    return known != name and any(fnmatchcase(known, glob) for glob in dialect.archs)


def native(architecture: Architecture) -> Dialect | None:
    """The dialect that an architecture's own keys are in, None if it has none."""
    if architecture.dialect is not None:
        return find(architecture.dialect, architecture)
    return next((d for d in _known(architecture.family) if _is_in(d, architecture)), None)


def bn_eps(dialect: Dialect, architecture: Architecture) -> float | None:
    """The eps of a dialect's BatchNorms, as far as it is known."""
    own = architecture.card.get("bn_eps")
    return dialect.bn_eps or (own if isinstance(own, float) else None)


def edits(
    own: Dialect, other: Dialect, architecture: Architecture, prefix: str = ""
) -> dict[str, dict[str, object]]:
    """The edits that bring weights from one dialect to another, each with its options."""
    name = stand_in(architecture, own, other)
    options: dict[str, object] = {"from": own.name, "to": other.name, "arch": name}
    if prefix:
        options["prefix"] = prefix
    found = {"dialect": options}
    before, after = bn_eps(own, architecture), bn_eps(other, architecture)
    if before is not None and after is not None and before != after:
        found["eps"] = {"from": before, "to": after}
    return found


def uncovered(architecture: Architecture, dialect: Dialect) -> tuple[str, ...]:
    """The architecture's tensors, by its own keys, that a dialect of a part does not have."""
    own = native(architecture)
    if own is None or dialect.part is None:
        return ()
    canonical = canonical_specs(own, architecture)
    found = {link.canonical.key for link in links(dialect, architecture, canonical)}
    pairs = zip(architecture.specs, canonical, strict=True)
    return tuple(key for key, name in pairs if name not in found)


def stand_in(architecture: Architecture, *dialects: Dialect) -> str:
    """The first built-in architecture that is spelled the same in these dialects.

    So a conversion between dialects is one plan for all that cannot be told apart.
    """
    if "darknet" in dialects[0].families:
        return same_layers(architecture)
    for name in frozen.index():
        other = frozen.find(name)
        if other is None or other.specs is not architecture.specs:
            continue
        if all(spells(dialect, other) for dialect in dialects):
            return name
    return architecture.name


def drops(dialect: Dialect, key: str) -> bool:
    """Whether a dialect has a key that the canonical spelling has not, and needs not."""
    return any(fnmatchcase(key, aside.keys) for aside in dialect.drops)


def recognised(keys: Container[str], prefixes: Sequence[str]) -> Iterator[tuple[Dialect, str]]:
    """The dialects whose marks are among the keys, with the prefix in front of them.

    Those of other packages are only looked at if no built-in one is found.
    """
    found = False
    for known in (built_in, added):
        for dialect in known() if not found else ():
            for prefix in prefixes:
                if all(prefix + mark in keys for mark in dialect.marks):
                    found = True
                    yield dialect, prefix
                    break


def spelled(architecture: Architecture, dialect: Dialect) -> Architecture:
    """The architecture with its keys, shapes and class-dependent axes as a dialect has them."""
    own = native(architecture)
    assert own is not None
    if dialect.name == own.name:
        return architecture
    canonical = canonical_specs(own, architecture)
    names = dict(zip(architecture.specs, canonical, strict=True))
    found = links(dialect, architecture, canonical)
    by_canonical = {link.canonical.key: link for link in found}
    whole = {
        key: by_canonical[name]
        for key, name in names.items()
        if name in by_canonical and by_canonical[name].canonical.index is None
    }
    axes = {}
    for key, axis in architecture.axes.items():
        if key in whole:
            axes[whole[key].theirs.key] = replace(axis, axis=_axis(whole[key], axis.axis))
    return replace(
        architecture,
        specs={**_specs(canonical, found), **dialect.makes(architecture)},
        axes=axes,
        layouts={
            whole[key].theirs.key: layout
            for key, layout in architecture.layouts.items()
            if key in whole
        },
        aliases=tuple(
            tuple(whole[key].theirs.key for key in keys if key in whole)
            for keys in architecture.aliases
        ),
        derived=tuple(whole[key].theirs.key for key in architecture.derived if key in whole),
        dialect=dialect.name,
    )


def _known(family: str) -> Iterator[Dialect]:
    """The dialects of a family; those of other packages are only looked for after the others."""
    yield from built_in(family)
    yield from added()


def _is_called(dialect: Dialect, name: str) -> bool:
    return dialect.name.lower() == name


def _is_also_called(dialect: Dialect, name: str) -> bool:
    return name in dialect.aliases


def _is_in(dialect: Dialect, architecture: Architecture) -> bool:
    marked = all(mark in architecture.specs for mark in dialect.marks)
    return marked and spells(dialect, architecture)


def _axis(link: Link, axis: int) -> int:
    """The axis of a dialect's tensor that a canonical one is."""
    for move in reversed(link.moves):
        axis = move.axis(axis)
    return axis


def _specs(canonical: Mapping[str, TensorSpec], found: tuple[Link, ...]) -> dict[str, TensorSpec]:
    """The manifest in a dialect."""
    pieces: dict[str, int] = {}
    specs: dict[str, TensorSpec] = {}
    for link in found:
        key = link.theirs.key
        pieces[key] = pieces.get(key, 0) + 1
        spec = canonical[link.canonical.key]
        if not link.moves and link.theirs.index is None and link.canonical.index is None:
            specs[key] = spec
            continue
        shape = _piece(spec.shape, link.canonical)
        lengths = {_axis(link, axis): length for axis, length in enumerate(shape)}
        moved = tuple(lengths[axis] for axis in range(len(shape)))
        specs[key] = TensorSpec(spec.dtype, _whole(moved, link.theirs, pieces[key]))
    return specs


def _piece(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """The shape of a place in a tensor."""
    if place.index is None or not shape:
        return shape
    return shape[1:] if place.count is None else (shape[0] // place.count, *shape[1:])


def _whole(piece: tuple[int, ...], place: Place, pieces: int) -> tuple[int, ...]:
    """The shape of the tensor that a place of this shape is in."""
    if place.index is None:
        return piece
    if place.count is None:
        return (pieces, *piece)
    return (place.count * piece[0], *piece[1:]) if piece else piece
