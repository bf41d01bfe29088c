"""Where a written file comes from: the source's name and hash, the version, the plan.

The text goes into the written file, so that it can be traced back, also over several conversions;
it is complete only once the whole source is hashed, which happens while the tensors are copied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from ckptool.checkpoint import MADE_BY, Checkpoint, WeightSet
from ckptool.errors import CkptError, quoted
from ckptool.files import Readable
from ckptool.formats import darknet
from ckptool.places import is_stored, open_bytes
from ckptool.tensors import Source, View
from ckptool.version import VERSION

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from ckptool.plans import Plan

_NO_HASH = "0" * 64
_MOST_EARLIER = 16
_LONGEST_EARLIER = 1 << 20  # characters


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file says of how it was made: by which version, from which file, by which edits.

    `earlier` tells the same of that file, of the file which that was made from, and so on.
    """

    version: str
    name: str
    nbytes: int
    sha256: str
    edits: tuple[str, ...]
    earlier: tuple[Origin, ...] = ()


def origin(metadata: Mapping[str, str]) -> Origin | None:
    """What the metadata of a file say of how it was made; None if nothing that makes sense."""
    value = _parsed(metadata)
    return None if value is None else _origin(value)


def source_files(checkpoint: Checkpoint) -> tuple[Readable, ...]:
    """The files that the chosen weights are read from, the named one first."""
    files: dict[str, Readable] = {}
    for tensor in checkpoint.weights.tensors.values():
        for file in _files_of(tensor.source):
            files.setdefault(file.path, file)
    own = files.pop(checkpoint.path, None) or open_bytes(checkpoint.path)
    return (own, *(file for file in files.values() if is_stored(file)))


def _files_of(source: Source) -> tuple[Readable, ...]:
    if isinstance(source, View):
        return (source.record.file,)
    files: tuple[Readable, ...] = getattr(source, "files", ())  # those of one in several pieces
    return files


@contextmanager
def hashing(files: tuple[Readable, ...], pool: Executor) -> Iterator[Future[dict[str, str]]]:
    """The SHA-256 of each file by its path, computed beside the work; given up when that ends."""
    given_up = Event()
    try:
        yield pool.submit(lambda: {file.path: sha256(file, given_up) for file in files})
    finally:
        given_up.set()


def sha256(file: Readable, given_up: Event | None = None) -> str:
    """The SHA-256 of a whole file, in hexadecimal.

    Raises: CkptError if the file cannot be read to its end.
    """
    import hashlib

    digest = hashlib.sha256()
    try:
        for block in file.blocks(0, file.size):
            digest.update(block)
            if given_up is not None and given_up.is_set():
                break
    except CkptError as error:
        raise error.located(quoted(file.path)) from None
    return digest.hexdigest()


def provenance(
    plan: Plan, checkpoint: Checkpoint, weights: WeightSet, hashed: Future[dict[str, str]]
) -> Callable[[bool], str]:
    """A function that gives the text: with zeros for the hashes, or, asked for the final one, them.

    Both have the same length, so that the one can take the other's place in a file.
    """
    files = source_files(checkpoint)
    value: dict[str, Any] = {"version": VERSION, "source": {}, "plan": plan.to_json()}
    aliases = weights.aliases
    if aliases:
        value["aliases"] = aliases
    earlier = _earlier(checkpoint.contents.metadata)
    if earlier:
        value["earlier"] = earlier

    def text(final: bool) -> str:
        hashes = hashed.result() if final else {}
        named = [
            {
                "name": os.path.basename(file.path),
                "bytes": file.size,
                "sha256": hashes.get(file.path, _NO_HASH),
            }
            for file in files
        ]
        source: dict[str, Any] = {**named[0], "weights": checkpoint.weights.name}
        if checkpoint.contents.format == darknet.NAME:
            source["header"] = dict(checkpoint.contents.metadata)
        if len(named) > 1:
            source["shards"] = named[1:]
        return json.dumps({**value, "source": source}, separators=(",", ":"))

    return text


def darknet_header(checkpoint: Checkpoint) -> dict[str, str] | None:
    """The header of the darknet file that a checkpoint is, or was made from last; None if none."""
    from ckptool.formats.darknet_writer import header

    if checkpoint.contents.format == darknet.NAME:
        return header(checkpoint.contents.metadata)
    value = _parsed(checkpoint.contents.metadata) or {}
    for item in (value, *value.get("earlier", ())):
        said = item["source"].get("header") if item else None
        if isinstance(said, dict):
            return header(said)
    return None


def _earlier(metadata: Mapping[str, str]) -> list[Any]:
    """What the source itself was made from, the latest first, as far as that is worth keeping."""
    value = _parsed(metadata)
    if value is None or len(metadata[MADE_BY]) > _LONGEST_EARLIER:
        return []
    latest = {name: value[name] for name in ("version", "source", "plan")}
    return [latest, *value.get("earlier", ())][:_MOST_EARLIER]


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The provenance in a file's metadata, None if there is none, or none that ckptool wrote."""
    try:
        value = json.loads(metadata.get(MADE_BY, ""))
        json.dumps(value)  # what is nested too deeply to be written is not kept either
        _origin(value)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    found: dict[str, Any] = value
    return found


def _origin(value: Mapping[str, Any]) -> Origin:
    source = value["source"]
    return Origin(
        str(value["version"]),
        str(source["name"]),
        int(source["bytes"]),
        str(source["sha256"]),
        tuple(str(step["edit"]) for step in value["plan"]["steps"]),
        tuple(_origin({**item, "earlier": ()}) for item in value.get("earlier", ())),
    )
