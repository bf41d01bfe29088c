"""A user's own model: `package.module:callable`, called with `num_classes=` if it takes it.

The callable is named on the command line or in a call, never by a file; modules in the current
folder are found, after the installed ones.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ckptool.architectures import detectron2, detr, effdet, torchvision
from ckptool.architectures.live import Module, measure_model, require, told
from ckptool.architectures.spec import Architecture
from ckptool.errors import ArchitectureError, listed, quoted

FAMILY = "custom"
NEEDS = ("torch",)

_ARGUMENT = "num_classes"
_FACTS = effdet.FACTS | torchvision.FACTS | detectron2.FACTS | detr.FACTS


def measure(name: str) -> Architecture:
    """The architecture of the module that the callable returns.

    Raises: ArchitectureError if there is no such callable, or if it raises or returns no module.
    """
    require("torch", name)
    with _current_folder():
        argument = _class_argument(_find(name))
        return measure_model(
            name,
            FAMILY,
            partial(build, name),
            facts=_FACTS,
            needs=NEEDS,
            sources=NEEDS,
            sized=argument is not None,
            default=argument is None or argument.default is not argument.empty,
        )


def build(name: str, num_classes: int | None = None) -> Module:
    """The live module, as the callable makes it.

    Raises: ArchitectureError if there is no such callable, or if it raises or returns no module.
    """
    torch = require("torch", name)
    with _current_folder():
        function = _find(name)
        if num_classes is not None and _class_argument(function) is None:
            raise ArchitectureError(
                f"{quoted(name)} takes no `{_ARGUMENT}`: it cannot be built for {num_classes:,} "
                "classes",
                code="architecture.classes",
            )
        module = function() if num_classes is None else function(num_classes=num_classes)
    if not isinstance(module, torch.nn.Module):
        raise ArchitectureError(
            f"{quoted(name)} returned {quoted(type(module).__name__)}, wanted a torch.nn.Module",
            code="architecture.callable",
        )
    return module


def _find(name: str) -> Callable[..., Any]:
    """The callable that a name stands for."""
    module_name, _, path = name.partition(":")
    found: Any = _import(module_name)
    for part in path.split("."):
        outer = found
        try:
            found = getattr(outer, part)
        except AttributeError:
            raise _missing(module_name, path, part, outer) from None
    if not callable(found):
        raise ArchitectureError(
            f"{quoted(name)} is {quoted(type(found).__name__)}, wanted a callable that returns a "
            "torch.nn.Module",
            code="architecture.callable",
        )
    return found  # type: ignore[no-any-return]


def _import(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ArchitectureError(
            f"{quoted(name)} is not the name of a module, which is like `package.module`",
            code="architecture.module",
        )
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        raise ArchitectureError(
            f"there is no module {quoted(name)}"
            if absent
            else f"module {quoted(name)} does not import: {told(error)}",
            hint="ckptool archs" if absent else None,
            code="architecture.module",
        ) from None


def _missing(module: str, path: str, part: str, found: object) -> ArchitectureError:
    from difflib import get_close_matches

    close = get_close_matches(part, [each for each in dir(found) if each[0] != "_"], 3)
    return ArchitectureError(
        f"module {quoted(module)} has no {quoted(path)}",
        hint=f"the closest are {listed(close)}" if close else None,
        code="architecture.callable",
    )


def _class_argument(function: Callable[..., Any]) -> inspect.Parameter | None:
    """The parameter for the class count if the callable has one by that name."""
    try:
        return inspect.signature(function).parameters.get(_ARGUMENT)
    except (ValueError, TypeError):
        return None


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Modules in the current folder can be imported, but none of them hides an installed one."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
