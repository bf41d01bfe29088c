"""Servers on the loopback interface: moto's S3, an emulator of Google's storage, and HTTP.

All of them serve ranges, count what they send, and have faults.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

BUCKET = "weights"
_BLOCK = 1 << 16


@dataclass
class Web:
    """A folder served over HTTP; `faults` are carried out one per GET, from the front.

    A fault is a status, `cut` (the connection ends in the middle), `short` (less than was asked
    for, and the header says so), `slow`, `stall` (nothing for a second), or `ok`. `sent` counts the
    bytes of all bodies.
    """

    folder: Path
    url: str = ""
    faults: list[int | str] = field(default_factory=list)
    head: int = 200
    ranges: bool = True
    etags: bool = True
    gets: int = 0
    sent: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def web(folder: Path) -> Iterator[Web]:
    """An HTTP server of a folder."""
    state = Web(folder)
    handler = type("Handler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Web

    def log_message(self, *_: Any) -> None:
        pass

    def _path(self) -> Path | None:
        path = self.state.folder / self.path.partition("?")[0].lstrip("/")
        return path if path.is_file() else None

    def _etag(self, path: Path) -> str:
        status = path.stat()
        return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'

    def _start(self, status: int, length: int, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_HEAD(self) -> None:
        path = self._path()
        if path is None or self.state.head != 200:
            self._start(404 if path is None else self.state.head, 0)
            return
        etag = {"ETag": self._etag(path)} if self.state.etags else {}
        self._start(200, path.stat().st_size, Accept_Ranges="bytes", **etag)

    def do_GET(self) -> None:
        self.state.gets += 1
        self.state.headers.append(dict(self.headers))
        path = self._path()
        if path is None:
            self._start(404, 0)
            return
        fault = self.state.faults.pop(0) if self.state.faults else "ok"
        if isinstance(fault, int):
            self._start(fault, 0, Retry_After="0")
            return
        etag = self._etag(path) if self.state.etags else ""
        if self.headers.get("If-Match", etag) != etag:
            self._start(412, 0)
            return
        size = path.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(match[1]), int(match[2]) + 1) if match else (0, size)
        if not self.state.ranges:
            match, start, stop = None, 0, size
        stop = min(stop, size)
        if fault == "short":
            stop = start + (stop - start) // 2
        more = {"ETag": etag} if etag else {}
        if match:
            more["Content_Range"] = f"bytes {start}-{stop - 1}/{size}"
        if fault == "stall":
            time.sleep(1.0)
        self._start(206 if match else 200, stop - start, **more)
        self._send(path, start, stop, fault)

    def _send(self, path: Path, start: int, stop: int, fault: str) -> None:
        end = start + (stop - start) // 2 if fault == "cut" else stop
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                try:
                    self.wfile.write(block)
                except OSError:
                    return
                self.state.sent += len(block)
                start += len(block)
                if fault == "slow":
                    time.sleep(0.05)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()


@dataclass
class S3:
    """Moto's S3 with one bucket. `faults` are carried out one per GET of an object, and `refused`
    one per PUT: `ok`, `slow down` (status 503), or `cut`.
    """

    url: str
    faults: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    sent: int = 0

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, named = environ["REQUEST_METHOD"], environ["PATH_INFO"].count("/") > 1
        is_object = method == "GET" and named
        faults = {"GET": self.faults, "PUT": self.refused}.get(method, [])
        fault = faults.pop(0) if named and faults else "ok"
        if fault == "slow down":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce.</Message></Error>"]
        body = b"".join(self._moto(environ, start))
        if is_object:
            self.sent += len(body)
        return [body[: len(body) // 2]] if fault == "cut" else [body]

    def _moto(self, environ: dict[str, Any], start: Any) -> Any:
        from moto.server import DomainDispatcherApplication, create_backend_app

        if self._app is None:
            self._app = DomainDispatcherApplication(create_backend_app)
        return self._app(environ, start)

    _app: Any = None


@contextmanager
def s3() -> Iterator[S3]:
    """A running one. The environment tells every client of it."""
    import boto3
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    state = S3("")
    server = make_server("127.0.0.1", 0, state, threaded=True, request_handler=Quiet)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    wanted = {
        "AWS_ENDPOINT_URL": state.url,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with environment(**wanted):
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class GCS:
    """Google's storage with one bucket, as gcp-storage-emulator has it.

    `faults` are carried out one per read of an object: `slow down` (status 503), `forbidden`,
    `cut`, or `ok`. `sent` counts the bytes of objects, `calls` are all methods and paths.
    """

    storage: Any
    faults: list[str] = field(default_factory=list)
    sent: int = 0
    calls: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """The names of the objects that are there."""
        return sorted(found["name"] for found in self.storage.get_file_list(BUCKET)[0])


@contextmanager
def gcs() -> Iterator[GCS]:
    """A running one. The environment tells every client of it, and of no credentials."""
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    state = GCS(Storage(use_memory_fs=True))
    create_bucket(BUCKET, state.storage)

    class Emulator(RequestHandler):  # type: ignore[misc]
        def __init__(self, *words: Any) -> None:
            super().__init__(state.storage, *words)

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            state.calls.append(f"POST {self.path}")
            super().do_POST()

        def do_DELETE(self) -> None:
            state.calls.append(f"DELETE {self.path}")
            if "upload_id=" not in self.path:
                super().do_DELETE()
                return
            # What the emulator itself cannot do: to cancel an upload.
            upload = parse_qs(self.path.partition("?")[2])["upload_id"][0]
            state.storage.delete_resumable_file_obj(upload)
            self._refuse(499)

        def do_GET(self) -> None:
            state.calls.append(f"GET {self.path}")
            reads = "alt=media" in self.path
            fault = state.faults.pop(0) if reads and state.faults else "ok"
            if fault in ("slow down", "forbidden"):
                self._refuse(503 if fault == "slow down" else 403)
                return
            whole = self.wfile
            self.wfile = Sent(whole, state, fault == "cut") if reads else whole
            with suppress(BrokenPipeError, ConnectionResetError):
                super().do_GET()  # gcsfs asks two questions at once, and takes the first answer
            self.wfile = whole

        def _refuse(self, status: int) -> None:
            self.send_response(status, "refused")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Emulator)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with environment(
            STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{server.server_address[1]}",
            GOOGLE_APPLICATION_CREDENTIALS="none",
        ):
            yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Sent:
    """A connection on which the bytes of a body are counted, and half of them sent if it is cut."""

    real: Any
    state: GCS
    cut: bool

    def write(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/"):
            data = data[: len(data) // 2] if self.cut else data
            self.state.sent += len(data)
        self.real.write(data)


@contextmanager
def environment(**wanted: str) -> Iterator[None]:
    """The variables as they are wanted, and then as they were."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def main() -> None:
    """S3 in a process of its own: its URL on a line, and for each line what it sent since."""
    with s3() as state:
        for said in chain([state.url], _since(state)):
            sys.stdout.write(f"{said}\n")
            sys.stdout.flush()


def _since(state: S3) -> Iterator[int]:
    for _ in sys.stdin:
        sent, state.sent = state.sent, 0
        yield sent


if __name__ == "__main__":
    main()
