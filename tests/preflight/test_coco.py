"""Reading COCO annotations as a stream: what is kept, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from cocos_made import document, write

from ckptool.errors import CkptError, FormatError
from ckptool.preflight.coco import Coco, read_coco


def read(tmp_path: Path, text: str | bytes) -> Coco:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_coco(str(path))


def refused(tmp_path: Path, text: str | bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, text)
    return caught.value


def with_lists(**lists: Any) -> str:
    return json.dumps({"images": [], "annotations": [], "categories": [], **lists})


def test_columns_are_what_the_json_module_reads(tmp_path: Path) -> None:
    made = document(7, 60)
    found = read_coco(write(tmp_path / "a.json", made))
    numbers = {at: id_ for id_, at in found.image_ids.items()}
    assert [numbers[at] for at in found.images] == [image["id"] for image in made["images"]]
    assert found.files == [image["file_name"] for image in made["images"]]
    assert [numbers[at] for at in found.of_image] == [a["image_id"] for a in made["annotations"]]
    assert list(found.boxes) == [value for a in made["annotations"] for value in a["bbox"]]
    assert found.names == [category["name"] for category in made["categories"]]
    assert list(found.sides[:2]) == [made["images"][0]["width"], made["images"][0]["height"]]


def test_pycocotools_agrees_on_what_belongs_to_an_image(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    path = write(tmp_path / "a.json", document(9, 70))
    found, judge = read_coco(path), COCO(path)
    for id_, number in found.image_ids.items():
        ours = {found.annotation_id(at) for at, of in enumerate(found.of_image) if of == number}
        assert ours == set(judge.getAnnIds(imgIds=[id_]))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1000])
def test_the_size_of_a_block_changes_nothing(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block may end in a number, a letter of two bytes, an escape, or a blank."""
    made: Any = document(3, 5)
    made["categories"][0]["name"] = 'Bär "\\" \u2028 🐻'
    text = json.dumps(made, indent=1, ensure_ascii=False).replace("\n", "\r\n \t")
    whole = read(tmp_path, text)
    monkeypatch.setattr("ckptool.preflight.json_stream._BLOCK", block)
    assert read(tmp_path, text) == whole
    assert whole.names[0] == 'Bär "\\" \u2028 🐻'


def test_lists_may_stand_in_any_order_and_others_are_let_go(tmp_path: Path) -> None:
    made = document(3, 5)
    turned = {"info": {"a": [1, {}]}, "extra": [[], None, 3], "licenses": [], **made}
    first = read(tmp_path, json.dumps(turned))
    second = read(tmp_path, json.dumps(dict(reversed(turned.items()))))
    assert first.names == second.names
    assert first.boxes == second.boxes


def test_ids_may_be_texts_and_whole_floats(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        with_lists(
            images=[{"id": "a", "file_name": "a.jpg", "width": 4, "height": 3}, {"id": 2.0}],
            annotations=[
                {"id": "x", "image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1]},
                {"id": 1 << 70, "image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]},
            ],
        ),
    )
    assert found.image_ids == {"a": 0, 2: 1}
    assert [found.annotation_id(at) for at in range(2)] == ["x", str(1 << 70)]
    assert found.files == ["a.jpg", None]
    assert math.isnan(found.sides[2])


def test_entries_that_are_none_are_counted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        with_lists(
            images=[3, {"id": None}, {"id": True}],
            annotations=[[], {"id": 1, "image_id": 1}, {"image_id": 1, "category_id": 1}],
            categories=[{"name": "a"}],
        ),
    )
    assert found.broken == {
        ("images", "id"): [0, 1, 2],
        ("annotations", "image_id"): [0],
        ("annotations", "category_id"): [1],
        ("annotations", "id"): [2],
        ("categories", "id"): [0],
    }


def test_a_name_may_be_null(tmp_path: Path) -> None:
    found = read(tmp_path, with_lists(categories=[{"id": 1, "name": None}, {"id": 2}]))
    assert found.names == ["", ""]


@pytest.mark.parametrize(
    "box",
    [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, None], {"x": 1}, [1, 2, 3, True]],
    ids=["none", "three", "a text", "null", "a dict", "a bool"],
)
def test_a_box_is_four_numbers(box: Any, tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box}
    assert read(tmp_path, with_lists(annotations=[entry])).boxless == [0]


def test_numbers_that_no_float_holds(tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10**400, 1e999, 1, 1]}
    x, y, *_ = read(tmp_path, with_lists(annotations=[entry])).boxes
    assert math.isnan(x)
    assert y == math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at byte 0: the text ends: wanted a JSON object"),
        ("[]", "at byte 0: found `[]`: wanted a JSON object"),
        ("<html>", "at byte 0: found `<html>`: wanted a JSON object"),
        ('{"images": [', "at byte 12: the text ends: expecting value"),
        ('{"images": [1 2]}', "at byte 14: found `2]}`: wanted `,` or `]`"),
        ('{"images": [1,]}', "at byte 14: found `]}`: expecting value"),
        ('{"images": []', "at byte 13: the text ends: wanted `,` or `}`"),
        ('{"images" []}', "at byte 10: found `[]}`: wanted `:`"),
        ("{1: 2}", "at byte 1: found `1: 2}`: wanted the name of a member"),
        ('{"é": [1 2]}', "at byte 10: found `2]}`: wanted `,` or `]`"),
        ('{"a": 1} x', "at byte 9: found `x`: found more text behind the JSON object"),
        ("{}", "found no list `images` and `annotations` and `categories`, wanted COCO annotations"
         " with `images`, `annotations`, `categories`"),
        (b'{"a": "\xff"}', "before byte 10: found bytes that are not UTF-8 text: invalid start "
         "byte"),
        (gzip.compress(b"{}"), "this is a gzip file, wanted JSON"),
        ('{"images": [], "images": []}', "found a second list `images`, wanted one: readers of "
         "JSON keep the last and lose the others"),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_annotations_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).message == f"`{tmp_path / 'a.json'}`: {message}"


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, '{"images": [' + "[" * 200_000, '{"images": [' + "9" * 9999],
    ids=["lists", "objects", "inside a list", "a number of 9,999 digits"],
)
def test_hostile_text_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    message = refused(tmp_path, text).message
    assert message.isprintable()
    assert len(message) < 600


def test_an_entry_without_end_is_not_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptool.preflight.json_stream._LONGEST", 1000)
    monkeypatch.setattr("ckptool.preflight.json_stream._BLOCK", 100)
    assert "an entry is too long" in refused(tmp_path, '{"images": ["' + "a" * 9000).message


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf" + with_lists().encode()).names == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="no such file"):
        read_coco(str(tmp_path / "none.json"))


def test_progress_goes_up_to_the_end(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = write(tmp_path / "a.json", document(20, 9000))
    read_coco(path, lambda *step: steps.append(step))
    size = Path(path).stat().st_size
    assert len(steps) > 1
    assert steps[-1] == ("read", size, size)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
