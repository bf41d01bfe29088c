"""Every table against what the implementations' own state dicts hold.

A new dialect needs a key list in `fixtures/dialects`, and no line here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from key_lists import NAMES, KeyList, key_list

from ckptool import dialects
from ckptool.architectures import find, frozen
from ckptool.architectures.spec import Architecture
from ckptool.checkpoint import WeightSet
from ckptool.dialects.links import Link, bound_rules, canonical_specs, links
from ckptool.dialects.spec import Dialect
from ckptool.identification import candidates, prefixes
from ckptool.plugins import dialect as edit
from ckptool.tensors import Inline, LazyTensor, TensorSpec

LISTED = {(key_list(name).arch, key_list(name).dialect) for name in NAMES}
# Every architecture in each of its dialects, but only once of those with the same manifest.
EVERY = list(
    {
        (id(architecture.specs), dialect.name): (name, dialect.name)
        for name, entry in reversed(frozen.index().items())
        if entry["family"] in ("effdet", "yolov4")
        for architecture in (find(name),)
        for dialect in dialects.dialects_of(architecture)
    }.values()
)[::-1]


def numbered(specs: dict[str, TensorSpec]) -> WeightSet:
    """Weights whose every tensor has its own number in each of its elements' bytes."""
    tensors = {}
    for number, (key, spec) in enumerate(specs.items()):
        element = spec.nbytes // max(spec.numel, 1)
        data = number.to_bytes(4, "little")[:element].ljust(element, b"\0") * spec.numel
        tensors[key] = LazyTensor(spec, Inline(data))
    return WeightSet(".", tensors)


def small(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The specs with every length that no part depends on cut to 4."""
    return {
        key: replace(spec, shape=tuple(min(length, 4) for length in spec.shape))
        for key, spec in specs.items()
    }


def both(name: str) -> tuple[KeyList, Architecture, Dialect]:
    found = key_list(name)
    architecture = find(found.arch)
    return found, architecture, dialects.find(found.dialect, architecture)


def canonical(architecture: Architecture) -> dict[str, TensorSpec]:
    native = dialects.native(architecture)
    assert native is not None
    return canonical_specs(native, architecture)


def linked(architecture: Architecture, dialect: Dialect) -> tuple[Link, ...]:
    return links(dialect, architecture, canonical(architecture))


def aside(found: KeyList, architecture: Architecture, dialect: Dialect) -> set[str]:
    """The keys of the implementation that the canonical spelling has not, and needs not."""
    held = {link.theirs.key for link in linked(architecture, dialect)}
    return {key for key in found.specs if key not in held and dialects.drops(dialect, key)}


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_those_of_the_implementation(name: str) -> None:
    found, architecture, dialect = both(name)
    spelled = dialects.spelled(architecture, dialect)
    made = dialect.makes(architecture)
    gone = aside(found, architecture, dialect) - made.keys()
    assert spelled.specs == {key: s for key, s in found.specs.items() if key not in gone}
    assert spelled.manifest(spelled.num_classes) == spelled.specs


@pytest.mark.parametrize("name", [name for name in NAMES if key_list(name).canonical])
def test_every_key_holds_what_the_map_says(name: str) -> None:
    """The maps were found by running both networks side by side."""
    found, architecture, dialect = both(name)
    held: dict[str, list[str]] = {}
    for link in linked(architecture, dialect):
        own = link.canonical
        text = own.key if own.index is None else f"{own.key}[{own.index}]"
        held.setdefault(link.theirs.key, []).append(text)
    wanted = {key: own for key, own in found.canonical.items() if own}
    assert {key: tuple(names) for key, names in held.items()} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_implementation_is_held_or_left_out_for_a_reason(name: str) -> None:
    found, architecture, dialect = both(name)
    held = {link.theirs.key for link in linked(architecture, dialect)}
    left = {*found.specs} - held
    assert left == aside(found, architecture, dialect)
    assert left == {key for key, own in found.canonical.items() if not own} or not found.canonical
    assert all(edit._reasons([key], dialect.drops)[key] for key in left)


@pytest.mark.parametrize(("arch", "name"), EVERY)
def test_every_key_of_the_architecture_fits_one_rule_there_and_one_back(
    arch: str, name: str
) -> None:
    """Or it is listed as one that the dialect has not, or is of a part that it does not spell."""
    architecture = find(arch)
    dialect = dialects.find(name, architecture)
    own = canonical(architecture)
    found = linked(architecture, dialect)
    places = Counter((link.theirs.key, link.theirs.index) for link in found)
    assert set(places.values()) == {1}
    there, back = (bound_rules(dialect, architecture, inverse=way) for way in (True, False))
    for link in found:
        part = "" if link.canonical.index is None else f"[{link.canonical.index}]"
        key = link.canonical.key + part
        (theirs,) = (new for rule in there if (new := rule.rewrite(key)) is not None)
        (again,) = (new for rule in back if (new := rule.rewrite(theirs)) is not None)
        assert again == key
    missing = [key for key in own if key not in {link.canonical.key for link in found}]
    if dialect.part is None:
        assert len(own) == len(architecture.specs)
        assert set(missing) == edit._reasons(missing, dialect.lacks).keys()
    else:
        names = dict(zip(architecture.specs, own, strict=True))
        assert missing == [names[key] for key in dialects.uncovered(architecture, dialect)]


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        pytest.param(*pair, marks=[] if pair in LISTED else pytest.mark.sweep, id="-".join(pair))
        for pair in EVERY
    ],
)
def test_there_and_back_is_the_identity_in_order(arch: str, name: str) -> None:
    """With the manifest in the architecture's order, and in the reverse one.

    Tensors that are one in the dialect come back in the manifest's order, their counters alike.
    """
    architecture = find(arch)
    native = dialects.native(architecture)
    assert native is not None
    dialect = dialects.find(name, architecture)
    joined = {link.canonical.key for link in linked(architecture, dialect) if link.theirs.count}
    one = {
        key
        for key, own in zip(architecture.specs, canonical(architecture), strict=True)
        if own in joined
    }
    there = {"from": native.name, "to": name, "arch": arch}
    back = {"from": name, "to": native.name, "arch": arch}
    specs = small(dict(architecture.specs))
    for order in (specs, dict(reversed(specs.items()))):
        weights = numbered(order)
        gone = edit.apply(weights, there)
        found = edit.apply(gone.weights, back).weights.tensors
        kept = {key: t for key, t in weights.tensors.items() if key not in gone.dropped}
        assert found.keys() == kept.keys()
        ordered = kept if order is specs else [key for key in kept if key not in one]
        assert [key for key in found if key in {*ordered}] == [*ordered]
    exact = [key for key in kept if kept[key].shape or key not in one]
    assert all(found[key].tobytes() == kept[key].tobytes() for key in exact)


@pytest.mark.parametrize("name", NAMES)
def test_the_implementations_own_order_comes_back_too(name: str) -> None:
    found, architecture, dialect = both(name)
    native = dialects.native(architecture)
    assert native is not None
    weights = numbered(small(found.specs))
    there = {"from": dialect.name, "to": native.name, "arch": found.arch}
    gone = edit.apply(weights, there)
    back = edit.apply(gone.weights, {**there, "from": native.name, "to": dialect.name})
    made = dialect.makes(architecture)
    kept = [key for key in found.specs if key not in gone.dropped]
    assert [key for key in back.weights.tensors if key not in made] == kept
    assert {*gone.dropped} == aside(found, architecture, dialect)


@pytest.mark.parametrize("prefix", ["", "model.model."])
@pytest.mark.parametrize("name", NAMES)
def test_the_keys_alone_tell_the_dialect(name: str, prefix: str) -> None:
    found, _, dialect = both(name)
    if "/" in next(iter(found.specs)):
        prefix = ""  # TensorFlow's names have no dots, and no wrapper around them
    specs = {prefix + key: spec for key, spec in found.specs.items()}
    marked = list(dialects.recognised(specs, prefixes(specs)))
    assert (dialect, prefix) in marked
    assert {other.marks for other, _ in marked} == {dialect.marks}
    seen = candidates(numbered(specs))
    fitting = {(c.arch, c.dialect, c.prefix) for c in seen if c.fits}
    if dialect.part is not None:
        assert not fitting
        assert (found.arch, dialect.name) in {(c.arch, c.dialect) for c in seen}
    elif not dialect.name.endswith("-reordered") or (found.arch, dialect.name, prefix) in fitting:
        assert (found.arch, dialect.name, prefix) in fitting
    else:  # the keys are another architecture's own
        (twin,) = fitting
        assert find(twin[0]).specs == found.specs


def test_every_dialect_has_a_key_list() -> None:
    assert {key_list(name).dialect for name in NAMES} == {d.name for d in dialects.built_in()}
