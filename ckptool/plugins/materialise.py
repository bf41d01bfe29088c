"""Compute the weight that a reparametrisation stands for: weight_norm, spectral_norm, pruning.

Options: `weights`, key of the weight to a list `[kind, key, key, …]`: `weight_norm` (g, v),
`pruning` (orig, mask), `spectral_norm` (orig, u, v). The parts are replaced by the weight.

Source: `torch/nn/utils/{weight_norm,spectral_norm,prune,parametrizations}.py` (torch 2.15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import numpy_dtype
from ckptool.errors import PlanError, VerificationError, counted, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "materialise"

_MAIN = {"weight_norm": 1, "spectral_norm": 0, "pruning": 0}  # the part with the weight's shape


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with each weight in the place of its first part.

    Raises: PlanError if a part is not there, or if the parts do not belong together.
    """
    by_first: dict[str, str] = {}
    made: dict[str, LazyTensor] = {}
    gone: set[str] = set()
    for key, (kind, *names) in options["weights"].items():
        missing = [name for name in names if name not in weights.tensors]
        if missing or kind not in _MAIN:
            raise PlanError(
                f"{quoted(key)}: no {quoted((missing or [kind])[0])}", code="plan.materialise"
            )
        parts = tuple(weights.tensors[name] for name in names)
        if not _belong_together(kind, parts):
            raise PlanError(
                f"{quoted(key)}: the shapes {', '.join(str(part.shape) for part in parts)} are not "
                f"those of the parts of {kind}",
                code="plan.materialise",
            )
        made[key] = LazyTensor(parts[_MAIN[kind]].spec, Materialised(key, kind, parts))
        by_first[next(k for k in weights.tensors if k in names)] = key
        gone.update(names)
    tensors = {}
    for key, tensor in weights.tensors.items():
        if key in by_first:
            tensors[by_first[key]] = made[by_first[key]]
        elif key not in gone:
            tensors[key] = tensor
    note = f"{counted(len(made), 'weight')} computed from their parts"
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(made), notes=(note,))


def describe(options: Mapping[str, Any]) -> str:
    """`compute 12 weights from the parts of weight_norm`."""
    kinds = sorted({kind for kind, *_ in options["weights"].values()})
    weights = counted(len(options["weights"]), "weight")
    return f"compute {weights} from the parts of {' and '.join(kinds)}"


def _belong_together(kind: str, parts: tuple[LazyTensor, ...]) -> bool:
    """Whether the shapes are those of a weight's parts."""
    first, *others = (part.shape for part in parts)
    if kind == "spectral_norm":
        return len(others) == 2 and bool(_axes(first, *others))
    if len(others) != 1:
        return False
    if kind == "pruning" or first in ((), (1,)):
        return kind == "weight_norm" or first == others[0]
    return len(first) == len(others[0]) and all(
        size in (1, whole) for size, whole in zip(first, others[0], strict=True)
    )


def _axes(weight: tuple[int, ...], u: tuple[int, ...], v: tuple[int, ...]) -> list[int]:
    """The axes of the weight that may be the rows of the matrix that u and v belong to."""
    numel = TensorSpec("float32", weight).numel
    return [
        axis for axis, size in enumerate(weight) if u == (size,) and v == (numel // max(size, 1),)
    ]


def _weight_norm(g: Any, v: Any) -> Any:
    """`g · v / ‖v‖`, the norm over all axes on which g has length 1."""
    import numpy

    same = g.ndim == v.ndim
    axes = tuple(axis for axis in range(v.ndim) if not same or g.shape[axis] == 1)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return v * (g / numpy.sqrt((v * v).sum(axes, keepdims=same)))


def _spectral_norm(weight: Any, u: Any, v: Any) -> Any:
    """`weight / (uᵀ W v)`, W being the weight as a matrix.

    Its rows are the first axis, or the second in a transposed convolution. Where both would do,
    it is the one of which u and v are nearer to being the singular vectors.
    """
    import numpy

    matrices = [
        numpy.moveaxis(weight, axis, 0).reshape(len(u), -1)
        for axis in _axes(weight.shape, u.shape, v.shape)
    ]
    return weight / max((u @ matrix @ v for matrix in matrices), key=abs)


def _computed(kind: str, parts: tuple[LazyTensor, ...]) -> Any:
    """The weight in float64."""
    import numpy

    first, *others = (part.numpy().astype(numpy.float64) for part in parts)
    if kind == "spectral_norm":
        return _spectral_norm(first, *others)
    return _weight_norm(first, *others) if kind == "weight_norm" else first * others[0]


@dataclass(frozen=True, slots=True)
class Materialised:
    """A weight computed from its parts."""

    key: str
    kind: str
    parts: tuple[LazyTensor, ...]

    @property
    def inputs(self) -> tuple[LazyTensor, ...]:
        """The parts."""
        return self.parts

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The weight, computed in float64."""
        import numpy

        weight = _computed(self.kind, self.parts).astype(numpy_dtype(spec.dtype))
        yield memoryview(numpy.ascontiguousarray(weight).reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The largest rounding; VerificationError if it is more than the type's."""
        import numpy

        wanted = _computed(self.kind, self.parts)
        error = float(numpy.abs(written.numpy().astype(numpy.float64) - wanted).max(initial=0.0))
        if error > 2.0**-7 * float(numpy.abs(wanted).max(initial=0.0)):
            raise VerificationError(
                f"{quoted(self.key)}: the weight is off by {error:g}",
                code="verification.materialise",
            )
        return {"rounding": error}
