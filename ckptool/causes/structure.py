"""Tensors that a model has more or fewer of: redundant biases, reparametrised weights, copies."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptool.causes import Cause, Situation
from ckptool.errors import listed
from ckptool.tensors import TensorSpec

_HEAD_BIAS = re.compile(r"((?:.*\.)?(?:class_net|box_net))\.conv_rep\.([0-9]+)\.conv(?:_pw)?\.bias")


def redundant_biases(situation: Situation) -> list[Cause]:
    """Biases right before a BatchNorm, which effdet's `redundant_bias` adds (the `tf_` configs).

    Source: effdet 0.4.1 `efficientdet.py` (`SeparableConv2d`, `HeadNet`).
    """
    found, wanted = situation.weights.specs, situation.target.specs
    causes = []
    extra = _followed_by_norm([key for key in found if key not in wanted], found)
    if extra:
        causes.append(
            Cause(
                "redundant-biases",
                f"the file has {len(extra):,} biases right before a BatchNorm, the architecture "
                "has none there: the file was written with redundant_bias=True, as the `tf_` "
                "architectures are; folding them into the running means changes nothing",
                "fold",
                {"biases": extra},
                f"--arch {situation.target.name}",
                automatic=True,
            )
        )
    lacking = _followed_by_norm([key for key in wanted if key not in found], wanted)
    if lacking and all(mean in found for means in lacking.values() for mean in means):
        zeros = {key: [wanted[key].dtype, list(wanted[key].shape)] for key in lacking}
        causes.append(
            Cause(
                "redundant-biases-missing",
                f"the file lacks {len(lacking):,} biases right before a BatchNorm: it was written "
                "with redundant_bias=False; biases of zero change nothing",
                "fill",
                {"zeros": zeros},
                f"--arch {situation.target.name}",
                automatic=True,
            )
        )
    return causes


def reparametrised(situation: Situation) -> list[Cause]:
    """Weights stored as the parts of a weight_norm, a spectral_norm or a pruning mask."""
    found, wanted = situation.weights.specs, situation.target.specs
    parts: dict[str, list[str]] = {}
    for key in found:
        for suffix, kind, others in _PARTS:
            if not key.endswith(suffix):
                continue
            stem = key.removesuffix(suffix)
            weight = stem if kind == "pruning" else f"{stem}.weight"
            names = [key, *(stem + other for other in others)]
            if weight in wanted and weight not in found and all(part in found for part in names):
                parts.setdefault(weight, [kind, *names])
    if not parts:
        return []
    kinds = sorted({kind for kind, *_ in parts.values()})
    return [
        Cause(
            "reparametrised",
            f"{len(parts):,} weights are stored as the parts of {' and '.join(kinds)}: "
            f"{listed(parts, 3)}",
            "materialise",
            {"weights": parts},
            f"--arch {situation.target.name}",
            automatic=True,
        )
    ]


def ema_mirror(situation: Situation) -> list[Cause]:
    """Copies of the weights under `ema_` and their name with underscores, as mmdet 2 keeps them.

    Source: mmdet 2.x `core/hook/ema.py`.
    """
    found = situation.weights.specs
    copies = [
        mirror
        for key in found
        if (mirror := f"ema_{key.replace('.', '_')}") in found
        and mirror not in situation.target.specs
    ]
    if not copies:
        return []
    return [
        Cause(
            "ema-mirror",
            f"{len(copies):,} tensors are a second copy of the weights ({listed(copies, 1)}), "
            "which mmdet 2 keeps for its moving average: after an epoch the plain names hold the "
            "average",
            "drop",
            {"drop": copies},
            "--drop 'ema_*'",
            exact=False,
        )
    ]


def adapters(situation: Situation) -> list[Cause]:
    """LoRA adapters, whose scale no checkpoint holds."""
    keys = tuple(key for key in situation.weights.tensors if ".lora_A" in key or ".lora_B" in key)
    if not keys:
        return []
    return [
        Cause(
            "lora",
            f"{len(keys):,} tensors are LoRA adapters; merging them needs their alpha, which is "
            "not in the file: merge them with peft first",
            exact=False,
            keys=keys,
        )
    ]


def fused_norms(situation: Situation) -> list[Cause]:
    """Convolutions with their BatchNorm fused in: a bias where the norm should be."""
    found, wanted = situation.weights.specs, situation.target.specs
    gone = [key for key in wanted if key.endswith(".running_mean") and key not in found]
    biases = [key for key in found if key.endswith(".bias") and key not in wanted]
    if len(gone) < 4 or len(biases) < 0.8 * len(gone):
        return []
    prefixes = tuple(key.removesuffix("running_mean") for key in gone)
    lost = tuple(key for key in wanted if key not in found and key.startswith(prefixes))
    return [
        Cause(
            "fused-norms",
            f"{len(biases):,} convolutions have a bias and {len(gone):,} BatchNorm layers are "
            "missing: the norms were fused into the convolutions for deployment, which cannot be "
            "undone",
            exact=False,
            keys=(*biases, *lost),
        )
    ]


_PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (".weight_g", "weight_norm", (".weight_v",)),
    (".parametrizations.weight.original0", "weight_norm", (".parametrizations.weight.original1",)),
    (".weight_orig", "spectral_norm", (".weight_u", ".weight_v")),
    (
        ".parametrizations.weight.original",
        "spectral_norm",
        (".parametrizations.weight.0._u", ".parametrizations.weight.0._v"),
    ),
    ("_orig", "pruning", ("_mask",)),
)


def _followed_by_norm(keys: list[str], specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """Each bias in front of a BatchNorm, with the running means of the norms that it feeds."""
    found: dict[str, list[str]] = {}
    means = [key for key in specs if key.endswith(".running_mean")]
    for key in keys:
        if not key.endswith(".bias") or len(specs[key].shape) != 1:
            continue
        head = _HEAD_BIAS.fullmatch(key)
        if head:
            shared = f"{head[1]}.bn_rep.{head[2]}."
            behind = [mean for mean in means if mean.startswith(shared)]
        else:
            parent = key.removesuffix(".bias").rpartition(".")[0]
            behind = [m for m in (f"{parent}.bn.running_mean", _above(parent)) if m in specs]
        if behind:
            found[key] = behind
    return found


def _above(parent: str) -> str:
    return f"{parent.rpartition('.')[0]}.bn.running_mean"
