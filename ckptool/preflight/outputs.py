"""One forward pass, when it is asked for: what the heads give, and what an exception means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ckptool.architectures.live import quiet
from ckptool.errors import ArchitectureError, counted, quoted
from ckptool.preflight.explain import explained
from ckptool.preflight.findings import Finding, error
from ckptool.preflight.images import Batch, shape_text
from ckptool.preflight.sizes import at_size, halved, network_of
from ckptool.preflight.subject import EFFDET, TORCHVISION, YOLO, Module, Subject

Shape = tuple[int, ...]


def check_outputs(
    images: Any, targets: Any, batch: Batch | None, subject: Subject, known: Sequence[Finding]
) -> Iterator[Finding]:
    """Run the model once, without gradients, and look at what it gives.

    The model is left as it was: its buffers, its mode, the state of the random numbers.
    """
    import torch

    heads: list[Any] = []
    with _unchanged(subject.model), torch.random.fork_rng(), torch.no_grad(), quiet():
        handles = [part.register_forward_hook(_kept(heads)) for part in _read_at(subject)]
        try:
            given = _call(images, targets, subject)
        except Exception as raised:
            yield explained(raised, known, subject.num_classes)
            return
        finally:
            for handle in handles:
                handle.remove()
    yield from _finite(given)
    if batch is not None and not any(finding.code == "head-rows" for finding in known):
        yield from _shapes(heads or [given], batch, subject)


def _call(images: Any, targets: Any, subject: Subject) -> Any:
    """The model's own call; a loss where it computes one and the targets are there."""
    core = subject.core
    if subject.is_bench:
        return core(images, targets) if targets is not None else core.model(images)
    if subject.family == TORCHVISION and subject.kind:
        if subject.training and targets is None:
            core.eval()
            return core(images)
        return core(images, targets)
    # A wrapper moves or casts what it is given; a user's own module is called as it is.
    return (core if subject.kind else subject.model)(images)


def _read_at(subject: Subject) -> list[Module]:
    """The parts whose outputs are raw: what the heads give."""
    core = subject.core
    if subject.family == EFFDET and subject.kind:
        return [core.model if hasattr(core, "model") else core]
    return []


def _kept(into: list[Any]) -> Callable[[Module, Any, Any], None]:
    def keep(module: Module, inputs: Any, output: Any) -> None:
        into.append(output)

    return keep


@contextmanager
def _unchanged(model: Module) -> Iterator[None]:
    """Buffers and modes are put back behind a forward pass."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.detach().copy_(value)
        for module, training in modes:
            module.training = training


def _finite(given: Any) -> Iterator[Finding]:
    named = [(w, t) for w, t in tensors_in(given) if t.is_floating_point() and not t.is_meta]
    broken = [where for where, tensor in named if not bool(tensor.isfinite().all())]
    if broken:
        yield error(
            "output-not-finite",
            f"{len(broken):,} of {counted(len(named), 'output')} have NaN or infinite values, "
            f"the first is {quoted(broken[0])}, wanted finite ones",
            where=broken[0],
            count=len(broken),
            fix="look at the values of the weights: `ckptool inspect FILE --stats`",
        )


def tensors_in(value: Any, where: str = "output") -> Iterator[tuple[str, Any]]:
    """The tensors inside nested lists, tuples and dicts, and where they stand."""
    if hasattr(value, "is_floating_point"):
        yield where, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from tensors_in(item, f"{where}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from tensors_in(item, f"{where}[{at}]")


def _shapes(heads: Sequence[Any], batch: Batch, subject: Subject) -> Iterator[Finding]:
    wanted = list(_wanted(batch, subject))
    found = [(where, tuple(tensor.shape)) for where, tensor in tensors_in(heads[0])]
    if not wanted or any(len(shape) != 4 for _, shape in found):
        return
    if len(found) != len(wanted):
        yield error(
            "output-shape",
            f"the head gives {counted(len(found), 'map')}, wanted {len(wanted)}",
            where="output",
        )
        return
    for (where, shape), (what, right) in zip(found, wanted, strict=True):
        if shape != right:
            yield error(
                "output-shape",
                f"{quoted(where)} has the shape {shape_text(shape)}, wanted {shape_text(right)}: "
                f"{what}",
                where=where,
                fix="the head and what reads it from one configuration",
            )
            return


def _wanted(batch: Batch, subject: Subject) -> Iterator[tuple[str, Shape]]:
    """What each map is, and its shape, in the order in which the model gives them."""
    if not batch.sizes:
        return
    count, size, classes = len(batch.images), batch.sizes[0], subject.num_classes or 0
    if subject.family == EFFDET and subject.card:
        first, last = subject.card["levels"]
        anchors = subject.card["num_scales"] * len(subject.card["aspect_ratios"])
        for each, what in ((classes, f"{classes:,} classes"), (4, "4 box values")):
            for level, sides in list(enumerate(halved(size, last)))[first:]:
                text = f"level {level}, {anchors} anchors of {what}"
                yield text, (count, anchors * each, *sides)
    elif subject.family == YOLO:
        net = network_of(subject)
        try:
            layers = at_size(net.with_classes(classes), size).layers if net and classes else ()
        except ArchitectureError:
            return
        for layer in layers:
            if layer.head:
                anchors = len(layer.head.anchors)
                text = f"{anchors} anchors of 5 + {classes:,} classes"
                yield text, (count, *layer.shape)
