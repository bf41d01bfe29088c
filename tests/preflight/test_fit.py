"""`check` with a checkpoint: what does not load, and what loads and does not run well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cocos_made import document, write

import ckptool
from ckptool.architectures import build
from ckptool.preflight import Report

TINY = "yolov4-tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 3 classes as it should be, and others; and a data set for them."""
    folder = tmp_path_factory.mktemp("files")
    state: dict[str, Any] = build(TINY, 3).state_dict()
    torch.save(state, folder / "right.pth")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()},
               folder / "half.pth")  # fmt: skip
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "ddp.pth")
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"a": state, "b": other}, folder / "two.pth")
    made = document(30, 300)
    made["categories"] = [{"id": id_, "name": name} for id_, name in enumerate("abc")]
    for at, annotation in enumerate(made["annotations"]):
        annotation["category_id"] = at % 3
    write(folder / "coco.json", made)
    return folder


def checked(files: Path, name: str, num_classes: int | None = None, **options: Any) -> Report:
    return ckptool.check_dataset(
        files / "coco.json",
        arch=TINY,
        num_classes=num_classes,
        checkpoint=files / name,
        **options,
    )


def told(report: Report, files: Path) -> list[str]:
    return [str(finding).replace(f"{files}/", "") for finding in report.findings]


def test_the_class_count_is_that_of_the_file(files: Path) -> None:
    report = checked(files, "right.pth")
    assert (report.num_classes, report.findings) == (3, ())


def test_an_open_checkpoint_is_taken_too(files: Path) -> None:
    opened = ckptool.read(files / "right.pth")
    report = ckptool.check_dataset(files / "coco.json", arch=TINY, checkpoint=opened)
    assert (report.num_classes, report.findings) == (3, ())


def test_a_head_for_another_class_count_does_not_load(files: Path) -> None:
    report = checked(files, "right.pth", 4)
    finding, note = report.findings
    assert told(report, files)[0] == (
        "error file-classes: `right.pth` has a head for 3 classes, wanted 4: it does not "
        "load; ckptool convert right.pth --arch yolov4-tiny --num-classes 4"
    )
    assert note.code == "rows-unused"
    assert (finding.severity, report.num_classes) == ("error", 4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        build(TINY, 4).load_state_dict(torch.load(files / "right.pth"))


def test_keys_with_a_prefix_do_not_load(files: Path) -> None:
    report = checked(files, "ddp.pth")
    (found,) = told(report, files)
    assert found == (
        "error file-fit: `ddp.pth` does not load strictly into `yolov4-tiny`: 99 "
        "missing, 118 unexpected, wanted none; all 118 keys start with `module.`, which "
        "DistributedDataParallel or DataParallel adds; ckptool convert ddp.pth --arch "
        "yolov4-tiny"
    )
    assert report.num_classes == 3
    with pytest.raises(RuntimeError, match="Missing key"):
        build(TINY, 3).load_state_dict(torch.load(files / "ddp.pth"))


def test_all_weights_in_half_are_a_warning(files: Path) -> None:
    (found,) = told(checked(files, "half.pth"), files)
    assert found == (
        "warning file-half: all weights of `half.pth` are float16, wanted float32: "
        "images of float32 raise, a CPU is many times slower, and steps of an optimiser "
        "are rounded away; ckptool convert half.pth --dtype fp32"
    )
    model = build(TINY, 3).half().eval()
    model.load_state_dict(torch.load(files / "half.pth"))
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected scalar type"):
        model(torch.rand(1, 3, 64, 64))


def test_the_command_of_a_fix_can_be_pasted(files: Path) -> None:
    named = files / "my run $1.pth"
    named.write_bytes((files / "half.pth").read_bytes())
    (found,) = told(checked(files, named.name), files)
    assert found.endswith("my run $1.pth' --dtype fp32")


def test_weights_says_which_set_is_meant(files: Path) -> None:
    assert checked(files, "two.pth", weights="b").findings == ()
    with pytest.raises(ckptool.WeightsError):
        checked(files, "two.pth")


def test_an_architecture_that_cannot_have_so_many_classes(files: Path) -> None:
    with pytest.raises(ckptool.ArchitectureError):
        ckptool.check_dataset(files / "coco.json", arch=TINY, num_classes=0)
