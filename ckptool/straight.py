"""Weights that fit a live model as they are, read straight into its tensors.

There is no other copy of them in memory. What makes sure that nothing is half loaded: the files
are read once before, every checksum with them, and cannot be written to until all is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from threading import Thread
from typing import TYPE_CHECKING

from ckptool.errors import CkptError
from ckptool.files import ByteFile
from ckptool.records import Record
from ckptool.strict import has_own_rules, is_plain
from ckptool.tensors import LazyTensor, View
from ckptool.threads import for_each, workers

if TYPE_CHECKING:
    import torch

_STEP = 1 << 18  # bytes; what was just read is still in the processor's cache
_MANY = 1 << 26  # bytes that are worth a second thread


@dataclass(frozen=True, slots=True)
class _Move:
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

    Raises: CkptError for a file that is damaged, or changed; the model is as it was then, but for
    a disk that fails between two reads of the same bytes: the message says so.
    """
    import torch

    targets = _targets(model, kept)
    moves = _moves(tensors, targets) if targets is not None else None
    if moves is None or targets is None:
        return False
    files = list(dict.fromkeys(move.file for move in moves))
    with ExitStack() as leases:
        if not all(leases.enter_context(_lease(file)) for file in files):
            return False
        for file in files:
            file.check_unchanged()
        _look_through(list(dict.fromkeys(move.record for move in moves)))
        if not all(file.is_undisputed() for file in files):
            return False
        _carry_out(moves)
    torch.autograd.graph.increment_version(targets.values())
    return True


def _targets(model: torch.nn.Module, kept: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """Key to the tensor that torch would copy into, None where it might do anything else."""
    import torch

    own = torch.nn.Module
    plain = {own._load_from_state_dict, torch.nn.modules.batchnorm._NormBase._load_from_state_dict}
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        if kind._load_from_state_dict not in plain or kind.get_extra_state != own.get_extra_state:
            return None
        prefix = f"{path}." if path else ""
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and name not in module._non_persistent_buffers_set:
                found[prefix + name] = value
    if has_own_rules(model):
        return None
    for key in kept:
        found.pop(key, None)
    return found


def _moves(
    tensors: Mapping[str, LazyTensor], targets: Mapping[str, torch.Tensor]
) -> list[_Move] | None:
    """What to read where, in the order of the file; None if the one is not made for the other."""
    if tensors.keys() != targets.keys():
        return None
    moves = []
    for key, tensor in tensors.items():
        source, extent, value = tensor.source, tensor.extent(), targets[key].detach()
        if (
            extent is None
            or not isinstance(source, View)
            or not isinstance(extent.file, ByteFile)
            or value.shape != tensor.shape
            or str(value.dtype)[6:] != tensor.dtype
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


@contextmanager
def _lease(file: ByteFile) -> Iterator[bool]:
    leased = file.lease()
    try:
        yield leased
    finally:
        if leased:
            file.release()


def _look_through(records: Sequence[Record]) -> None:
    """Read all once, with the checksums: what cannot be read is found before it is too late."""

    def look(number: int) -> None:
        for _ in records[number].blocks(_STEP):
            pass

    sizes = [record.nbytes for record in records]
    with workers() if sum(sizes) > _MANY else nullcontext() as pool:
        for_each(look, sizes, pool)


def _carry_out(moves: Sequence[_Move]) -> None:
    """Read everything to where it belongs; after a Ctrl-C all of it, or nothing.

    Raises: CkptError if a disk does not give again what it gave a moment ago.
    """
    from concurrent.futures import Future, wait

    result: Future[None] = Future()

    def run() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            with workers() as pool:
                for _ in pool.map(_read, _halves(moves)):
                    pass
            result.set_result(None)
        except BaseException as error:
            result.set_exception(error)

    try:
        Thread(target=run).start()  # Ctrl-C is the main thread's
        wait([result])
    except KeyboardInterrupt:
        if not result.cancel():
            wait([result])
        raise
    try:
        result.result()
    except CkptError as error:
        raise CkptError(
            f"{error.message}; it could be read a moment ago, and the model is loaded in part",
            hint="load it again",
            code=error.code,
        ) from None


def _halves(moves: Sequence[_Move]) -> Iterator[Sequence[_Move]]:
    total = sum(move.memory.nbytes for move in moves)
    done = middle = 0
    if total > _MANY:
        while done < total // 2:
            done += moves[middle].memory.nbytes
            middle += 1
        yield moves[:middle]
    yield moves[middle:]


def _read(moves: Sequence[_Move]) -> None:
    for move in moves:
        move.file.read_into(move.offset, move.memory)
