"""Label sets and class maps: which old class row a new class continues."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ckptool.errors import CkptError, PlanError
from ckptool.labels import SHIPPED, ClassMap, class_map, label_set

HOLES = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
FRESH_HOLES = tuple(str(number - 1) for number in HOLES)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def continued(result: ClassMap) -> dict[str | None, str | None]:
    """New name to old name, for the classes that are kept."""
    assert result.old_names is not None
    assert result.new_names is not None
    pairs = zip(result.new_names, result.rows, strict=True)
    return {new: result.old_names[old] for new, old in pairs if old is not None}


def refused(spec: str, old_count: int, new_count: int) -> tuple[str, str | None]:
    """The message and the hint with which a class map is refused."""
    with pytest.raises(PlanError) as caught:
        class_map(spec, old_count, new_count)
    assert caught.value.code == "plan.class-map"
    return caught.value.message, caught.value.hint


def refused_set(spec: str) -> tuple[str, str | None]:
    with pytest.raises(PlanError) as caught:
        label_set(spec)
    assert caught.value.code == "plan.class-map"
    return caught.value.message, caught.value.hint


# The sets that are shipped.


@pytest.mark.parametrize(
    ("name", "rows", "names"),
    [("coco80", 80, 80), ("coco90", 90, 80), ("voc20", 20, 20), ("openimages", 601, 601)],
)
def test_a_shipped_set_has_its_count_and_no_name_twice(name: str, rows: int, names: int) -> None:
    found = label_set(name)
    assert len(found) == rows
    assert len({n for n in found if n is not None}) == names


def test_coco_is_what_torchvision_detects() -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    background, *names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert background == "__background__"
    assert label_set("coco90") == tuple(None if name == "N/A" else name for name in names)
    assert label_set("coco80") == tuple(name for name in names if name != "N/A")


def test_the_holes_of_coco90_are_at_the_ids_that_coco_does_not_use() -> None:
    found = label_set("coco90")
    assert [position + 1 for position, name in enumerate(found) if name is None] == HOLES
    assert (found[0], found[12], found[89]) == ("person", "stop sign", "toothbrush")


def test_voc20_is_the_order_of_effdet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script, in timm
        from effdet.data.parsers.parser_voc import VocParser

    assert label_set("voc20") == VocParser.DEFAULT_CLASSES


def test_openimages_is_in_the_order_of_the_published_csv() -> None:
    found = label_set("openimages")
    assert found[:3] == ("Tortoise", "Container", "Magpie")
    assert found[68] == "Person"
    assert found[-3:] == ("Armadillo", "Maracas", "Helmet")


def test_no_name_is_in_two_groups_of_synonyms_and_no_group_begins_with_a_loose_name() -> None:
    import ckptool

    path = Path(ckptool.__file__).parent / "label_sets" / "synonyms.txt"
    groups = [line.split(", ") for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name.lstrip("?") for group in groups for name in group]
    assert len(set(names)) == len(names)
    assert not [group for group in groups if group[0].startswith("?") or len(group) < 2]


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, ckptool.labels as l; l.class_map('coco90:voc20', 90, 20);"
        "print({'torch', 'numpy', 'csv', 'json', 'difflib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


# Maps between two label sets.


def test_coco90_to_voc20_keeps_all_twenty_by_meaning() -> None:
    result = class_map("coco90:voc20", 90, 20)
    assert (result.kept, result.fresh) == (20, ())
    assert continued(result) == {
        **{name: name for name in label_set("voc20")},
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert result.rows[:3] == (5 - 1, 2 - 1, 16 - 1)  # ids of COCO


def test_coco80_to_coco90_and_back_is_the_identity() -> None:
    out = class_map("coco80:coco90", 80, 90)
    back = class_map("coco90:coco80", 90, 80)
    assert (out.kept, out.fresh, back.kept) == (80, FRESH_HOLES, 80)
    assert [out.rows[row] for row in back.rows if row is not None] == list(range(80))


def test_voc20_to_coco80_keeps_the_twenty_and_lists_the_sixty() -> None:
    result = class_map("voc20:coco80", 20, 80)
    assert (result.kept, len(result.fresh)) == (20, 60)
    assert result.fresh[:3] == ("truck", "traffic light", "fire hydrant")
    assert sorted(row for row in result.rows if row is not None) == list(range(20))


@pytest.mark.parametrize("coco", ["coco80", "coco90"])
def test_openimages_to_coco_keeps_all_but_the_cup(coco: str) -> None:
    result = class_map(f"openimages:{coco}", 601, len(label_set(coco)))
    assert result.kept == 79
    assert set(result.fresh) - set(FRESH_HOLES) == {"cup"}
    other = {n: o for n, o in continued(result).items() if str(n) != str(o).lower()}
    assert other == {
        "cow": "Cattle",
        "frisbee": "Flying disc",
        "skis": "Ski",
        "sports ball": "Ball",
        "donut": "Doughnut",
        "potted plant": "Houseplant",
        "dining table": "Kitchen & dining room table",
        "tv": "Television",
        "mouse": "Computer mouse",
        "remote": "Remote control",
        "keyboard": "Computer keyboard",
        "cell phone": "Mobile phone",
        "microwave": "Microwave oven",
        "hair drier": "Hair dryer",
    }


def test_the_mouse_of_coco_is_not_the_animal_of_openimages() -> None:
    result = class_map("coco80:openimages", 80, 601)
    assert result.kept == 79
    assert continued(result)["Computer mouse"] == "mouse"
    assert "Mouse" in result.fresh


def test_openimages_to_voc20_keeps_all_twenty() -> None:
    assert class_map("openimages:voc20", 601, 20).kept == 20


@pytest.mark.parametrize("name", SHIPPED)
def test_a_set_to_itself_keeps_every_row_holes_as_well(name: str) -> None:
    count = len(label_set(name))
    result = class_map(f"{name}:{name}", count, count)
    assert (result.rows, result.kept, result.fresh) == (tuple(range(count)), count, ())


def test_names_match_whatever_their_case_spaces_underscores_and_hyphens(tmp_path: Path) -> None:
    mine = written(
        tmp_path, "mine.txt", "Cell_Phone\nPOTTED-PLANT\ntv monitor\nTeddyBear\nunicorn\n"
    )
    result = class_map(f"coco80:{mine}", 80, 5)
    assert continued(result) == {
        "Cell_Phone": "cell phone",
        "POTTED-PLANT": "potted plant",
        "tv monitor": "tv",
        "TeddyBear": "teddy bear",
    }
    assert result.fresh == ("unicorn",)


def test_the_same_name_goes_before_a_synonym(tmp_path: Path) -> None:
    old = written(tmp_path, "old.txt", "sofa\ncouch\n")
    new = written(tmp_path, "new.txt", "couch\nsofa\n")
    assert class_map(f"{old}:{new}", 2, 2).rows == (1, 0)


def test_one_old_class_may_be_continued_by_two_new_ones(tmp_path: Path) -> None:
    new = written(tmp_path, "new.txt", "tv\ntelevision\n")
    assert class_map(f"voc20:{new}", 20, 2).rows == (19, 19)


def test_nothing_is_kept_without_a_map() -> None:
    assert class_map(None, 90, 3) == ClassMap((None,) * 3, None, None, 0, ("0", "1", "2"))


def test_first_keeps_the_first_classes_that_both_have() -> None:
    assert class_map("first", 3, 2) == ClassMap((0, 1), None, None, 2, ())
    assert class_map("first", 2, 4) == ClassMap((0, 1, None, None), None, None, 2, ("2", "3"))


# Label sets from files.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\nhot dog\n", ("cat", "hot dog")),
        ("\ufeffcat\r\n -\r\ndog\r\n\r\n\n", ("cat", None, "dog")),
        ("__background__\ncat\nN/A\ndog", ("cat", None, "dog")),
        ("1: cat\n3: dog\n", ("cat", None, "dog")),
        ("2,dog\n0,cat\n", ("cat", None, "dog")),
        ("id,name\n0,background\n1,cat\n2,-\n3,dog\n", ("cat", None, "dog")),
        ("/m/01yrx,Cat\n/m/0bt9lr,Dog\n", ("Cat", "Dog")),
        ("LabelName,DisplayName\n/m/01yrx,Cat\n/m/0bt9lr,Dog\n", ("Cat", "Dog")),
        ("cat\n2: dog\n", ("cat", "2: dog")),
        ("été\n", ("été",)),
    ],
)
def test_a_text_file_gives_its_names_in_order(
    tmp_path: Path, text: str, names: tuple[str | None, ...]
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode())
    assert label_set(str(path)) == names


def annotations(categories: object) -> str:
    """COCO annotations with decoys before the categories, and the categories last as in COCO."""
    return json.dumps(
        {
            "info": {"description": 'has "categories": [{"id": 1, "name": "no"}] as text'},
            "images": [{"id": 1, "categories": [{"id": 7}]}],
            "annotations": [{"id": 1, "category_id": 3, "categories": [1, 2]}],
            "categories": categories,
        }
    )


def test_question_marks_are_the_background_in_front_and_holes_behind(tmp_path: Path) -> None:
    names = [name or "???" for name in label_set("coco90")]
    assert label_set(written(tmp_path, "x.txt", "\n".join(["???", *names]))) == label_set("coco90")


def test_coco_annotations_put_each_category_at_its_id_less_one(tmp_path: Path) -> None:
    categories = [{"supercategory": "animal", "id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]
    path = written(tmp_path, "instances.json", annotations(categories))
    assert label_set(path) == ("cat", None, "dog")
    # A trainer that closes the gaps has two classes.
    assert class_map(f"{path}:voc20", 2, 20).rows[7:12] == (0, None, None, None, 1)
    assert class_map(f"{path}:voc20", 3, 20).rows[7:12] == (0, None, None, None, 2)


def test_coco_annotations_from_id_0_keep_it_unless_it_is_the_background(tmp_path: Path) -> None:
    cat, background = {"id": 1, "name": "cat"}, {"id": 0, "name": "background"}
    path = written(tmp_path, "a.json", annotations([{"id": 0, "name": "dog"}, cat]))
    assert label_set(path) == ("dog", "cat")
    path = written(tmp_path, "b.json", annotations([background, cat]))
    assert label_set(path) == ("cat",)


def test_the_categories_are_found_on_the_border_of_two_blocks(tmp_path: Path) -> None:
    block = 1 << 22
    text = '"categories": [{"id": 1, "name": "cat"}]}'
    for cut in (3, 13, 15):
        start = '{"x": "'
        filler = start + "x" * (block - cut - len(start) - 2) + '",'
        assert label_set(written(tmp_path, f"{cut}.json", filler + text)) == ("cat",)


def test_annotations_of_all_of_coco_are_as_good_as_coco90(tmp_path: Path) -> None:
    """The homonym `mouse` is known to be the computer's when all names are those of COCO."""
    names = enumerate(label_set("coco90"), 1)
    categories = [{"id": number, "name": name} for number, name in names if name]
    path = written(tmp_path, "instances.json", annotations(categories))
    assert label_set(path) == label_set("coco90")
    assert class_map(f"{path}:openimages", 90, 601).rows == (
        class_map("coco90:openimages", 90, 601).rows
    )


# CSV files.


@pytest.mark.parametrize("header", ["", "old,new\n", "old_index,new_index\n", "coco90,voc20\n"])
def test_a_csv_of_indices_counts_from_0_under_any_header(tmp_path: Path, header: str) -> None:
    path = written(tmp_path, "map.csv", f"{header}16,2\n\n 0 , 0\n")
    assert class_map(path, 90, 3) == ClassMap((0, None, 16), None, None, 2, ("1",))


def test_a_csv_of_names_begins_with_its_two_label_sets(tmp_path: Path) -> None:
    mine = written(tmp_path, "mine.txt", "lorry\nman\ntelly\n")
    path = written(tmp_path, "map.csv", f"coco80,{mine}\nperson,man\ntelevision,Telly\n")
    result = class_map(path, 80, 3)
    assert continued(result) == {"man": "person", "telly": "tv"}
    assert (result.kept, result.fresh) == (2, ("lorry",))


# What is refused, and in which words.


def test_counts_that_do_not_agree_with_the_sets_are_refused(tmp_path: Path) -> None:
    assert refused("coco90:voc20", 80, 20) == (
        "`coco90` has 90 names, the file has 80 classes",
        "--class-map coco80:voc20",
    )
    assert refused("coco90:voc20", 90, 21) == (
        "`voc20` has 20 names, the target has 21 classes",
        "--num-classes 20",
    )
    assert refused("coco90:voc20", 90, 80) == (
        "`voc20` has 20 names, the target has 80 classes",
        "--num-classes 20 or --class-map coco90:coco80",
    )
    mine = written(tmp_path, "{mine}.txt", "cat\n-\ndog\n")
    assert refused(f"{mine}:voc20", 4, 20) == (
        f"`{mine}` has 3 names, the file has 4 classes",
        "write the 4 names to a text file, one a line",
    )


def test_an_unknown_set_is_refused_with_the_closest_ones() -> None:
    assert refused("coco91:voc20", 90, 20) == (
        "`coco91` is neither a label set nor a file",
        "did you mean `coco90` or `coco80`",
    )
    assert refused("coco90:lvis", 90, 20) == (
        "`lvis` is neither a label set nor a file",
        "the label sets are `coco80`, `coco90`, `voc20`, `openimages`",
    )


@pytest.mark.parametrize("spec", ["coco90:", ":voc20", "coco90:voc20:map.csv", ":"])
def test_anything_but_two_sets_around_the_colon_is_refused(spec: str) -> None:
    assert refused(spec, 90, 20) == (
        f"the class map `{spec}`: wanted two label sets as `OLD:NEW`",
        None,
    )


@pytest.mark.parametrize("spec", ["voc20", "", "FIRST"])
def test_a_word_that_is_no_map_is_refused(spec: str) -> None:
    assert refused(spec, 90, 20) == (
        f"the class map `{spec}`: wanted `first`, two label sets as `OLD:NEW`, or a `.csv` file",
        "--class-map coco90:voc20",
    )


def test_a_new_class_that_two_old_ones_match_is_refused(tmp_path: Path) -> None:
    old = written(tmp_path, "old.txt", "cat\ntelevision\ntvmonitor\n")
    new = written(tmp_path, "new.txt", "dog\ntv\n")
    assert refused(f"{old}:{new}", 3, 2) == (
        f"the new class `tv` of `{new}` is ambiguous: it matches 2 classes of `{old}`: "
        "`1: television`, `2: tvmonitor`",
        "choose by index in a CSV of lines `old,new`, such as `1,1`",
    )


def test_a_name_that_means_two_things_is_refused(tmp_path: Path) -> None:
    mine = written(tmp_path, "mine.txt", "cat\nmouse\n")
    hint = "write the name as `computer mouse` where it means that, or map by index in a CSV"
    assert refused(f"{mine}:openimages", 2, 601) == (
        f"`mouse` of `{mine}` and of `openimages` is ambiguous: "
        "one of the two has `computer mouse` beside it",
        hint,
    )
    assert refused(f"openimages:{mine}", 601, 2) == (
        f"`Mouse` of `openimages` and of `{mine}` is ambiguous: "
        "one of the two has `computer mouse` beside it",
        hint,
    )
    told = written(tmp_path, "told.txt", "cat\ncomputer mouse\n")
    assert continued(class_map(f"openimages:{told}", 601, 2)) == {
        "cat": "Cat",
        "computer mouse": "Computer mouse",
    }


TWICE = "names tell the classes apart: rename one of the two"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "found no names", None),
        (b"cat\n\ndog\n", "line 2 is empty", "a hole in the class ids is written `-`"),
        (b"cat\n\xff\n", "at byte 4: found bytes that are not UTF-8 text", None),
        (b"cat\n-\ndog\n-\ncat\n", "line 5: `cat` is the name of line 1 already", TWICE),
        (
            b"TV monitor\ndog\ntv_monitor\n",
            "line 3: `tv_monitor` is `TV monitor`, which is the name of line 1 already",
            TWICE,
        ),
        (b"id,name\n1,cat\n2,cat\n", "line 3: `cat` is the name of line 2 already", TWICE),
        (b"/m/1,cat\n/m/2,cat\n", "line 2: `cat` is the name of line 1 already", TWICE),
        (b"1: cat\n1: dog\n", "`cat` and `dog` both have the id 1", None),
        (
            b"1: cat\n999999999: dog\n",
            "found the class id 999,999,999, wanted at most 100,000",
            None,
        ),
        (
            b"x" * ((1 << 24) + 1),
            "found 16,777,217 bytes, wanted a list of names of 16,777,216 at most",
            None,
        ),
    ],
)
def test_a_text_file_that_is_no_label_set_is_refused(
    tmp_path: Path, content: bytes, message: str, hint: str | None
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    assert refused_set(str(path)) == (f"`{path}`: {message}", hint)


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 7, "name": "cat"}]
    path = written(tmp_path, "x.json", json.dumps({"categories": categories}))
    message = "the category 7: `cat` is the name of the category 3 already"
    assert refused_set(path) == (f"`{path}`: {message}", TWICE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '["cat"]',
        '{"categories": []}',
        '{"categories": [{"id": "1", "name": "cat"}]}',
        '{"categories": [{"id": true, "name": "cat"}]}',
        '{"categories": [{"id": -1, "name": "cat"}]}',
        '{"categories": [{"id": 1}]}',
        '{"categories": [{"id": 1, "name": "cat"}, 3]}',
        '{"categories": [{"id": 1, "name": "cat"',
        '{"categories": [{' + '"a":[' * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_json_without_categories_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, "x.json", text)
    wanted = "found no `categories` with `id` and `name`, wanted COCO annotations"
    assert refused_set(path) == (f"`{path}`: {wanted}", None)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="found a directory, wanted a regular file"):
        label_set(str(tmp_path))


NAMED = "a CSV of names starts with a line that gives their label sets, such as `coco90,voc20`"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "found no line `old,new`", None),
        ("old,new\n", "found no line `old,new`", None),
        ("1,2,3\n", "line 1: found `1`, `2`, `3`, wanted `old,new`", None),
        ("0,0\n\n1,\n", "line 3: found `1`, ``, wanted `old,new`", None),
        ("9" * 140_000, "not a CSV file: field larger than field limit (131072)", None),
        ("0,0\n90,1\n", "line 2: found the old index 90, wanted one of 0 … 89", None),
        ("0,0\n1,20\n", "line 2: found the new index 20, wanted one of 0 … 19", None),
        ("0,0\n1,0\n", "line 2: the new class `0` is ambiguous: it has an old one", None),
        ("0,0\ncat,1\n", "found names, and no label sets in line 1", NAMED),
        ("old,new\ncat,1\n", "line 1: `old` is neither a label set nor a file", NAMED),
        (
            "coco80,voc20\ncat,cat\n",
            "line 1: `coco80` has 80 names, the file has 90 classes",
            "coco90,voc20",
        ),
        (
            "coco90,voc20\ncat,cat\nperson,persom\n",
            "line 3: `persom` is no new class",
            "did you mean `person`",
        ),
        ("coco90,voc20\nunicorn,cat\n", "line 2: `unicorn` is no old class", None),
        (
            "coco90,voc20\ncat,cat\ndog,Cat\n",
            "line 3: the new class `Cat` is ambiguous: it has an old one",
            None,
        ),
    ],
)
def test_a_csv_that_is_no_class_map_is_refused(
    tmp_path: Path, text: str, message: str, hint: str | None
) -> None:
    path = written(tmp_path, "map.csv", text)
    assert refused(path, 90, 20) == (f"`{path}`: {message}", hint)


def test_a_csv_name_that_two_classes_match_is_refused(tmp_path: Path) -> None:
    old = written(tmp_path, "old.txt", "television\ntvmonitor\n")
    path = written(tmp_path, "map.csv", f"{old},voc20\ntv,tvmonitor\n")
    assert refused(path, 2, 20) == (
        f"`{path}`: line 2: the old class `tv` is ambiguous: it matches "
        "`0: television`, `1: tvmonitor`",
        None,
    )


def test_a_csv_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="no such file"):
        class_map(str(tmp_path / "none.csv"), 90, 20)
    (tmp_path / "bytes.csv").write_bytes(b"\x80\x02")
    assert refused(str(tmp_path / "bytes.csv"), 90, 20) == (
        f"`{tmp_path}/bytes.csv`: at byte 0: found bytes that are not UTF-8 text",
        None,
    )


def test_what_a_file_holds_is_escaped_before_it_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path, "map.csv", "coco90,voc20\n\x1b[31mcat,cat\n")
    assert refused(path, 90, 20)[0] == f"`{path}`: line 2: `\\x1b[31mcat` is no old class"
