"""load_straight: the same as torch's own load, with no copy in memory, and never by halves."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from nets import randomised
from torch import nn

import ckptool
import ckptool.lease
from ckptool.files import ByteFile
from ckptool.records import Record
from ckptool.straight import load_straight

TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
)


class Mixed(nn.Module):
    """Every element type, with and without elements and axes; BatchNorm's counters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        for number, dtype in enumerate(TYPES):
            for name, shape in (("full", (3, 5)), ("scalar", ()), ("empty", (0, 4))):
                values = torch.randint(0, 2, shape, generator=made).to(dtype)
                self.register_buffer(f"{name}{number}", values)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        with torch.no_grad():
            for value in self.body.parameters():
                value.copy_(torch.randn(value.shape, generator=made))


def straight(model, path, kept=()):
    return load_straight(model, ckptool.read(path), kept)


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        value.dtype == theirs[key].dtype and torch.equal(value, theirs[key])
        for key, value in ours.items()
    )


def saved(model, folder, suffix=".pth"):
    path = folder / f"w{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    return path


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_type_and_shape_comes_as_torch_would_have_loaded_it(tmp_path, suffix):
    model, trained = Mixed(1), Mixed(2)
    parameters = list(model.parameters())
    assert not same(model, trained)
    assert straight(model, saved(trained, tmp_path, suffix))
    assert same(model, trained)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_large_file_is_read_by_two_threads(tmp_path):
    """Random values: every tensor must get its own."""
    trained = nn.Sequential(*(nn.Linear(1500, 1500) for _ in range(9)))
    model = nn.Sequential(*(nn.Linear(1500, 1500) for _ in range(9)))
    path = saved(trained, tmp_path)
    assert path.stat().st_size > 1 << 26
    assert straight(model, path)
    assert same(model, trained)


def test_the_model_keeps_what_it_is_told_to_keep(tmp_path):
    model, trained = net(), randomised(net())
    before = model[2].weight.detach().clone()
    state = trained.state_dict()
    del state["2.weight"]
    torch.save(state, tmp_path / "w.pth")
    assert not straight(model, tmp_path / "w.pth")
    assert straight(model, tmp_path / "w.pth", ["2.weight"])
    assert torch.equal(model[2].weight, before)
    assert torch.equal(model[0].weight, trained[0].weight)


class Renaming(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *others):
        super()._load_from_state_dict(state, prefix, *others)


def hooked(hook):
    def make():
        model = net()
        hook(model)
        return model

    return make


def transposed():
    model = net()
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    return model


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def overlapping():
    model = nn.Module()
    storage = torch.zeros(6)
    model.register_buffer("first", storage[:4])
    model.register_buffer("second", storage[2:])
    return model


def expanded():
    model = nn.Module()
    model.register_buffer("one", torch.zeros(1).expand(3))
    return model


class WithExtra(nn.Linear):
    def get_extra_state(self):
        return torch.ones(1)

    def set_extra_state(self, state):
        pass


class Doubling(nn.Parameter):
    def copy_(self, other):
        return super().copy_(other * 2)


def of_a_class_of_its_own():
    model = nn.Module()
    model.weight = Doubling(torch.ones(3))
    return model


def replaced(name):
    def make():
        model = net()
        setattr(model, name, lambda *a, **k: None)
        return model

    return make


def dotted():
    """Torch itself refuses what it saved."""
    model = nn.Module()
    model._modules["a.b"] = nn.Linear(3, 4)
    return model


OTHERS = {
    "a parameter that copies in its own way": of_a_class_of_its_own,
    "a model that loads itself": replaced("load_state_dict"),
    "a module that loads itself": replaced("_load_from_state_dict"),
    "a name with a dot": dotted,
    "a class that loads itself": lambda: nn.Sequential(Renaming(3, 4)),
    "a hook before": hooked(lambda m: m.register_load_state_dict_pre_hook(lambda *a: None)),
    "a hook after": hooked(lambda m: m.register_load_state_dict_post_hook(lambda *a: None)),
    "an extra state": lambda: nn.Sequential(WithExtra(3, 4)),
    "another order of axes": transposed,
    "tied": tied,
    "overlapping": overlapping,
    "expanded": expanded,
    "another type": lambda: net().half(),
    "a quantised tensor": lambda: nn.Sequential(torch.ao.nn.quantized.Linear(3, 4)),
    "meta": lambda: net().to("meta"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_where_torch_would_do_more_than_copy_it_is_left_to_torch(tmp_path, kind):
    """The file has what the model wants; the model is not touched."""
    model = OTHERS[kind]()
    plain = net() if kind in ("another type", "meta") else OTHERS[kind]()
    before = dict(model.state_dict())
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    versions = {k: v._version for k, v in before.items() if isinstance(v, torch.Tensor)}
    assert not straight(model, tmp_path / "w.pth")
    assert versions == {k: v._version for k, v in before.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("change", ["shape", "missing", "unexpected", "transposed", "deflated"])
def test_what_does_not_fit_as_it_is_takes_the_other_way(tmp_path, change):
    model, state = net(), net().state_dict()
    if change == "shape":
        state["0.weight"] = torch.zeros(4, 5)
    elif change == "missing":
        del state["0.weight"]
    elif change == "unexpected":
        state["0.more"] = torch.zeros(1)
    elif change == "transposed":
        state["0.weight"] = state["0.weight"].t().contiguous().t()
    torch.save(state, tmp_path / "w.pth")
    if change == "deflated":
        import zipfile

        with (
            zipfile.ZipFile(tmp_path / "w.pth") as source,
            zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))
        os.replace(tmp_path / "d.pth", tmp_path / "w.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not straight(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_autograd_notices_the_change(tmp_path):
    """As after load_state_dict: what was computed with the old values has no gradient now."""
    path = saved(randomised(net()), tmp_path)
    model = net()
    result = model(torch.randn(5, 3)).sum()
    assert straight(model, path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_a_writer_waits_until_all_is_loaded(tmp_path, monkeypatch):
    model, trained = net(), randomised(net())
    path = saved(trained, tmp_path)
    size, opened, seen = path.stat().st_size, threading.Event(), []

    def write():
        with open(path, "r+b") as file:
            opened.set()
            file.write(bytes(size))

    writer = threading.Thread(target=write)
    read_into = ByteFile.read_into

    def slow(file, offset, target):
        if not writer.ident:
            writer.start()
        seen.append(opened.wait(0.05))
        read_into(file, offset, target)

    monkeypatch.setattr(ByteFile, "read_into", slow)
    checkpoint = ckptool.read(path)
    assert load_straight(model, checkpoint, ())
    assert seen
    assert not any(seen)
    assert same(model, trained)
    writer.join(10)
    assert opened.is_set()
    assert path.read_bytes() == bytes(size)


def test_a_file_that_is_open_for_writing_is_read_the_other_way(tmp_path):
    path = saved(randomised(net()), tmp_path)
    with open(path, "r+b"):
        assert not straight(net(), path)
        model = net()
        ckptool.load_into(model, path)
    assert straight(net(), path)


def test_a_file_that_was_read_ahead_takes_the_other_way(tmp_path, monkeypatch):
    """What was looked at is memory then, and no longer the file."""
    path = saved(randomised(net()), tmp_path)
    with monkeypatch.context() as context:
        context.setattr(ckptool.lease, "take", lambda descriptor: False)
        checkpoint = ckptool.read(path, memory=1 << 20)
    assert not load_straight(net(), checkpoint, ())


def test_a_damaged_file_changes_nothing(tmp_path):
    path = saved(randomised(net()), tmp_path)
    data = bytearray(path.read_bytes())
    weight = ckptool.read(path)["2.weight"].extent()
    data[weight.offset] ^= 1
    path.write_bytes(data)
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ckptool.FormatError, match="the file is damaged"):
        straight(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_that_changed_since_it_was_opened_changes_nothing(tmp_path):
    path = saved(randomised(net()), tmp_path)
    checkpoint = ckptool.read(path)
    os.utime(path, (1, 1))
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ckptool.CkptError, match="the file changed while it was read"):
        load_straight(model, checkpoint, ())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_disk_that_fails_the_second_time_is_told(tmp_path, monkeypatch):
    """The one case in which a model is loaded in part says so."""
    path = saved(randomised(net()), tmp_path)
    read, calls = os.preadv, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(5, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(ckptool.CkptError) as caught:
        straight(net(), path)
    assert caught.value.code == "file.unreadable"
    assert caught.value.message.endswith(
        "cannot be read: Input/output error; it could be read a moment ago, and the model is "
        "loaded in part"
    )


def test_a_kernel_that_reads_in_pieces_changes_nothing(tmp_path, monkeypatch):
    model, trained = Mixed(1), Mixed(2)
    path = saved(trained, tmp_path)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda d, targets, at: read(d, [targets[0][:7]], at))
    assert straight(model, path)
    assert same(model, trained)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, TimeoutError])
def test_what_a_signal_raises_while_the_file_is_looked_through_changes_nothing(
    tmp_path, monkeypatch, raised
):
    model = net()
    checkpoint = ckptool.read(saved(randomised(net()), tmp_path))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    versions = {key: value._version for key, value in model.state_dict().items()}
    blocks, going, done = Record.blocks, threading.Event(), threading.Event()

    def slow(record, *step):
        going.set()
        done.wait(10)
        yield from blocks(record, *step)

    def handler(number, frame):
        raise raised

    monkeypatch.setattr(Record, "blocks", slow)
    old = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.get_ident()
        sender = threading.Thread(
            target=lambda: (going.wait(10), signal.pthread_kill(main, signal.SIGUSR1))
        )
        sender.start()
        with pytest.raises(raised):
            load_straight(model, checkpoint, ())
    finally:
        done.set()
        signal.signal(signal.SIGUSR1, old)
        sender.join()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert versions == {key: value._version for key, value in model.state_dict().items()}
    os.close(os.open(checkpoint.path, os.O_WRONLY | os.O_NONBLOCK))  # the lease is given back


@pytest.mark.parametrize("raised", [SystemExit, TimeoutError])
def test_what_another_signal_raises_waits_like_ctrl_c(tmp_path, monkeypatch, raised):
    model, trained = net(), randomised(net())
    checkpoint = ckptool.read(saved(trained, tmp_path))
    read_into = ByteFile.read_into

    def slow(file, offset, target):
        signal.raise_signal(signal.SIGUSR1)  # for each tensor
        threading.Event().wait(0.01)
        read_into(file, offset, target)

    def handler(number, frame):
        raise raised

    monkeypatch.setattr(ByteFile, "read_into", slow)
    old = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(raised):
            load_straight(model, checkpoint, ())
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert same(model, trained)


def test_several_threads_may_load_one_checkpoint(tmp_path):
    """Each has a lease of its own: none gives back that of another."""
    trained = randomised(net())
    checkpoint = ckptool.read(saved(trained, tmp_path))
    models = [net() for _ in range(60)]
    found = []

    def load(own):
        found.extend(load_straight(model, checkpoint, ()) for model in own)

    threads = [threading.Thread(target=load, args=(models[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * len(models)
    assert all(same(model, trained) for model in models)


def test_a_writer_who_did_not_wait_for_the_end_is_told_of(tmp_path, monkeypatch):
    """The kernel breaks a lease in the end: what was read then is anybody's guess."""
    path = saved(randomised(net()), tmp_path)
    read_into = ByteFile.read_into

    def broken(file, offset, target):
        for own in os.listdir("/proc/self/fd"):  # as the kernel does it
            ckptool.lease.give_back(int(own))
        read_into(file, offset, target)

    monkeypatch.setattr(ByteFile, "read_into", broken)
    with pytest.raises(ckptool.CkptError) as caught:
        straight(net(), path)
    assert caught.value.code == "file.changed"
    assert caught.value.message == (
        f"`{path}`: the file changed while it was read; somebody waited long enough to write to "
        "it, and the model is loaded in part"
    )
    assert caught.value.hint == "load it again"


def test_a_lease_that_was_broken_before_is_no_error(tmp_path, monkeypatch):
    model, trained = net(), randomised(net())
    path = saved(trained, tmp_path)
    blocks = Record.blocks

    def broken(record, *step):
        for own in os.listdir("/proc/self/fd"):
            ckptool.lease.give_back(int(own))
        return blocks(record, *step)

    monkeypatch.setattr(Record, "blocks", broken)
    assert not straight(model, path)
    ckptool.load_into(model, path)
    assert same(model, trained)


@pytest.mark.parametrize("start", ["_thread.start_new_thread", "threading._start_new_thread"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_without_threads_a_model_is_loaded_the_other_way(tmp_path, monkeypatch, start, error):
    model, trained = net(), randomised(net())
    path = saved(trained, tmp_path)

    def refused(*arguments):
        raise error

    monkeypatch.setattr(start, refused)
    assert not straight(model, path)
    ckptool.load_into(model, path)
    assert same(model, trained)


def test_one_thread_is_enough(tmp_path, monkeypatch):
    model, trained = net(), randomised(net())

    def refused(*arguments):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refused)
    assert straight(model, saved(trained, tmp_path))
    assert same(model, trained)


@pytest.mark.parametrize("slowly", [True, False])
@pytest.mark.parametrize("moment", range(9))
def test_ctrl_c_waits_until_every_tensor_is_there(tmp_path, monkeypatch, moment, slowly):
    model, trained = net(), randomised(net())
    checkpoint = ckptool.read(saved(trained, tmp_path))
    read_into, read = ByteFile.read_into, []

    def interrupted(file, offset, target):
        if len(read) == moment:
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(0.01 * slowly)
        read_into(file, offset, target)
        read.append(offset)

    monkeypatch.setattr(ByteFile, "read_into", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_straight(model, checkpoint, ())
    assert len(read) == len(trained.state_dict())
    assert same(model, trained)
