"""Our measures against Quantus on a network that is wrapped to one number, where definitions agree.

Quantus asks for opencv-python, which overwrites the headless build that grad-cam brings. Beside
that it needs nothing that is not here but cachetools, so it is installed without what it asks for
(the Makefile does).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from segproof import SegmentationModel, Target
from segproof.explain.api import normalise
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.methods import METHODS
from segproof.measures import curves, robustness as quality
from segproof.measures.case import HeatmapCase
from segproof.measures.map_records import MAP_MEASURES
from segproof.measures.pictures import confidence
from segproof.models.contract import probabilities
from segproof.perturb.fills import perturb

quantus: Any = pytest.importorskip(
    "quantus", reason="quantus is absent: pip install --no-deps quantus==0.6.0 cachetools"
)

SIDE = 20  # pixels are a multiple of the curve's steps
Array = npt.NDArray[Any]


def net(seed: int) -> nn.Sequential:
    """A dense network of one band and one class, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6, 1, 1),
        ).eval()  # fmt: skip
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(2)  # so that pixels matter
    return made


def black(images: Tensor, keep: Tensor) -> Tensor:
    return perturb(images, keep, torch.zeros_like(images[:1]))


def case_of(seed: int) -> HeatmapCase:
    """A map whose values all differ (a little noise is added to Grad-CAM's), and its network."""
    model = SegmentationModel(net(seed), classes=["roof"])
    generator = torch.Generator().manual_seed(seed)
    image = 0.1 + 0.8 * torch.rand(1, 1, SIDE, SIDE, generator=generator)
    truth = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    truth[4:11, 6:15] = True
    seen = capture(model, image, Target("roof", region="truth"), ["2"], truth[None])

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        made = METHODS["hires_cam"](seen, "2", model)
        raw = made if isinstance(made, Tensor) else made.values
        return normalise(raw[0], (SIDE, SIDE))[0]

    noise = torch.rand(SIDE, SIDE, generator=generator)
    heat = again(seen, model) + 1e-3 * noise
    assert len(np.unique(heat.numpy())) == heat.numel()
    return HeatmapCase(model, seen, heat / heat.max(), black, truth, again, seed)


class Scalar(nn.Module):
    """The confidence over R as the only output [N, 1]: what makes of a dense network one that
    Quantus can judge.
    """

    def __init__(self, case: HeatmapCase) -> None:
        super().__init__()
        self.model, self.bound = case.model, case.seen.bound
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        p = probabilities(self.model(images), self.bound.activation)
        return confidence(p, self.bound)[:, None]


def arrays(case: HeatmapCase) -> dict[str, Array]:
    return {
        "x_batch": case.seen.images.numpy().copy(),
        "y_batch": np.array([0]),
        "a_batch": case.heatmap[None, None].numpy().copy(),
        "s_batch": case.seen.bound.region[None].numpy().copy(),
    }


def asked(metric: Any, case: HeatmapCase, model: nn.Module | None = None, **how: Any) -> Any:
    """What Quantus says of the case."""
    given: dict[str, Any] = arrays(case) | {"channel_first": True, "softmax": False}
    given |= {"device": "cpu", "batch_size": 1}
    return metric(model=model or Scalar(case), **given, **how)


QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs", "within"),
    [
        ("gini", "Sparseness", 2e-5),  # they add 1e-7 to each value
        ("pointing_game", "PointingGame", 0),
        ("relevance_rank", "RelevanceRankAccuracy", 1e-12),
        ("relevance_mass", "RelevanceMassAccuracy", 1e-6),
    ],
)
def test_places_and_sparseness(seed: int, ours: str, theirs: str, within: float) -> None:
    case = case_of(seed)
    [peer] = asked(getattr(quantus, theirs)(**QUIET), case)
    value = MAP_MEASURES[ours].function(case)
    assert value == pytest.approx(float(peer), abs=within)
    assert ours == "pointing_game" or 0 < value <= 1


@pytest.mark.parametrize("seed", range(4))
def test_pixel_flipping_is_the_deletion_curve_without_its_beginning(seed: int) -> None:
    case = case_of(seed)
    metric = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // 20, perturb_baseline=0.0, return_auc_per_sample=False,
        normalise=False, abs=False, **QUIET,
    )  # fmt: skip
    [peer] = asked(metric, case)
    curve = curves.deletion_curve(case, 20)
    points = np.asarray(curve.y)
    assert np.ptp(points) > 0.01
    np.testing.assert_allclose(points[1:], np.ravel(peer), atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_max_sensitivity_for_the_same_perturbed_pictures(seed: int) -> None:
    case = case_of(seed)
    case = replace(case, heatmap=case.again(case.seen, case.model))  # type: ignore[misc]
    shown: list[Array] = []
    maps: list[Array] = []
    original = case.again
    assert original is not None

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        shown.append(seen.images.numpy().reshape(1, -1))
        made = original(seen, model)
        maps.append(made.numpy()[None, None])
        return made

    value = quality.max_sensitivity(replace(case, again=again))
    pictures, made = iter(shown), iter(maps)
    metric = quantus.MaxSensitivity(
        nr_samples=len(shown), perturb_func=lambda arr, **_: next(pictures), **QUIET
    )
    [peer] = asked(metric, case, explain_func=lambda *_, **__: next(made))
    assert value > 0
    assert value == pytest.approx(float(peer), rel=1e-5)


def test_a_dense_network_is_judged_without_an_error_and_without_sense() -> None:
    """Not wrapped: a map of numbers for each step, where one is asked for."""
    case = case_of(0)
    metric = quantus.PixelFlipping(
        features_in_step=SIDE, perturb_baseline=0.0, return_auc_per_sample=False, **QUIET
    )
    [peer] = asked(metric, case, model=case.model.net)
    assert np.shape(peer) == (SIDE, SIDE, SIDE)


def test_their_infidelity_piles_perturbations_up() -> None:
    """Each square stays black while the next one goes, and nothing is scaled: not ours."""
    case, seen = case_of(1), []

    class Watching(Scalar):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(int((images == 0).sum()))
            return super().forward(images)

    metric = quantus.Infidelity(
        perturb_baseline=0.0, perturb_patch_sizes=[5], n_perturb_samples=1, **QUIET
    )
    asked(metric, case, model=Watching(case))
    assert seen[:4] == [0, 25, 50, 75]
