"""The file is of something else: another size, another family, or only a part."""

from __future__ import annotations

from ckptool.causes import Cause, Situation
from ckptool.compare import compare
from ckptool.errors import listed, quoted
from ckptool.identification import DERIVED, PROFILED, candidates, is_named

# The share of the architecture's tensors that must agree before the differences are worth
# explaining one by one.
SIMILAR = 0.6


def another_architecture(situation: Situation) -> list[Cause]:
    """A file that fits another architecture as it is."""
    target = situation.target
    if similarity(situation) >= SIMILAR or target.architecture is None:
        return []
    fitting = [found for found in candidates(situation.weights) if found.fits]
    names = [found.arch for found in fitting]
    if not fitting or target.name in names:
        return []
    family = target.architecture.family
    same = any(name for name in names if _family(name) == family)
    what = "another size or variant of the same family" if same else "another family altogether"
    count = fitting[0].num_classes
    classes = f" with {count} classes" if count is not None else ""
    return [
        Cause(
            "other-size" if same else "other-family",
            f"the keys and shapes say {listed(names, 6)}{classes}, you asked for "
            f"{quoted(target.name)}: {what}",
            fix=f"--arch {names[0]}",
            ends=True,
            keys=_all_keys(situation),
        )
    ]


def a_part(situation: Situation) -> list[Cause]:
    """A file that holds one part of the architecture, such as its backbone, and nothing else."""
    found, wanted = situation.weights.specs, situation.target.specs
    known = [key for key in found if key in wanted and found[key].shape == wanted[key].shape]
    if not known or len(known) < 0.95 * len(found):
        return []
    parts = {key.partition(".")[0] for key in known}
    missing = [key for key in wanted if key.partition(".")[0] not in parts]
    if len(missing) < 0.2 * len(wanted):
        return []
    lacking = dict.fromkeys(key.partition(".")[0] for key in missing)
    return [
        Cause(
            "part-only",
            f"the file holds only {listed(sorted(parts))} of the architecture; "
            f"{listed(lacking)} ({len(missing):,} tensors) are not in it",
            exact=False,
            ends=True,
            keys=tuple(missing),
        )
    ]


def unrelated(situation: Situation) -> list[Cause]:
    """A file that has next to nothing in common with the architecture."""
    if similarity(situation) >= SIMILAR or a_part(situation):
        return []
    near = [found for found in candidates(situation.weights) if not found.fits]
    hint = f"; the nearest that ckptool knows is {quoted(near[0].arch)}" if near else ""
    share = similarity(situation)
    return [
        Cause(
            "unrelated",
            f"only {share:.0%} of the architecture's tensors are in the file under their names "
            f"and shapes: it is of another network{hint}",
            exact=False,
            ends=True,
            keys=_all_keys(situation),
        )
    ]


def extra_modules(situation: Situation) -> list[Cause]:
    """Whole modules that the architecture does not have, such as an auxiliary head or a loss."""
    found, wanted = situation.weights.specs, situation.target.specs
    extra = [key for key in found if key not in wanted and not is_named(key, (*DERIVED, *PROFILED))]
    modules: dict[str, list[str]] = {}
    for key in extra:
        modules.setdefault(key.partition(".")[0], []).append(key)
    known = {key.partition(".")[0] for key in wanted}
    whole = {name: keys for name, keys in modules.items() if name not in known}
    if not whole:
        return []
    count = sum(map(len, whole.values()))
    return [
        Cause(
            "extra-modules",
            f"{count:,} tensors are of modules that the architecture does not have: "
            f"{listed(whole)}",
            "drop",
            {"drop": [key for keys in whole.values() for key in keys]},
            " ".join(f"--drop '{name}*'" for name in list(whole)[:4]),
            exact=False,
        )
    ]


def similarity(situation: Situation) -> float:
    """The share of the wanted tensors that the file has, but for class rows and counters."""
    architecture = situation.target.architecture
    axes = architecture.axes if architecture else {}
    wanted = {
        key: spec
        for key, spec in situation.target.specs.items()
        if key not in axes and not key.endswith("num_batches_tracked")
    }
    counts = compare(situation.weights.specs, wanted).counts
    return counts["matched"] / len(wanted) if wanted else 0.0


def _family(name: str) -> str | None:
    from ckptool.architectures import frozen

    entry = frozen.index().get(name)
    return entry["family"] if entry else None


def _all_keys(situation: Situation) -> tuple[str, ...]:
    found = compare(situation.weights.specs, situation.target.specs, situation.weights.versions)
    return tuple(entry.key for entry in found.entries if entry.kind != "dtype")
