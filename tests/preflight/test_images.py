"""Images against a model: what is found, and that the model raises or learns something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors_made import (
    FASTER,
    RETINA,
    SIZE,
    SSD,
    bench,
    copied,
    effdet_batch,
    losses,
    normalised,
    pictures,
    torchvision_batch,
    torchvision_model,
    yolo,
    yolo_batch,
    yolo_loss,
)
from proofs import Fault, assert_found, assert_proved
from torch import nn

from ckptool import CkptError, check


def put(change: Any) -> Any:
    """A change of the images; the targets stay."""
    return lambda images, targets: (change(images), targets)


def each(change: Any) -> Any:
    return put(lambda images: [change(image) for image in images])


def first(change: Any) -> Any:
    return put(lambda images: [change(images[0]), *images[1:]])


def nan_in(image: torch.Tensor) -> torch.Tensor:
    made = image.clone()
    made[..., 3, 4] = float("nan")
    return made


EFFDET = [
    Fault(
        "a 1-D tensor",
        put(lambda x: torch.rand(416)),
        "error image-rank: found images of shape 416, 1 dimension, wanted 4 dimensions, "
        "batch × channels × height × width; what the loader yields is no batch of "
        "images: torch.stack([image, …])",
        "images",
        1,
        "not enough values to unpack",
    ),
    Fault(
        "one image without a batch",
        put(lambda x: x[0]),
        "error image-rank: found images of shape 3×128×128, 3 dimensions, wanted 4 "
        "dimensions, batch × channels × height × width; a batch of one image is "
        "`images[None]`",
        "images",
        1,
        "expected 4D input",
    ),
    Fault(
        "a list of images",
        put(list),
        "error image-type: found a list of 2 items, wanted one tensor; torch.stack(images)",
        "images",
        1,
        "'list'",
    ),
    Fault(
        "a numpy array",
        put(lambda x: x.numpy()),
        "error image-type: found `numpy.ndarray`, wanted one tensor; torch.as_tensor, "
        "and channels first",
        "images",
        1,
        "is not callable",
    ),
    Fault(
        "NHWC",
        put(lambda x: x.permute(0, 2, 3, 1)),
        "error image-nhwc: found images of shape 128×128×3, height × width × channels, "
        "wanted the 3 channels first; images.permute(0, 3, 1, 2), or image.permute(2, 0, "
        "1) for one",
        "images",
        2,
        "to have 3 channels, but got 128 channels",
    ),
    Fault(
        "one channel",
        put(lambda x: x[:, :1]),
        "error image-channels: found images of 1 channel, wanted 3, which the first "
        "convolution reads; image.convert('RGB') when it is opened",
        "images",
        2,
        "to have 3 channels, but got 1 channels",
    ),
    Fault(
        "an alpha channel",
        put(lambda x: torch.cat((x, x[:, :1]), 1)),
        "error image-channels: found images of 4 channels, wanted 3, which the first "
        "convolution reads; image.convert('RGB') when it is opened",
        "images",
        2,
        "to have 3 channels, but got 4 channels",
    ),
    Fault(
        "twice the configured size",
        put(lambda x: torch.cat((x, x), 3)),
        "error image-size: found images of 128×256 (height × width), wanted 128×128, for "
        "which the pyramid and the anchors are built; resize and pad to 128×128, or "
        "create_model(…, image_size=(128, 256))",
        "images",
        1,
        "expects each tensor to be equal size",
    ),
    Fault(
        "a value that is NaN",
        put(nan_in),
        "error image-not-finite: found values that are NaN or infinite in 2 images of 2, "
        "wanted finite ones; look for a division by 0 in the normalisation",
        "images[0]",
        2,
        "not finite",
    ),
    Fault(
        "0 … 255",
        put(lambda x: pictures(2, SIZE, SIZE) * 255),
        "error image-range: found values from 2.58 to 255, wanted about -2.1 to 2.6 "
        "(mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225): these look like 0 … 255; "
        "images / 255, then the mean and std",
        "images",
        1,
        "another loss",
    ),
    Fault(
        "int32",
        put(lambda x: x.int()),
        "error image-dtype: found int32 images, wanted float32, the dtype of the "
        "weights; images.to(torch.float32)",
        "images",
        2,
        "expected scalar type Int but found Float",
    ),
    Fault(
        "uint8",
        put(lambda x: (pictures(2, SIZE, SIZE) * 255).byte()),
        "error image-dtype: found uint8 images, wanted float32, the dtype of the "
        "weights; images.float() / 255",
        "images",
        2,
        "expected scalar type Byte but found Float",
    ),
    Fault(
        "float64",
        put(lambda x: x.double()),
        "error image-dtype: found float64 images and float32 weights, wanted one dtype: "
        "no autocast is in force; images.to(torch.float32)",
        "images",
        2,
        "expected scalar type Double but found Float",
    ),
    Fault(
        "another device",
        put(lambda x: x.to("meta")),
        "error image-device: found images on `meta`, wanted `cpu`, where the model is; "
        "images.to('cpu')",
        "images",
        2,
        "Tensor on device cpu is not on the expected device meta",
    ),
]
YOLO = [
    Fault(
        "no multiple of 32",
        put(lambda x: torch.rand(2, 3, 72, 72)),
        "error image-size: found images of 72×72 (height × width), wanted multiples of "
        "32: the maps of its branches do not meet; resize or pad to 96×96",
        "images",
        1,
        "Sizes of tensors must match",
    ),
    Fault(
        "NHWC",
        put(lambda x: x.permute(0, 2, 3, 1)),
        "error image-nhwc: found images of shape 64×64×3, height × width × channels, "
        "wanted the 3 channels first; images.permute(0, 3, 1, 2), or image.permute(2, 0, "
        "1) for one",
        "images",
        2,
        "to have 3 channels, but got 64 channels",
    ),
    Fault(
        "0 … 255",
        put(lambda x: x * 255),
        "error image-range: found values from 4.17 to 255, wanted 0 to 1: these look "
        "like 0 … 255; images / 255",
        "images",
        1,
        "another loss",
    ),
]
TORCHVISION = [
    Fault(
        "one tensor of two dimensions",
        put(lambda x: torch.rand(96, 96)),
        "error image-rank: found images of shape 96×96, 2 dimensions, wanted 4 "
        "dimensions, batch × channels × height × width; what the loader yields is no "
        "batch of images: torch.stack([image, …])",
        "images",
        1,
        "to be H and W",
    ),
    Fault(
        "a list of batches",
        each(lambda x: x[None]),
        "error image-rank: found an image of shape 1×3×96×80, 4 dimensions, wanted 3, "
        "channels × height × width; one entry of the list for each image",
        "images[0]",
        2,
        "expected to be a list of 3d tensors",
    ),
    Fault(
        "a list of arrays",
        each(lambda x: x.numpy()),
        "error image-type: found a list of 2 items, among them `numpy.ndarray`, wanted a "
        "list of tensors, one for each image; torch.as_tensor, and channels first",
        "images",
        1,
        "has no attribute 'dim'",
    ),
    Fault(
        "NHWC",
        each(lambda x: x.permute(1, 2, 0)),
        "error image-nhwc: found images of shape 96×80×3, height × width × channels, "
        "wanted the 3 channels first; images.permute(0, 3, 1, 2), or image.permute(2, 0, "
        "1) for one",
        "images",
        2,
        "must match the size of tensor b (3)",
    ),
    Fault(
        "an alpha channel in one image",
        first(lambda x: torch.cat((x, x[:1]))),
        "error image-channels: found images of 4 channels, wanted 3, which the first "
        "convolution reads; image.convert('RGB') when it is opened",
        "images[0]",
        1,
        "must match the size of tensor b (3)",
    ),
    Fault(
        "uint8",
        each(lambda x: (x * 255).byte()),
        "error image-dtype: found uint8 images, wanted float32, the dtype of the "
        "weights; images.float() / 255",
        "images",
        2,
        "floating type",
    ),
    Fault(
        "0 … 255",
        each(lambda x: x * 255),
        "error image-range: found values from 3.26 to 255, wanted 0 to 1: these look "
        "like 0 … 255; images / 255",
        "images",
        1,
        "another loss",
    ),
    Fault(
        "a value that is NaN",
        first(nan_in),
        "error image-not-finite: found values that are NaN or infinite in 1 image of 2, "
        "wanted finite ones; look for a division by 0 in the normalisation",
        "images[0]",
        1,
        "not finite",
    ),
]


@pytest.mark.parametrize("fault", EFFDET, ids=lambda fault: fault.name)
def test_a_fault_is_found_in_images_for_effdet(fault: Fault) -> None:
    assert_found(check(bench(), *fault.breaks(*effdet_batch())), fault)
    assert_proved(fault, losses, bench(), effdet_batch())


@pytest.mark.parametrize("fault", YOLO, ids=lambda fault: fault.name)
def test_a_fault_is_found_in_images_for_yolo(fault: Fault) -> None:
    assert_found(check(yolo(), *fault.breaks(*yolo_batch())), fault)
    assert_proved(fault, yolo_loss, yolo(), yolo_batch())


@pytest.mark.parametrize("fault", TORCHVISION, ids=lambda fault: fault.name)
def test_a_fault_is_found_in_images_for_torchvision(fault: Fault) -> None:
    assert_found(check(torchvision_model(FASTER), *fault.breaks(*torchvision_batch())), fault)
    assert_proved(fault, losses, torchvision_model(FASTER), torchvision_batch())


def test_a_200x300_image_does_not_fit_tf_efficientdet_d0() -> None:
    """The everyday question: the config says 512×512, and nothing else runs."""
    model = bench(size=512).model
    report = check(model, torch.rand(1, 3, 200, 300) * 4 - 2)
    (finding,) = report.findings
    assert str(finding) == (
        "error image-size: found images of 200×300 (height × width), wanted 512×512, for "
        "which the pyramid and the anchors are built; resize and pad to 512×512, or "
        "create_model(…, image_size=(256, 256))"
    )
    with torch.no_grad(), pytest.raises(RuntimeError, match="expects each tensor to be equal size"):
        model(torch.rand(1, 3, 200, 300))
    assert report.arch == "tf_efficientdet_d0"


def test_a_size_with_the_same_maps_runs_and_is_a_warning() -> None:
    """Halved and rounded up, 127 gives the maps of 128; the anchors lie a little aside."""
    images = normalised(pictures(2, 127, 128))
    (finding,) = check(bench(), images).findings
    assert str(finding) == (
        "warning image-size: found images of 127×128 (height × width), wanted 128×128, "
        "for which the pyramid and the anchors are built; resize and pad to 128×128, or "
        "create_model(…, image_size=(128, 128))"
    )
    with torch.no_grad():
        bench().model(images)


@pytest.mark.parametrize("side", [34, 48, 63, 72, 80, 95, 96])
def test_the_severity_of_a_size_is_what_yolo_makes_of_it(side: int) -> None:
    """Some maps meet though their image is no multiple of 32: that is a warning."""
    images = pictures(2, side, 96)
    found = [(finding.code, finding.severity) for finding in check(yolo(), images).findings]
    with torch.no_grad():
        try:
            yolo()(images)
        except RuntimeError:
            assert found == [("image-size", "error")]
        else:
            assert found == ([] if side % 32 == 0 else [("image-size", "warning")])


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (416, 416)])
def test_yolo_takes_every_multiple_of_32(size: tuple[int, int]) -> None:
    images = pictures(2, *size)
    assert check(yolo(), images).findings == ()
    with torch.no_grad():
        yolo()(images)


def test_a_batch_of_one_cannot_be_normalised_where_a_map_has_one_cell() -> None:
    images, targets = effdet_batch(count=1)
    model = bench()
    report = check(model, images, targets)
    (finding,) = report.findings
    assert str(finding) == (
        "error image-batch: found a batch of 1 in training mode, wanted 2 at least: the "
        "smallest map of an image of 128×128 is 1×1, and a batch norm has no variance of "
        "one value; a larger batch, drop_last=True in the loader, or model.eval()"
    )
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        losses(model, images, targets)


def test_a_1d_tensor_does_not_fit_a_plain_convolution() -> None:
    model = nn.Conv2d(3, 8, 3)
    (finding,) = check(model, torch.rand(416)).findings
    assert str(finding) == (
        "error image-rank: found images of shape 416, 1 dimension, wanted 4 dimensions, "
        "batch × channels × height × width; what the loader yields is no batch of "
        "images: torch.stack([image, …])"
    )
    with pytest.raises(RuntimeError, match="Expected 3D"):
        model(torch.rand(416))


def test_a_1d_tensor_does_not_fit_a_convolution_along_one_axis() -> None:
    model = nn.Conv1d(416, 8, 3)
    (finding,) = check(model, torch.rand(416)).findings
    assert str(finding) == (
        "error image-rank: found inputs of shape 416, 1 dimension, wanted 3: batch × channels × "
        "1 more axis"
    )
    with pytest.raises(RuntimeError, match="Expected 2D"):
        model(torch.rand(416))
    for fits in (torch.rand(416, 9), torch.rand(2, 416, 9)):
        assert check(model, fits).findings == ()
        model(fits)


class Block(nn.Module):
    """A block with numbers of its own under the names that a convolution has."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.kernel_size = [3], 3
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(images)
        return made


def test_the_numbers_of_a_block_are_not_those_of_a_convolution() -> None:
    assert check(Block(), pictures(2, 8, 8)).findings == ()
    (finding,) = check(Block(), pictures(2, 8, 8)[:, :1]).findings
    assert finding.code == "image-channels"


def test_a_compiled_model_is_checked_too() -> None:
    assert check(torch.compile(Block()), pictures(2, 8, 8)).findings == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "kind", "fix"),
    [
        (lambda x: x.to_sparse(), "sparse", ".to_dense()"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised", ".dequantize()"),
        (
            lambda x: torch.nested.nested_tensor(list(x)),
            "nested",
            "torch.stack, once all have one shape",
        ),
    ],
    ids=["sparse", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")  # prototypes of torch
def test_a_tensor_of_a_special_layout_is_no_batch(change: Any, kind: str, fix: str) -> None:
    model, images = nn.Conv2d(3, 8, 3), change(pictures(2, 8, 8))
    (finding,) = check(model, images).findings
    assert str(finding) == f"error image-type: found a {kind} tensor, wanted a dense one; {fix}"
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(images)
    (finding,) = check(bench(), pictures(2, SIZE, SIZE), {"bbox": images, "cls": images}).findings[
        :1
    ]
    assert (finding.code, finding.severity) == ("target-type", "error")


def test_a_linear_network_may_read_sparse_inputs() -> None:
    model, inputs = nn.Linear(4, 2), torch.eye(4).to_sparse()
    assert check(model, inputs).findings == ()
    model(inputs)


def test_values_of_a_byte_are_not_looked_at() -> None:
    images = pictures(2, SIZE, SIZE).to(torch.float8_e4m3fn)
    assert [finding.code for finding in check(bench(), images).findings] == ["image-dtype"]


def test_a_state_dict_is_no_model() -> None:
    with pytest.raises(CkptError, match="found `dict`, wanted a live"):
        check({}, pictures(2, 8, 8))  # type: ignore[arg-type]


def test_images_are_not_judged_where_a_model_has_no_convolution() -> None:
    model = nn.Linear(416, 3)
    assert check(model, torch.rand(416)).findings == ()
    model(torch.rand(416))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (
            pictures(2, SIZE, SIZE),
            "warning image-normalised: found values from 0.0101 to 1, wanted about -2.1 to 2.6 "
            "(mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225); normalise with mean 0.485, "
            "0.456, 0.406, std 0.229, 0.224, 0.225",
        ),
        (
            normalised(normalised(pictures(2, SIZE, SIZE))),
            "warning image-normalised: found values from -10.9 to 9.93, wanted about -2.1 to 2.6 "
            "(mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225): they are normalised twice; "
            "normalise once",
        ),
        (
            torch.zeros(2, 3, SIZE, SIZE),
            "warning image-constant: found 0 in every place, wanted pictures; look at what the "
            "loader reads",
        ),
    ],
    ids=["not normalised", "normalised twice", "constant"],
)
def test_values_in_another_range_are_a_warning(images: torch.Tensor, text: str) -> None:
    (finding,) = check(bench(), images).findings
    assert str(finding) == text


@pytest.mark.parametrize("name", [FASTER, RETINA, SSD])
def test_what_the_model_normalises_itself_must_not_be(name: str) -> None:
    images, targets = torchvision_batch()
    (finding,) = check(
        torchvision_model(name), [normalised(image) for image in images], targets
    ).findings
    assert str(finding) == (
        "warning image-normalised: found values from -2 to 2.64, wanted 0 to 1: the model "
        "normalises by itself, this would be the second time; leave the normalisation out"
    )


def test_a_grey_image_is_repeated_by_torchvision() -> None:
    images, targets = first(lambda image: image[:1])(*torchvision_batch())
    (finding,) = check(torchvision_model(), images, targets).findings
    assert str(finding) == (
        "warning image-gray: found 1 channel, wanted 3: the model's own normalisation "
        "repeats it; image.expand(3, -1, -1) says that it is meant"
    )
    assert losses(torchvision_model(), images, targets)


def test_an_empty_batch_is_a_warning() -> None:
    (finding,) = check(yolo(), torch.zeros(0, 3, 64, 64)).findings
    assert str(finding) == ("warning image-batch: found no image, wanted at least 1")


def test_nothing_is_changed_and_nothing_is_run() -> None:
    images, targets = effdet_batch()
    model = copied(bench())
    calls: list[Any] = []
    model.register_forward_hook(lambda *given: calls.append(given))
    model.model.register_forward_hook(lambda *given: calls.append(given))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copy = images.clone()
    check(model, images, targets)
    assert not calls
    assert model.training
    assert torch.equal(images, copy)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
