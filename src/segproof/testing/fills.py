"""Holds a fill to what fills promise: kept pixels stay, removed ones cannot leak, units fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segproof.errors import UnknownNameError
from segproof.perturb import FILLS, FillContext, FillFunction, make_fill, seeded
from segproof.testing.report import Report, case_numbers, require, run_check
from segproof.testing.sideeffects import changes, facts
from segproof.testing.toys import toy_images

__all__ = ["check_fill"]


def check_fill(
    fill: FillFunction | str,
    *,
    cases: int = 20,
    seed: int = 0,
    image: Tensor | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Report:
    """Hold a fill (images, keep) -> images, or a built-in one by its name, to what fills promise.

    `image` [B, H, W] is the tile that the fill was made for, where it was made for one; else random
    pictures [3, 16, 16] in [0, 1] are filled. `low`, `high`: the range of the image's units.

    Raises:
        UnknownNameError: an unknown fill.
        SegproofError: no cases.
    """
    if isinstance(fill, str) and fill not in FILLS:
        raise UnknownNameError.of("fill", fill, FILLS)
    numbers = case_numbers(seed, cases)

    def made(case: int) -> tuple[FillFunction, Tensor, Tensor]:
        x = toy_images(case)[0].float() if image is None else image
        keep = torch.rand(2, *x.shape[-2:], generator=seeded("keep", case)) > 0.4
        keep[:, 0, 0], keep[:, -1, -1] = True, False
        return _fill_of(fill, x, case), torch.stack([x, x]), keep.to(x.device)

    runs: dict[str, Callable[[], str]] = {
        "kept": lambda: _fill_kept(made, numbers),
        "leak": lambda: _fill_leak(made, numbers),
        "everything": lambda: _fill_everything(made, numbers),
        "repeat": lambda: _fill_repeat(made, numbers),
        "batch": lambda: _fill_batch(made, numbers),
        "units": lambda: _fill_units(made, numbers, low, high),
        "untouched": lambda: _fill_untouched(made, numbers),
    }
    return Report(tuple(run_check(name, run) for name, run in runs.items()))


_Made = Callable[[int], tuple[FillFunction, Tensor, Tensor]]


def _fill_of(fill: FillFunction | str, image: Tensor, case: int) -> FillFunction:
    if not isinstance(fill, str):
        return fill
    nowhere = torch.zeros(image.shape[-2:], dtype=torch.bool, device=image.device)
    background = nowhere.clone()
    background[: image.shape[-2] // 2] = True
    neutral = torch.full((image.shape[0], 1, 1), 0.45).to(image)
    return make_fill(fill, FillContext(image, neutral, background, ~nowhere, seeded("fill", case)))


def _removed(keep: Tensor, images: Tensor) -> Tensor:
    return ~keep[:, None].expand_as(images)


def _fill_kept(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        shown, kept = fill(x, keep), ~_removed(keep, x)
        require(shown.shape == x.shape, f"shape {tuple(shown.shape)} for {tuple(x.shape)}")
        wrong = int((shown[kept] != x[kept]).sum())
        require(not wrong, f"{wrong} of {int(kept.sum())} kept values are changed (case {case})")
        gone = _removed(keep, x)
        require(bool((shown[gone] != x[gone]).any()), f"no removed pixel is filled (case {case})")
    return f"kept pixels are bit-identical in {len(numbers)} cases"


def _fill_leak(made: _Made, numbers: range) -> str:
    """What stands in the removed pixels by the time of the call must not matter."""
    for case in numbers:
        for poison in (math.nan, math.inf, 1e30, 0.123):
            fill, x, keep = made(case)
            plain = fill(x, keep)
            fill, x, keep = made(case)  # a seeded fill may have drawn already
            shown = fill(torch.where(_removed(keep, x), poison, x), keep)
            wrong = int((shown != plain).sum())
            require(
                not wrong, f"{poison:g} in the removed pixels changes {wrong} values (case {case})"
            )
    return f"removed pixels cannot leak, not as NaN either, in {len(numbers)} cases"


def _fill_everything(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        require(
            torch.equal(fill(x, torch.ones_like(keep)), x),
            f"with every pixel kept the picture is another (case {case})",
        )
    return f"with every pixel kept the picture is itself, bit for bit, in {len(numbers)} cases"


def _fill_repeat(made: _Made, numbers: range) -> str:
    for case in numbers:
        (fill, x, keep), (again, *_) = made(case), made(case)
        first = fill(x, keep)
        require(
            torch.equal(first, fill(x, keep)) and torch.equal(first, again(x, keep)),
            f"two calls differ (case {case})",
        )
    return f"the same pictures are filled alike, bit for bit, in {len(numbers)} cases"


def _fill_batch(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        alone = torch.cat([fill(x[n : n + 1], keep[n : n + 1]) for n in range(len(x))])
        require(
            torch.equal(fill(x, keep), alone), f"a batch differs from its pictures (case {case})"
        )
    return f"a batch is its pictures one by one, bit for bit, in {len(numbers)} cases"


def _fill_units(made: _Made, numbers: range, low: float, high: float) -> str:
    least, most = math.inf, -math.inf
    for case in numbers:
        fill, x, keep = made(case)
        shown = fill(x, keep)
        require(bool(torch.isfinite(shown).all()), f"numbers that are not finite (case {case})")
        require(shown.dtype == x.dtype, f"{shown.dtype} for pictures of {x.dtype}")
        least, most = min(least, float(shown.min())), max(most, float(shown.max()))
    found = f"values from {least:.4g} to {most:.4g}"
    slack = 1e-6 * max(abs(low), abs(high), high - low)
    require(
        low - slack <= least and most <= high + slack,
        f"{found} leave the image's range from {low:g} to {high:g}",
    )
    return f"{found}, within the image's range"


def _fill_untouched(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        before = facts(nn.Identity(), x, keep)
        fill(x, keep)
        changed = changes(before, facts(nn.Identity(), x, keep))
        require(not changed, f"changed: {', '.join(changed)} (case {case})")
    return "pictures, masks, random states and flags stay as they were"
