"""One pickle in each container that a reader may meet it in."""

from __future__ import annotations

from collections.abc import Callable

from .opcodes import EMPTY_LIST, STOP, number, proto
from .pickles import legacy, nested
from .tars import tar
from .zips import honest


def _tar(body: bytes) -> bytes:
    count = proto(2) + number(0) + STOP
    views = proto(2) + EMPTY_LIST + STOP
    return tar({"sys_info": count, "pickle": body, "storages": count + views, "tensors": count})


# Container to file name and bytes around a pickle.
CONTAINERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "raw": ("case.pkl", lambda body: body),
    "zip": ("case.pth", lambda body: honest(body).build()),
    "legacy": ("case.pth", legacy),
    "tar": ("case.tar", _tar),
    "nested": ("case.pkl", lambda body: proto(4) + nested(legacy(body)) + STOP),
}
