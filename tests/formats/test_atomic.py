"""A file appears under its name complete and checked, or not at all, with the rights it had."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptool.errors import FormatError, OutputError
from ckptool.files import BLOCK, ByteFile, MemoryFile
from ckptool.formats.atomic import Output, replace_file, write_set

NOBODY = 65534


def filled(data: bytes) -> Callable[[Output], None]:
    return lambda output: output.write(data)


def put(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    replace_file(str(path), filled(data), lambda _: None, force=force)


def put_set(folder: Path, names: str = "a b index", data: bytes = b"new") -> None:
    paths = [str(folder / name) for name in names.split()]
    write_set(paths, lambda path, output: output.write(data), lambda _: None)


def refusal(act: Callable[[], object]) -> tuple[str, str, str | None]:
    with pytest.raises(OutputError) as caught:
        act()
    return caught.value.code, caught.value.message, caught.value.hint


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """In the folder, without root's rights: those who run the tests as somebody have none."""
    before, groups = os.getcwd(), os.getgroups()
    root = os.geteuid() == 0
    os.chdir(folder)
    if root:
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        os.chdir(before)


# New and replaced files


def test_a_new_file_is_there_under_its_name_and_nothing_else_is(tmp_path: Path) -> None:
    put(tmp_path / "x", b"data")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"data"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_a_new_file_has_the_mode_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        put(tmp_path / "x")
        put_set(tmp_path)
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444, 0o666, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int, mask: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    with umask(mask):
        put(path, force=True)
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


def test_special_mode_bits_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o6755)
    put(path, force=True)
    assert mode_of(path) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_replaced_file_keeps_its_owner_and_its_group(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, NOBODY, 12345)
    put(path, force=True)
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode_of(path)) == (NOBODY, 12345, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("mode", "left"), [(0o660, 0o600), (0o664, 0o644), (0o604, 0o600), (0o644, 0o644)]
)
def test_a_group_that_cannot_be_kept_widens_nothing(mode: int, left: int, tmp_path: Path) -> None:
    """Another group, and all others, get only what both the old group and all others had."""
    tmp_path.chmod(0o777)
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    os.chown(path, NOBODY, 12345)
    with as_nobody(tmp_path):
        put(Path("x"), force=True)
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY)
    assert mode_of(path) == left


def access_list(group: int) -> bytes:
    """An access list as Linux stores it: the owner rw, user 12345 rw, the group as given."""
    entries = [(1, 6, 0xFFFFFFFF), (2, 6, 12345), (4, group, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF)]
    entries.append((32, 0, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<2HI", *entry) for entry in entries)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder whose file system has access lists."""
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", access_list(0))
        os.removexattr(tmp_path, "system.posix_acl_access")
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("the file system has no access lists")
    return tmp_path


def test_a_replaced_file_keeps_its_access_list(lists: Path) -> None:
    """The mode alone would give the group what the list's mask allows: rw instead of nothing."""
    path = lists / "x"
    path.write_bytes(b"old")
    os.setxattr(path, "system.posix_acl_access", access_list(0))
    before = mode_of(path)
    put(path, force=True)
    assert os.getxattr(path, "system.posix_acl_access") == access_list(0)
    assert mode_of(path) == before == 0o660


def test_a_replaced_file_does_not_inherit_an_access_list(lists: Path) -> None:
    path = lists / "x"
    path.write_bytes(b"old")
    path.chmod(0o660)
    os.setxattr(lists, "system.posix_acl_default", access_list(6))
    put(path, force=True)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert mode_of(path) == 0o660


# Targets


def test_an_existing_file_is_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    assert refusal(lambda: put(path)) == (
        "output.exists",
        f"`{path}`: exists already",
        "--force replaces it",
    )
    assert path.read_bytes() == b"old"


def test_a_file_that_came_meanwhile_is_not_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x"
    code, _, _ = refusal(
        lambda: replace_file(str(path), filled(b"new"), lambda _: path.write_bytes(b"other"))
    )
    assert (code, path.read_bytes(), names(tmp_path)) == ("output.exists", b"other", ["x"])


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], error: OSError | None = None
) -> None:
    """Let something happen in the instant before a file is linked, which may fail then."""
    plain = os.link

    def link(source: str, target: str) -> None:
        act()
        if error is not None:
            raise error
        plain(source, target)

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_comes_in_the_last_instant_is_not_replaced_without_force(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every look at the name: here only the kernel can tell."""
    path = tmp_path / "x"
    acts = {
        "file": (lambda: path.write_bytes(b"other"), "output.exists"),
        "link": (lambda: path.symlink_to("nowhere"), "output.link"),
        "folder": (lambda: path.mkdir(), "output.kind"),
    }
    act, code = acts[kind]
    meanwhile(monkeypatch, act)
    assert refusal(lambda: put(path))[0] == code
    assert names(tmp_path) == ["x"]
    assert (path.is_symlink(), path.is_dir()) == (kind == "link", kind == "folder")
    assert kind != "file" or path.read_bytes() == b"other"


def test_of_many_that_write_one_new_name_at_once_one_succeeds(tmp_path: Path) -> None:
    """All are past their last look before the first of them goes on."""
    path, writers, codes = tmp_path / "x", 8, []
    ready = threading.Barrier(writers)

    def write(number: int) -> None:
        try:
            replace_file(str(path), filled(bytes([number])), lambda _: ready.wait())
            codes.append(f"wrote {number}")
        except OutputError as error:
            codes.append(error.code)

    for _ in range(20):
        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes)[:-1] == ["output.exists"] * (writers - 1)
        assert max(codes) == f"wrote {path.read_bytes()[0]}"
        assert names(tmp_path) == ["x"]
        path.unlink()
        codes.clear()


def test_a_link_that_is_made_and_reported_as_there_before_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS does so where the answer to the first request is lost.

    Source: link(2), section BUGS.
    """
    path, plain = tmp_path / "x", os.link
    lost = FileExistsError(errno.EEXIST, "File exists")
    meanwhile(monkeypatch, lambda: plain(tmp_path / temporaries(tmp_path)[0], path), lost)
    put(path)
    assert (path.read_bytes(), names(tmp_path), path.stat().st_nlink) == (b"new", ["x"], 1)


def test_a_name_that_is_taken_and_free_again_is_refused_by_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there any more that could be told about, and nothing is written."""
    path = tmp_path / "x"
    meanwhile(monkeypatch, lambda: None, FileExistsError(errno.EEXIST, "File exists"))
    assert refusal(lambda: put(path))[1] == f"`{path}`: cannot be written: File exists"
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_gets_the_file_by_renaming(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a last look must do."""
    path, no_links = tmp_path / "x", OSError(number, os.strerror(number))
    with monkeypatch.context() as patched:
        meanwhile(patched, lambda: None, no_links)
        put(path)
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["x"])
    path.unlink()
    meanwhile(monkeypatch, lambda: path.write_bytes(b"other"), no_links)
    assert refusal(lambda: put(path))[0] == "output.exists"
    assert (path.read_bytes(), names(tmp_path)) == (b"other", ["x"])


@pytest.mark.parametrize("points_to", ["file", "nothing", "folder"])
def test_a_symbolic_link_is_refused_and_its_target_named(points_to: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if points_to == "file":
        target.write_bytes(b"old")
    elif points_to == "folder":
        target.mkdir()
    (tmp_path / "x").symlink_to(target)
    code, message, hint = refusal(lambda: put(tmp_path / "x", force=True))
    assert code == "output.link"
    assert message == (
        f"`{tmp_path / 'x'}`: is a symbolic link; it would be replaced, not what it points to"
    )
    assert hint == f"-o {target}"
    assert (tmp_path / "x").is_symlink()


def test_folders_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe", Path("/dev/null")):
        assert refusal(lambda path=path: put(path, force=True))[:2] == (
            "output.kind",
            f"`{path}`: exists and is not a regular file",
        )
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "x"
    assert refusal(lambda: put(path))[1] == f"`{path}`: there is no folder `{path.parent}`"


def test_names_of_any_legal_length_can_be_written(tmp_path: Path) -> None:
    """The temporary name does not grow with the target's."""
    for name in ("x" * 255, "é" * 127):
        put(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"
    code, message, _ = refusal(lambda: put(tmp_path / ("x" * 256)))
    assert code == "output.system"
    assert message.endswith("cannot be written: File name too long")


def test_an_impossible_name_is_refused() -> None:
    message = refusal(lambda: put(Path("a\0b")))[1]
    assert message.startswith(r"`a\x00b`: cannot be written: ")
    assert "embedded null" in message


def test_a_folder_that_must_not_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path):
        for force in (False, True):
            assert refusal(lambda force=force: put(Path("x"), force=force)) == (
                "output.system",
                "`x`: cannot be written: Permission denied",
                None,
            )
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_listed_can_be_written_to(tmp_path: Path) -> None:
    """The search for what dead runs left, and the flushing of the names, are left out there."""
    tmp_path.chmod(0o733)
    with as_nobody(tmp_path):
        put(Path("x"))
    assert names(tmp_path) == ["x"]


def test_a_relative_name_is_written_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path("x"))
    put_set(Path())
    assert names(tmp_path) == ["a", "b", "index", "x"]


# What fails leaves nothing behind


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("where", ["fill", "check"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_whatever_is_raised_leaves_the_old_file_and_nothing_else(
    error: type[BaseException], where: str, old: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)

    def fill(output: Output) -> None:
        output.write(b"half")
        if where == "fill":
            raise error

    def check(written: str) -> None:
        assert Path(written).read_bytes() == b"half"
        raise error

    with pytest.raises(error):
        replace_file(str(path), fill, check, force=True)
    assert names(tmp_path) == ([] if old is None else ["x"])
    assert old is None or path.read_bytes() == old


def test_the_check_sees_the_complete_file_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    found = replace_file(
        str(path),
        filled(b"new"),
        lambda written: (Path(written).read_bytes(), path.read_bytes()),
        force=True,
    )
    assert found == (b"new", b"old")


# What dead runs left


def temporaries(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.startswith(".ckptool-")]


def test_what_a_dead_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".ckptool-0123456789ab.tmp").write_bytes(b"half")
    dead = tmp_path / ".ckptool-ba9876543210.tmp"
    dead.mkdir()
    (dead / "a").write_bytes(b"half")
    put(tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_what_a_live_run_writes_is_left_alone(tmp_path: Path) -> None:
    """Also by a run in the same process: the lock belongs to the open file."""

    def fill(output: Output) -> None:
        put(tmp_path / "inner")
        put_set(tmp_path)
        output.write(b"outer")

    replace_file(str(tmp_path / "outer"), fill, lambda _: put(tmp_path / "last"))
    assert names(tmp_path) == ["a", "b", "index", "inner", "last", "outer"]


def test_a_set_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    def fill(path: str, output: Output) -> None:
        put(Path(path + ".other"))
        output.write(b"new")

    write_set([str(tmp_path / name) for name in ("a", "b")], fill, lambda _: None)
    assert names(tmp_path) == ["a", "a.other", "b", "b.other"]


def test_only_what_looks_like_ours_and_is_ours_is_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".ckptool-000000000001.tmp").symlink_to(victim)
    os.mkfifo(tmp_path / ".ckptool-000000000002.tmp")
    (tmp_path / ".ckptool-notes.txt").write_bytes(b"mine")
    if os.geteuid() == 0:
        (tmp_path / ".ckptool-000000000003.tmp").mkdir()
        os.chown(tmp_path / ".ckptool-000000000003.tmp", NOBODY, NOBODY)
    before = names(tmp_path)
    put(tmp_path / "x")
    assert names(tmp_path) == sorted([*before, "x"])
    assert victim.read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_gave_to_the_owner_of_the_target_is_removed_by_root_only(tmp_path: Path) -> None:
    """A run of root that was killed after it had given its file to the target's owner."""
    tmp_path.chmod(0o777)
    left = tmp_path / ".ckptool-000000000003.tmp"
    for owner, remover, is_left in ((12345, NOBODY, True), (12345, 0, False), (0, NOBODY, True)):
        left.write_bytes(b"half")
        os.chown(left, owner, owner)
        left.chmod(0o666)
        if remover:
            with as_nobody(tmp_path):
                put(Path("x"), force=True)
        else:
            put(tmp_path / "x", force=True)
        assert left.exists() is is_left


def test_a_file_taken_for_a_stale_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its locking, another run may remove a temporary file."""
    plain, taken = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not taken:
            (found,) = temporaries(tmp_path)
            taken.append(found)
            (tmp_path / found).unlink()
        plain(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    put(tmp_path / "x")
    assert len(taken) == 1
    assert names(tmp_path) == ["x"]


def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can take a lock there, so nobody takes a living file for a dead one."""

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".ckptool-0123456789ab.tmp").write_bytes(b"perhaps alive")
    put(tmp_path / "x")
    put_set(tmp_path)
    assert names(tmp_path) == [".ckptool-0123456789ab.tmp", "a", "b", "index", "x"]


# Sets of files


def test_a_set_is_checked_as_a_whole_and_gets_its_names_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = os.link

    def link(source: str, target: str) -> None:
        seen.append((os.path.basename(target), names(tmp_path)))
        plain(source, target)

    monkeypatch.setattr(os, "link", link)
    found = write_set(
        [str(tmp_path / name) for name in ("b", "a", "index")],
        lambda path, output: output.write(path.encode()),
        lambda folder: (sorted(os.listdir(folder)), names(tmp_path)),
    )
    inside, outside = found
    assert inside == ["a", "b", "index"]
    assert len(outside) == 1  # the temporary folder
    assert [name for name, _ in seen] == ["b", "a", "index"]
    assert names(tmp_path) == ["a", "b", "index"]
    assert (tmp_path / "a").read_bytes() == str(tmp_path / "a").encode()
    assert (tmp_path / "a").stat().st_nlink == 1


@pytest.mark.parametrize("name", ["a", "b", "index"])
def test_a_set_replaces_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"old")
    assert refusal(lambda: put_set(tmp_path)) == (
        "output.exists",
        f"`{tmp_path / name}`: exists already, and several files cannot be replaced at once",
        "-o ANOTHER, or remove the old files",
    )
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("late", ["a", "b", "index"])
def test_a_name_that_is_taken_meanwhile_undoes_the_set(late: str, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b", "index")]
    assert refusal(
        lambda: write_set(
            paths,
            lambda path, output: output.write(b"new"),
            lambda _: (tmp_path / late).write_bytes(b"other"),
        )
    ) == (
        "output.exists",
        f"`{tmp_path / late}`: exists already, and several files cannot be replaced at once",
        "-o ANOTHER, or remove the old files",
    )
    assert names(tmp_path) == [late]
    assert (tmp_path / late).read_bytes() == b"other"


@pytest.mark.parametrize("published", [0, 1, 2, 3])
def test_a_set_that_was_killed_half_way_is_undone_by_the_next_run(
    published: int, tmp_path: Path
) -> None:
    """Unless all of it had its name: then it is complete."""
    dead = tmp_path / ".ckptool-0123456789ab.tmp"
    dead.mkdir()
    for number, name in enumerate(("a", "b", "index")):
        (dead / name).write_bytes(b"old run")
        if number < published:
            os.link(dead / name, tmp_path / name)
    put(tmp_path / "x")
    assert names(tmp_path) == (["a", "b", "index", "x"] if published == 3 else ["x"])


def test_what_only_has_the_name_of_a_dead_set_is_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".ckptool-0123456789ab.tmp"
    dead.mkdir()
    for name in ("a", "b"):
        (dead / name).write_bytes(b"half")
        (tmp_path / name).write_bytes(b"precious")
    put(tmp_path / "x")
    assert names(tmp_path) == ["a", "b", "x"]
    assert (tmp_path / "a").read_bytes() == b"precious"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_gets_the_set_by_renaming(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    put_set(tmp_path)
    assert names(tmp_path) == ["a", "b", "index"]


# The bytes


class Handed(ByteFile):
    """A file whose bytes may not pass through Python."""

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("read by Python")


@contextmanager
def output_in(folder: Path) -> Iterator[Output]:
    descriptor = os.open(folder / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield Output(descriptor, str(folder / "out"))
    finally:
        os.close(descriptor)


DATA = os.urandom(3 * BLOCK + 17)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


def copied(folder: Path, source: ByteFile | MemoryFile, offset: int, length: int) -> bytes:
    with output_in(folder) as output:
        output.write(b"before")
        output.copy_at(6, source, offset, length)
        assert output.position == 6
        output.write_at(6 + length, b"after")
    found = (folder / "out").read_bytes()
    assert found[:6] == b"before"
    assert found[-5:] == b"after"
    return found[6:-5]


@pytest.mark.parametrize("offset", [0, 1, BLOCK - 1, 2 * BLOCK + 5])
@pytest.mark.parametrize("length", [0, 1, 4097, BLOCK])
def test_a_range_is_copied_inside_the_kernel(
    offset: int, length: int, tmp_path: Path, source: Path
) -> None:
    assert copied(tmp_path, Handed(source), offset, length) == DATA[offset : offset + length]


def test_a_kernel_that_copies_less_than_asked_is_asked_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = os.copy_file_range, []

    def short(source: int, target: int, count: int, *where: int) -> int:
        calls.append(count)
        if len(calls) % 3 == 0:
            raise InterruptedError(errno.EINTR, "Interrupted system call")
        return plain(source, target, min(count, 100_001), *where)

    monkeypatch.setattr(os, "copy_file_range", short)
    assert copied(tmp_path, Handed(source), 5, BLOCK) == DATA[5 : 5 + BLOCK]
    assert len(calls) > BLOCK // 100_001


@pytest.mark.parametrize("name", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM"])
@pytest.mark.parametrize("first", [0, 4096])
def test_where_the_kernel_cannot_copy_python_does(
    name: str, first: int, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it stops in the middle."""
    plain = os.copy_file_range

    def refusing(source: int, target: int, count: int, *where: int) -> int:
        if first and where[0] == 3:
            return plain(source, target, first, *where)
        raise OSError(getattr(errno, name), "")

    monkeypatch.setattr(os, "copy_file_range", refusing)
    found = copied(tmp_path, ByteFile(source), 3, 2 * BLOCK)
    assert found == DATA[3 : 3 + 2 * BLOCK]


def test_a_copy_to_another_file_system(tmp_path: Path, source: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = shared / f"ckptool-test-{os.getpid()}"
    folder.mkdir()
    try:
        assert copied(folder, ByteFile(source), 7, BLOCK) == DATA[7 : 7 + BLOCK]
    finally:
        (folder / "out").unlink()
        folder.rmdir()


def test_bytes_in_memory_are_written(tmp_path: Path) -> None:
    assert copied(tmp_path, MemoryFile(DATA, "inside"), 9, 1000) == DATA[9:1009]


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT"])
def test_a_copy_that_fails_names_both_files(
    name: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, name)

    def failing(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", failing)
    target = tmp_path / "x"
    assert refusal(
        lambda: replace_file(
            str(target), lambda output: output.copy_at(0, ByteFile(source), 0, 5), lambda _: None
        )
    )[1] == (f"`{target}`: cannot be written: {os.strerror(number)}, copying from `{source}`")
    assert names(tmp_path) == ["source"]


def test_a_source_that_was_cut_is_an_error(tmp_path: Path, source: Path) -> None:
    file = ByteFile(source)
    os.truncate(source, 1000)
    with output_in(tmp_path) as output, pytest.raises(FormatError, match="the file ends early"):
        output.copy_at(0, file, 500, 2000)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.pwrite

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        return plain(descriptor, data[:7], offset)

    monkeypatch.setattr(os, "pwrite", short)
    put(tmp_path / "x", DATA[:1000])
    assert (tmp_path / "x").read_bytes() == DATA[:1000]
