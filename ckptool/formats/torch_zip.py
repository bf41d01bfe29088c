"""The zip format of torch >= 1.6, and TorchScript archives, of which only the tensors are read.

Source: `torch/serialization.py` and `caffe2/serialize/inline_container.cc` (torch 2.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptool.checkpoint import MADE_BY, Contents, Finding
from ckptool.errors import FormatError, listed, quoted
from ckptool.files import Readable
from ckptool.formats.foreign import explain_zip, not_torch
from ckptool.formats.globals import label
from ckptool.formats.graph import value_of
from ckptool.formats.legacy_stream import Values, names_of
from ckptool.formats.nodes import text
from ckptool.formats.pickle_vm import Pickle, load
from ckptool.formats.rebuild import Storages
from ckptool.formats.zip_dir import read_directory
from ckptool.records import Record

NAME = "torch-zip"
LARGEST_PICKLE = 1 << 28
_MOST_INFLATION = 200  # times; a pickle deflates to a tenth of its size, zeros to a thousandth

_KEY = re.compile(r"[0-9A-Za-z_]{1,64}")
# Records that torch writes beside the pickle and its storages.
_KNOWN = re.compile(
    r"(?:data|constants|code|extra|attributes)/.+"
    r"|data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/[\w.]+|constants\.pkl"
)
PROVENANCE = ".data/ckptool.json"


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file starts like a zip archive."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read(file: Readable) -> Contents:
    """The archive's value; only the directory, the local headers and the pickle are read.

    Raises: FormatError, NotACheckpointError for a zip archive of another kind.
    """
    try:
        records = read_directory(file)
    except FormatError as error:
        raise explain_zip(file) or error from None
    root = next(iter(records), "").partition("/")[0]
    members = {name[len(root) + 1 :]: record for name, record in records.items()}
    if "data.pkl" not in members:
        raise not_torch(list(members))
    script = "constants.pkl" in members
    byteorder = _byteorder(members)
    _check_version(members)
    data = _content(members["data.pkl"], LARGEST_PICKLE)
    pickle = load(data)
    if pickle.end != len(data):
        raise FormatError(
            f"`data.pkl`: {len(data) - pickle.end:,} bytes after the pickle's end",
            code="pickle.trailing",
        )

    def record(key: str, nbytes: int) -> Record:
        found = members.get(f"data/{key}") if _KEY.fullmatch(key) else None
        if found is None:
            raise FormatError(
                f"storage {quoted(key)} is not in the archive", code="storage.missing"
            )
        if found.nbytes != nbytes:
            raise FormatError(
                f"storage {quoted(key)}: found a record of {found.nbytes:,} bytes, "
                f"the pickle wants {nbytes:,}",
                code="storage.size",
            )
        return found if byteorder == "little" else found._replace(byteorder=byteorder)

    base = None if members["data.pkl"].deflated else members["data.pkl"].offset
    values = Values(file, base, data)
    storages = Storages(record, values.record, values.storage)
    return Contents(
        "torchscript" if script else NAME,
        value_of(pickle.root, storages),
        label(names_of([pickle])),
        tuple(_findings(members, pickle, script)),
        _provenance(members),
    )


def _content(record: Record, largest: int) -> bytes:
    """A whole record, its CRC checked; FormatError if it is larger than such a record may be."""
    if record.deflated and record.nbytes > _MOST_INFLATION * max(record.stored, 1 << 10):
        raise FormatError(
            f"record {quoted(record.name)} inflates {record.stored:,} bytes to {record.nbytes:,}; "
            "that is out of all proportion",
            code="zip.ratio",
        )
    if record.nbytes > largest:
        raise FormatError(
            f"record {quoted(record.name)} has {record.nbytes:,} bytes, wanted at most {largest:,}",
            code="zip.record-size",
        )
    return b"".join(record.blocks())


def _byteorder(members: Mapping[str, Record]) -> str:
    record = members.get("byteorder")
    if record is None:
        return "little"
    found = _content(record, 16)
    if found not in (b"little", b"big"):
        raise FormatError(
            f"`byteorder` is {quoted(str(found, 'latin-1'))}, wanted `little` or `big`",
            code="zip.byteorder",
        )
    return str(found, "ascii")


def _check_version(members: Mapping[str, Record]) -> None:
    """Refuse a version that is no number; which number it is changes nothing that is read."""
    record = members.get("version") or members.get(".data/version")
    found = _content(record, 16).strip() if record else b""
    if not found.isdigit():
        raise FormatError(
            f"`version` is {quoted(str(found, 'latin-1'))}, wanted a number", code="zip.version"
        )


def _findings(members: Mapping[str, Record], pickle: Pickle, script: bool) -> list[Finding]:
    findings = []
    used = {
        f"data/{text(node.id[2])}"
        for node in pickle.persistent
        if type(node.id) is tuple and len(node.id) > 2
    }
    unused = [name for name in members if name.startswith("data/") and name not in used]
    if unused:
        nbytes = sum(members[name].nbytes for name in unused)
        findings.append(
            Finding(
                "unused-records",
                f"{len(unused):,} records of {nbytes:,} bytes belong to no tensor: "
                f"{listed(unused, 3)}",
            )
        )
    foreign = [name for name in members if not _KNOWN.fullmatch(name)]
    if foreign:
        findings.append(
            Finding("foreign-records", f"records that torch does not write: {listed(foreign, 3)}")
        )
    if script:
        code = [name for name in members if name.startswith("code/")]
        findings.append(
            Finding(
                "torchscript",
                f"a TorchScript archive: its tensors are read, its code ({len(code):,} files) "
                "is not",
            )
        )
    bare = [name for name, record in members.items() if record.crc is None]
    if bare:
        findings.append(
            Finding("no-checksums", f"{len(bare):,} records have no CRC: damage cannot be seen")
        )
    return findings


def _provenance(members: Mapping[str, Record]) -> dict[str, str]:
    record = members.get(PROVENANCE)
    if record is None:
        return {}
    return {MADE_BY: str(_content(record, 1 << 26), "utf-8", "replace")}
