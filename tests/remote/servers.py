"""Servers on the loopback interface: moto's S3, and HTTP with ranges and with faults."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield state
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        server.shutdown()
        server.server_close()
        thread.join()
