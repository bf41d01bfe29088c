"""One remote file at a time: what is known of it, a range of it, and writing it whole.

Every answer is checked: the number of bytes, the version (`ETag`) that they are of, the size of the
whole. What may go away by itself (throttling, a dropped or cut connection) is tried again, ever
more slowly; everything else is a CkptError. Credentials come from the provider's own chain alone,
and no message contains more of a URL than its path.

Source: fsspec and s3fs 2026.9, aiohttp 3.14; RFC 9110 on ranges and conditional requests.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

from ckptool.errors import CkptError, OutputError, UnsupportedError, quoted
from ckptool.files import Block
from ckptool.remote.faults import (
    Changed,
    Short,
    Whole,
    beneath,
    changed,
    passing,
    reason,
    refused,
    says,
)
from ckptool.remote.urls import scheme, shown

_TRIES = 6
_PATIENT = ("gs", "gcs")  # gcsfs has tried six times by itself, for half a minute
_FIRST_PAUSE = 0.25  # seconds; doubled each time, and a part of it is chance
_LONGEST_PAUSE = 8.0
_QUIET = 60.0  # seconds without a byte after which a connection is given up
_PART = 1 << 24  # bytes of a multipart upload's parts, or more: there may be 10,000 of them
_MOST_PARTS = 9_000
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}
# What tells one version of an object from another, whoever stores it.
_VERSION = (
    "ETag etag VersionId md5Hash blob_id LastModified last_modified Last-Modified mtime created"
).split()
_SILENT = logging.NullHandler()

T = TypeVar("T")


@dataclass(slots=True)
class Traffic:
    """What this process fetched so far."""

    requests: int = 0
    nbytes: int = 0
    whole: int = 0  # bytes of the files that were opened
    retries: int = 0


traffic = Traffic()
_lock = Lock()


def take_traffic() -> Traffic:
    """What was fetched since this was last asked."""
    with _lock:
        taken = replace(traffic)
        traffic.requests = traffic.nbytes = traffic.whole = traffic.retries = 0
    return taken


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object: its size and what tells its version; or that it is a folder.

    `etag` is one that a request can be made to depend on, None if the store gives none.
    """

    size: int
    version: tuple[tuple[str, str], ...]
    etag: str | None = None
    folder: bool = False


def stat(url: str) -> Stat:
    """What the store says of an object, asked anew each time."""
    fs = _filesystem(url)

    def ask() -> Mapping[str, Any]:
        fs.invalidate_cache()
        found: Mapping[str, Any] = fs.info(url)
        return found

    found = _told(_tried(url, ask))
    if found is None:
        raise UnsupportedError(
            f"{quoted(shown(url))}: the server does not say how large the file is",
            hint="download it",
            code="remote.size",
        )
    return found


def _told(info: Mapping[str, Any]) -> Stat | None:
    """What fsspec's description of an object tells, None if that is not even its size."""
    if info.get("type") == "directory":
        return Stat(0, (), folder=True)
    size, etag, generation = info.get("size"), info.get("ETag"), info.get("generation")
    if type(size) is not int:
        return None
    if isinstance(etag, str) and etag.startswith('"'):
        return Stat(size, (("ETag", etag),), etag)
    if generation is not None:
        return Stat(size, (("generation", str(generation)),))
    version = tuple((name, str(info[name])) for name in _VERSION if info.get(name) is not None)
    return Stat(size, version)


def opened(size: int) -> None:
    """Count a file of that size."""
    with _lock:
        traffic.whole += size


def fetch(url: str, start: int, stop: int, known: Stat) -> bytes:
    """The bytes from `start` to `stop` of the object that `known` tells of.

    Raises: CkptError if they cannot be had, FormatError if the object is another one by now.
    """
    fs = _filesystem(url)
    get = _GET.get(scheme(url))

    def ask() -> bytes:
        data: bytes
        if get is not None:
            data = get(fs, url, start, stop, known)
        else:
            # The hub's files would be read in blocks of their own.
            more = {"cache_type": "none"} if scheme(url) == "hf" else {}
            data = fs.cat_file(url, start, stop, **more)
        with _lock:
            traffic.nbytes += len(data)
        if len(data) != stop - start:
            raise Short(f"found {len(data):,} bytes, wanted {stop - start:,}")
        return data

    return _tried(url, ask, f"at byte {start:,}: ")


def names_in(url: str) -> list[str]:
    """The sorted names in a folder."""
    fs = _filesystem(url)

    def ask() -> list[str]:
        fs.invalidate_cache()
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(url, detail=False))

    return _tried(url, ask)


def matching(pattern: str) -> dict[str, Stat | None]:
    """The sorted URLs that a pattern with `*` fits, and what the listing tells of each."""
    fs = _filesystem(pattern)

    def ask() -> Mapping[str, Mapping[str, Any]]:
        fs.invalidate_cache()
        found: Mapping[str, Mapping[str, Any]] = fs.glob(pattern, detail=True)
        return found

    found = _tried(pattern, ask)
    fs.invalidate_cache()  # it would keep the listing, a kilobyte for each object
    return {str(fs.unstrip_protocol(path)): _told(found[path]) for path in sorted(found)}


def exists(url: str) -> bool:
    """Whether there is an object of that name."""
    fs = _filesystem(url)

    def ask() -> bool:
        fs.invalidate_cache()
        return bool(fs.exists(url))

    return _tried(url, ask)


def modified(url: str) -> float | None:
    """When an object was last written, in seconds as `time.time()`; None if it is not there.

    Raises: CkptError if the store does not tell.
    """
    fs = _filesystem(url)

    def ask() -> float | None:
        fs.invalidate_cache()
        try:
            when = fs.modified(url)
        except FileNotFoundError:
            return None
        except NotImplementedError:
            raise UnsupportedError(
                f"{quoted(shown(url))}: the store does not say when it was written",
                code="remote.modified",
            ) from None
        return float(when.timestamp())

    return _tried(url, ask)


def upload(blocks: Callable[[], Iterator[Block]], url: str, size: int, *, new: bool) -> None:
    """Put blocks into an object that is there only once it is complete; `new` refuses another.

    Raises: OutputError; a multipart upload that was begun is aborted then.
    """
    if scheme(url) in ("http", "https"):
        raise OutputError(
            f"{quoted(shown(url))}: a web server is not written to",
            hint="-o FILE, or -o s3://BUCKET/NAME",
            code="output.remote",
        )
    fs = _filesystem(url)
    try:
        exclusive = new and scheme(url) in ("s3", "s3a", "gs", "gcs")
        if size <= _PART or scheme(url) == "memory":
            mode = {"mode": "create"} if exclusive else {}
            fs.pipe_file(url, b"".join(blocks()), **mode)
        else:
            how = "xb" if exclusive else "wb"
            part = max(_PART, -(-size // _MOST_PARTS))
            with _published(fs.open(url, how, block_size=part, autocommit=False)) as file:
                for block in blocks():
                    file.write(block)
        fs.invalidate_cache()
        found = _tried(url, lambda: fs.info(url))["size"]
    except CkptError:
        raise
    except FileExistsError:
        raise exists_already(url) from None
    except Exception as error:
        raise OutputError(
            f"{quoted(url)}: cannot be written: {reason(error)}", code="output.remote"
        ) from None
    if found != size:
        raise OutputError(
            f"{quoted(url)}: {found:,} bytes arrived of {size:,}", code="output.remote"
        )


def exists_already(url: str) -> OutputError:
    """The error for an object that is not to be replaced."""
    return OutputError(
        f"{quoted(shown(url))}: exists already", hint="--force replaces it", code="output.exists"
    )


def remove(url: str) -> None:
    """Remove an object, if it can be removed."""
    with suppress(Exception):
        _filesystem(url).rm_file(url)


@contextmanager
def _published(file: Any) -> Iterator[Any]:
    """A file of fsspec that gets its name at the end, and none if anything fails."""
    try:
        yield file
        file.close()
        file.commit()
    except BaseException:
        with suppress(Exception):
            file.discard()
        file.closed = True  # or it would be completed when it is collected
        raise


def _get_http(fs: Any, url: str, start: int, stop: int, known: Stat) -> bytes:
    from fsspec.asyn import sync

    async def get() -> bytes:
        session = await fs.set_session()
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if known.etag:
            headers["If-Match"] = known.etag
        async with session.get(fs.encode_url(url), headers=headers) as answer:
            if answer.status == 412 or answer.headers.get("ETag", known.etag) != (
                known.etag or answer.headers.get("ETag")
            ):
                raise Changed
            answer.raise_for_status()
            if answer.status != 206 and (start, stop) != (0, known.size):
                answer.close()  # it may be gigabytes
                raise Whole
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if total.isdigit() and int(total) != known.size:
                raise Changed
            data: bytes = await answer.read()
            return data

    found: bytes = sync(fs.loop, get)
    return found


def _get_s3(fs: Any, url: str, start: int, stop: int, known: Stat) -> bytes:
    from fsspec.asyn import sync

    async def get() -> bytes:
        bucket, key, version = fs.split_path(fs._strip_protocol(url))
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        if known.etag:
            wanted["IfMatch"] = known.etag
        if version:
            wanted["VersionId"] = version
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
        async with answer["Body"] as body:
            data: bytes = await body.read()
            return data

    found: bytes = sync(fs.loop, get)
    return found


def _get_gs(fs: Any, url: str, start: int, stop: int, known: Stat) -> bytes:
    try:
        data: bytes = fs.cat_file(
            url, start, stop, generation=dict(known.version).get("generation")
        )
    except FileNotFoundError:  # that generation is gone, with another in its place or none
        raise Changed from None
    return data


_GET = {"http": _get_http, "https": _get_http, "s3": _get_s3, "s3a": _get_s3}
_GET |= {"gs": _get_gs, "gcs": _get_gs}


def _filesystem(url: str) -> Any:
    """The fsspec file system of a URL, with its credentials from where its provider looks."""
    name = scheme(url)
    try:
        import fsspec

        if name in ("http", "https"):
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=_QUIET)
            return fsspec.filesystem(name, client_kwargs={"timeout": limits})
        # It logs each failure, tracebacks too; without a handler that would be the user's screen.
        logging.getLogger("gcsfs").addHandler(_SILENT)
        return fsspec.filesystem(name)
    except ImportError as error:
        package = _PACKAGES.get(name)
        what = package or "a package"
        raise UnsupportedError(
            f"{quoted(shown(url))}: {name}:// needs {what}, which is not installed",
            hint="pip install 'ckptool[remote]'" if package else str(error),
            code="unsupported.remote",
        ) from None
    except ValueError:
        raise UnsupportedError(
            f"{quoted(shown(url))}: {quoted(name + '://')} is not known",
            hint="s3:// gs:// hf:// https:// and what else fsspec has",
            code="unsupported.remote",
        ) from None


def _tried(url: str, ask: Callable[[], T], where: str = "") -> T:
    """What a request gives, tried again where that may help."""
    for attempt in range(_TRIES):
        with _lock:
            traffic.requests += 1
            traffic.retries += bool(attempt)
        try:
            return ask()
        except Changed:
            raise changed(url) from None
        except Whole:
            raise UnsupportedError(
                f"{quoted(shown(url))}: the server sends whole files only, no parts of them",
                hint="download it",
                code="remote.ranges",
            ) from None
        except CkptError:
            raise
        except Exception as raised:
            error = beneath(raised)
            if says(error, "PreconditionFailed", "pre-conditions", "(412)"):
                raise changed(url) from None
            last = attempt == _TRIES - 1 or (
                scheme(url) in _PATIENT and not isinstance(error, Short) and passing(error)
            )
            if last or not passing(error):
                tries = f", {_TRIES} times" if last else ""
                raise refused(url, where, error, tries) from None
        pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
        time.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError
