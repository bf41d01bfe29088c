"""What `identify` shows."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptool.architectures import frozen
from ckptool.errors import counted, listed, printable
from ckptool.formats import darknet
from ckptool.render.words import diff_words, format_name, table, wrapped

if TYPE_CHECKING:
    from ckptool.identification import Candidate, Identified


WIDTH = 100
_CFG = ["if it is whole, its cfg tells what it holds: `ckptool diff FILE --arch darknet:FILE.cfg`"]


def identified_json(found: Identified) -> dict[str, Any]:
    """The JSON of `identify`."""
    return {
        "file": found.file,
        "format": found.format,
        "weights": found.weights,
        "candidates": [asdict(candidate) for candidate in found.candidates],
        "guesses": [asdict(guessed) for guessed in found.guesses],
    }


def identified_text(found: Identified) -> str:
    """What `identify` shows."""
    weights = "" if found.weights == "." else f", weights `{printable(found.weights)}`"
    lines = [f"{printable(found.file)} ({format_name(found.format)}{weights})", ""]
    if found.guesses:
        return "\n".join([*lines, *_guesses(found)])
    if not found.candidates and found.format == darknet.NAME:
        return "\n".join([*lines, "no network that ckptool knows has a file of this size;", *_CFG])
    if not found.candidates:
        return "\n".join([*lines, "no architecture that ckptool knows: `ckptool archs` lists them"])
    rows = [["", "architecture", "dialect", "classes", "dtype", "prefix", "differences"]]
    rows += [_row(item) for item in found.candidates]
    lines += table(rows)
    count = len(found.fitting)
    if count > 1:
        lines += [
            "",
            f"{count} fit alike: keys and shapes do not tell them apart; this says what does:",
            _diff(found, found.fitting[0]),
        ]
    elif not count:
        lines += ["", "none fits; this says why:", _diff(found, found.candidates[0])]
    return "\n".join(lines)


def _diff(found: Identified, candidate: Candidate) -> str:
    """The command that compares the file with a candidate."""
    words = [*diff_words(found.file, found.weights), "--arch", candidate.arch]
    entry = frozen.index()[candidate.arch]
    if candidate.num_classes not in (None, entry["num_classes"]):
        words += ["--num-classes", str(candidate.num_classes)]
    return f"  {shlex.join(words)}"


def _guesses(found: Identified) -> list[str]:
    """What is shown where only the order of the shapes says what the file may be."""
    lines = ["no name is known, but read in order the shapes are those of"]
    for guessed in found.guesses:
        pairing = guessed.guess
        also = f" (and {listed(guessed.also, 3)})" if guessed.also else ""
        count = guessed.num_classes
        classes = "" if count is None else f", {counted(count, 'class', 'classes')}"
        lines.append(f"  {guessed.arch}{also}{classes}")
        sides = ((pairing.extra, "the file"), (pairing.missing, "the architecture"))
        lines += [
            f"    but for {counted(len(keys), 'tensor')} of {side}: {listed(keys, 2)}"
            for keys, side in sides
            if keys
        ]
        told = pairing.evidence
        if pairing.against:
            told = f"the names contradict it: {pairing.against}"
        lines += wrapped(told, WIDTH, "    ", "    ")
    best = found.guesses[0].guess
    if best.against or best.missing:
        return lines
    arch = found.guesses[0].arch
    return [
        *lines,
        "",
        f"that is a guess; `ckptool diff FILE --arch {arch}` shows more, and",
        f"`ckptool convert FILE --arch {arch} --accept-guess` acts on it",
    ]


def _row(item: Candidate) -> list[str]:
    wrong = [
        f"{count:,} {word}"
        for count, word in (
            (item.missing, "missing"),
            (item.unexpected, "unexpected"),
            (item.shape, "shape" if item.shape == 1 else "shapes"),
        )
        if count
    ]
    return [
        "fits" if item.fits else "near",
        item.arch,
        item.dialect,
        "" if item.num_classes is None else str(item.num_classes),
        item.dtype,
        printable(item.prefix),
        ", ".join(wrong) or "-",
    ]
