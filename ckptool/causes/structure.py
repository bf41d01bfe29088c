"""Tensors that a model has more or fewer of: biases, parts of a weight, norms that were fused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ckptool.causes import Cause, Situation
from ckptool.errors import counted, listed
from ckptool.identification import candidates
from ckptool.tensors import TensorSpec

# Source: effdet 0.4.1 `efficientdet.py` (`SeparableConv2d`, `ConvBnAct2d`, `HeadNet`).
_HEAD_BIAS = re.compile(r"((?:.*\.)?(?:class|box)_net)\.conv_rep\.([0-9]+)\.conv(?:_pw)?\.bias")
_HEAD_MEAN = re.compile(
    r"((?:.*\.)?(?:class|box)_net)\.bn_rep\.([0-9]+)\.([0-9]+)\.(bn\.)?running_mean"
)
_FPN_BIAS = re.compile(r"((?:.*\.)?fpn\.(?:.*\.)?conv)\.conv(?:_pw)?\.bias")


def redundant_biases(situation: Situation) -> list[Cause]:
    """Biases right before a BatchNorm, which effdet's `redundant_bias` adds (the `tf_` configs)."""
    found, wanted = situation.found, situation.wanted
    causes = []
    extra = _followed_by_norm(situation.extra, found, wanted)
    if extra:
        biases = counted(len(extra), "bias", "biases")
        causes.append(
            Cause(
                "redundant-biases",
                f"the file has {biases} right before a BatchNorm and the architecture has none "
                "there: it was written with redundant_bias=True; folded into the running means "
                f"they change nothing{_also(situation)}",
                "fold",
                {"biases": extra},
                automatic=True,
            )
        )
    lacking = _followed_by_norm(situation.missing, wanted, found)
    if lacking:
        biases = counted(len(lacking), "bias", "biases")
        # Of the type of the norm behind them: a file in half precision stays one.
        zeros = {
            key: [found[means[0]].dtype, list(wanted[key].shape)] for key, means in lacking.items()
        }
        causes.append(
            Cause(
                "redundant-biases-missing",
                f"the file lacks {biases} right before a BatchNorm that the architecture has: it "
                "was written with redundant_bias=False; biases of zero change nothing"
                f"{_also(situation)}",
                "fill",
                {"zeros": zeros},
                automatic=True,
            )
        )
    return causes


def reparametrised(situation: Situation) -> list[Cause]:
    """Weights stored as the parts of a weight_norm, a spectral_norm or a pruning mask."""
    found, missing = situation.found, set(situation.missing)
    weights = _in_parts(situation.extra, missing, found)
    causes = []
    if weights:
        kinds = sorted({kind for kind, *_ in weights.values()})
        causes.append(
            Cause(
                "reparametrised",
                f"{counted(len(weights), 'weight is', 'weights are')} stored as the parts of "
                f"{' and '.join(kinds)} ({listed(weights, 2)}): what they stand for is computed",
                "materialise",
                {"weights": weights},
                automatic=True,
            )
        )
    parts = _in_parts(situation.missing, set(situation.extra), missing)
    if parts:
        kinds = sorted({kind for kind, *_ in parts.values()})
        causes.append(
            Cause(
                "not-reparametrised",
                f"the architecture keeps {counted(len(parts), 'weight')} as the parts of "
                f"{' and '.join(kinds)} ({listed(parts, 2)}), the file has the weights themselves: "
                "load them before the model is reparametrised",
                exact=False,
                keys=tuple(k for weight, (_, *names) in parts.items() for k in (weight, *names)),
            )
        )
    return causes


def _in_parts(
    keys: Sequence[str], wholes: Collection[str], among: Collection[str]
) -> dict[str, list[str]]:
    """The kind and the parts of each of the `wholes` that has all of its parts `among` others."""
    weights: dict[str, list[str]] = {}
    for key in keys:
        for suffix, kind, others in _PARTS:
            stem = key.removesuffix(suffix)
            weight = stem if kind == "pruning" else f"{stem}.weight"
            names = [key, *(stem + other for other in others)]
            if key != stem and weight in wholes and all(part in among for part in names):
                weights.setdefault(weight, [kind, *names])
    return weights


def fused_norms(situation: Situation) -> list[Cause]:
    """Convolutions with their BatchNorm fused in: a bias where the norm should be."""
    found, wanted = situation.found, situation.wanted
    missing = set(situation.missing)
    norms = [key.removesuffix("running_mean") for key in missing if key.endswith("running_mean")]
    gone = tuple(sorted(n for n in norms if not any(n + part in found for part in _NORM_PARTS)))
    biases = [
        key
        for key in situation.extra
        if key.endswith("bias") and len(wanted.get(f"{key[:-4]}weight", _SCALAR).shape) > 1
    ]
    none_left = not any(key.endswith("running_mean") for key in found)
    if not gone or not biases or (2 * len(biases) < len(gone) and not none_left):
        return []
    modules = set(gone)
    lost = [key for key in situation.missing if f"{key.rpartition('.')[0]}." in modules]
    return [
        Cause(
            "fused-norms",
            f"{counted(len(biases), 'convolution has', 'convolutions have')} a bias and "
            f"{counted(len(gone), 'BatchNorm layer is', 'BatchNorm layers are')} missing: the "
            "norms were fused into the convolutions for deployment, which cannot be undone",
            exact=False,
            keys=(*biases, *lost),
        )
    ]


_SCALAR = TensorSpec("float32", ())
_NORM_PARTS = ("running_mean", "running_var", "weight", "bias")
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


def _followed_by_norm(
    keys: Iterable[str], specs: Mapping[str, TensorSpec], others: Mapping[str, TensorSpec]
) -> dict[str, list[str]]:
    """Each bias of effdet's that stands before a norm, with the running means that it feeds.

    The other side has the convolution and the norm too.
    """
    means: dict[tuple[str, str], list[str]] = {}
    for key in specs:
        match = _HEAD_MEAN.fullmatch(key) if "_net.bn_rep." in key else None
        if match:
            net, first, second, inner = match.groups()
            means.setdefault((net, first if inner else second), []).append(key)
    behind: dict[str, list[str]] = {}
    for key in keys:
        head = _HEAD_BIAS.fullmatch(key)
        node = _FPN_BIAS.fullmatch(key)
        if head:
            fed = means.get((head[1], head[2]), [])
        else:
            fed = [f"{node[1]}.bn.running_mean"] if node else []
        fitting = all(mean in specs and specs[mean].shape == specs[key].shape for mean in fed)
        if fed and fitting and all(k in others for k in (f"{key[:-4]}weight", *fed)):
            behind[key] = fed
    return behind


def _also(situation: Situation) -> str:
    """A clause on the architectures that the file fits with its biases as they are."""
    if situation.target.architecture is None:
        return ""
    names = [candidate.arch for candidate in candidates(situation.weights) if candidate.fits]
    return f"; as it is the file fits {listed(names, 2)}, which may pad otherwise" if names else ""
