"""Reading bytes by position, and what may not be read at all."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptool.errors import CkptError, FormatError
from ckptool.files import ByteFile, MemoryFile, names_in, sibling


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(range(100)))
    return file


def test_reads_by_position_and_in_blocks(path: Path) -> None:
    file = ByteFile(path)
    assert (file.path, file.size) == (str(path), 100)
    assert file.read(10, 3) == b"\n\x0b\x0c"
    assert file.read(100, 0) == b""
    assert [len(block) for block in file.blocks(5, 25, 10)] == [10, 10, 5]
    assert b"".join(file.blocks(5, 25, 10)) == bytes(range(5, 30))


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_data_that_ends_early_says_how_much_is_missing(kind: str, path: Path) -> None:
    file = ByteFile(path) if kind == "file" else MemoryFile(path.read_bytes(), "x.bin")
    with pytest.raises(FormatError) as caught:
        file.read(90, 20)
    assert (caught.value.code, caught.value.message) == (
        "format.truncated",
        "at byte 90: found 10 bytes, wanted 20: the file ends early",
    )


def test_memory_is_read_like_a_file(path: Path) -> None:
    file = MemoryFile(b"abcdef", "inner")
    assert (file.path, file.size, file.read(2, 3)) == ("inner", 6, b"cde")
    assert b"".join(file.blocks(1, 4, 2)) == b"bcde"
    file.check_unchanged()


def test_a_file_that_is_read_ahead_gives_the_same_bytes_in_one_piece(path: Path) -> None:
    """What begins at an odd byte is copied: its elements must lie at even addresses."""
    file = ByteFile(path)
    file.read_from(file.read_ahead())
    whole, odd = list(file.blocks(0, 100, 10)), list(file.blocks(5, 25, 10))
    assert [bytes(block) for block in (*whole, *odd)] == [bytes(range(100)), bytes(range(5, 30))]
    assert [memoryview(block).readonly for block in (*whole, *odd)] == [False, True]
    assert file.read(10, 3) == b"\n\x0b\x0c"


def test_what_could_not_be_read_ahead_is_read_when_it_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def spoiled(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset not in (0, 50):
            raise OSError(5, "Input/output error")
        return real(descriptor, [buffers[0][:30]], offset)

    monkeypatch.setattr(os, "preadv", spoiled)
    file = ByteFile(path)
    file.read_from(file.read_ahead())
    blocks = {at: [bytes(block) for block in file.blocks(at, 20, 10)] for at in (10, 20, 40, 60)}
    assert blocks == {
        10: [bytes(range(10, 30))],
        20: [bytes(range(20, 30)), bytes(range(30, 40))],
        40: [bytes(range(40, 50)), bytes(range(50, 60))],
        60: [bytes(range(60, 80))],
    }


def test_without_memory_to_spare_a_file_is_read_as_it_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    file = ByteFile(path)
    file.read_from(file.read_ahead())
    assert [len(block) for block in file.blocks(5, 25, 10)] == [10, 10, 5]


def test_without_a_thread_to_spare_no_descriptor_stays_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    file = ByteFile(path)
    before = os.listdir("/proc/self/fd")
    assert file.read_ahead() is None
    assert os.listdir("/proc/self/fd") == before


def test_a_closed_file_is_not_read(path: Path) -> None:
    file = ByteFile(path)
    file.close()
    file.close()
    with pytest.raises(CkptError, match="at byte 0: cannot be read: Bad file descriptor"):
        file.read(0, 1)


def test_the_descriptor_is_given_back(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        ByteFile(path).read(0, 1)
    assert os.listdir("/proc/self/fd") == before


def test_the_descriptor_is_not_inherited_and_cannot_write(path: Path) -> None:
    file = ByteFile(path)
    assert not os.get_inheritable(file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(file.fileno(), b"x")


@pytest.mark.parametrize("change", ["written", "cut", "touched"])
def test_a_change_is_noticed(change: str, path: Path) -> None:
    file = ByteFile(path)
    file.check_unchanged()
    if change == "written":
        path.write_bytes(bytes(100))
    elif change == "cut":
        os.truncate(path, 50)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CkptError) as caught:
        file.check_unchanged()
    assert (caught.value.code, caught.value.message) == (
        "file.changed",
        f"`{path}`: the file changed while it was read",
    )


def special_files(folder: Path) -> Iterator[tuple[Path, str]]:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    listener.close()
    yield pipe, "a named pipe"
    yield folder, "a directory"
    yield Path("/dev/zero"), "a device"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Opening a pipe does not hang, and no device is read."""
    for path, kind in special_files(tmp_path):
        with pytest.raises(CkptError) as caught:
            ByteFile(path)
        assert (caught.value.code, caught.value.message) == (
            "file.kind",
            f"`{path}`: found {kind}, wanted a regular file",
        )


def test_a_socket_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(CkptError) as caught:
            ByteFile("s")
    assert caught.value.message == "`s`: cannot be opened: No such device or address"


def test_a_link_to_a_file_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert ByteFile(tmp_path / "link").size == 100


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("absent", "file.missing", "`absent`: no such file"),
        ("x\ny", "file.missing", r"`x\x0ay`: no such file"),
        ("nul\0nul", "file.unreadable", "opened: its name has a null character in it"),
        ("n" * 300, "file.unreadable", "cannot be opened: File name too long"),
        ("loop", "file.unreadable", "cannot be opened: Too many levels of symbolic links"),
        ("x.bin/y", "file.unreadable", "`x.bin/y`: cannot be opened: Not a directory"),
    ],
)
def test_what_cannot_be_opened(
    name: str, code: str, message: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    Path("loop").symlink_to("loop")
    with pytest.raises(CkptError) as caught:
        ByteFile(name)
    assert caught.value.code == code
    assert caught.value.message.endswith(message)


def test_no_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may read everything, so the system's answer is given here."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CkptError) as caught:
        ByteFile(path)
    with pytest.raises(CkptError, match="no permission to read it"):
        names_in_refused(monkeypatch, refuse)
    assert (caught.value.code, caught.value.message) == (
        "file.permission",
        f"`{path}`: no permission to read it",
    )


def names_in_refused(monkeypatch: pytest.MonkeyPatch, refuse: object) -> list[str]:
    monkeypatch.setattr(os, "listdir", refuse)
    return names_in("folder")


def test_names_in_a_folder_are_sorted(path: Path) -> None:
    (path.parent / "a").touch()
    assert names_in(str(path.parent)) == ["a", "x.bin"]
    with pytest.raises(CkptError, match="no such file"):
        names_in(str(path.parent / "none"))


def test_a_sibling_is_in_the_same_folder(path: Path) -> None:
    assert sibling(str(path), "y.bin") == str(path.parent / "y.bin")
    assert sibling("x.bin", "y.bin") == "y.bin"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../y", "a/y", "/y", "a\\y", "C:y", "-y", "a\0y", "a\ny", "\u202ey"]
)
def test_a_name_that_could_lead_out_of_the_folder_is_refused(name: str, path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        sibling(str(path), name)
    assert caught.value.code == "index.path"
    assert caught.value.message.endswith(
        "is not a plain file name: it could lead out of the folder"
    )


def test_a_link_out_of_the_folder_is_refused(path: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(path)
    with pytest.raises(FormatError, match="`link` is a link that leads out of the folder"):
        sibling(str(inside / "index.json"), "link")


def test_the_links_of_a_hub_cache_stay_in_their_tree(tmp_path: Path) -> None:
    """huggingface_hub keeps blobs beside snapshots, and links to them."""
    tree = tmp_path / "models--org--name"
    blobs, snapshot = tree / "blobs", tree / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"x")
    (snapshot / "shard").symlink_to("../../blobs/123")
    (snapshot / "stray").symlink_to(tmp_path / "outside")
    index = str(snapshot / "index.json")
    assert sibling(index, "shard") == str(snapshot / "shard")
    with pytest.raises(FormatError, match="leads out of the folder"):
        sibling(index, "stray")
