"""A file's bytes on their way into memory, while it is still being found out what they are."""

from __future__ import annotations

import mmap
import os
from threading import Thread

_ALIGNED = 16  # bytes; the largest element's size


class Ahead:
    """A file's bytes, read into private memory by two threads, each one half.

    Not a map of the file: it may be cut or changed meanwhile, which whoever reads it looks for.

    Raises: OSError, RuntimeError where there is no memory or no thread to be had.
    """

    __slots__ = ("_memory", "_middle", "_reached", "_threads")

    def __init__(self, descriptor: int, size: int) -> None:
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._middle = size // 2
        self._reached = [0, self._middle]  # how far each half is there
        self._threads: list[Thread] = []
        for half, end in enumerate((self._middle, size)):
            own = os.dup(descriptor)  # whoever opened the file may close it any time
            thread = Thread(target=self._fill, args=(own, half, end), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                os.close(own)
                raise
            self._threads.append(thread)

    def _fill(self, descriptor: int, half: int, end: int) -> None:
        """Read on until the end, or until it cannot be read: who asks for more reads it himself."""
        target, at = memoryview(self._memory), self._reached[half]
        try:
            # In one call if the kernel can: each return would wait for Python's lock.
            while at < end and (count := os.preadv(descriptor, [target[at:end]], at)):
                at += count
                self._reached[half] = at
        except OSError:
            return
        finally:
            os.close(descriptor)

    def get(self, offset: int, length: int) -> memoryview | None:
        """The bytes of a range, once they are there; None if they never came.

        Writable, and the same memory for everyone; an odd range is copied, so that its elements
        are aligned.
        """
        end = offset + length
        for half, (first, last) in enumerate(((0, self._middle), (self._middle, end))):
            if offset < last and first < end:
                self._threads[half].join()
                if self._reached[half] < min(last, end):
                    return None
        found = memoryview(self._memory)[offset:end]
        return memoryview(bytes(found)) if offset % _ALIGNED else found
