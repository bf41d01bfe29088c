"""The image files of a data set: are they there, can they be decoded, are they what is recorded.

Every file is decoded, since one that is cut short has a sound header. Pillow does that without
holding the interpreter's lock, so several threads share the work.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ckptool.errors import CkptError, counted, printable, quoted
from ckptool.files import ByteFile, names_in
from ckptool.preflight.coco import Coco, id_text
from ckptool.preflight.findings import Finding, error, warning
from ckptool.preflight.json_stream import Progress

# Source: the EXIF tag Orientation (0x0112); from 5 on a picture is shown with its sides swapped.
_ORIENTATION, _TURNED = 0x0112, 5
_WANTED = "RGB"
# A few at a time: a hundred thousand results that wait would be memory for nothing.
_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file turned out to be: a finding's code and a reason, or its sides and its mode."""

    problem: str = ""
    reason: str = ""
    sides: tuple[int, int] = (0, 0)
    mode: str = ""
    turned: bool = False


def check_pictures(coco: Coco, folder: str, progress: Progress | None = None) -> Iterator[Finding]:
    """The findings about the files in a folder.

    Raises: CkptError if the folder cannot be listed, or Pillow is not installed.
    """
    names_in(folder)
    look = _looker(folder)
    at = [row for row, name in enumerate(coco.files) if name]
    pictures: dict[int, Picture] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")  # what Pillow thinks of tags
        for start in range(0, len(at), _TOGETHER):
            rows = at[start : start + _TOGETHER]
            found = pool.map(look, (coco.files[row] for row in rows))
            pictures.update(zip(rows, found, strict=True))
            if progress:
                progress("images", start + len(rows), len(at))
    yield from _problems(coco, pictures, folder)
    yield from _other_sides(coco, pictures)
    yield from _other_mode(coco, pictures)


def _looker(folder: str) -> Callable[[Any], Picture]:
    """What looks at one file."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise CkptError(
            "Pillow is not installed, and images are decoded with it",
            hint="pip install pillow",
            code="images.pillow",
        ) from None
    home = os.path.abspath(folder)

    def look(name: str) -> Picture:
        path = os.path.join(folder, name)
        if os.path.commonpath([home, os.path.abspath(path)]) != home:
            return Picture("image-path", "leads out of the folder")
        try:
            file = ByteFile(path)
        except CkptError as wrong:
            missing = wrong.code == "file.missing"
            reason = wrong.message.removeprefix(f"{quoted(path)}: ")
            return Picture("image-missing" if missing else "image-unreadable", reason)
        try:
            with (
                io.FileIO(file.fileno(), closefd=False) as stream,
                Image.open(stream) as image,
            ):
                sides, mode = image.size, image.mode
                turned = image.getexif().get(_ORIENTATION, 1) >= _TURNED
                image.draft(mode, (1, 1))  # the smallest of what a JPEG can be decoded to
                image.load()
        except UnidentifiedImageError:
            return Picture("image-unreadable", "of no format that Pillow knows")
        except Exception as wrong:  # Pillow's plugins raise whatever they run into
            return Picture("image-unreadable", f"{type(wrong).__name__}: {wrong}")
        finally:
            file.close()
        return Picture("", "", sides, mode, turned)

    return look


def _problems(coco: Coco, pictures: dict[int, Picture], folder: str) -> Iterator[Finding]:
    for code, made, what, wanted, fix in (
        (
            "image-missing",
            error,
            "that are not there",
            f"wanted every `file_name` in {quoted(folder)}",
            "--images with the folder that the names start from, or drop the images",
        ),
        (
            "image-unreadable",
            error,
            "that cannot be decoded",
            "wanted whole image files",
            "fetch them again, or drop them",
        ),
        (
            "image-path",
            warning,
            "with names that lead out of the folder, where they are not opened",
            f"wanted names inside {quoted(folder)}",
            "write `file_name` relative to the folder of the images",
        ),
    ):
        rows = [row for row, picture in pictures.items() if picture.problem == code]
        if rows:
            name = quoted(coco.files[rows[0]] or "")
            reason = printable(pictures[rows[0]].reason, 120)
            because = f" ({reason})" if code == "image-unreadable" else ""
            yield made(
                code,
                f"found {len(rows):,} of {counted(len(pictures), 'file')} {what}, such as "
                f"{name}{because}, {wanted}",
                where=_place(coco, rows[0]),
                count=len(rows),
                fix=fix,
            )


def _other_sides(coco: Coco, pictures: dict[int, Picture]) -> Iterator[Finding]:
    """Files that are not as wide and as high as recorded."""
    wrong: list[int] = []
    turned: list[int] = []
    for row, picture in pictures.items():
        recorded = (coco.sides[2 * row], coco.sides[2 * row + 1])
        if picture.problem or not min(recorded) > 0 or picture.sides == recorded:
            continue
        # A loader that heeds the orientation sees the recorded sides, and most do not heed it.
        swapped = picture.turned and picture.sides[::-1] == recorded
        (turned if swapped else wrong).append(row)
    for rows, made, code, why, fix in (
        (
            wrong,
            error,
            "image-other-sides",
            "",
            "write the sides of the files, and see which of the two the boxes are for",
        ),
        (
            turned,
            warning,
            "image-turned",
            " once its EXIF orientation is heeded",
            "ImageOps.exif_transpose(image) in the loader, or store the files upright",
        ),
    ):
        if rows:
            found, picture = rows[0], pictures[rows[0]]
            sides = f"{coco.sides[2 * found]:g}×{coco.sides[2 * found + 1]:g}"
            yield made(
                code,
                f"found {len(rows):,} of {counted(len(pictures), 'file')} with other sides than "
                f"recorded: {quoted(coco.files[found] or '')} has "
                f"{picture.sides[0]}×{picture.sides[1]} (width × height), wanted {sides}{why}",
                where=_place(coco, found),
                count=len(rows),
                fix=fix,
            )


def _other_mode(coco: Coco, pictures: dict[int, Picture]) -> Iterator[Finding]:
    """Files that do not have three channels of 8 bits."""
    rows = [
        row for row, picture in pictures.items() if not picture.problem and picture.mode != _WANTED
    ]
    if rows:
        modes = Counter(pictures[row].mode for row in rows)
        told = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
        yield warning(
            "image-mode",
            f"found {len(rows):,} of {counted(len(pictures), 'file')} not in {_WANTED} ({told}), "
            f"such as {quoted(coco.files[rows[0]] or '')}, wanted 3 channels",
            where=_place(coco, rows[0]),
            count=len(rows),
            fix="image.convert('RGB') when they are opened",
        )


def _place(coco: Coco, row: int) -> str:
    return f"image {id_text(coco.image_id(coco.images[row]))}"
