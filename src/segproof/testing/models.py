"""Holds a network to what explanations need: outputs, batches, modes, layers, maps, its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segproof.explain import Target, explain
from segproof.models import SegmentationModel, evaluating, probabilities, unit_range
from segproof.perturb import seeded
from segproof.testing.report import BATCH, Check, Report, Skipped, counted, require, run_check
from segproof.testing.sideeffects import changes, facts

__all__ = ["check_model"]


def check_model(
    model: SegmentationModel,
    image: Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Hold a network to what explanations need: what goes in and comes out, layers, maps, and that
    it is left as it was.

    `image` [B, H, W] in image units (default: a random one of 64 x 64 pixels); `layers`: paths or
    aliases to explain at (default: the last of encoder and decoder). Where the network does not run
    at all, the other checks are skipped.
    """
    names = ("encoder:-1", "decoder:-1") if layers is None else tuple(layers)
    picture = (_picture_for(model, seed) if image is None else image).to(model.device)
    before = facts(model, picture)
    runs: dict[str, Callable[[], str]] = {
        "forward": lambda: _model_forward(model, picture),
        "finite": lambda: _model_finite(model, picture),
        "repeat": lambda: _model_repeat(model, picture),
        "batch": lambda: _model_batch(model, picture),
        "mode": lambda: _model_mode(model, picture),
        "layers": lambda: _model_layers(model, picture, names),
    }
    for name in names:
        runs[f"map at {name}"] = lambda layer=name: _model_explained(  # type: ignore[misc]
            model, picture, layer
        )
    runs["untouched"] = lambda: _model_untouched(model, picture, names, before)
    checks: dict[str, Check] = {}
    for name, run in runs.items():
        # what the others need; a network that cannot do these shows nothing else
        missing = [need for need in ("forward", "finite", "layers") if need in checks]
        missing = [need for need in missing if checks[need].status == "failed"]
        if missing:
            checks[name] = Check(name, "skipped", f"the check {missing[0]!r} before it failed")
        else:
            checks[name] = run_check(name, run)
    return Report(tuple(checks.values()))


def _picture_for(model: SegmentationModel, seed: int) -> Tensor:
    """A smooth random picture [B, 64, 64] around the values that normalise to zero, in the units of
    pictures where mean and deviation tell them.
    """
    convolutions = (m for m in model.net.modules() if isinstance(m, nn.Conv2d))
    bands = model.bands or next((m.in_channels for m in convolutions), 3)
    generator = seeded("picture", seed)
    coarse = torch.rand(1, bands, 8, 8, generator=generator)
    smooth = interpolate(coarse, scale_factor=8.0, mode="bilinear")[0]
    smooth = 0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator)
    number = next((p.dtype for p in model.net.parameters()), torch.float32)
    smooth = smooth.to(model.device, number)
    if model.bands is None:
        return smooth
    made = model.mean.to(number) + (smooth - 0.5) * 3 * model.std.to(number)
    low, high = unit_range(model.mean, model.std) or (-math.inf, math.inf)
    return made.clamp(low, high)


def _logits(model: SegmentationModel, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits


def _sides(picture: Tensor) -> str:
    return f"{picture.shape[-2]} x {picture.shape[-1]} pixels and {picture.shape[0]} bands"


def _model_forward(model: SegmentationModel, picture: Tensor) -> str:
    shape, wanted = tuple(_logits(model, picture[None]).shape), len(model.classes)
    require(
        shape == (1, wanted, *picture.shape[-2:]),
        f"logits {shape} for {wanted} classes and a picture of {_sides(picture)}",
    )
    return f"a picture of {_sides(picture)} gives logits of {', '.join(model.classes)} at its size"


def _model_finite(model: SegmentationModel, picture: Tensor) -> str:
    logits = _logits(model, picture[None])
    wrong = int((~torch.isfinite(logits)).sum())
    require(
        not wrong,
        f"{wrong} of {logits.numel()} logits are not finite: look at weights and input range",
    )
    return f"all logits are numbers, from {float(logits.min()):.3g} to {float(logits.max()):.3g}"


def _model_repeat(model: SegmentationModel, picture: Tensor) -> str:
    one, other = _logits(model, picture[None]), _logits(model, picture[None])
    apart = float((one - other).abs().nan_to_num(math.inf).max())
    require(
        torch.equal(one, other),
        f"two runs on one picture differ by up to {apart:.2g}: the network draws random numbers or "
        "remembers earlier pictures",
    )
    return "two runs on one picture agree bit for bit"


def _model_batch(model: SegmentationModel, picture: Tensor) -> str:
    images = torch.stack([picture, picture.flip(-1), picture.flip(-2)])
    together = probabilities(_logits(model, images), model.activation)
    alone = torch.cat(
        [probabilities(_logits(model, image[None]), model.activation) for image in images]
    )
    apart = float((together - alone).abs().max())
    # other devices choose faster sums
    allowed = max(
        BATCH if picture.device.type == "cpu" else 1e-3, 20 * torch.finfo(alone.dtype).eps
    )
    require(
        apart <= allowed,
        f"probabilities in a batch of three differ by up to {apart:.2g} from those of its "
        f"pictures, {allowed:.0e} is allowed: the network mixes the pictures of a batch",
    )
    return f"a batch of three is its pictures one by one, to {apart:.0e} in probability"


def _model_mode(model: SegmentationModel, picture: Tensor) -> str:
    calm = _logits(model, picture[None])
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = True
        busy = _logits(model, picture[None])
    finally:
        for module, mode in modes:
            module.training = mode
    apart = float((calm - busy).abs().max())
    require(
        torch.equal(calm, busy),
        f"logits differ by up to {apart:.2g} if the network was left in training mode",
    )
    return "dropout and batch statistics are off, whatever mode the network was left in"


def _model_layers(model: SegmentationModel, picture: Tensor, names: Sequence[str]) -> str:
    size = (picture.shape[-2], picture.shape[-1])
    known = model.layers(size, bands=picture.shape[0])
    require(bool(known), "no layer over the image is found: give layers= by path")
    for name in names:
        model.resolve_layer(name, size)
    return f"{len(known)} layers, {known[0].alias} to {known[-1].alias}"


def _class_to_explain(model: SegmentationModel, picture: Tensor) -> int:
    """The class with most pixels behind the first, which is the background in most networks."""
    probability = probabilities(_logits(model, picture[None]), model.activation)[0]
    if model.activation == "sigmoid":
        counts = (probability >= 0.5).sum(dim=(1, 2))
    else:
        counts = torch.bincount(probability.argmax(dim=0).flatten(), minlength=len(probability))
    behind = counts[1:]
    return 1 + int(behind.argmax()) if len(behind) and bool(behind.any()) else 0


def _model_explained(model: SegmentationModel, picture: Tensor, layer: str) -> str:
    index = _class_to_explain(model, picture)
    made = explain(model, picture, method="grad_cam", layer=layer, target=Target(index))
    subject = f"grad_cam of class {model.classes[index]}"
    require(made.status != "non_finite", f"{subject} has numbers that are not finite")
    if made.status != "ok":
        raise Skipped(
            {
                "no_target": f"class {model.classes[index]} is nowhere predicted in this picture: "
                "give one in which it is",
                "all_zero": f"{subject} is empty: every place there speaks against the class",
                "constant": f"{subject} is the same everywhere",
            }.get(made.status, made.status)
        )
    return f"{subject} is a map of {made.raw.shape[-2]} x {made.raw.shape[-1]}"


def _model_untouched(
    model: SegmentationModel, picture: Tensor, names: Sequence[str], before: dict[str, Any]
) -> str:
    target = Target(_class_to_explain(model, picture))
    for layer in names:
        explain(model, picture, method="grad_cam", layer=layer, target=target)
    changed = changes(before, facts(model, picture))
    require(not changed, f"{counted(changed)}; changed: {', '.join(changed)}")
    return "12 of 12 kinds of state are as they were before these checks and explanations"
