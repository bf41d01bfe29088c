"""The verdict of `diff` is that of `load_state_dict(strict=True)` on the real class."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import small_models
import torch
from checkpoints_made import Held, State, effdet, held, loads, versions, write
from torch import nn

import ckptool
from ckptool import architectures

Versions = dict[str, dict[str, int]]


@cache
def model_of(arch: str) -> nn.Module:
    """The real class, on the meta device."""
    if arch.startswith("small_models:"):
        with torch.device("meta"):
            return getattr(small_models, arch.partition(":")[2])()
    if "yolov4" in arch:
        with torch.device("meta"):
            return architectures.build(arch)
    return effdet(arch)


EFFDET = ("tf_efficientdet_d0", "efficientdet_d0", "efficientdet_lite0", "tf_efficientdet_d1")
YOLO = ("yolov4", "yolov4-tiny")
SMALL = tuple(
    f"small_models:{name}"
    for name in (
        "conv_norm",
        "Mixed",
        "Detector",
        "old_weight_norm",
        "new_weight_norm",
        "old_spectral_norm",
        "new_spectral_norm",
    )
)
# The number of mutated checkpoints of each architecture: by default, and more in the sweep.
DEFAULT = {**dict.fromkeys(SMALL, 60), **dict.fromkeys(YOLO, 30), **dict.fromkeys(EFFDET, 20)}
SWEPT = dict.fromkeys((*SMALL, *YOLO, *EFFDET, "tf_efficientdet_d7", "resdet50"), 400)


def some(state: State, rng: random.Random, most: int = 3) -> list[str]:
    return rng.sample(list(state), min(len(state), rng.randint(1, most)))


def drop(state: State, metadata: Versions, rng: random.Random) -> None:
    for key in some(state, rng):
        del state[key]


def drop_counters(state: State, metadata: Versions, rng: random.Random) -> None:
    share = rng.choice((0.02, 1.0))
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        if rng.random() < share:
            del state[key]


def older(state: State, metadata: Versions, rng: random.Random) -> None:
    """Norms as an older torch, or a module without a version, would have saved them."""
    share = rng.choice((0.02, 1.0))
    for local in metadata.values():
        if rng.random() < share:
            local.clear()
            if rng.random() < 0.5:
                local["version"] = 1


def forget(state: State, metadata: Versions, rng: random.Random) -> None:
    for path in [path for path in metadata if rng.random() < 0.5]:
        del metadata[path]


def add(state: State, metadata: Versions, rng: random.Random) -> None:
    key = rng.choice(list(state))
    module = key.rpartition(".")[0]
    state[
        rng.choice(
            (
                "extra",
                "extra.weight",
                f"{module}.extra",
                f"{module}.extra.weight",
                f"{key}.bad_key",
                f"{module}.num_batches_tracked",
                f"{module}.running_mean",
                f"{module}.bias",
                f"{module}._extra_state",
                module or "root",
                f"{key}.",
                f".{key}",
                "",
            )
        )
    ] = Held(torch.float32, (4,))


def rename(state: State, metadata: Versions, rng: random.Random) -> None:
    for key in some(state, rng):
        state[rng.choice((f"{key}_", key.upper(), f"x.{key}"))] = state.pop(key)


def swap(state: State, metadata: Versions, rng: random.Random) -> None:
    one, other = rng.choice(list(state)), rng.choice(list(state))
    state[one], state[other] = state[other], state[one]


def reshape(state: State, metadata: Versions, rng: random.Random) -> None:
    for key in some(state, rng):
        dtype, shape = state[key]
        shapes = [
            (1, *shape),
            (*shape, 1),
            shape[::-1],
            (*shape[:-1], 7),
            shape[1:],
            (0,),
            (1,),
            (),
        ]
        state[key] = Held(dtype, rng.choice(shapes))


def counters_reshaped(state: State, metadata: Versions, rng: random.Random) -> None:
    shape = rng.choice(((1,), (2,), (0,), (1, 1)))
    for key, value in state.items():
        if isinstance(value, Held) and value.shape == () and rng.random() < 0.9:
            state[key] = Held(value.dtype, shape)


def recast(state: State, metadata: Versions, rng: random.Random) -> None:
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
    dtype = rng.choice(types)
    for key in rng.choice((list(state), some(state, rng))):
        state[key] = Held(dtype, state[key].shape)


def wrap(state: State, metadata: Versions, rng: random.Random) -> None:
    prefix = rng.choice(("module.", "model.", "_orig_mod."))
    for key in list(state) if rng.random() < 0.5 else some(state, rng):
        state[prefix + key] = state.pop(key)


def no_tensor(state: State, metadata: Versions, rng: random.Random) -> None:
    value = rng.choice((3, "text", None, 0.5, [1, 2], {"a": 1}))
    state[rng.choice(("epoch", rng.choice(list(state))))] = value


def respell(state: State, metadata: Versions, rng: random.Random) -> None:
    """weight_norm and spectral_norm as another torch spells them."""
    new = {"_g": "original0", "_v": "original1", "_orig": "original", "_u": "0._u"}
    for key in list(state):
        module, _, name = key.rpartition(".")
        for old, part in new.items():
            if name.endswith(old) and isinstance(state[key], Held):
                wanted = f"{module}.parametrizations.{name.removesuffix(old)}.{part}"
                state[wanted] = state.pop(key)
                break
            if key.endswith(f".parametrizations.weight.{part}"):
                state[key.replace(f"parametrizations.weight.{part}", f"weight{old}")] = state.pop(
                    key
                )
                break


def untouched(state: State, metadata: Versions, rng: random.Random) -> None:
    """Nothing at all."""


MUTATIONS: tuple[Callable[[State, Versions, random.Random], None], ...] = (
    untouched,
    drop,
    drop_counters,
    drop_counters,
    older,
    forget,
    add,
    add,
    rename,
    swap,
    reshape,
    counters_reshaped,
    recast,
    recast,
    wrap,
    respell,
    no_tensor,
)


def mutated(arch: str, seed: int) -> tuple[State, Versions | None, str]:
    """A state dict of the architecture after one or two mutations, its `_metadata`, and a name."""
    rng = random.Random(f"{arch} {seed}")
    module = model_of(arch)
    state, metadata = held(module), versions(module)
    chosen = rng.choices(MUTATIONS, k=rng.choice((1, 1, 2)))
    for mutate in sorted(chosen, key=lambda mutate: mutate is no_tensor):
        mutate(state, metadata, rng)
    name = " + ".join(mutate.__name__ for mutate in chosen)
    return state, metadata if rng.random() < 0.7 else None, name


def check(arch: str, seed: int, folder: Path) -> bool:
    """The verdict on one mutated checkpoint, after a look whether torch's is the same."""
    state, metadata, name = mutated(arch, seed)
    plain = all(isinstance(value, Held) for value in state.values())
    suffix = ".safetensors" if plain and seed % 3 == 0 else ".pth"
    if suffix == ".safetensors":
        metadata = None
    path = write(state, folder / f"weights{suffix}", metadata)
    found = ckptool.diff(path, arch=arch)
    fits = loads(model_of(arch), state, metadata)
    assert found.fits_strict == fits, f"{arch}, seed {seed}: {name}\n{found}"
    check_explained(found)
    return fits


def check_explained(found: ckptool.Diff) -> None:
    """Every difference that stops a load is explained once, or listed as unexplained."""
    blocking = [entry for entry in found.entries if entry.kind != "dtype"]
    keys = [key for cause in found.causes if not cause.harmless for key in cause.keys]
    keys += found.unexplained
    assert sorted(set(keys)) == sorted({entry.key for entry in blocking})
    # A key may be missing here and unexpected there, or have two things wrong with it.
    for key in set(keys):
        assert keys.count(key) <= sum(entry.key == key for entry in blocking), key
    assert all(cause.keys for cause in found.causes)


@pytest.mark.parametrize("arch", DEFAULT)
def test_the_verdict_is_that_of_a_strict_load(arch, tmp_path, count):
    fits = [check(arch, seed, tmp_path) for seed in range(DEFAULT[arch])]
    count("verdicts on mutated checkpoints", len(fits))
    assert any(fits)
    assert not all(fits)


@pytest.mark.sweep
@pytest.mark.parametrize("arch", SWEPT)
def test_the_verdict_is_that_of_a_strict_load_many_times(arch, tmp_path, count):
    count(
        "verdicts on mutated checkpoints",
        len([check(arch, seed, tmp_path) for seed in range(1_000, 1_000 + SWEPT[arch])]),
    )
