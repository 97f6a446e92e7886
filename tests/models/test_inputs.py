"""What a network is given: format, size, arguments and units of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segproof import SegmentationModel, Target, explain
from segproof.errors import DataError, ModelError
from segproof.models.inputs import display_range, fixed_size

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Mixes(nn.Module):
    """A convolution of one picture, to be called in whatever way `call` is written."""

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.mix = nn.Conv2d(bands, 1, 3, padding=1)


class Keyword(Mixes):
    def forward(self, *, pixel_values: Tensor) -> Tensor:
        out: Tensor = self.mix(pixel_values)
        return out


class Dictionary(Mixes):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.mix(batch["image"])
        return out


class TwoInputs(Mixes):
    def forward(self, rgb: Tensor, nir: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat([rgb, nir], dim=1))
        return out


class WithTime(Mixes):
    def forward(self, images: Tensor, height: Tensor, *, month: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat([images, height], dim=1)) + month.view(-1, 1, 1, 1)
        return out


def model_of(net: nn.Module, **how: Any) -> SegmentationModel:
    return SegmentationModel(net, classes=["roof"], **how).eval()


def noise(bands: int = 3, n: int = 2) -> Tensor:
    return torch.randn(n, bands, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (Keyword(), "pixel_values"),
        (Dictionary(), "dict:image"),
        (Keyword(), lambda x: {"pixel_values": x}),
        (Dictionary(), lambda x: ({"image": x},)),
        (Dictionary(), lambda x: ({"image": x, "id": 7},)),
    ],
)
def test_a_network_is_called_as_it_takes_pictures(net: Mixes, inputs: Any) -> None:
    images = noise()
    assert torch.equal(model_of(net, inputs=inputs)(images)[:, 1:], net.mix(images))


@pytest.mark.parametrize("inputs", [[[1, 2, 3], [4]], ((1, 2, 3), (4,)), "1,2,3;4"])
def test_bands_are_split_by_a_rule(inputs: Any) -> None:
    net, images = TwoInputs(4), noise(4)
    assert torch.equal(model_of(net, inputs=inputs)(images)[:, 1:], net.mix(images))
    swapped = model_of(net, inputs=[[4, 2, 1], [3]])(images)[:, 1:]
    assert torch.equal(swapped, net.mix(images[:, [3, 1, 0, 2]]))


def test_further_inputs_are_held_fixed() -> None:
    """One picture's height and a number, repeated for every picture of a batch."""
    net, images = WithTime(4), noise()
    height, month = torch.rand(1, 1, 8, 12), torch.tensor([5.0])

    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, height.expand(len(x), -1, -1, -1)

    right = net.mix(torch.cat(pair(images), dim=1)) + 5
    by_place = model_of(net, inputs=pair, extra={"month": month})

    def named(x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("images", "height"), pair(x), strict=True))

    by_name = model_of(net, inputs=named, extra={"month": month})
    assert torch.equal(by_place(images)[:, 1:], right)
    assert torch.equal(by_name(images)[:, 1:], right)


def test_extra_arguments_by_place() -> None:
    net, images = TwoInputs(4), noise()
    nir = torch.rand(1, 1, 8, 12)
    right = net.mix(torch.cat([images, nir.expand(2, -1, -1, -1)], dim=1))
    assert torch.equal(model_of(net, extra=[nir])(images)[:, 1:], right)


@pytest.mark.parametrize(
    ("net", "word"),
    [
        (Keyword(), "--inputs pixel_values"),
        (Dictionary(), "--inputs dict:image"),
        (TwoInputs(4), "extra="),
    ],
)
def test_a_network_that_takes_pictures_otherwise(net: Mixes, word: str) -> None:
    with pytest.raises(ModelError) as got:
        model_of(net)(noise())
    assert word in got.value.fix
    assert "float32 [2, 3, 8, 12]" in got.value.found


@pytest.mark.parametrize("inputs", ["", "1,x;3", "0,1;2", [[1, 2], [5]], [[]]])
def test_inputs_that_say_nothing(inputs: Any) -> None:
    with pytest.raises(ModelError):
        model_of(TwoInputs(4), inputs=inputs, mean=[0.5] * 4, std=[0.5] * 4)
    with pytest.raises(ModelError, match="extra"):
        model_of(TwoInputs(4), extra=torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_are_cast_to_the_format_of_the_weights(dtype: torch.dtype) -> None:
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    exact = SegmentationModel(net, classes=["roof"], mean=MEAN, std=STD).eval()
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        right = exact(image[None])
    net.to(dtype)
    with torch.inference_mode():
        found = exact(image[None])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    size = float(right.abs().max())
    rounding = {torch.float16: 5e-3, torch.bfloat16: 5e-2, torch.float64: 1e-5}[dtype]
    assert float((found - right).abs().max()) < rounding * size
    made = explain(
        exact, image, layer="decoder:2", target=Target("roof", region="box:8,8,40,40")
    )  # fmt: skip
    assert made.status in ("ok", "all_zero")
    assert made.raw.dtype in (torch.float32, torch.float64)
    assert math.isfinite(made.value)


class OneSize(nn.Module):
    """Takes 16 x 16 px alone, and says so."""

    img_size = (16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 4, 4))
        self.embed = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head((self.embed(images) + self.place).relu())
        return out


def test_a_network_of_one_size_names_the_option_and_takes_it() -> None:
    net = OneSize()
    assert fixed_size(net) == (16, 16)
    assert fixed_size(nn.Conv2d(3, 1, 1)) is None
    images = noise()
    with pytest.raises(ModelError, match="--size 16"):
        model_of(net)(images)
    model = model_of(net, size=16)
    inside = nn.functional.interpolate(
        images, size=(16, 16), mode="bilinear", align_corners=False, antialias=True
    )
    right = nn.functional.interpolate(
        net(inside), size=(8, 12), mode="bilinear", align_corners=False
    )
    assert torch.equal(model(images)[:, 1:], right)
    assert model.seen_size((8, 12)) == (16, 16)
    with pytest.raises(ModelError, match="size"):
        model_of(net, size=(16, 0))


# --- units ----------------------------------------------------------------------------------------
def picture() -> Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(3))


UNITS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: (255 * x).to(torch.uint8), "divide it by 255"),
    (lambda x: (1000 * x).to(torch.int16), "divide it by"),
    (lambda x: (255 * x).to(torch.int64), "divide it by 255"),
    (lambda x: 255 * x, "divide the picture by 255"),
    (lambda x: 65535 * x, "divide the picture by 65535"),
    (lambda x: 10000 * x, "divide the picture by 10000"),
    (lambda x: 30 * x, "divide the picture by"),
    (lambda x: (x - 0.456) / 0.225, "normalised already"),
    (lambda x: 2 * x - 1, "normalised already"),
    (lambda x: x / 255, "multiply the picture by 255"),
]


@pytest.mark.parametrize(("spoil", "fix"), UNITS)
def test_pictures_in_other_units_are_refused_with_the_factor(
    spoil: Callable[[Tensor], Tensor], fix: str
) -> None:
    model = model_of(smp.Unet("resnet18", encoder_weights=None, classes=1), mean=MEAN, std=STD)
    with pytest.raises(DataError) as got:
        model.check_units(spoil(picture()))
    assert fix in got.value.fix


@pytest.mark.parametrize(
    ("mean", "std", "good", "bad", "fix"),
    [
        ([123.7] * 3, [58.4] * 3, 255.0, 1.0, "multiply the picture by 255"),
        ([0.5] * 3, [0.5] * 3, 1.0, 255.0, "divide the picture by 255"),
        ([0.5] * 3, [0.5] * 3, 1.0, 1815.0, "divide the picture by"),
        ([1400.0] * 3, [400.0] * 3, 3000.0, 5e6, "deviations|divide"),
    ],
)
def test_units_follow_mean_and_std(
    mean: list[float], std: list[float], good: float, bad: float, fix: str
) -> None:
    model = model_of(nn.Conv2d(3, 1, 1), mean=mean, std=std)
    model.check_units(good * picture())
    with pytest.raises(DataError) as got:
        model.check_units(bad * picture())
    assert any(word in str(got.value) for word in fix.split("|"))


def test_pictures_that_fit_are_taken() -> None:
    """Black ones, dark ones, reflectances a little beyond 0 and 1, and networks without units."""
    model = model_of(nn.Conv2d(3, 1, 1), mean=MEAN, std=STD)
    for image in (torch.zeros(3, 4, 4), torch.ones(3, 4, 4), 0.02 * picture(), 1.3 * picture()):
        model.check_units(image)
    model.check_units(picture() - 0.03)
    model.check_units(picture().round() / 255)  # nodata with the noise of JPEG
    model_of(nn.Conv2d(3, 1, 1)).check_units(4000 * picture())
    with pytest.raises(DataError, match="divide it by 255"):
        model_of(nn.Conv2d(3, 1, 1)).check_units((255 * picture()).to(torch.uint8))


def test_what_a_sheet_shows_is_what_the_network_sees() -> None:
    mean, std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
    assert display_range(mean, std, 3) == (0.0, 1.0)
    assert display_range(255 * mean, 255 * std, 3) == (0.0, 255.0)
    low, high = display_range(torch.full((1, 1, 1), 1400.0), torch.full((1, 1, 1), 400.0), 1) or (
        0,
        0,
    )
    assert (low, high) == (600.0, 2200.0)
    assert display_range(mean, std, None) is None
