"""Hands pictures to a network the way it takes them, and says why it did not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from segproof.errors import DataError, ModelError

__all__ = [
    "Extra",
    "Feeding",
    "Inputs",
    "WrongSizeError",
    "check_units",
    "display_range",
    "feeding_of",
    "fixed_size",
    "refusal",
    "unit_range",
]

Inputs = str | Sequence[Sequence[int]] | Callable[[Tensor], Any]
Extra = Mapping[str, Any] | Sequence[Any]

BRIGHT: Final = 1.5  # pictures scaled to [0, 1] stay below it, reflectances nearly always
DARK: Final = -0.05  # atmospheric correction goes a little below 0, a normalised picture far
FAR: Final = 1000.0  # deviations from the mean, in whatever units
# scales that pictures come in, by which one may have to be multiplied
SCALES: Final = (255.0, 65535.0, 10000.0, 4095.0, 1 / 255, 1 / 65535, 1 / 10000, 1 / 4095)
SCALE_WORDS: Final = {1 / value: f"divide the picture by {value:g}" for value in SCALES[:4]} | {
    value: f"multiply the picture by {value:g}" for value in SCALES[:4]
}


class WrongSizeError(ModelError):
    """A picture of a size that the network does not take."""


# --- arguments ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Feeding:
    """How a normalised picture [N, B, H, W] becomes the arguments of a network.

    `inputs`: None (the one positional argument), a keyword, "dict:KEY" (one dictionary with the
    picture under KEY), groups of bands from 1 (one argument each), or a function of the picture
    that returns a tuple of arguments or a dictionary of keywords. `extra` are further arguments,
    keywords or places, the same for every picture; tensors of one picture are repeated.
    """

    inputs: Inputs | None = None
    extra: Extra | None = None

    def call(self, net: nn.Module, images: Tensor) -> Any:
        """What the network returns for normalised images [N, B, H, W]."""
        arguments, keywords = self.arguments(images)
        return net(*arguments, **keywords)

    def arguments(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the network for these images."""
        more = {} if self.extra is None else self.extra
        held = {key: self._held(value, images) for key, value in _pairs(more)}
        places = tuple(held[key] for key in held if isinstance(key, int))
        keywords = {key: value for key, value in held.items() if isinstance(key, str)}
        if self.inputs is None:
            return (images, *places), keywords
        if isinstance(self.inputs, str):
            _, marked, key = self.inputs.partition("dict:")
            if marked:
                return ({key: images, **keywords}, *places), {}
            return places, {self.inputs: images, **keywords}
        if callable(self.inputs):
            made = self.inputs(images)
            if isinstance(made, Mapping):
                return places, {**made, **keywords}
            made = made if isinstance(made, tuple) else (made,)
            return (*made, *places), keywords
        groups = [images[:, [band - 1 for band in group]] for group in self.inputs]
        return (*groups, *places), keywords

    def _held(self, value: Any, images: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(images.device)
        if value.is_floating_point():
            value = value.to(images.dtype)
        if value.ndim and value.shape[0] == 1:
            return value.expand(len(images), *value.shape[1:])
        return value


def _pairs(extra: Extra) -> list[tuple[str | int, Any]]:
    if isinstance(extra, Mapping):
        return [(str(key), value) for key, value in extra.items()]
    return list(enumerate(extra))


def feeding_of(inputs: Inputs | None, extra: Extra | None, bands: int | None) -> Feeding:
    """Check how a network is to be fed; groups of bands may be written "1,2,3;4".

    Raises:
        ModelError: groups that are no numbers of bands.
    """
    if isinstance(inputs, str) and inputs and inputs[0].isdigit():
        try:
            inputs = [[int(band) for band in group.split(",")] for group in inputs.split(";")]
        except ValueError:
            raise ModelError(
                f"inputs {inputs!r}",
                "groups of bands such as 1,2,3;4, a keyword, or dict:KEY",
                "number the bands from 1",
            ) from None
    if inputs is not None and not isinstance(inputs, str) and not callable(inputs):
        inputs = [list(group) for group in inputs]
        flat = [band for group in inputs for band in group]
        if not flat or min(flat) < 1 or (bands is not None and max(flat) > bands):
            raise ModelError(
                f"inputs {inputs}",
                f"numbers of bands from 1 to {bands or 'that of the last one'}",
                "number the bands of the picture from 1",
            )
    if inputs == "":
        raise ModelError(
            "an empty text for inputs", "a keyword, dict:KEY or groups of bands", "leave it out"
        )
    if extra is not None and isinstance(extra, str | Tensor):
        raise ModelError(
            f"extra {type(extra).__name__}", "a mapping or a list of arguments", "wrap it in one"
        )
    return Feeding(inputs, extra)


def fixed_size(net: nn.Module) -> tuple[int, int] | None:
    """The only size (H, W) that a network says it was built for; None where it says none."""
    for module in net.modules():
        sides = getattr(module, "img_size", None)
        free = getattr(module, "dynamic_img_size", False) or not getattr(
            module, "strict_img_size", True
        )
        if sides is not None and not free:
            return _sides(sides)
    sides = getattr(getattr(net, "config", None), "image_size", None)
    return _sides(sides)


def _sides(value: Any) -> tuple[int, int] | None:
    if type(value) is int:
        return value, value
    if isinstance(value, Sequence) and len(value) == 2 and all(type(one) is int for one in value):
        return value[0], value[1]
    return None


# --- refusals -------------------------------------------------------------------------------------
def refusal(
    net: nn.Module,
    error: Exception,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    images: Tensor,
    padding: tuple[int, int],
    stride: int,
) -> ModelError:
    """What a network's own exception says: its words, what it was called with, what to do.

    `images` [N, B, H, W] are the pictures, `padding` what they lack below and to the right to be of
    whole strides of `stride` px.
    """
    message = (str(error).splitlines() or [""])[0][:300]
    bands, height, width = images.shape[1:]
    if "to have" in message and "channels" in message:
        return ModelError(
            f"images with {bands} bands ({message})",
            "the bands that the network was trained with",
            "select or reorder the bands (--bands), or look at mean and std",
        )
    wanted = fixed_size(net)
    if "doesn't match model" in message or (wanted and wanted != (height, width)):
        side = wanted or (224, 224)
        shown = f"{side[0]}" if side[0] == side[1] else f"{side[0]},{side[1]}"
        return WrongSizeError(
            f"images of {height} x {width} pixels ({message})",
            "a size that the network takes"
            + (f": it was built for {side[0]} x {side[1]}" if wanted else ""),
            f"resize pictures inside (--size {shown}, size=...), or cut tiles of that size",
        )
    if "Output size is too small" in message:
        return WrongSizeError(
            f"images of {height} x {width} pixels ({message})",
            "a size that the network takes",
            "give larger tiles",
        )
    uneven = "divisible" in message or "Sizes of tensors must match" in message
    if any(padding) and uneven:
        return WrongSizeError(
            f"images of {height} x {width} pixels",
            f"sides that {stride}, the network's stride, divides",
            f"pad by {padding[0]} px at the bottom and {padding[1]} px at the right (--pad,"
            " padded=True), or cut such tiles",
        )
    positional, keywords = arguments
    given = [_shape(value) for value in positional]
    given += [f"{name}={_shape(value)}" for name, value in keywords.items()]
    if isinstance(error, TypeError | LookupError | AttributeError):
        fix = (
            "say how the network takes pictures: a keyword (--inputs pixel_values), a dictionary"
            " (--inputs dict:image), groups of bands (--inputs '1,2,3;4'), and what else it needs"
            " (extra=)"
        )
    else:
        fix = "try the network alone on a picture of this size, these bands and this format"
    return ModelError(
        f"a network that ends in {type(error).__name__}: {message or '(no message)'}; it was given"
        f" {', '.join(given) or 'nothing'}",
        f"logits for pictures of {height} x {width} pixels and {bands} bands",
        fix,
    )


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape(item)}" for key, item in value.items()) + "}"
    return repr(value)[:60]


# --- units ----------------------------------------------------------------------------------------
def _unit(mean: Tensor, std: Tensor) -> float | None:
    """The largest value of pictures in the units of `mean` and `std`: 1, 255 or not known."""
    high, least = float(mean.max()), float(mean.min())
    if (high, least, float(std.max())) == (0, 0, 1) and float(std.min()) == 1:
        return None  # a normalisation that does nothing says nothing
    if least >= 0 and high <= 1 and float(std.max()) <= 1:
        return 1.0
    if 1 < high <= 255 and 2 < float(std.max()) <= 255:
        return 255.0
    return None


def check_units(image: Tensor, mean: Tensor, std: Tensor) -> None:
    """Refuse a picture [B, H, W] in other units than the network's `mean` and `std` [B, 1, 1].

    A picture of 0-255 or 16 bits shown to a network of 0-1 gives a map too, of nothing; so does
    one that is normalised already.

    Raises:
        DataError: integers, or values outside these units; with the factor that would fit.
    """
    if not image.is_floating_point():
        high = {torch.uint8: 255, torch.int16: 32767, torch.uint16: 65535}.get(image.dtype)
        raise DataError(
            f"a picture of {str(image.dtype).removeprefix('torch.')} numbers, {int(image.min())} to"
            f" {int(image.max())}",
            "float32 in image units (8-bit pictures are scaled to 0-1)",
            f"divide it by {high or 255}, or read it with read_image",
        )
    if not image.numel():
        return
    mean, std, image = mean.double().cpu(), std.double().cpu(), image.detach().double().cpu()
    low, high_ = (float(bound) for bound in image.aminmax())
    far = float(((image - mean) / std).abs().max())
    unit = _unit(mean, std)
    if unit is None:
        wrong = far > FAR
    else:
        wrong = low < DARK * unit or high_ > BRIGHT * unit
        # a picture of 0-1 shown to a network of 0-255 is black everywhere; so is a tile of nodata
        # with the noise of JPEG, whose values are whole steps of 8 bits
        if 0 < high_ <= BRIGHT / 255 * unit and float(mean.min()) > 8 / 255 * unit:
            steps = image / unit * 255
            wrong |= float((steps - steps.round()).abs().max()) > 1e-3
    if not wrong:
        return
    units = (
        f"values from 0 to {unit:g}, the units of the network's mean and std"
        if unit is not None
        else "the units that the network's mean and std are in"
    )
    raise DataError(
        f"values from {low:.4g} to {high_:.4g}, up to {far:,.0f} deviations from the mean",
        f"{units} (8-bit pictures are scaled to 0-1)",
        _rescaling(image, mean, std, unit),
    )


def _rescaling(image: Tensor, mean: Tensor, std: Tensor, unit: float | None) -> str:
    """What would bring a picture into the network's units."""
    low, high = (float(bound) for bound in image.aminmax())
    top = 1.0 if unit is None else unit
    if low < DARK * top:
        undone = image * std + mean
        if unit is None or (float(undone.min()) >= DARK * top and float(undone.max()) <= 1.5 * top):
            return (
                "it looks normalised already: give the picture as it is in the file, or undo it"
                " with picture * std + mean"
            )
        return "give the picture as it is in the file; the network's wrapper normalises it"
    # of the scales under which the picture fits, that which brings it nearest to the mean
    fitting = []
    for factor in SCALES:
        if unit is not None and high * factor > BRIGHT * unit:
            continue
        off = float(((image * factor - mean) / std).mean().abs())
        fitting.append((off, factor))
    if not fitting:
        return "convert the picture, or give the mean and std of the training"
    _, factor = min(fitting)
    return (
        f"{SCALE_WORDS[factor]} (--divide-by {1 / factor:g} for files), or give the mean and std of"
        " the training"
    )


def unit_range(mean: Tensor, std: Tensor) -> tuple[float, float] | None:
    """The values that pictures have in the units of `mean` and `std`: 0 to 1, 0 to 255, or not
    known.
    """
    unit = _unit(mean.double().cpu(), std.double().cpu())
    return None if unit is None else (0.0, unit)


def display_range(mean: Tensor, std: Tensor, bands: int | None) -> tuple[float, float] | None:
    """Black and white of a picture as the network sees it: 0 to the unit of mean and std, else two
    deviations round the mean; None where the network has no normalisation.
    """
    if bands is None:
        return None
    known = unit_range(mean, std)
    if known is not None:
        return known
    return float((mean - 2 * std).min()), float((mean + 2 * std).max())
