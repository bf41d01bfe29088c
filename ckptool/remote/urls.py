"""URLs as paths: which paths are one, and how one may be shown."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_SECRETS = re.compile(r"(?<=://)[^/?#]*@|\?.*", re.DOTALL)
_PASSWORD = re.compile(r"(?<=://)[^/?#]*:[^/?#]*@")


def is_url(path: str) -> bool:
    """Whether a path names a file elsewhere: `s3://…`, `https://…`."""
    return _SCHEME.match(path) is not None


def scheme(url: str) -> str:
    """The part before `://`."""
    match = _SCHEME.match(url)
    return match[1] if match else ""


def is_web(path: str) -> bool:
    """Whether a path is the URL of a web server, whose `?` begins a query."""
    return scheme(path) in ("http", "https")


def shown(url: str) -> str:
    """The URL without what may be a secret: a user, a password, a signature in its query."""
    return (_SECRETS if is_web(url) else _PASSWORD).sub("", url)
