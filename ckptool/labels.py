"""Names of classes, and which old class each new one continues.

A label set has one entry per foreground class, in the order of a head's rows: a name, or None
where the ids of a data set leave a hole. The sets that are shipped lie in `label_sets`, one name a
line, `-` for a hole; `synonyms.txt` there has one group of names a line, `?` before a name that
belongs to its group only where no other name of the group is in the same label set: `mouse` is a
computer mouse in COCO, and an animal in Open Images, which has `Computer mouse` too.

Source: coco80, coco90 and voc20: torchvision 0.29.2, models/_meta.py (which has the background in
front and `N/A` in the holes); coco90 are the ids 1 … 90 of the annotations of COCO 2014 and 2017,
voc20 is the order of the VOC devkit. openimages: the 601 boxable classes of Open Images in the
order of its class-descriptions-boxable.csv (V4, CC BY 4.0), equal to data/openimages.names of
pjreddie/darknet at 332396e. Ultralytics sorts the same classes by name: give its list as a file.
`???`: labelmap.txt of TensorFlow Lite's coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.
Synonyms: the display names of the three data sets side by side, and of Open Images V7.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from ckptool.errors import CkptError, PlanError, listed, quoted
from ckptool.files import ByteFile

SHIPPED = ("coco80", "coco90", "voc20", "openimages")
MOST_CLASSES = 100_000
LARGEST_LIST = 1 << 24  # bytes

LabelSet = tuple[str | None, ...]

_FOLDER = os.path.join(os.path.dirname(__file__), "label_sets")
_HOLES = ("-", "N/A", "???")
_BACKGROUND = ("__background__", "background", "???")


@dataclass(frozen=True, slots=True)
class ClassMap:
    """For each new foreground class the old one that it continues, or None.

    `fresh` are the new classes without an old one, by name, or by index where there is no name.
    """

    rows: tuple[int | None, ...]
    old_names: LabelSet | None
    new_names: LabelSet | None
    kept: int
    fresh: tuple[str, ...]


def class_map(spec: str | None, old_count: int, new_count: int) -> ClassMap:
    """The map that `--class-map` asks for, between two counts of foreground classes.

    None keeps nothing; `first` keeps the first classes as they are; `OLD:NEW` matches two label
    sets by name; `FILE.csv` has a line `old,new` for each kept class: indices from 0, or names,
    which need a first line with the two label sets, such as `coco90,voc20`. Over indices the first
    line may be any header. One old class may be continued by several new ones.

    Raises: PlanError, code `plan.class-map`.
    """
    if spec is None:
        return _made([None] * new_count)
    if spec == "first":
        return _made([index if index < old_count else None for index in range(new_count)])
    if ":" in spec:
        old, _, new = spec.partition(":")
        if not old or not new or ":" in new:
            raise _wrong(f"the class map {quoted(spec)}: wanted two label sets as `OLD:NEW`")
        old_names = _fitted(old, old_count, "file", lambda fit: f"--class-map {fit}:{new}")
        new_names = _fitted(new, new_count, "target", lambda fit: f"--class-map {old}:{fit}")
        return _made(_matched(old, old_names, new, new_names), old_names, new_names)
    if spec.endswith(".csv"):
        return _from_csv(spec, old_count, new_count)
    raise _wrong(
        f"the class map {quoted(spec)}: wanted `first`, two label sets as `OLD:NEW`, or a `.csv` "
        "file",
        "--class-map coco90:voc20",
    )


def label_set(spec: str) -> LabelSet:
    """The label set of a shipped name or a file, None in the holes.

    A text file has one name a line, `-`, `N/A` or `???` for a hole; empty lines at the end and a
    background in front are left out. If every line but a header is `id,name` or `id: name`, the
    lowest id tells where a number stands: from 0 it is the position, else the position is id - 1;
    an id of Open Images (`/m/…`) says nothing. A `.json` file is one of COCO annotations: the
    names in `categories`, their positions by id in the same way. No name may stand twice.

    Raises: PlanError, code `plan.class-map`.
    """
    if spec in SHIPPED:
        return _from_text(_lines(os.path.join(_FOLDER, f"{spec}.txt")))
    try:
        return _from_json(spec) if spec.endswith(".json") else _from_text(_lines(spec))
    except CkptError as error:
        if error.code == "file.missing":
            raise _wrong(
                f"{quoted(spec)} is neither a label set nor a file",
                _close(spec, SHIPPED) or f"the label sets are {listed(SHIPPED)}",
            ) from None
        if isinstance(error, PlanError):
            raise error.located(quoted(spec)) from None
        raise


def _made(
    rows: Sequence[int | None], old_names: LabelSet | None = None, new_names: LabelSet | None = None
) -> ClassMap:
    names = new_names or (None,) * len(rows)
    fresh = [names[at] or str(at) for at, old in enumerate(rows) if old is None]
    return ClassMap(tuple(rows), old_names, new_names, len(rows) - len(fresh), tuple(fresh))


def _fitted(spec: str, count: int, side: str, retyped: Callable[[str], str]) -> LabelSet:
    """The label set for a class count; a file also without its holes, as many trainers number."""
    names = label_set(spec)
    if len(names) == count:
        return names
    dense = tuple(name for name in names if name is not None)
    if len(dense) == count and spec not in SHIPPED:
        return dense
    hints = [retyped(other) for other in SHIPPED if len(label_set(other)) == count]
    if side == "target":
        hints.insert(0, f"--num-classes {len(names)}")
    raise _wrong(
        f"{quoted(spec)} has {len(names):,} names, the {side} has {count:,} classes",
        " or ".join(hints) or f"write the {count:,} names to a text file, one a line",
    )


def _matched(old: str, old_names: LabelSet, new: str, new_names: LabelSet) -> list[int | None]:
    """For each new name the index of the old one that means the same."""
    if old_names == new_names:
        return list(range(len(old_names)))
    old_meanings, new_meanings = _meanings(old_names), _meanings(new_names)
    _refuse_homonyms(old, old_names, new, new_names)
    by_meaning: dict[str, list[int]] = {}
    for index, meaning in enumerate(old_meanings):
        if meaning is not None:
            by_meaning.setdefault(meaning, []).append(index)
    rows: list[int | None] = []
    for name, meaning in zip(new_names, new_meanings, strict=True):
        if name is None or meaning is None:
            rows.append(None)
            continue
        found = by_meaning.get(meaning, [])
        same = [index for index in found if _plain(old_names[index] or "") == _plain(name)]
        found = same or found
        if len(found) > 1:
            matches = listed(f"{index}: {old_names[index]}" for index in found)
            raise _wrong(
                f"the new class {quoted(name)} of {quoted(new)} is ambiguous: it matches "
                f"{len(found)} classes of {quoted(old)}: {matches}",
                f"choose by index in a CSV of lines `old,new`, such as "
                f"`{found[0]},{new_names.index(name)}`",
            )
        rows.append(found[0] if found else None)
    return rows


def _refuse_homonyms(old: str, old_names: LabelSet, new: str, new_names: LabelSet) -> None:
    """Raise for a name that both sets have and that means two things, unless both are known."""
    pairs = []
    for names in (old_names, new_names):
        meanings = _meanings(names)
        pairs.append({_plain(n): (m, n) for n, m in zip(names, meanings, strict=True) if n and m})
    unclear = [p for p in pairs[0] if p in pairs[1] and pairs[0][p][0] != pairs[1][p][0]]
    if not unclear:
        return
    known = [label_set(name) for name in SHIPPED]
    if old_names in known and new_names in known:
        return
    meaning = {pairs[side][unclear[0]][0] for side in (0, 1)} - {unclear[0]}
    exact = next(group[0][0] for group in _groups() if _plain(group[0][0]) in meaning)
    raise _wrong(
        f"{quoted(pairs[0][unclear[0]][1])} of {quoted(old)} and of {quoted(new)} is ambiguous: "
        f"one of the two has {quoted(exact)} beside it",
        f"write the name as {quoted(exact)} where it means that, or map by index in a CSV",
    )


def _meanings(names: LabelSet) -> list[str | None]:
    """What stands for each name: the first name of its group, or the name itself."""
    plain = [None if name is None else _plain(name) for name in names]
    present = set(plain)
    heads: dict[str | None, str] = {}
    for group in _groups():
        members = [_plain(name) for name, _ in group]
        for member, (_, loose) in zip(members, group, strict=True):
            if not (loose and present.intersection(members) - {member}):
                heads[member] = members[0]
    return [None if name is None else heads.get(name, name) for name in plain]


@cache
def _groups() -> tuple[tuple[tuple[str, bool], ...], ...]:
    """The groups of synonyms: names, and whether each is loose."""
    lines = _lines(os.path.join(_FOLDER, "synonyms.txt"))
    return tuple(
        tuple((name.lstrip("?"), name[0] == "?") for name in line.split(", ")) for line in lines
    )


def _plain(name: str) -> str:
    """A name as it is compared: without case, spaces, underscores and hyphens."""
    return "".join(name.casefold().split()).replace("_", "").replace("-", "")


def _from_csv(spec: str, old_count: int, new_count: int) -> ClassMap:
    """The map of a CSV file with a line `old,new` for each kept class."""
    import csv

    try:
        read = [[cell.strip() for cell in cells] for cells in csv.reader(_lines(spec))]
    except csv.Error as error:
        raise _wrong(f"{quoted(spec)}: not a CSV file: {error}") from None
    except PlanError as error:
        raise error.located(quoted(spec)) from None
    rows = [(number, cells) for number, cells in enumerate(read, 1) if any(cells)]
    for number, cells in rows:
        if len(cells) != 2 or not all(cells):
            raise _wrong(f"{quoted(spec)}: line {number}: found {listed(cells)}, wanted `old,new`")
    header = rows[0][1] if rows and not all(map(_is_index, rows[0][1])) else None
    pairs = rows[1:] if header else rows
    if not pairs:
        raise _wrong(f"{quoted(spec)}: found no line `old,new`")
    sets: tuple[LabelSet | None, LabelSet | None] = (None, None)
    if not all(_is_index(cell) for _, cells in pairs for cell in cells):
        sets = _header_sets(spec, header, old_count, new_count)
    result: list[int | None] = [None] * new_count
    for number, (old, new) in pairs:
        where = f"{quoted(spec)}: line {number}: "
        at = _index(new, sets[1], new_count, where, "new")
        if result[at] is not None:
            raise _wrong(f"{where}the new class {quoted(new)} is ambiguous: it has an old one")
        result[at] = _index(old, sets[0], old_count, where, "old")
    return _made(result, *sets)


def _header_sets(
    spec: str, header: list[str] | None, old_count: int, new_count: int
) -> tuple[LabelSet, LabelSet]:
    """The label sets that the first line of a CSV of names gives."""
    hint = "a CSV of names starts with a line that gives their label sets, such as `coco90,voc20`"
    if header is None:
        raise _wrong(f"{quoted(spec)}: found names, and no label sets in line 1", hint)
    where = f"{quoted(spec)}: line 1"
    try:
        old = _fitted(header[0], old_count, "file", lambda fit: f"{fit},{header[1]}")
        return old, _fitted(header[1], new_count, "target", lambda fit: f"{header[0]},{fit}")
    except PlanError as error:
        missing = "neither" in error.message
        raise _wrong(f"{where}: {error.message}", hint if missing else error.hint) from None


def _index(cell: str, names: LabelSet | None, count: int, where: str, side: str) -> int:
    """The index of a class that a CSV gives by index or, with a label set, by name."""
    if names is None:
        index = int(cell)
        if index >= count:
            raise _wrong(
                f"{where}found the {side} index {index:,}, wanted one of 0 … {count - 1:,}"
            )
        return index
    meanings = _meanings((*names, cell))
    plain = [None if name is None else _plain(name) for name in names]
    found = [at for at, name in enumerate(plain) if name == _plain(cell)]
    found = found or [at for at, meaning in enumerate(meanings[:-1]) if meaning == meanings[-1]]
    if not found:
        known = [name for name in names if name is not None]
        raise _wrong(f"{where}{quoted(cell)} is no {side} class", _close(cell, known))
    if len(found) > 1:
        raise _wrong(
            f"{where}the {side} class {quoted(cell)} is ambiguous: it matches "
            f"{listed(f'{at}: {names[at]}' for at in found)}"
        )
    return found[0]


def _is_index(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 10


def _lines(path: str) -> list[str]:
    """The lines of a text file, stripped, without the empty ones at the end."""
    data = ByteFile(path)
    if data.size > LARGEST_LIST:
        raise _wrong(
            f"found {data.size:,} bytes, wanted a list of names of {LARGEST_LIST:,} at most"
        )
    try:
        text = data.read(0, data.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(f"at byte {error.start:,}: found bytes that are not UTF-8 text") from None
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def _from_text(lines: list[str]) -> LabelSet:
    """The label set of the lines of a text file."""
    import re

    if not lines:
        raise _wrong("found no names")
    for number, line in enumerate(lines, 1):
        if not line:
            raise _wrong(f"line {number} is empty", "a hole in the class ids is written `-`")
    with_id = re.compile(r"([0-9]{1,9}|/[a-z]/[^\s,:;]+)\s*[,:;]\s*(.+)")
    parts = [with_id.fullmatch(line) for line in lines]
    header = len(parts) > 1 and parts[0] is None and "," in lines[0]
    if header:
        parts = parts[1:]  # such as `LabelName,DisplayName`, if all others have an id
    matches = [part for part in parts if part is not None]
    whole = len(matches) == len(parts)
    names = [part[2] for part in matches] if whole else lines
    _refuse_twice((f"line {at}", name) for at, name in enumerate(names, 1 + (header and whole)))
    if whole:
        pairs = [(part[1], part[2]) for part in matches]
        if all(_is_index(number) for number, _ in pairs):
            return _by_id((int(number), name) for number, name in pairs)
        lines = [name for _, name in pairs]
    if lines[0].casefold() in _BACKGROUND:
        lines = lines[1:]
    return tuple(_name(line) for line in lines)


def _from_json(path: str) -> LabelSet:
    """The label set of a file of COCO annotations, of which only `categories` is parsed."""
    import json
    import re

    data = ByteFile(path)
    start, window = 0, b""
    for block in data.blocks(0, data.size):
        # With the end of the block before, should the key lie on the border.
        start, window = start + max(0, len(window) - 64), window[-64:] + block
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[\s*\{)', window):
            at = start + match.end()
            text = data.read(at, min(LARGEST_LIST, data.size - at)).decode("utf-8", "replace")
            try:
                categories, _ = json.JSONDecoder().raw_decode(text)
                pairs = [(c["id"], c["name"]) for c in categories]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if all(type(i) is int and i >= 0 and isinstance(n, str) for i, n in pairs):
                names = _by_id(pairs)
                _refuse_twice((f"the category {i:,}", n) for i, n in pairs)
                return names
    raise _wrong("found no `categories` with `id` and `name`, wanted COCO annotations")


def _by_id(pairs: Iterable[tuple[int, str]]) -> LabelSet:
    """Names at their ids: from 0 where an id is 0 and not the background, else from 1."""
    by_id: dict[int, str] = {}
    for number, name in pairs:
        if number in by_id:
            raise _wrong(f"{quoted(by_id[number])} and {quoted(name)} both have the id {number:,}")
        by_id[number] = name
    if by_id.get(0, "").casefold() in _BACKGROUND:
        del by_id[0]
    first, last = min(by_id.keys() | {1}), max(by_id, default=0)
    if last > MOST_CLASSES:
        raise _wrong(f"found the class id {last:,}, wanted at most {MOST_CLASSES:,}")
    return tuple(_name(by_id.get(number, "-")) for number in range(first, last + 1))


def _refuse_twice(names: Iterable[tuple[str, str]]) -> None:
    """Raise for a name, given where it stands, that stands at two places."""
    seen: dict[str, tuple[str, str]] = {}
    for where, name in names:
        before, same = seen.setdefault(_plain(name), (where, name))
        if before != where and name not in _HOLES:
            once = quoted(name) if name == same else f"{quoted(name)} is {quoted(same)}, which"
            raise _wrong(
                f"{where}: {once} is the name of {before} already",
                "names tell the classes apart: rename one of the two",
            )


def _name(text: str) -> str | None:
    return None if text in _HOLES else text


def _close(name: str, known: Sequence[str]) -> str | None:
    """A hint with the closest known names, None if none is close."""
    import difflib

    plain = {_plain(other): other for other in known}
    near = difflib.get_close_matches(_plain(name), plain, 3)
    return f"did you mean {' or '.join(quoted(plain[other]) for other in near)}" if near else None


def _wrong(message: str, hint: str | None = None) -> PlanError:
    return PlanError(message, hint=hint, code="plan.class-map")
