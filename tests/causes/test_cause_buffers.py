"""Buffers that follow from something else: BatchNorm's counters, anchors, counters of profilers."""

from __future__ import annotations

import pytest
import torch
from checkpoints_made import Held, State, effdet, held, loads, prefixed, versions, write
from diffs_made import Bench, codes, only
from torch import nn

D0 = "tf_efficientdet_d0"
COUNTER = "num_batches_tracked"
AT_ZERO = "at zero they change nothing, except for training without momentum"


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


def test_counters_that_torch_misses(bench: Bench):
    """A state dict of BatchNorm's second version must have them."""
    state = without_counters(held(effdet(D0)))
    found = bench.diff(state, versions(effdet(D0)), arch=D0)
    cause = only(found, "bn-counters-missing")
    assert cause.summary == (f"the file lacks 108 BatchNorm counters (`{COUNTER}`): {AT_ZERO}")
    assert cause.keys == tuple(key for key in held(effdet(D0)) if key.endswith(COUNTER))
    assert cause.fix == f"--arch {D0}"
    assert cause.exact
    made = bench.fixes(found, cause, effdet(D0))
    assert not any(made[key] for key in cause.keys)


def test_counters_that_torch_starts_by_itself(bench: Bench):
    """Without `_metadata`, as in any safetensors file."""
    state = without_counters(held(effdet(D0)))
    found = bench.diff(state, arch=D0)
    assert found.fits_strict
    assert loads(effdet(D0), state)
    assert codes(found) == ["bn-counters-missing"]
    cause = found.causes[0]
    assert cause.harmless
    assert cause.summary == (
        f"the file lacks 108 BatchNorm counters (`{COUNTER}`): {AT_ZERO}; torch starts them at "
        "zero by itself"
    )
    assert len(cause.keys) == 108
    assert COUNTER in " ".join(bench.run(cause.fix or ""))


def test_one_counter_that_is_missing(bench: Bench):
    state = held(effdet(D0))
    del state[f"backbone.bn1.{COUNTER}"]
    found = bench.diff(state, versions(effdet(D0)), arch=D0)
    cause = only(found, "bn-counters-missing")
    assert cause.summary == f"the file lacks 1 BatchNorm counter (`{COUNTER}`): {AT_ZERO}"
    assert cause.keys == (f"backbone.bn1.{COUNTER}",)


def test_counters_that_nothing_wants(bench: Bench):
    """As for frozen norms."""
    target = write(without_counters(held(effdet(D0))), bench.folder / "other.pth")
    found = bench.diff(held(effdet(D0)), like=target)
    cause = only(found, "bn-counters-unexpected")
    assert cause.summary == (
        f"the file has 108 BatchNorm counters (`{COUNTER}`) that the architecture lacks: its norms "
        "are frozen, or its torch is older than 0.4.1"
    )
    assert len(cause.keys) == 108
    assert cause.fix == f"--drop '*{COUNTER}'"
    made = bench.run(f"--like {target}")
    assert list(made) == list(without_counters(held(effdet(D0))))


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("anchors.boxes", "effdet's bench computes it"),
        ("model.26.anchor_grid", "the model computes it"),
        ("layers.0.relative_position_index", "the model computes it"),
        ("pixel_mean", "the model computes it"),
    ],
)
def test_a_buffer_that_the_model_computes_itself(bench: Bench, key: str, owner: str):
    found = bench.diff({**held(effdet(D0)), key: Held(torch.float32, (9, 4))}, arch=D0)
    cause = only(found, "derived-buffers")
    assert cause.summary == f"`{key}` follows from the configuration: {owner} itself"
    assert cause.keys == (key,)
    assert cause.fix == f"--drop {key}"
    assert cause.exact
    made = bench.fixes(found, cause, effdet(D0))
    assert key not in made


def test_anchors_that_a_bench_wants(bench: Bench):
    state = prefixed(held(effdet(D0)), "model.")
    state["anchors.boxes"] = Held(torch.float32, (49104, 4))
    target = write(state, bench.folder / "bench.pth")
    found = bench.diff(held(effdet(D0)), like=target)
    assert codes(found) == ["missing-prefix", "anchors-missing"]
    cause = found.causes[1]
    assert cause.summary == (
        "the architecture is an effdet bench, which keeps its anchors in `anchors.boxes`: those of "
        "512×512 images are generated"
    )
    assert cause.keys == ("anchors.boxes",)
    assert cause.fix == f"--like {target}"
    made = bench.run(cause.fix)
    assert list(made) == list(state)
    assert made["anchors.boxes"][0].tolist() == [-12.0, -12.0, 20.0, 20.0]


def test_anchors_of_images_of_no_known_size(bench: Bench):
    """Another number of boxes: somebody changed the configuration, and no file says how."""
    state = {**held(effdet(D0)), "anchors.boxes": Held(torch.float32, (7, 4))}
    target = write(state, bench.folder / "bench.pth")
    found = bench.diff(held(effdet(D0)), like=target)
    cause = only(found, "derived-missing")
    assert cause.summary == (
        "`anchors.boxes` is not in the file: the model computes it from its configuration, which "
        "the file does not tell"
    )
    assert (cause.fix, found.fix) == (None, None)
    assert cause.summary in bench.refused(f"--like {target}")


def profiled(state: State) -> State:
    """As `thop.profile` leaves a model: two counters on every layer and on the model itself."""
    layers = dict.fromkeys(key.rpartition(".")[0] for key in state)
    names = [f"{layer}.{name}" for layer in layers for name in ("total_ops", "total_params")]
    counters = dict.fromkeys((*names, "total_ops", "total_params"), Held(torch.float64, (1,)))
    return {**state, **counters}


def test_what_a_profiler_left_in_the_file(bench: Bench):
    state = profiled(held(effdet(D0)))
    found = bench.diff(state, arch=D0)
    cause = only(found, "profiler-counters")
    added = len(state) - len(held(effdet(D0)))
    assert cause.summary == (f"{added} tensors are counters that `thop.profile` left on the model")
    assert len(cause.keys) == added
    assert cause.fix == "--drop '*total_ops' --drop '*total_params'"
    assert cause.exact
    made = bench.fixes(found, cause, effdet(D0))
    assert list(made) == list(held(effdet(D0)))


def test_what_a_profiler_left_on_the_model(bench: Bench):
    model = nn.Sequential(nn.Linear(2, 2)).to("meta")
    plain = held(model)
    model.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64, device="meta"))
    target = write(held(model), bench.folder / "other.pth")
    found = bench.diff(plain, like=target)
    cause = only(found, "profiler-counters-missing")
    assert cause.summary == (
        "the architecture has 1 counter that `thop.profile` left on it; at zero they change nothing"
    )
    assert cause.keys == ("total_ops",)
    bench.fixes(found, cause, model)
