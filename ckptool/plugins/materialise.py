"""Compute the weight that a reparametrisation stands for: weight_norm, spectral_norm, pruning.

Options: `weights`, key of the weight to a list `[kind, key, key, …]`: `weight_norm` (g, v),
`pruning` (orig, mask), `spectral_norm` (orig, u, v). The parts are replaced by the weight.

Source: `torch/nn/utils/{weight_norm,spectral_norm,prune,parametrizations}.py` (torch 2.15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.checkpoint import WeightSet
from ckptool.dtypes import numpy_dtype
from ckptool.errors import PlanError, VerificationError, quoted
from ckptool.plugins import EXACT, Applied
from ckptool.tensors import Extent, LazyTensor, TensorSpec

NAME = "materialise"


def apply(weights: WeightSet, options: Mapping[str, Any]) -> Applied:
    """The weights with each weight in the place of its first part.

    Raises: PlanError if a part is not there.
    """
    by_first: dict[str, str] = {}
    parts_of: dict[str, tuple[str, tuple[LazyTensor, ...]]] = {}
    gone: set[str] = set()
    for key, (kind, *parts) in options["weights"].items():
        missing = [part for part in parts if part not in weights.tensors]
        if missing or kind not in _COMPUTED:
            raise PlanError(
                f"{quoted(key)}: no {quoted((missing or [kind])[0])}", code="plan.materialise"
            )
        by_first[next(k for k in weights.tensors if k in parts)] = key
        parts_of[key] = kind, tuple(weights.tensors[part] for part in parts)
        gone.update(parts)
    tensors = {}
    for key, tensor in weights.tensors.items():
        if key in by_first:
            name = by_first[key]
            kind, inputs = parts_of[name]
            main = inputs[1] if kind == "weight_norm" else inputs[0]
            tensors[name] = LazyTensor(main.spec, Materialised(name, kind, inputs))
        elif key not in gone:
            tensors[key] = tensor
    note = f"{len(parts_of)} weights computed from their parts"
    return Applied(replace(weights, tensors=tensors), EXACT, tuple(parts_of), notes=(note,))


def _weight_norm(g: Any, v: Any) -> Any:
    """`g · v / ‖v‖`, the norm over all axes on which g has length 1."""
    import numpy

    axes = tuple(axis for axis in range(v.ndim) if g.ndim == v.ndim and g.shape[axis] == 1)
    axes = axes if g.ndim == v.ndim else tuple(range(v.ndim))
    return v * (g / numpy.sqrt((v * v).sum(axes, keepdims=g.ndim == v.ndim)))


def _spectral_norm(weight: Any, u: Any, v: Any) -> Any:
    """`weight / (uᵀ W v)`, the weight seen as a matrix of its first axis."""
    return weight / (u @ weight.reshape(weight.shape[0], -1) @ v)


def _pruning(weight: Any, mask: Any) -> Any:
    return weight * mask


_COMPUTED: dict[str, Callable[..., Any]] = {
    "weight_norm": _weight_norm,
    "spectral_norm": _spectral_norm,
    "pruning": _pruning,
}


@dataclass(frozen=True, slots=True)
class Materialised:
    """A weight computed from its parts."""

    key: str
    kind: str
    parts: tuple[LazyTensor, ...]

    def chunks(self, spec: TensorSpec, step: int) -> Iterator[memoryview]:
        """The weight, computed in float64."""
        import numpy

        made = numpy.ascontiguousarray(self._computed().astype(numpy_dtype(spec.dtype)))
        yield memoryview(made.reshape(-1).view(numpy.uint8).data)

    def extent(self, spec: TensorSpec) -> Extent | None:
        """None: the data is computed."""
        return None

    def check(self, spec: TensorSpec, written: LazyTensor) -> Mapping[str, float]:
        """The largest rounding; VerificationError if it is more than the type's."""
        import numpy

        wanted = self._computed()
        error = float(numpy.abs(written.numpy().astype(numpy.float64) - wanted).max(initial=0.0))
        if error > 2.0**-7 * float(numpy.abs(wanted).max(initial=0.0)):
            raise VerificationError(f"{quoted(self.key)}: the weight is off by {error:g}")
        return {"rounding": error}

    def _computed(self) -> Any:
        import numpy

        return _COMPUTED[self.kind](*(part.numpy().astype(numpy.float64) for part in self.parts))
