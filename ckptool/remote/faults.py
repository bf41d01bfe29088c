"""What can go wrong with a request: what is tried again, and how the rest is said.

No message contains more of a URL than its path: a query or a user name may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptool.errors import CkptError, FormatError, quoted
from ckptool.remote.urls import shown

_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
# Errors of the libraries below fsspec, which need not be installed, by the names of their classes:
# aiohttp, botocore and httpx on what happens between here and there;
_NETWORK = {"ClientError", "HTTPClientError", "TransportError", "ConnectionError"}
_NETWORK |= {"IncompleteRead", "FSTimeoutError"}
# those of them that stay as they are; and what is said by who finds nobody to be.
_LASTING = {"InvalidURL", "UnsupportedProtocol", "CredentialRetrievalError"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_NO_CREDENTIALS |= {"DefaultCredentialsError", "RefreshError", "LocalTokenNotFoundError"}


class Changed(Exception):
    """The object is another one than before."""


class Short(Exception):
    """Another number of bytes than were asked for."""


class Whole(Exception):
    """The server sends the whole file where a part was asked for."""


def changed(url: str) -> FormatError:
    """The error for an object that is replaced while it is read."""
    return FormatError(
        f"{quoted(shown(url))}: the file changed while it was read", code="file.changed"
    )


def refused(url: str, where: str, error: Exception, tries: str) -> CkptError:
    """The error for what is not there, is not allowed, or does not work."""
    name = quoted(shown(url))
    status = _status(error)
    unknown = kinds(error) & _NO_CREDENTIALS
    forbidden = isinstance(error, OSError) and says(error, "Forbidden: ")  # gcsfs has no more
    if isinstance(error, PermissionError) or status in (401, 403) or unknown or forbidden:
        why = "no credentials are found" if unknown else "no permission to read it"
        return CkptError(
            f"{name}: {why}",
            hint="log in with the provider's own tool; its credentials are used",
            code="file.permission",
        )
    if status == 404 or (isinstance(error, FileNotFoundError) and status is None):
        return CkptError(f"{name}: no such file", code="file.missing")
    return CkptError(
        f"{name}: {where}cannot be read: {reason(error)}{tries}", code="file.unreadable"
    )


def passing(error: BaseException) -> bool:
    """Whether it may go away by itself."""
    status = _status(error)
    if status is not None:
        return status in _AGAIN
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    if isinstance(error, (Short, TimeoutError, ConnectionError)):
        return True
    if kinds(error) & _NETWORK and not kinds(error) & _LASTING:
        return True
    return says(error, "SlowDown", "reduce your request rate", "503", "Service Unavailable")


def beneath(error: Exception) -> Exception:
    """What went wrong with the network, where fsspec says that there is no such file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if kinds(cause) & _NETWORK and _status(cause) is None else error
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, if it has one."""
    for _ in range(4):
        if error is None:
            return None
        response = getattr(error, "response", None)
        for status in (
            getattr(error, "status", None),
            getattr(response, "status_code", None),
            # A cut connection has a code, too: aiohttp calls it a bad request.
            getattr(error, "code", None) if type(error).__name__ == "HttpError" else None,
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, Mapping)
            else None,
        ):
            if type(status) is int:
                return status
        error = error.__cause__ or error.__context__
    return None


def says(error: BaseException, *texts: str) -> bool:
    """Whether the text of an error has one of the texts in it."""
    return any(text in str(error) for text in texts)


def reason(error: BaseException) -> str:
    """What went wrong, without the URLs that libraries put into their messages."""
    status = _status(error)
    if isinstance(error, Short):
        return f"the connection was cut: {error}"
    if status is not None:
        return f"the server answered {status}"
    text = re.sub(r"[\"'`]?\w+://\S+", "…", str(error))
    return f"{type(error).__name__}{': ' if text else ''}{text}"


def kinds(error: BaseException) -> set[str]:
    """The names of an error's class and of those that it is derived from."""
    return {kind.__name__ for kind in type(error).__mro__}
