"""`--images`: files that are missing, cannot be decoded, or are not what is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cocos_made import Document, document, write
from PIL import Image, UnidentifiedImageError

import ckptool
from ckptool.errors import CkptError


def small(folder: Path) -> Document:
    """A data set of four images and their files: JPEG, PNG, in a folder below."""
    made = document(4, 160)
    (folder / "below").mkdir(parents=True)
    for image, name in zip(
        made["images"], ("a.jpg", "b.png", "below/c.jpg", "d.webp"), strict=True
    ):
        image["file_name"] = name
        save(folder / name, (image["width"], image["height"]))
    return made


def save(path: Path, sides: tuple[int, int], mode: str = "RGB", **options: Any) -> None:
    """A picture that is not of one colour, so that its bytes are many."""
    gradient = Image.linear_gradient("L").resize(sides)
    Image.merge("RGB", [gradient] * 3).convert(mode).save(path, **options)


def findings(tmp_path: Path, made: Document, folder: Path) -> list[ckptool.Finding]:
    path = write(tmp_path / "coco.json", made)
    return list(ckptool.check_dataset(path, arch="tf_efficientdet_d0", images=folder).findings)


@dataclass(frozen=True)
class Fault:
    """A change of the files or the entries, the finding, and what Pillow or a reader says."""

    name: str
    breaks: Callable[[Path, Document], object]
    finding: str
    proof: type[Exception] | None = None


def cut(folder: Path, made: Document) -> None:
    os.truncate(folder / "a.jpg", (folder / "a.jpg").stat().st_size // 2)


def turn(folder: Path, made: Document) -> None:
    """As a camera held upright stores it: the sides swapped, and a tag that says so."""
    image = made["images"][0]
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "a.jpg", (image["height"], image["width"]), exif=exif)


FAULTS = [
    Fault(
        "missing",
        lambda folder, made: (folder / "a.jpg").unlink(),
        "error image-missing: found 1 of 4 files that are not there, such as `a.jpg`, "
        "wanted every `file_name` in `DIR`; --images with the folder that the names "
        "start from, or drop the images",
        FileNotFoundError,
    ),
    Fault(
        "cut short",
        cut,
        "error image-unreadable: found 1 of 4 files that cannot be decoded, such as "
        "`a.jpg` (OSError: image file is truncated (2 bytes not processed)), wanted "
        "whole image files; fetch them again, or drop them",
        OSError,
    ),
    Fault(
        "no image",
        lambda folder, made: (folder / "a.jpg").write_text("<html>"),
        "error image-unreadable: found 1 of 4 files that cannot be decoded, such as "
        "`a.jpg` (of no format that Pillow knows), wanted whole image files; fetch them "
        "again, or drop them",
        UnidentifiedImageError,
    ),
    Fault(
        "empty",
        lambda folder, made: (folder / "a.jpg").write_bytes(b""),
        "error image-unreadable: found 1 of 4 files that cannot be decoded, such as "
        "`a.jpg` (of no format that Pillow knows), wanted whole image files; fetch them "
        "again, or drop them",
        UnidentifiedImageError,
    ),
    Fault(
        "a folder",
        lambda folder, made: (folder / "a.jpg").unlink() or (folder / "a.jpg").mkdir(),
        "error image-unreadable: found 1 of 4 files that cannot be decoded, such as "
        "`a.jpg` (found a directory, wanted a regular file), wanted whole image files; "
        "fetch them again, or drop them",
        IsADirectoryError,
    ),
    Fault(
        "other sides",
        lambda folder, made: save(folder / "a.jpg", (320, 240)),
        "error image-other-sides: found 1 of 4 files with other sides than recorded: "
        "`a.jpg` has 320×240 (width × height), wanted 480×640; write the sides of the "
        "files, and see which of the two the boxes are for",
    ),
    Fault(
        "turned",
        turn,
        "warning image-turned: found 1 of 4 files with other sides than recorded: "
        "`a.jpg` has 640×480 (width × height), wanted 480×640 once its EXIF orientation "
        "is heeded; ImageOps.exif_transpose(image) in the loader, or store the files "
        "upright",
    ),
    Fault(
        "grey",
        lambda folder, made: save(folder / "a.jpg", (480, 640), "L"),
        "warning image-mode: found 1 of 4 files not in RGB (1 L), such as `a.jpg`, "
        "wanted 3 channels; image.convert('RGB') when they are opened",
    ),
    Fault(
        "out of the folder",
        lambda folder, made: made["images"][0].update(file_name="../a.jpg"),
        "warning image-path: found 1 of 4 files with names that lead out of the folder, "
        "where they are not opened, such as `../a.jpg`, wanted names inside `DIR`; write "
        "`file_name` relative to the folder of the images",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    made = small(folder)
    fault.breaks(folder, made)
    (finding,) = findings(tmp_path, made, folder)
    assert str(finding).replace(str(folder), "DIR") == fault.finding
    assert (finding.where, finding.count) == ("image 1", 1)
    if fault.proof:
        assert finding.severity == "error"
        with pytest.raises(fault.proof), Image.open(folder / "a.jpg") as image:
            image.load()


def test_boxes_of_a_file_with_other_sides_are_in_the_wrong_place(tmp_path: Path) -> None:
    """The recorded sides put a box beyond the right edge of the picture that is there."""
    folder = tmp_path / "images"
    made = small(folder)
    save(folder / "a.jpg", (320, 240))
    widest = max(a["bbox"][0] + a["bbox"][2] for a in made["annotations"] if a["image_id"] == 1)
    assert widest > 320
    (finding,) = findings(tmp_path, made, folder)
    assert (finding.code, finding.severity) == ("image-other-sides", "error")


def test_correct_files_have_no_findings(tmp_path: Path) -> None:
    made = small(tmp_path / "images")
    assert findings(tmp_path, made, tmp_path / "images") == []


def test_links_to_files_elsewhere_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    made = small(folder)
    (folder / "a.jpg").rename(tmp_path / "elsewhere.jpg")
    (folder / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert findings(tmp_path, made, folder) == []


def test_an_absolute_name_inside_the_folder_is_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    made = small(folder)
    made["images"][0]["file_name"] = str(folder / "a.jpg")
    assert findings(tmp_path, made, folder) == []


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    made = small(folder)
    (folder / "a.jpg").unlink()
    os.mkfifo(folder / "a.jpg")
    (finding,) = findings(tmp_path, made, folder)
    assert finding.code == "image-unreadable"


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    made = small(folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = findings(tmp_path, made, folder)
    assert [(f.code, f.count) for f in found] == [("image-unreadable", 4)]
    assert "DecompressionBombError" in found[0].message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    made = small(tmp_path / "images")
    with pytest.raises(CkptError, match="no such file"):
        findings(tmp_path, made, tmp_path / "none")


def test_pillow_is_imported_only_for_images(tmp_path: Path) -> None:
    path = write(tmp_path / "coco.json", small(tmp_path / "images"))
    code = (
        "import sys; from ckptool.cli import main; main(sys.argv[1:]); "
        "print({'PIL', 'torch'} & {*sys.modules}, file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, "check", "--arch", "yolov4-tiny", "--coco", path]
    home = Path(ckptool.__file__).parent.parent
    for more, imported in (([], "set()"), (["--images", str(tmp_path / "images")], "{'PIL'}")):
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=True, cwd=home)
        assert done.stderr.strip() == imported


def test_progress_counts_files(tmp_path: Path) -> None:
    made = small(tmp_path / "images")
    path = write(tmp_path / "coco.json", made)
    steps: list[tuple[str, int, int]] = []
    ckptool.check_dataset(
        path,
        arch="yolov4",
        images=tmp_path / "images",
        progress=lambda *step: steps.append(step),
    )
    assert steps[-1] == ("images", 4, 4)
