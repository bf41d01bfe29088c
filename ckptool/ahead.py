"""A file's bytes on their way into memory, while it is still being found out what they are."""

from __future__ import annotations

import mmap
import os
from threading import Thread

_ALIGNED = 16  # bytes; the largest element's size


class Ahead:
    """A descriptor's bytes, read into private memory by a thread of their own.

    Not a map of the file: it may be cut or changed meanwhile, which whoever reads it looks for.
    """

    __slots__ = ("_descriptor", "_have", "_memory", "_thread")

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._have = descriptor, 0
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._thread = Thread(target=self._fill, name="ckptool-ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        """Read on until the end, or until it cannot be read: who asks for more reads it himself."""
        target = memoryview(self._memory)
        try:
            # In one call if the kernel can: each return would wait for Python's lock.
            while count := os.preadv(self._descriptor, [target[self._have :]], self._have):
                self._have += count
        except OSError:
            return

    def get(self, offset: int, length: int) -> memoryview | None:
        """The bytes of a range, once they are there; None if they never came.

        Writable, and the same memory for everyone; an odd range is copied, so that its elements
        are aligned.
        """
        self.wait()
        if offset + length > self._have:
            return None
        found = memoryview(self._memory)[offset : offset + length]
        return memoryview(bytes(found)) if offset % _ALIGNED else found

    def wait(self) -> None:
        """Return when nothing more is read."""
        self._thread.join()
