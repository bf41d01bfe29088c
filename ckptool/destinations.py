"""Where a conversion goes: one file, shards with an index, or a folder that torch writes; or a URL.

What goes to a URL is written and proven on the local disk first, and sent then: nobody ever sees a
remote file that is not whole, or not proven.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

from ckptool.errors import PlanError, quoted
from ckptool.files import ByteFile, names_in
from ckptool.formats import dcp, dcp_writer, writer_for
from ckptool.formats.atomic import Output, replace_file, write_folder, write_set
from ckptool.formats.payload import Payload
from ckptool.formats.sharded_writer import index_path, shard_paths, split, write_index
from ckptool.formats.target import refuse_existing, refuse_target
from ckptool.proof import Proof
from ckptool.remote.urls import is_url

_FOLDER = ".dcp"

Check = Callable[[str], Proof]


@dataclass(frozen=True, slots=True)
class Written:
    """What came of it: the path to name, the index if there are shards; all bytes; the proof."""

    path: str
    nbytes: int
    proof: Proof


def check_suffix(output: str) -> None:
    """Raise OutputError for a suffix that no format is written under."""
    if not is_dcp(output):
        writer_for(output)


def is_dcp(output: str) -> bool:
    """Whether the path is that of a torch.distributed.checkpoint folder to be written."""
    return output.rstrip("/").endswith(_FOLDER)


def put(
    output: str,
    payload: Payload,
    check: Check,
    *,
    max_shard_size: int | None = None,
    force: bool = False,
) -> Written:
    """Write what the output's suffix says, prove it by `check`, and give it its name.

    Raises: CkptError; nothing is left behind then.
    """
    if is_url(output):
        return _sent(output, payload, check, max_shard_size, force)
    if is_dcp(output):
        return _folder(output.rstrip("/"), payload, check, max_shard_size)
    write = writer_for(output)
    shards = [payload] if max_shard_size is None else split(payload, max_shard_size)
    if len(shards) == 1:
        proof = replace_file(output, lambda file: write(file, payload), check, force=force)
        return Written(output, os.path.getsize(output), proof)
    refuse_existing([output])  # it would be read in place of the shards
    paths = shard_paths(output, len(shards))
    by_path = dict(zip(paths, shards, strict=True))

    def fill(path: str, file: Output) -> None:
        if path in by_path:
            write(file, by_path[path])
        else:
            write_index(file, paths, shards, payload)

    written = [*paths, index_path(output)]
    proof = write_set(written, fill, check)
    return Written(written[-1], sum(map(os.path.getsize, written)), proof)


def refuse(output: str, *, force: bool = False) -> None:
    """Raise OutputError if something stands where the output is to be, unless `force` is set."""
    if not is_url(output):
        refuse_target(output.rstrip("/"), force=force)
        return
    from ckptool.remote import stores

    if not force and stores.exists(output):
        raise stores.exists_already(output)


def _sent(
    output: str, payload: Payload, check: Check, max_shard_size: int | None, force: bool
) -> Written:
    """Written on the local disk, then sent: what names the other files, last."""
    from ckptool.remote import stores

    home, name = os.path.split(output.rstrip("/"))
    with TemporaryDirectory(prefix=".ckptool-") as folder:
        written = put(os.path.join(folder, name), payload, check, max_shard_size=max_shard_size)
        is_folder = os.path.isdir(written.path)
        source, target = (written.path, f"{home}/{name}") if is_folder else (folder, home)
        names = sorted(names_in(source), key=lambda name: (name == dcp.INDEX, _is_index(name)))
        if len(names) > 1:
            for name in names:
                refuse(f"{target}/{name}")  # several files cannot be replaced at once
        sent: list[str] = []
        try:
            for name in names:
                file = ByteFile(os.path.join(source, name))
                blocks = partial(file.blocks, 0, file.size)
                stores.upload(blocks, f"{target}/{name}", file.size, new=not force)
                sent.append(f"{target}/{name}")
        except BaseException:
            for url in sent:
                stores.remove(url)
            raise
    path = target if is_folder else f"{target}/{os.path.basename(written.path)}"
    return Written(path, written.nbytes, written.proof)


def _is_index(name: str) -> bool:
    return name.endswith(".index.json")


def _folder(output: str, payload: Payload, check: Check, max_shard_size: int | None) -> Written:
    if max_shard_size is not None:
        raise PlanError(
            f"{quoted(output)}: torch decides how many files such a folder has",
            hint="leave --max-shard-size out",
            code="plan.options",
        )

    def fill(folder: str) -> None:
        dcp_writer.write(folder, payload.tensors)
        if payload.provenance is not None:
            dcp_writer.write_provenance(folder, payload.provenance(True))

    proof = write_folder(output, fill, check)
    nbytes = sum(entry.stat().st_size for entry in os.scandir(output))
    return Written(output, nbytes, proof)
