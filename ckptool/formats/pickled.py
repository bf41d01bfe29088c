"""A bare pickle: Detectron2 and Caffe2 `.pkl` files, `pickle.dump` of a state dict or a model.

Source: Detectron2 at 02b5c4e (`checkpoint/detection_checkpoint.py`), which reads such files with a
plain `pickle.load(encoding="latin1")`; numpy 2.4 for the arrays in them.
"""

from __future__ import annotations

import re

from ckptool.checkpoint import MADE_BY, Contents, Finding, Value, is_tree
from ckptool.errors import FormatError, quoted
from ckptool.files import Readable
from ckptool.formats.globals import label
from ckptool.formats.graph import value_of
from ckptool.formats.legacy_stream import Values, names_of
from ckptool.formats.pickle_vm import load
from ckptool.formats.rebuild import Storages
from ckptool.records import Record

NAME = "pickle"
_PROSE = re.compile(rb"[(c][a-z]*[ ,;:)]")  # a sentence may start like protocol 0, and end so
LARGEST = 1 << 30  # the whole file is a pickle, its arrays inside it


def sniff(head: bytes, file: Readable) -> bool:
    """Whether the file starts with a pickle's PROTO, or could be one of protocol 0 or 1."""
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return True
    if head[:1] not in (b"(", b"}", b"]", b"c") or _PROSE.match(head):
        return False
    return file.read(file.size - 1, 1) == b"."


def read(file: Readable) -> Contents:
    """The file's value; arrays stay in the file until they are asked for.

    Raises: FormatError.
    """
    if file.size > LARGEST:
        raise FormatError(
            f"a pickle of {file.size:,} bytes, wanted at most {LARGEST:,}", code="pickle.size"
        )
    data = file.read(0, file.size)
    pickle = load(data)
    findings = [Finding("no-checksums", "a pickle has no checksums: damage cannot be seen")]
    if pickle.end < len(data):
        findings.append(
            Finding(
                "trailing-bytes",
                f"{len(data) - pickle.end:,} bytes behind the pickle's end belong to nothing",
            )
        )

    def record(key: str, nbytes: int) -> Record:
        raise FormatError(
            f"storage {quoted(key)} is not in the file: a bare pickle has no storages",
            code="storage.missing",
        )

    values = Values(file, 0, data)
    storages = Storages(record, values.record, values.storage)
    root = value_of(pickle.root, storages)
    metadata = _metadata(root)
    return Contents(NAME, root, label(names_of([pickle])), tuple(findings), metadata)


def _metadata(root: Value) -> dict[str, str]:
    """The provenance of a file that ckptool wrote."""
    entries = root.items() if is_tree(root) and root.type == "dict" else ()
    return {key: text for key, text in entries if key == MADE_BY and isinstance(text, str)}
