"""Old keys that the architecture's own classes would rename, were the file not said to be new."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed


def old_names(situation: Situation) -> list[Cause]:
    """Keys of an older version in a file whose `_metadata` says a newer one."""
    missing, extra = set(situation.missing), set(situation.extra)
    names = {
        old: new
        for pairs in situation.target.legacy.values()
        for old, new in pairs
        if new in missing and old in extra
    }
    if not names:
        return []
    return [
        Cause(
            "old-names",
            f"{counted(len(names), 'key is', 'keys are')} of an older version of the architecture "
            f"({listed(names, 2)}), while the file's `_metadata` says that it is of a newer one: "
            "its classes do not rename them as they load",
            "rename",
            {"map": names},
            automatic=True,
        )
    ]
