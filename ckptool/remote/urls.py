"""URLs as paths: which paths are one, and how one may be shown."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_SECRETS = re.compile(r"(?<=://)[^/@]*@|\?.*", re.DOTALL)


def is_url(path: str) -> bool:
    """Whether a path names a file elsewhere: `s3://…`, `https://…`."""
    return _SCHEME.match(path) is not None


def scheme(url: str) -> str:
    """The part before `://`."""
    match = _SCHEME.match(url)
    return match[1] if match else ""


def shown(url: str) -> str:
    """The URL without what may be a secret: a user, a password, a signature in its query."""
    return _SECRETS.sub("", url) if scheme(url) in ("http", "https") else url
