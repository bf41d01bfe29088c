"""The lease of a file: who wants to write waits, and it is had only where that is certain."""

from __future__ import annotations

import fcntl
import os
import signal
import threading

import pytest

from ckptool import lease


@pytest.fixture
def descriptor(tmp_path):
    (tmp_path / "file").write_bytes(b"some bytes")
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


def test_nobody_can_write_until_it_is_given_back(descriptor, tmp_path):
    assert lease.take(descriptor)
    assert lease.is_undisputed(descriptor)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(BlockingIOError):
            os.open(tmp_path / "file", flags | os.O_NONBLOCK)
    os.close(os.open(tmp_path / "file", os.O_RDONLY))
    lease.give_back(descriptor)
    os.close(os.open(tmp_path / "file", os.O_WRONLY | os.O_NONBLOCK))


def test_it_is_disputed_once_somebody_waits(descriptor, tmp_path):
    """What the kernel sends then is a signal that nothing happens at."""
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    assert lease.take(descriptor)
    thread = threading.Thread(target=lambda: os.truncate(tmp_path / "file", 3))
    thread.start()
    try:
        while lease.is_undisputed(descriptor):
            thread.join(0.01)
        assert os.fstat(descriptor).st_size == len(b"some bytes")
    finally:
        lease.give_back(descriptor)
        thread.join()
    assert os.fstat(descriptor).st_size == 3


def test_several_may_have_one(descriptor, tmp_path):
    other = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert lease.take(descriptor)
        assert lease.take(other)
    finally:
        os.close(other)


def test_there_is_none_of_a_file_that_is_open_for_writing(descriptor, tmp_path):
    with open(tmp_path / "file", "r+b"):
        assert not lease.take(descriptor)
    assert lease.take(descriptor)


def test_there_is_none_where_others_write_too(monkeypatch):
    """A file system that is not only this kernel's: here, what /proc is."""
    with open("/proc/self/status", "rb") as file:
        assert not lease.take(file.fileno())


def test_there_is_none_where_the_kernel_refuses(descriptor, monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fcntl, "fcntl", refused)
    assert not lease.take(descriptor)


def test_there_is_none_of_a_descriptor_that_is_closed(tmp_path):
    assert not lease.take(1 << 20)


def test_there_is_none_but_on_linux(descriptor, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert not lease.take(descriptor)
