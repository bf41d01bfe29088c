"""Weights that fit a live model as they are, read straight into its tensors.

There is no other copy of them in memory. What makes sure that nothing is half loaded: the files
are read once before, every checksum with them, and cannot be written to until all is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ckptool import lease
from ckptool.errors import CkptError, quoted
from ckptool.files import ByteFile
from ckptool.records import Record
from ckptool.strict import has_own_rules, is_plain
from ckptool.tensors import LazyTensor, View
from ckptool.threads import MANY, for_all, undivided, workers

if TYPE_CHECKING:
    from threading import Lock

    import torch

_STEP = 1 << 19  # bytes; what was just read is still in the processor's cache
_AGAIN = "load it again"


class _Move(NamedTuple):
    """Bytes of a file, and the memory of the tensor that they belong in."""

    record: Record
    file: ByteFile
    offset: int
    memory: memoryview


def load_straight(
    model: torch.nn.Module, tensors: Mapping[str, LazyTensor], kept: Sequence[str]
) -> bool:
    """Whether the weights were loaded; if not, they take another way, and the model is untouched.

    The model keeps its own values of the keys `kept`.

    Raises: CkptError for a file that is damaged, or changed; the model is as it was then. But for
    a disk that fails between two reads of the same bytes, or a file that somebody writes to in
    between, because the kernel makes nobody wait for ever: the message says so.
    """
    targets = _targets(model, kept)
    moves = _moves(tensors, targets) if targets is not None else None
    if moves is None or targets is None:
        return False
    return bool(undivided(partial(_load, moves, targets)))


def _load(moves: Sequence[_Move], targets: Mapping[str, torch.Tensor], turn: Lock) -> bool:
    """Look everything through, and read it to where it belongs, if it is this thread's turn."""
    import torch

    files = list(dict.fromkeys(move.file for move in moves))
    with ExitStack() as stack:
        leases = {file: stack.enter_context(file.leased()) for file in files}
        held = [own for own in leases.values() if own is not None]
        if len(held) < len(files):
            return False
        for file in files:
            file.check_unchanged()
        _look_through(list(dict.fromkeys(move.record for move in moves)), turn.locked)
        if not all(map(lease.is_undisputed, held)) or not turn.acquire(blocking=False):
            return False
        torch.autograd.graph.increment_version(targets.values())
        _fill(moves)
        for file, own in leases.items():
            if own is not None and not lease.give_back(own):
                raise CkptError(
                    f"{quoted(file.path)}: the file changed while it was read; somebody waited "
                    "long enough to write to it, and the model is loaded in part",
                    hint=_AGAIN,
                    code="file.changed",
                )
    return True


def _targets(model: torch.nn.Module, kept: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """Key to the tensor that torch would copy into, None where it might do anything else."""
    import torch

    own = torch.nn.Module
    plain = {own._load_from_state_dict, torch.nn.modules.batchnorm._NormBase._load_from_state_dict}
    found: dict[str, torch.Tensor] = {}
    for prefix, module in _modules(model):
        kind = type(module)
        if kind._load_from_state_dict not in plain or kind.get_extra_state != own.get_extra_state:
            return None
        if any("." in name for name in module._modules):
            return None  # whose keys are anybody's
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and name not in module._non_persistent_buffers_set:
                found[prefix + name] = value
    if has_own_rules(model):
        return None
    for key in kept:
        found.pop(key, None)
    return found


def _modules(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Each module with what its keys begin with, as torch goes about it while it loads."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{prefix}{name}.")


def _moves(
    tensors: Mapping[str, LazyTensor], targets: Mapping[str, torch.Tensor]
) -> list[_Move] | None:
    """What to read where, in the order of the file; None if the one is not made for the other."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)
    if tensors.keys() != targets.keys():
        return None
    moves = []
    for key, tensor in tensors.items():
        source, extent, value = tensor.source, tensor.extent(), targets[key].detach()
        if (
            extent is None
            or type(targets[key]) not in plain
            or not isinstance(source, View)
            or not isinstance(extent.file, ByteFile)
            or value.shape != tensor.shape
            or value.data_ptr() != targets[key].data_ptr()
            or value.dtype is not getattr(torch, tensor.dtype)
            or (memory := _memory(value)) is None
        ):
            return None
        moves.append(_Move(source.record, extent.file, extent.offset, memory))
    places = sorted((value.data_ptr(), value.nbytes) for value in targets.values())
    for (start, nbytes), (following, _) in pairwise(places):
        if start + nbytes > following:
            return None  # two keys are one tensor: which of them is last decides
    return sorted(moves, key=lambda move: move.offset)


def _memory(value: torch.Tensor) -> memoryview | None:
    """A tensor's elements as they lie in memory, None where they are not there as in a file."""
    import numpy
    import torch

    if (
        not is_plain(value)
        or not value.is_contiguous()
        or value.device.type != "cpu"
        or value.is_conj()
        or value.is_neg()
    ):
        return None
    with suppress(RuntimeError, TypeError):
        try:
            words = value.numpy()
        except TypeError:  # a type that numpy does not know
            words = value.reshape(-1).view(torch.uint8).numpy()
        return memoryview(words.reshape(-1).view(numpy.uint8))
    return None


def _look_through(records: Sequence[Record], stopped: Callable[[], bool]) -> None:
    """Read all once, with the checksums: what cannot be read is found before it is too late."""

    def look(number: int) -> None:
        for _ in records[number].blocks(_STEP):
            if stopped():
                return

    for_all(look, [record.nbytes for record in records])


def _fill(moves: Sequence[_Move]) -> None:
    """Read everything to where it belongs.

    Raises: CkptError if a disk does not give again what it gave a moment ago.
    """
    try:
        with workers() as pool:
            for _ in pool.map(_read, _halves(moves)):
                pass
    except RuntimeError:  # no other thread is to be had
        _read(moves)
    except CkptError as error:
        raise CkptError(
            f"{error.message}; it could be read a moment ago, and the model is loaded in part",
            hint=_AGAIN,
            code=error.code,
        ) from None


def _halves(moves: Sequence[_Move]) -> Iterator[Sequence[_Move]]:
    total = sum(move.memory.nbytes for move in moves)
    done = middle = 0
    if total > MANY:
        while done < total // 2:
            done += moves[middle].memory.nbytes
            middle += 1
        yield moves[:middle]
    yield moves[middle:]


def _read(moves: Sequence[_Move]) -> None:
    for move in moves:
        move.file.read_into(move.offset, move.memory)
