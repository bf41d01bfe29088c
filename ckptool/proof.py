"""Proof: that a written file is what was planned, found out by reading it back from the disk.

The written file is opened by the ordinary reader, and a safetensors file by the safetensors library
as well. What no edit touched is compared byte for byte with the source file; what one did is
checked by the edit's own `check`, from the written values back, and so is every edit before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.checkpoint import Checkpoint, WeightSet
from ckptool.dtypes import BY_SAFETENSORS
from ckptool.errors import CkptError, FormatError, VerificationError, listed, quoted
from ckptool.files import BLOCK, Block, names_in
from ckptool.formats import dcp, safetensors, torch_zip
from ckptool.plugins import costs
from ckptool.provenance import source_files
from ckptool.reading import open_file, read
from ckptool.tensors import LazyTensor, TensorSpec, View, rechunk, spec_of
from ckptool.threads import for_each

if TYPE_CHECKING:
    from concurrent.futures import Executor

_SMALL = 1 << 16  # bytes of a tensor that is compared in one piece


@dataclass(frozen=True, slots=True)
class Proof:
    """The weights as they were read back, and what the edits cost, by key, measured on them."""

    weights: WeightSet
    measured: Mapping[str, Mapping[str, float]]


def prove(
    path: str,
    planned: WeightSet,
    metadata: Mapping[str, str],
    progress: Callable[[int], None] | None = None,
    pool: Executor | None = None,
    reopen: Callable[[str], Checkpoint] | None = None,
) -> Proof:
    """Read a written file, or a folder of shards, and compare it with what was planned.

    `metadata` is what the file must say of itself. `progress` is told how many bytes were compared.
    `reopen` reads the file, where its weights are not the file itself.

    Raises: VerificationError if the file is not what was planned.
    """
    try:
        written = reopen(path) if reopen else read(path, weights=".")
    except CkptError as error:
        raise VerificationError(
            f"the written file cannot be read: {error.message}", code="verification.read"
        ) from None
    _compare_keys(written, planned)
    _compare_ties(written, planned)
    _compare_metadata(path, written, metadata)
    if safetensors.NAME in written.contents.format:
        _open_with_library(path, planned.specs)
    pairs = _pairs(written.weights, planned)
    sizes = [wanted.nbytes for _, _, wanted in pairs]

    def compare(number: int) -> Mapping[str, float] | None:
        cost = _compare_values(*pairs[number])
        if progress is not None:
            progress(sizes[number])
        return cost

    costs_found = for_each(compare, sizes, pool)
    for file in source_files(written):
        file.check_unchanged()
    measured = {
        key: cost for (key, _, _), cost in zip(pairs, costs_found, strict=True) if cost is not None
    }
    return Proof(written.weights, measured)


def _pairs(written: WeightSet, planned: WeightSet) -> list[tuple[str, LazyTensor, LazyTensor]]:
    """What is to be compared, found and wanted; the same bytes under another key only once."""
    pairs: dict[object, tuple[str, LazyTensor, LazyTensor]] = {}
    both = zip(planned.tensors.items(), written.tensors.values(), strict=True)
    for (key, wanted), found in both:
        pairs.setdefault((found.source, wanted), (key, found, wanted))
    return list(pairs.values())


def _compare_keys(written: Checkpoint, planned: WeightSet) -> None:
    if list(written) != list(planned.tensors):
        missing = [key for key in planned.tensors if key not in written]
        foreign = [key for key in written if key not in planned.tensors]
        raise VerificationError(
            f"the written file has other keys: {listed([*missing, *foreign]) or 'in other order'}",
            code="verification.keys",
        )
    for (key, wanted), found in zip(
        planned.tensors.items(), written.weights.tensors.values(), strict=True
    ):
        if found.spec != wanted.spec:
            raise VerificationError(
                f"{quoted(key)}: found {found.dtype} {found.shape}, "
                f"wanted {wanted.dtype} {wanted.shape}",
                code="verification.spec",
            )


def _compare_ties(written: Checkpoint, planned: WeightSet) -> None:
    """A torch file keeps ties and `_metadata`; elsewhere the ties stand in the provenance."""
    if torch_zip.NAME not in written.contents.format:
        return
    if written.weights.aliases != planned.aliases:
        lost = {*planned.aliases} ^ {*written.weights.aliases}
        raise VerificationError(
            f"the written file ties other keys: {'; '.join(listed(keys) for keys in lost)}",
            code="verification.ties",
        )
    if written.contents.format == torch_zip.NAME and written.weights.versions != planned.versions:
        raise VerificationError(
            "the written file has other module versions in its `_metadata`",
            code="verification.versions",
        )


def _compare_metadata(path: str, written: Checkpoint, wanted: Mapping[str, str]) -> None:
    """Every file of a set must say the same of itself."""
    alone = [written.contents.metadata] if not os.path.isdir(path) else []
    for found in alone or (open_file(file).contents.metadata for file in _files(path)):
        for name, text in wanted.items():
            if found.get(name) != text:
                raise VerificationError(
                    f"the written file has another {quoted(name)} in its metadata",
                    code="verification.metadata",
                )


def _compare_values(key: str, found: LazyTensor, wanted: LazyTensor) -> Mapping[str, float] | None:
    """What the edits say that they cost; None where none computed the tensor."""
    try:
        if hasattr(wanted.source, "check"):
            return costs(wanted, found)
        _compare_bytes(key, found, wanted)
    except FormatError as error:
        for _ in wanted.chunks():
            pass  # it raises the same if it is the source that is damaged
        raise VerificationError(
            f"{quoted(key)}: what was written is damaged: {error.message}",
            code="verification.bytes",
        ) from None
    return None


def _compare_bytes(key: str, found: LazyTensor, wanted: LazyTensor) -> None:
    """Compare what was written with what was to be, where it has a CRC by that, too."""
    extent = found.extent() if _has_no_crc_of_its_own(found, wanted) else None
    blocks: Iterable[tuple[Block, Block]]
    if extent is not None and extent.nbytes <= _SMALL:  # there may be very many of them
        blocks = [(wanted.tobytes(), extent.file.read(extent.offset, extent.nbytes))]
    else:
        chunks = (
            found.chunks(BLOCK)
            if extent is None
            else (memoryview(x) for x in extent.file.blocks(extent.offset, extent.nbytes, BLOCK))
        )
        ours, theirs = rechunk(wanted.chunks(BLOCK), BLOCK), rechunk(chunks, BLOCK)
        blocks = zip(ours, theirs, strict=True)
    for number, (one, other) in enumerate(blocks):
        if not _same(one, other):
            raise VerificationError(
                f"{quoted(key)}: its bytes differ from the source's, from byte "
                f"{number * BLOCK:,} on",
                code="verification.bytes",
            )


def _same(one: Block, other: Block) -> bool:
    """Whether two blocks are equal; memory views are compared element by element, bytes are not."""
    return _bytes(one) == _bytes(other)


def _bytes(block: Block) -> bytes:
    if isinstance(block, bytes):
        return block
    whole = block.obj
    return whole if isinstance(whole, bytes) and len(whole) == block.nbytes else block.tobytes()


def _has_no_crc_of_its_own(found: LazyTensor, wanted: LazyTensor) -> bool:
    """Whether what was written has no CRC, or the source's, which need not be computed twice."""
    if isinstance(found.source, View) and found.source.record.crc is None:
        return True
    crc = _crc(found)
    return crc is not None and crc == _crc(wanted)


def _crc(tensor: LazyTensor) -> int | None:
    """The stored CRC-32 of exactly a tensor's data, if there is one."""
    record = tensor.source.record if isinstance(tensor.source, View) else None
    return record.crc if record is not None and record.nbytes == tensor.nbytes else None


def _open_with_library(path: str, wanted: Mapping[str, TensorSpec]) -> None:
    """Have the safetensors library read the same specs."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    try:
        for name in _files(path):
            with safe_open(name, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118
                    tensor = file.get_slice(key)
                    dtype = BY_SAFETENSORS[tensor.get_dtype()].name
                    found[key] = spec_of(dtype, tuple(tensor.get_shape()))
    except (SafetensorError, OSError, KeyError) as error:
        raise VerificationError(
            f"the safetensors library does not open the written file: {error}",
            code="verification.safetensors",
        ) from None
    if found != wanted:
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        raise VerificationError(
            f"the safetensors library reads other tensors: {listed(differing)}",
            code="verification.safetensors",
        )


def _files(path: str) -> Iterable[str]:
    """The file, or those of a folder that are shards."""
    if not os.path.isdir(path) or dcp.INDEX in names_in(path):
        return (path,)
    return (os.path.join(path, name) for name in names_in(path) if not name.endswith(".json"))
