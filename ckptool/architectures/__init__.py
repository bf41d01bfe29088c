"""What must exist: every architecture that has a name, as data or as a live model.

Built in are the frozen ones (`ckptool archs` lists them). A name with a prefix is measured on a
live model: `torchvision:NAME`, `timm:NAME`, `detectron2:NAME`, `darknet:FILE.cfg` (which needs no
torch), and `package.module:callable`. Other packages add names by an entry point of the group
`ckptool.architectures`: a module or object with the three functions of `Plugin`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from ckptool.architectures import frozen
from ckptool.architectures.spec import Architecture, Summary
from ckptool.errors import ArchitectureError, CkptError, quoted
from ckptool.files import names_in

GROUP = "ckptool.architectures"

_CALLABLE = "custom"
_PREFIXES = {
    "darknet": "yolov4",
    "detectron2": "detectron2",
    "timm": "timm",
    "torchvision": "torchvision",
}


class Source(Protocol):
    """What supplies architectures by name: a module of this package, or another package."""

    def measure(self, name: str) -> Architecture:
        """The architecture; `live.measure_model` makes one from a function that builds it."""

    def build(self, name: str, num_classes: int | None) -> Any:
        """A live torch.nn.Module on the CPU, for the default class count if it is None."""


class Plugin(Source, Protocol):
    """What an entry point gives."""

    def names(self) -> Iterable[str]:
        """The names, without a colon, that it answers to; built-in names come first."""


def find(name: str, *, live: bool = False) -> Architecture:
    """The architecture of a name; `live` instantiates it even if it is built in.

    Raises: ArchitectureError for a name that is unknown, a package that is missing, a model that
    does not build.
    """
    found = None if live else frozen.find(name)
    if found is None:
        source = _source(name)
        with _shielded(name):
            found = source.measure(name)
    return found


def build(name: str, num_classes: int | None = None) -> Any:
    """A live torch.nn.Module on the CPU with random weights; nothing is downloaded.

    Raises: ArchitectureError, as `find`.
    """
    source = _source(name)
    with _shielded(name):
        return source.build(name, num_classes)


def names() -> tuple[str, ...]:
    """The names of all built-in architectures and of those that other packages add."""
    return (*frozen.index(), *(name for _, own in _plugins() for name in own))


def archs(pattern: str | None = None) -> tuple[Summary, ...]:
    """What is known, in the order of its families; `pattern` is a glob or a part of the name.

    Raises: ArchitectureError if an architecture that another package adds cannot be had.
    """
    from fnmatch import fnmatchcase

    wanted = (pattern or "").lower()
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    chosen = (name for name in names() if fnmatchcase(name.lower(), wanted))
    return tuple(
        frozen.summary(name) if name in frozen.index() else summary(find(name)) for name in chosen
    )


def lookalikes(architecture: Architecture) -> tuple[str, ...]:
    """The other built-in architectures with the same keys, shapes and class-dependent axes."""
    entries = frozen.index()
    return tuple(
        name
        for name, entry in entries.items()
        if name != architecture.name
        and entry["keys"] == len(architecture.specs)
        and _alike(architecture, cast(Architecture, frozen.find(name)))
    )


def version_notes(architecture: Architecture) -> tuple[str, ...]:
    """One sentence for each package that is installed in another version than was measured."""
    return tuple(
        f"{architecture.name} was measured with {package} {version}; {package} {installed} is "
        "installed, which `--live` measures"
        for package, version in architecture.source.items()
        if (installed := _installed(package)) not in (None, version)
    )


def summary(architecture: Architecture) -> Summary:
    """The line of an architecture in `ckptool archs`."""
    size = cast("list[int] | None", architecture.card.get("image_size"))
    return Summary(
        name=architecture.name,
        family=architecture.family,
        keys=len(architecture.specs),
        parameters=architecture.parameters,
        num_classes=architecture.num_classes,
        image_size=(size[0], size[1]) if size else None,
        needs=architecture.needs,
    )


def _source(name: str) -> Source:
    """What measures and builds the architecture of a name."""
    entry = frozen.index().get(name)
    if entry is not None:
        return _module(entry["family"])
    prefix, colon, _ = name.partition(":")
    if colon:
        return _module(_PREFIXES.get(prefix, _CALLABLE))
    for plugin, own in _plugins():
        if name in own:
            return plugin
    from ckptool.architectures.live import unknown

    cfg = name.lower().endswith(".cfg")
    raise unknown(name, names(), f"`darknet:{name}`" if cfg else "`ckptool archs` lists all")


def _module(name: str) -> Source:
    return cast(Source, importlib.import_module(f"ckptool.architectures.{name}"))


def _plugins() -> Iterator[tuple[Plugin, tuple[str, ...]]]:
    """The sources of other packages, and their names."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            plugin = point.load()
            own = tuple(plugin.names())
        except Exception as error:
            package = point.dist.name if point.dist else point.name
            raise ArchitectureError(
                f"the architectures of the package {quoted(package)} do not load: "
                f"{type(error).__name__}: {error}",
                hint=f"pip uninstall {package}",
                code="architecture.plugin",
            ) from None
        yield plugin, own


@contextmanager
def _shielded(name: str) -> Iterator[None]:
    """Somebody else's code runs quietly inside; whatever it raises becomes one sentence.

    Raises: ArchitectureError.
    """
    from ckptool.architectures.live import quiet, told

    try:
        with quiet():
            yield
    except CkptError:
        raise
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{quoted(name)} cannot be built: {told(error)}", code="architecture.build"
        ) from None


def _alike(one: Architecture, other: Architecture) -> bool:
    if one.axes != other.axes:
        return False
    return other.specs is one.specs or other.manifest(one.num_classes) == one.specs


def _installed(package: str) -> str | None:
    """The version of an installed package, from the name of its metadata folder.

    importlib.metadata says the same, but its import alone takes 30 ms of a command that takes 300.
    """
    for folder in filter(os.path.isdir, sys.path):
        for name in names_in(folder):
            if name.startswith(f"{package}-") and name.endswith(".dist-info"):
                return name.removeprefix(f"{package}-").removesuffix(".dist-info")
    return None
