"""load_into: the live model is the target, and after a failure it is as it was."""

from __future__ import annotations

import copy
import gc
import math
import os

import pytest
import torch
from effdet import DetBenchPredict, DetBenchTrain
from nets import effdet, image, outputs, randomised
from torch import nn

import ckptool
import ckptool.lease
import ckptool.loading

NAME = "tf_efficientdet_d0"


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    """Whether two state dicts have the same keys and bits."""
    return list(one) == list(other) and all(
        a.dtype == other[key].dtype and torch.equal(a, other[key]) for key, a in one.items()
    )


def refused(model, path, error, **options):
    """The error of a load, after which the model is as it was."""
    before = state_of(model)
    with pytest.raises(error) as caught:
        ckptool.load_into(model, path, **options)
    assert same(state_of(model), before)
    return caught.value


@pytest.fixture(scope="module")
def trained():
    """What every file here was made from."""
    return effdet(NAME, 5, size=128)


@pytest.fixture(scope="module")
def wanted(trained):
    return outputs(trained, image())


class Lit(nn.Module):
    """A training module as people write them for Lightning."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def ddp(model):
    return nn.ModuleDict({"module": model})


WRAPPERS = {
    "bare": lambda model: model,
    "DDP": ddp,
    "DataParallel": lambda model: nn.DataParallel(model),
    "bench": lambda model: DetBenchTrain(model),
    "compile": lambda model: torch.compile(model),
    "Lightning": Lit,
    "Lightning, bench": lambda model: Lit(DetBenchPredict(model)),
    "DDP, bench": lambda model: ddp(DetBenchTrain(model)),
    "compile, DDP": lambda model: torch.compile(ddp(model)),
}


@pytest.mark.parametrize("inside", WRAPPERS)
def test_wrappers_around_the_model_are_seen_through(tmp_path, trained, wanted, inside):
    """The file is of the bare model; the live one is wrapped, and keeps what is its own."""
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    core = effdet(NAME, 5, size=128)
    live = WRAPPERS[inside](core)
    own = {k: v for k, v in state_of(live).items() if k.endswith("anchors.boxes")}
    report = ckptool.load_into(live, tmp_path / "in.pth")
    assert all(torch.equal(a, b) for a, b in zip(outputs(core, image()), wanted, strict=True))
    assert all(torch.equal(live.state_dict()[key], value) for key, value in own.items())
    assert report.kept == tuple(own)
    assert report.tensors == len(trained.state_dict())
    assert all(step.grade == "exact" for step in report.plan.steps)


@pytest.mark.parametrize("around", [name for name in WRAPPERS if name != "bare"])
def test_wrappers_in_the_file_are_seen_through(tmp_path, trained, wanted, around):
    torch.save({"state_dict": WRAPPERS[around](trained).state_dict()}, tmp_path / "in.ckpt")
    live = effdet(NAME, 5, size=128)
    ckptool.load_into(live, tmp_path / "in.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(outputs(live, image()), wanted, strict=True))


@pytest.mark.parametrize(
    ("around", "inside"), [("DDP", "Lightning"), ("Lightning, bench", "DDP"), ("compile", "bench")]
)
def test_the_file_and_the_model_may_be_wrapped_differently(
    tmp_path, trained, wanted, around, inside
):
    torch.save(WRAPPERS[around](trained).state_dict(), tmp_path / "in.pth")
    core = effdet(NAME, 5, size=128)
    ckptool.load_into(WRAPPERS[inside](core), tmp_path / "in.pth")
    assert all(torch.equal(a, b) for a, b in zip(outputs(core, image()), wanted, strict=True))


class Plain(nn.Module):
    """A network that ckptool has never heard of."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(5))
        self.fc = nn.Linear(width, 2)


@pytest.mark.parametrize("around", ["bare", "DDP", "compile", "Lightning"])
@pytest.mark.parametrize("inside", ["bare", "DDP", "compile", "Lightning"])
def test_networks_of_one_s_own_are_seen_through_too(tmp_path, around, inside):
    trained, core = randomised(Plain()), Plain()
    torch.save(WRAPPERS[around](trained).state_dict(), tmp_path / "in.pth")
    ckptool.load_into(WRAPPERS[inside](core), tmp_path / "in.pth")
    assert same(core.state_dict(), trained.state_dict())


def test_a_matching_file_needs_no_step(tmp_path, trained):
    """And the report says what was loaded."""
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    live = effdet(NAME, 5, size=128)
    report = ckptool.load_into(live, tmp_path / "in.pth")
    assert report.plan.steps == ()
    assert same(live.state_dict(), trained.state_dict())
    assert str(report) == f"{tmp_path}/in.pth: {len(live.state_dict()):,} tensors loaded"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(trained, tmp_path, enabled):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    (gc.enable if enabled else gc.disable)()
    try:
        ckptool.load_into(effdet(NAME, 5, size=128), tmp_path / "w.pth")
        assert gc.isenabled() is enabled
        refused(nn.Linear(2, 2), tmp_path / "w.pth", ckptool.CkptError)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_an_opened_checkpoint_and_a_chosen_weight_set_will_do(tmp_path):
    """`weights` chooses between raw and averaged; nobody guesses."""
    raw, averaged = randomised(Plain(), 1), randomised(Plain(), 2)
    file = {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save(file, tmp_path / "in.pth")
    live = Plain()
    assert refused(live, tmp_path / "in.pth", ckptool.WeightsError).code == "weights.ambiguous"
    assert ckptool.load_into(live, tmp_path / "in.pth", weights="state_dict_ema").weights
    assert same(live.state_dict(), averaged.state_dict())
    ckptool.load_into(live, ckptool.read(tmp_path / "in.pth", weights="state_dict"))
    assert same(live.state_dict(), raw.state_dict())


def test_exact_edits_are_applied(tmp_path, trained, wanted):
    """Level-first norms into a repeat-first model, half precision into a wider one."""
    model = copy.deepcopy(trained)
    model.toggle_head_bn_level_first()
    torch.save(model.half().state_dict(), tmp_path / "in.pth")
    live = effdet(NAME, 5, size=128)
    report = ckptool.load_into(live, tmp_path / "in.pth")
    halved = copy.deepcopy(trained).half().float()
    expected = outputs(halved, image())
    assert all(torch.equal(a, b) for a, b in zip(outputs(live, image()), expected, strict=True))
    assert [step.edit for step in report.plan.steps] == ["cast", "rename"]
    assert str(report).splitlines()[1] == "to float32"


def test_another_class_count_needs_a_class_map(tmp_path, trained):
    torch.save(effdet(NAME).state_dict(), tmp_path / "coco.pth")
    live = effdet(NAME, 20)
    error = refused(live, tmp_path / "coco.pth", ckptool.PlanError)
    assert "the file has 90 classes, the architecture is asked for 20" in error.message
    assert error.hint == (
        "load_into(..., class_map='first'), or two label sets such as 'coco90:voc20'"
    )


@pytest.mark.parametrize("inside", ["bare", "DDP", "Lightning, bench"])
def test_a_class_map_keeps_classes_by_name(tmp_path, inside):
    """The logits of the 20 classes are the old ones, in whatever wrapper."""
    before, core = effdet(NAME), effdet(NAME, 20)
    torch.save(before.state_dict(), tmp_path / "coco.pth")
    live = WRAPPERS[inside](core)
    report = ckptool.load_into(live, tmp_path / "coco.pth", class_map="coco90:voc20")
    rows = next(step.options["map"] for step in report.plan.steps if step.edit == "heads")
    old, new = outputs(before, image())[0], outputs(core, image())[0]
    assert new.unflatten(1, (9, 20)).equal(old.unflatten(1, (9, 90))[:, :, rows])
    assert report.notes == ("20 of 20 classes kept",)


def test_a_class_map_for_an_unknown_network_is_refused(tmp_path):
    torch.save(Plain().state_dict(), tmp_path / "in.pth")
    error = refused(Plain(), tmp_path / "in.pth", ckptool.PlanError, class_map="first")
    assert error.code == "plan.class-map"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrower_model_gets_torchs_own_values(tmp_path, dtype):
    trained = randomised(Plain())
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    live = Plain().to(dtype)
    report = ckptool.load_into(live, tmp_path / "in.pth")
    assert same(live.state_dict(), copy.deepcopy(trained).to(dtype).state_dict())
    assert [step.grade for step in report.plan.steps] == ["lossy"]


def test_a_file_of_another_network_is_told_from_the_model(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "d0.pth")
    error = refused(torch.nn.Linear(2, 2), tmp_path / "d0.pth", ckptool.PlanError)
    assert error.code == "plan.other-family"
    assert error.message == (
        "the keys and shapes say `tf_efficientdet_d0`, `tf_efficientdet_d0_ap` with 5 classes, "
        "you asked for `torch.nn.modules.linear.Linear`: another network altogether, of whose "
        "2 keys the file has none"
    )
    assert error.hint == "build that model, or load another file"


@pytest.mark.parametrize("mixed", [False, True], ids=["half", "mixed"])
def test_a_value_that_the_model_cannot_hold_is_refused(tmp_path, mixed):
    """torch would load it as infinity; also where only some layers are narrow."""
    trained = randomised(Plain())
    trained.fc.weight.data[1, 2] = 1e5
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    live = Plain()
    (live.fc if mixed else live).half()
    error = refused(live, tmp_path / "in.pth", ckptool.LossError)
    assert "`fc.weight`: found 100000, the largest float16 is 65504" in error.message


def test_a_mixed_model_keeps_its_types(tmp_path):
    """Norms in float32, the rest in float16."""
    trained, live = randomised(Plain()), Plain().half()
    live.stem[1].float()
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    report = ckptool.load_into(live, tmp_path / "in.pth")
    expected = copy.deepcopy(trained).half()
    expected.stem[1].float()
    expected.stem[1].load_state_dict(trained.stem[1].state_dict())
    assert same(live.state_dict(), expected.state_dict())
    assert {step.options["dtype"] for step in report.plan.steps} == {"float16"}


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.5, 1e30])
def test_a_counter_that_was_ruined_by_a_cast_is_refused(tmp_path, value):
    """float16 made 100,000 infinite; torch would read it as -9,223,372,036,854,775,808."""
    state = Plain().state_dict()
    state["stem.1.num_batches_tracked"] = torch.tensor(value)
    torch.save(state, tmp_path / "in.pth")
    error = refused(Plain(), tmp_path / "in.pth", ckptool.LossError)
    assert error.message.startswith("`stem.1.num_batches_tracked`: found float32, the model has")


def test_a_counter_that_is_a_whole_float_is_taken(tmp_path):
    state = Plain().state_dict()
    state["stem.1.num_batches_tracked"] = torch.tensor(100_000.0)
    torch.save(state, tmp_path / "in.pth")
    live = Plain()
    ckptool.load_into(live, tmp_path / "in.pth")
    assert live.stem[1].num_batches_tracked.equal(torch.tensor(100_000))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64], ids=str)
def test_numbers_of_another_kind_are_refused(tmp_path, dtype):
    """Quantised weights without their scale, imaginary parts: torch would load both."""
    state = Plain().state_dict()
    state["fc.weight"] = torch.ones(2, 4, dtype=dtype)
    torch.save(state, tmp_path / "in.pth")
    error = refused(Plain(), tmp_path / "in.pth", ckptool.LossError)
    assert error.message.startswith(f"`fc.weight`: found {str(dtype).removeprefix('torch.')}")


def test_integers_that_would_wrap_round_are_refused(tmp_path):
    class Steps(Plain):
        def __init__(self, dtype, steps=0) -> None:
            super().__init__()
            self.register_buffer("steps", torch.tensor(steps, dtype=dtype))

    torch.save(Steps(torch.int64, 70_000).state_dict(), tmp_path / "in.pth")
    refused(Steps(torch.int16), tmp_path / "in.pth", ckptool.LossError)
    ckptool.load_into(Steps(torch.int32), tmp_path / "in.pth")


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata kept", "metadata dropped"])
@pytest.mark.parametrize("counters", [True, False], ids=["counters", "no counters"])
def test_metadata_and_counters(tmp_path, metadata, counters):
    """torch wants counters where `_metadata` says version 2, and fills them in where it is gone."""
    trained, live = randomised(Plain()), Plain()
    state = trained.state_dict()
    if not counters:
        del state["stem.1.num_batches_tracked"]
    torch.save(state if metadata else dict(state), tmp_path / "in.pth")
    ckptool.load_into(live, tmp_path / "in.pth")
    found = live.state_dict()
    assert found.pop("stem.1.num_batches_tracked") == (100_000 if counters else 0)
    expected = trained.state_dict()
    del expected["stem.1.num_batches_tracked"]
    assert same(found, expected)


def damaged(tmp_path, state):
    """A file whose last tensor has a flipped byte: its CRC is found wrong while it is read."""
    path = tmp_path / "damaged.pth"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[data.rindex(state["fc.weight"].numpy().tobytes()) + 3] ^= 64
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop("fc.bias"), ckptool.PlanError),
        (lambda state: state.update(extra=torch.ones(2)), ckptool.PlanError),
        (lambda state: state.update({"fc.weight": torch.ones(3, 4)}), ckptool.PlanError),
    ],
    ids=["missing", "unexpected", "shape"],
)
@pytest.mark.parametrize("inside", ["bare", "DDP"])
def test_nothing_is_loaded_if_something_does_not_fit(tmp_path, change, error, inside):
    """torch would have copied what fits before it refuses."""
    state = randomised(Plain()).state_dict()
    change(state)
    torch.save(state, tmp_path / "in.pth")
    refused(WRAPPERS[inside](Plain()), tmp_path / "in.pth", error)


def test_nothing_is_loaded_from_a_damaged_file(tmp_path):
    path = damaged(tmp_path, randomised(Plain()).state_dict())
    error = refused(Plain(), path, ckptool.FormatError)
    assert "the file is damaged" in error.message


class Fussy(Plain):
    """A class with a rule of its own, that comes too late."""

    def _load_from_state_dict(self, state, prefix, *rest):
        super()._load_from_state_dict(state, prefix, *rest)
        if prefix == "" and state["fc.weight"][0, 0] > 0:
            rest[-1].append("a rule of its own")


@pytest.mark.parametrize("spoiled", [True, False])
def test_a_disk_that_fails_meanwhile_loads_nothing(trained, tmp_path, monkeypatch, spoiled):
    """The file is brought into memory in the background; what failed there is read again."""
    monkeypatch.setattr(ckptool.lease, "take", lambda descriptor: False)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    read = os.pread

    def failing(descriptor, length, offset):
        if spoiled and length > 100_000:
            raise OSError(5, "Input/output error")
        return read(descriptor, length, offset)

    def broken(descriptor, buffers, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "pread", failing)
    model = effdet(NAME, 5, size=128)
    if spoiled:
        error = refused(model, tmp_path / "w.pth", ckptool.CkptError)
        assert error.code == "file.unreadable"
        assert "cannot be read: Input/output error" in error.message
    else:
        ckptool.load_into(model, tmp_path / "w.pth")
        assert same(state_of(model), state_of(trained))


@pytest.mark.parametrize("leased", [True, False])
def test_a_file_that_is_cut_after_it_was_understood_loads_nothing(
    trained, tmp_path, monkeypatch, leased
):
    if not leased:
        monkeypatch.setattr(ckptool.lease, "take", lambda descriptor: False)
    path = tmp_path / "w.pth"
    torch.save(trained.state_dict(), path)
    load = ckptool.loading.load_straight

    def cut(*others):
        os.truncate(path, path.stat().st_size // 2)
        return load(*others)

    monkeypatch.setattr(ckptool.loading, "load_straight", cut)
    error = refused(effdet(NAME, 5, size=128), path, ckptool.CkptError)
    assert error.code == "file.changed"


def test_a_class_that_refuses_late_keeps_its_values(tmp_path):
    """By then torch has copied everything; the old values come back."""
    trained = randomised(Plain())
    trained.fc.weight.data[0, 0] = 1.0
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    error = refused(Fussy(), tmp_path / "in.pth", ckptool.VerificationError)
    assert "a rule of its own" in error.message
    trained.fc.weight.data[0, 0] = -1.0
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    live = Fussy()
    ckptool.load_into(live, tmp_path / "in.pth")
    assert same(live.state_dict(), trained.state_dict())


def test_a_hook_that_raises_leaves_the_model_as_it_was(tmp_path):
    torch.save(randomised(Plain()).state_dict(), tmp_path / "in.pth")
    live = Plain()

    def hook(module, keys):
        raise KeyError("a hook")

    live.register_load_state_dict_post_hook(hook)
    assert "a hook" in refused(live, tmp_path / "in.pth", ckptool.VerificationError).message


def test_a_class_that_renames_old_keys_itself_is_asked_first(tmp_path):
    """As torchvision's Faster R-CNN does: a difference of keys is not the last word."""

    class Renames(Plain):
        def _load_from_state_dict(self, state, prefix, *rest):
            for name in ("weight", "bias"):
                if f"{prefix}head.{name}" in state:
                    state[f"{prefix}fc.{name}"] = state.pop(f"{prefix}head.{name}")
            super()._load_from_state_dict(state, prefix, *rest)

    trained, live = randomised(Plain()), Renames()
    state = {k.replace("fc.", "head."): v for k, v in trained.state_dict().items()}
    torch.save(state, tmp_path / "in.pth")
    ckptool.load_into(live, tmp_path / "in.pth")
    assert same(live.state_dict(), trained.state_dict())


def test_old_torchvision_keys_load(tmp_path):
    """Of before 0.12, with `rpn.head.conv.weight`."""
    from torchvision.models.detection.rpn import RPNHead

    trained = randomised(RPNHead(4, 3))
    state = dict(trained.state_dict())
    for name in ("weight", "bias"):
        state[f"conv.{name}"] = state.pop(f"conv.0.0.{name}")
    torch.save(state, tmp_path / "in.pth")
    live = RPNHead(4, 3)
    ckptool.load_into(live, tmp_path / "in.pth")
    assert same(live.state_dict(), trained.state_dict())


def test_a_model_without_memory_is_refused(tmp_path):
    torch.save(Plain().state_dict(), tmp_path / "in.pth")
    with torch.device("meta"):
        live = Plain()
    with pytest.raises(ckptool.PlanError) as caught:
        ckptool.load_into(live, tmp_path / "in.pth")
    assert caught.value.message == (
        "`Plain`: `stem.0.weight` is on the meta device, where there is no memory to load into"
    )
    assert caught.value.hint == "model.to_empty(device='cpu') gives it some"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Identity(), "`Identity` has no tensors"),
        (nn.LazyLinear(3), "`LazyLinear`: `weight` has no shape before the first forward pass"),
    ],
)
def test_a_model_that_is_not_ready_is_refused(tmp_path, model, message):
    torch.save(Plain().state_dict(), tmp_path / "in.pth")
    with pytest.raises(ckptool.PlanError) as caught:
        ckptool.load_into(model, tmp_path / "in.pth")
    assert caught.value.message == message


def test_tied_parameters_stay_tied(tmp_path):
    class Tied(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 2)
            self.other.weight = self.fc.weight

    trained, live = randomised(Tied()), Tied()
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    ckptool.load_into(live, tmp_path / "in.pth")
    assert live.other.weight is live.fc.weight
    assert same(live.state_dict(), trained.state_dict())


def test_parameters_keep_their_identity(tmp_path):
    """An optimizer that was made before the load goes on with the same parameters."""
    torch.save(randomised(Plain()).state_dict(), tmp_path / "in.pth")
    live = Plain()
    before = [id(parameter) for parameter in live.parameters()]
    ckptool.load_into(live, tmp_path / "in.pth")
    assert [id(parameter) for parameter in live.parameters()] == before
    assert all(parameter.requires_grad for parameter in live.parameters())


def test_hints_are_for_callers_not_for_the_command_line(tmp_path):
    state = effdet(NAME, 5).state_dict()
    state["aux_head.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "in.pth")
    error = refused(effdet(NAME, 5), tmp_path / "in.pth", ckptool.PlanError)
    assert error.hint.startswith("`ckptool convert` takes --drop")


def test_safetensors_files_load_as_well(tmp_path, trained, wanted):
    from safetensors.torch import save_file

    save_file(ddp(trained).state_dict(), tmp_path / "in.safetensors")
    live = effdet(NAME, 5, size=128)
    ckptool.load_into(live, tmp_path / "in.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(live, image()), wanted, strict=True))


class Awkward(nn.Module):
    """Between two layers, a buffer that torch cannot copy into."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        with torch.inference_mode(kind == "of inference mode"):
            buffer = torch.zeros(1).expand(5) if kind == "expanded" else torch.zeros(5)
        self.register_buffer("awkward", buffer)
        self.after = nn.Linear(3, 3)


@pytest.mark.parametrize("kind", ["expanded", "of inference mode"])
def test_a_buffer_that_cannot_be_written_to_leaves_the_model_as_it_was(tmp_path, kind):
    torch.save(randomised(Awkward("plain")).state_dict(), tmp_path / "in.pth")
    error = refused(Awkward(kind), tmp_path / "in.pth", ckptool.VerificationError)
    assert '"awkward"' in error.message


class Extra(nn.Module):
    """A state of its own that is a tensor, and that may be refused when it is set."""

    def __init__(self, value: torch.Tensor, limit: float = math.inf) -> None:
        super().__init__()
        self.inner, self.value, self.limit = nn.Linear(3, 3), value, limit

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        if state.max() > self.limit:
            raise ValueError("above the limit")
        self.value = state


class Outer(nn.Module):
    def __init__(self, extra: Extra) -> None:
        super().__init__()
        self.first, self.extra = nn.Linear(3, 3), extra


def test_an_extra_state_that_is_refused_leaves_the_model_as_it_was(tmp_path):
    torch.save(randomised(Outer(Extra(torch.ones(4)))).state_dict(), tmp_path / "in.pth")
    live = Outer(Extra(torch.zeros(4), limit=0.5))
    error = refused(live, tmp_path / "in.pth", ckptool.VerificationError)
    assert "above the limit" in error.message


def test_what_a_class_keeps_is_memory_of_its_own(tmp_path):
    """Two views of one storage that overlap in the file do not in the model."""
    state = randomised(Outer(Extra(torch.zeros(4)))).state_dict()
    storage = torch.arange(8.0)
    state["extra._extra_state"], state["first.bias"] = storage[:4], storage[2:5]
    state["extra.inner.bias"] = storage[1:4]
    torch.save(state, tmp_path / "in.pth")
    opened = ckptool.read(tmp_path / "in.pth", memory=1 << 20)
    one, other = Outer(Extra(torch.zeros(4))), Outer(Extra(torch.zeros(4)))
    ckptool.load_into(one, opened)
    one.extra.value.fill_(-1)
    ckptool.load_into(other, opened)
    assert other.extra.value.tolist() == [0, 1, 2, 3]
    assert other.first.bias.tolist() == [2, 3, 4]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float8_e5m2], ids=str)
def test_a_float8_model_takes_only_its_own_type(tmp_path, stored):
    """There is no cast to float8: its values mean nothing without a scale."""

    def net(dtype):
        model = Plain()
        model.register_buffer("tiny", torch.ones(4).to(dtype))
        return model

    torch.save(net(stored).state_dict(), tmp_path / "in.pth")
    before = net(torch.float8_e4m3fn)
    with pytest.raises(ckptool.PlanError, match="cannot cast to `float8_e4m3fn`"):
        ckptool.load_into(before, tmp_path / "in.pth")
    torch.save(net(torch.float8_e4m3fn).state_dict(), tmp_path / "in.pth")
    ckptool.load_into(before, tmp_path / "in.pth")


class Replacing(nn.Module):
    """Its parameter is another one after a load."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state, prefix, *others):
        self.weight = nn.Parameter(state[f"{prefix}weight"])


class Last(nn.Linear):
    def __init__(self, ready: bool) -> None:
        super().__init__(2, 2)
        self.ready = ready

    def _load_from_state_dict(self, *others):
        if not self.ready:
            raise ValueError("not ready")
        super()._load_from_state_dict(*others)


def test_what_classes_replaced_before_a_late_refusal_comes_back(tmp_path):
    def net(ready):
        return nn.Sequential(Extra(torch.zeros(4)), Replacing(), Last(ready))

    trained = net(True)
    trained[0].value, trained[1].weight.data = torch.ones(4), torch.ones(3)
    torch.save(trained.state_dict(), tmp_path / "in.pth")
    live = net(False)
    weight = live[1].weight
    error = refused(live, tmp_path / "in.pth", ckptool.VerificationError)
    assert "not ready" in error.message
    assert live[1].weight is weight
    live[2].ready = True
    ckptool.load_into(live, tmp_path / "in.pth")
    assert same(live.state_dict(), trained.state_dict())
