"""Writing safetensors: every tensor in full under each of its keys, the ties in the metadata.

Source: safetensors 0.8.0, README and `safetensors/src/tensor.rs` (`serialize`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ckptool.checkpoint import MADE_BY
from ckptool.dtypes import DTYPES
from ckptool.errors import UnsupportedError, quoted
from ckptool.formats.atomic import Output
from ckptool.formats.payload import Payload, check_keys, put_tensors
from ckptool.formats.safetensors import LARGEST_HEADER
from ckptool.tensors import LazyTensor

_spelled = json.JSONEncoder(ensure_ascii=False).encode


def write(output: Output, payload: Payload) -> None:
    """The header in the order of the keys, the data in the order of their alignment.

    Raises: UnsupportedError for a type that the format does not have.
    """
    tensors = payload.tensors
    check_keys(tensors)
    offsets = _offsets(tensors)
    draft = None if payload.provenance is None else payload.provenance(False)
    header = _header(payload, offsets, draft)
    output.write(len(header).to_bytes(8, "little") + header)
    start = output.position
    put_tensors(output, [(tensors[key], start + offsets[key]) for key in offsets], payload)
    output.position += sum(tensor.nbytes for tensor in tensors.values())
    if payload.provenance is not None and draft is not None:
        # The provenance is complete only now; its length is the same.
        held, final = _text(draft), _text(payload.provenance(True))
        assert len(held) == len(final)
        output.write_at(8 + header.index(held), final)


def _offsets(tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Where each tensor's data starts: the widest types first, so that all are aligned."""
    offsets = {}
    at = 0
    for key in sorted(tensors, key=lambda key: -DTYPES[tensors[key].dtype].itemsize):
        offsets[key] = at
        at += tensors[key].nbytes
    return offsets


def _header(payload: Payload, offsets: Mapping[str, int], provenance: str | None) -> bytes:
    metadata = {"format": "pt", **payload.metadata}
    if provenance is not None:
        metadata[MADE_BY] = provenance
    items = [b'"__metadata__":{%s}' % b",".join(map(_item, metadata, metadata.values()))]
    for key, tensor in payload.tensors.items():
        if key == "__metadata__":
            raise UnsupportedError(
                "safetensors cannot hold a tensor called `__metadata__`",
                hint="--rename __metadata__=NEW, or -o OUT.pth",
                code="unsupported.key",
            )
        shape = ",".join(map(str, tensor.shape))
        start = offsets[key]
        place = f"{start},{start + tensor.nbytes}"
        code = _code(key, tensor)
        value = f'{{"dtype":"{code}","shape":[{shape}],"data_offsets":[{place}]}}'
        items.append(_text(key) + b":" + value.encode("ascii"))
    data = b"{" + b",".join(items) + b"}"
    if len(data) > LARGEST_HEADER - 8:
        raise UnsupportedError(
            f"the header would have {len(data):,} bytes, safetensors allows {LARGEST_HEADER:,}",
            hint="--max-shard-size 2GB, or -o OUT.pth",
            code="unsupported.header",
        )
    return data + b" " * (-len(data) % 8)


def _item(name: str, value: str) -> bytes:
    return _text(name) + b":" + _text(value)


def _text(value: str) -> bytes:
    """A text as JSON."""
    return _spelled(value).encode("utf-8")


def _code(key: str, tensor: LazyTensor) -> str:
    code = DTYPES[tensor.dtype].safetensors
    if code is None:
        raise UnsupportedError(
            f"{quoted(key)} is {tensor.dtype}, which safetensors does not have",
            hint="-o OUT.pth",
            code="unsupported.dtype",
        )
    return code
