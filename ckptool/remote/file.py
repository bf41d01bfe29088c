"""A remote file read by position, each byte fetched once: what came is kept in a temporary file.

Reads are rounded to blocks and joined into few requests; what is read in order is fetched ahead by
several connections. In memory are only the parts under way.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock

from ckptool.errors import CkptError, FormatError, quoted
from ckptool.remote import stores
from ckptool.remote.faults import changed
from ckptool.remote.urls import shown

_BLOCK = 1 << 16  # bytes: the least that is fetched
_PART = 1 << 23  # the most that one request fetches
_CONNECTIONS = 4
_AHEAD = _CONNECTIONS * _PART
_STEP = 1 << 22
_SOON = 2.0  # seconds between two looks whether the file is still the same


class RemoteFile:
    """The file behind a URL: its size, and positional reads of it; safe to use in threads."""

    distant = True  # so that readers spare what would be a request for each tensor

    def __init__(self, url: str, known: stores.Stat | None = None) -> None:
        self.url = url
        self.path = shown(url)
        self._known = known or stores.stat(url)
        if self._known.folder:
            raise CkptError(f"{quoted(self.path)}: found a folder, wanted a file", code="file.kind")
        self.size = self._known.size
        stores.opened(self.size)
        self.verified: set[int] = set()
        self._kept = tempfile.TemporaryFile(prefix=".ckptool-")  # noqa: SIM115
        self._here: dict[int, Future[None] | None] = {}  # block to its request; None if it came
        self._lock = Lock()
        self._expected, self._streak = -1, 0
        self._fetched = self._checked = 0
        self._when = time.monotonic()
        self._checks = 0
        self._changed = False

    def __del__(self) -> None:
        if hasattr(self, "_kept"):
            self._kept.close()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; FormatError if the file ends before."""
        if offset < 0 or length < 0 or offset + length > self.size:
            have = max(0, self.size - offset)
            raise FormatError(
                f"at byte {offset:,}: found {have:,} bytes, wanted {length:,}: the file ends early",
                code="format.truncated",
            )
        for request in self._requested(offset, offset + length):
            request.result()
        data = os.pread(self._kept.fileno(), length, offset)
        while len(data) < length:
            data += os.pread(self._kept.fileno(), length - len(data), offset + len(data))
        return data

    def blocks(self, offset: int, length: int, step: int = _STEP) -> Iterator[bytes]:
        """The bytes of a range, in order, at most `step` at a time, fetched ahead."""
        end = offset + length
        while offset < end:
            size = min(step, end - offset)
            if end <= self.size:
                self._requested(offset, min(end, offset + _AHEAD))
            yield self.read(offset, size)
            offset += size

    def check_unchanged(self) -> None:
        """Raise if the object was replaced since it was opened.

        Asked after every tensor; the store is asked now and then, and when all has come. What was
        replaced once stays so.
        """
        with self._lock:
            if self._changed:
                raise changed(self.url)
            fetched, self._checks = self._fetched, self._checks + 1
            new = fetched - self._checked
            due = self._checks < 3 or fetched >= self.size or new >= _AHEAD
            if not new or not (due or time.monotonic() - self._when > _SOON):
                return
            self._checked, self._when = fetched, time.monotonic()
        found = stores.stat(self.url)
        if (found.size, found.version) != (self._known.size, self._known.version):
            self._changed = True
            raise changed(self.url)

    def _requested(self, start: int, stop: int) -> list[Future[None]]:
        """The requests under way for a range, those that were missing begun."""
        if start == stop:
            return []
        with self._lock:
            first, last = start // _BLOCK, (stop - 1) // _BLOCK
            missing = [n for n in range(first, last + 1) if n not in self._here]
            if missing:
                in_order = missing[0] == self._expected
                self._streak = self._streak + 1 if in_order else 0
                if self._streak > 1:  # the third request in a row
                    ahead = min(1 << min(self._streak, 12), _PART // _BLOCK)
                    end = min(last + ahead, (self.size - 1) // _BLOCK)
                    missing += [n for n in range(last + 1, end + 1) if n not in self._here]
                self._expected = missing[-1] + 1
                for run in _runs(missing, _PART // _BLOCK):
                    request = _pool().submit(self._fetch, run)
                    self._here.update(dict.fromkeys(run, request))
            waiting = {self._here[n] for n in range(first, last + 1)}
        return [request for request in waiting if request is not None]

    def _fetch(self, run: range) -> None:
        start, stop = run.start * _BLOCK, min(run.stop * _BLOCK, self.size)
        try:
            data = memoryview(stores.fetch(self.url, start, stop, self._known))
            try:
                at = start
                while data:
                    count = os.pwrite(self._kept.fileno(), data, at)
                    data, at = data[count:], at + count
            except OSError as error:
                raise CkptError(
                    f"{quoted(self.path)}: what was fetched cannot be kept in "
                    f"{quoted(tempfile.gettempdir())}: {error.strerror}",
                    hint="TMPDIR=FOLDER chooses another folder for temporary files",
                    code="remote.disk",
                ) from None
        except BaseException:
            with self._lock:
                for block in run:
                    del self._here[block]
            raise
        with self._lock:
            self._here.update(dict.fromkeys(run))
            self._fetched += stop - start


def _runs(blocks: list[int], most: int) -> Iterator[range]:
    """Consecutive blocks as ranges of at most that many."""
    start = previous = blocks[0]
    for block in [*blocks[1:], -1]:
        if block != previous + 1 or block - start >= most:
            yield range(start, previous + 1)
            start = block
        previous = block


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CONNECTIONS, "ckptool-remote")
