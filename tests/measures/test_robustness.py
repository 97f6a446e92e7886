"""How maps hold under changes: by hand, by the literal formulas, and what they show."""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

import reference
from heatmap_cases import THREE, Again, black, bound_of, explained, given_case, masks_of
from segproof.explain.api import normalise
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.methods import METHODS
from segproof.explain.target import BoundTarget, Target
from segproof.measures import robustness as quality
from segproof.measures.case import HeatmapCase, Undefined
from segproof.measures.map_records import AGAIN as AGAIN_COSTS, MAP_MEASURES
from segproof.models.contract import SegmentationModel
from segproof.perturb.records import FillFunction
from segproof.perturb.seeding import seeded
from sideeffects import Fails, facts, told, unsettle
from toys import Shallow, toy_images, toy_model

MEASURES = {name: MAP_MEASURES[name] for name in quality.__all__ if name in MAP_MEASURES}
HAND = torch.tensor([[0.0, 0.5, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 0.25]])
AGAIN = tuple(name for name in MEASURES if name != "infidelity")


# --- robustness ---------------------------------------------------------------------------------
def brightness(seen: Capture, model: SegmentationModel) -> Tensor:
    """A map that never asked the network: what an edge detector is, too."""
    return seen.images[0].mean(dim=0).float()


def powered(seen: Capture, model: SegmentationModel, *, power: int) -> Tensor:
    return brightness(seen, model) ** power


def pictured(
    again: Again, *, side: int = 16, seed: int = 0, valid: Tensor | None = None
) -> HeatmapCase:
    model = toy_model(seed)
    model.net.encoder.output_stride = 4  # type: ignore[union-attr]
    image = toy_images(seed, side=side)[0]
    region = torch.zeros(side, side, dtype=torch.bool)
    region[side // 4 : side // 2, side // 4 : 3 * side // 4] = True
    case = given_case(
        torch.ones(side, side),
        region,
        image=image,
        again=again,
        model=model,
        seed=seed,
        valid=valid,
    )
    return replace(case, heatmap=again(case.seen, model).float())


@pytest.mark.parametrize("name", AGAIN)
def test_controls_have_no_method(name: str) -> None:
    case = pictured(brightness)
    case = replace(case, again=None)
    with pytest.raises(Undefined, match=r"^a control has no method$"):
        MEASURES[name].function(case)


@pytest.mark.parametrize("name", AGAIN)
def test_a_map_that_fails_when_made_again_is_no_number(name: str) -> None:
    case = pictured(brightness)
    case = replace(case, again=lambda seen, model: torch.zeros(seen.images.shape[-2:]))
    with pytest.raises(Undefined, match=r"^flat map$"):
        MEASURES[name].function(case)


def test_max_sensitivity_is_the_largest_move_of_small_perturbations() -> None:
    valid = torch.ones(16, 16, dtype=torch.bool)
    valid[:, 13:] = False
    shown: list[Tensor] = []
    maps: list[Tensor] = []
    bounds: list[BoundTarget] = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        shown.append(seen.images[0])
        bounds.append(seen.bound)
        maps.append(brightness(seen, model) ** 2)
        return maps[-1]

    case = pictured(again, valid=valid)
    x = case.seen.images[0]
    del shown[0], maps[0], bounds[0]
    found = quality.max_sensitivity(case)
    assert len(shown) == 8
    S, _, V = masks_of(case)
    new = [one.double().numpy() for one in maps]
    assert found == pytest.approx(reference.max_sensitivity(S, new, V), abs=1e-12)
    assert all(bound is case.seen.bound for bound in bounds)
    low, high = x[:, valid].amin(dim=1), x[:, valid].amax(dim=1)
    for image in shown:
        assert torch.equal(image[:, ~valid], x[:, ~valid])
        step = (image - x)[:, valid].abs().amax(dim=1)
        assert bool((step <= 0.02 * (high - low) + 1e-12).all())
        both = (image - x)[:, valid].amin(dim=1), -(image - x)[:, valid].amax(dim=1)
        assert all(bool((edge < -0.018 * (high - low)).all()) for edge in both)
        assert bool((image[:, valid].amin(dim=1) >= low).all())
        assert bool((image[:, valid].amax(dim=1) <= high).all())
    assert not torch.equal(shown[0], shown[1])


def test_max_sensitivity_of_constant_and_jumping_maps() -> None:
    still = pictured(lambda seen, model: HAND.repeat(6, 6)[:16, :16])
    assert quality.max_sensitivity(still) == 0
    calm, nervous = (pictured(functools.partial(powered, power=power)) for power in (1, 8))
    assert 0 < quality.max_sensitivity(calm) < quality.max_sensitivity(nervous)
    more = quality.max_sensitivity(calm, radius=0.2)
    assert more > quality.max_sensitivity(calm)


def linear_case(
    heat: Tensor | None = None, *, fill: FillFunction = black, batch: int = 4
) -> HeatmapCase:
    """Z = 2 x and R everywhere: removing I changes Y by exactly the sum of 2 x over I / |R|."""
    model = SegmentationModel(Shallow([1.0], [0.0], [2.0], 0.5), classes=["roof"]).double().eval()
    x = toy_images(3)[:, :1]
    with torch.no_grad():
        logits = model(x)
    seen = Capture(x, logits, bound_of(torch.ones(16, 16, dtype=torch.bool)), {}, batch=batch)
    heat = x[0, 0] / x.max() if heat is None else heat
    return HeatmapCase(model=model, seen=seen, heatmap=heat, fill=fill)


def test_infidelity_of_the_exact_contributions_is_zero() -> None:
    case = linear_case()
    assert quality.infidelity(case) == pytest.approx(0, abs=1e-12)
    wrong = [1 - case.heatmap, case.heatmap.flip(0), case.heatmap.roll(5, dims=1)]
    assert all(quality.infidelity(linear_case(heat)) > 0.01 for heat in wrong)


def test_infidelity_is_the_literal_formula_of_the_squares_that_were_removed() -> None:
    removed: list[Tensor] = []

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        removed.extend(~keep)
        return black(images, keep)

    case = linear_case(linear_case().heatmap.flip(0) ** 3, fill=fill)
    found = quality.infidelity(case)
    masks = [one.numpy() for one in removed]
    assert len(masks) == 64
    assert {int(mask.sum()) for mask in masks} == {4}  # 2 x 2 px of 16 x 16
    assert len({mask.tobytes() for mask in masks}) > 40
    x = case.seen.images[0, 0].numpy()
    drops = [float(2 * x[mask].sum() / 256) for mask in masks]
    expected = reference.infidelity(case.heatmap.double().numpy(), masks, drops)
    assert 0.01 < expected < 1
    assert found == pytest.approx(expected, abs=1e-10)


def test_infidelity_removes_valid_pixels_alone() -> None:
    case = explained("hires_cam", valid=toy_images(4)[0, 0] > 0.4)
    valid = case.seen.bound.valid[0]
    removed: list[Tensor] = []

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        removed.extend(~keep)
        return case.fill(images, keep)

    found = quality.infidelity(replace(case, fill=fill))
    assert 0 < int((~valid).sum()) < 200
    assert not bool((torch.stack(removed) & ~valid).any())
    assert {int(mask.sum()) for mask in removed} > {1, 4}
    bound, x = case.seen.bound, case.seen.images
    with torch.no_grad():
        drops = [
            float(
                bound.score(case.seen.logits) - bound.score(case.model(case.fill(x, ~mask[None])))
            )
            for mask in removed
        ]
    S = case.heatmap.double().numpy()
    expected = reference.infidelity(S, [mask.numpy() for mask in removed], drops)
    assert found == pytest.approx(expected, abs=1e-9)


def test_infidelity_does_not_depend_on_scale_or_batch() -> None:
    case = explained("hires_cam", batch=4)
    found = quality.infidelity(case)
    assert 0 < found < 1
    lower = replace(case, heatmap=case.heatmap * 0.25)
    assert quality.infidelity(lower) == pytest.approx(found, abs=1e-12)
    for batch in (1, 64):
        assert quality.infidelity(explained("hires_cam", batch=batch)) == pytest.approx(
            found, abs=1e-9
        )


def test_infidelity_without_any_effect_or_any_heat() -> None:
    with pytest.raises(Undefined, match=r"^removing pixels changes nothing$"):
        quality.infidelity(linear_case(fill=lambda images, keep: images))
    seen: list[Tensor] = []

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        seen.extend(~keep)
        return black(images, keep)

    quality.infidelity(linear_case(fill=fill))
    missed = ~torch.stack(seen).any(dim=0)
    assert 0 < int(missed.sum()) < 200
    assert quality.infidelity(linear_case(missed.float())) == 1


# --- sanity -------------------------------------------------------------------------------------
def changed_in(model: SegmentationModel, other: SegmentationModel) -> set[str]:
    """Modules whose weights are not the same."""
    pairs = zip(model.net.named_parameters(), other.net.named_parameters(), strict=True)
    return {
        name.rpartition(".")[0] for (name, a), (_, b) in pairs if not torch.equal(a.data, b.data)
    }


ORDER = [
    "encoder.0.0",
    "encoder.1.0",
    "decoder.blocks.0.conv",
    "decoder.blocks.0.norm",
    "decoder.blocks.1.conv",
    "decoder.blocks.1.norm",
    "segmentation_head",
]


@pytest.mark.parametrize("name", ["randomisation_top_down", "randomisation_bottom_up"])
def test_stages_add_up_from_one_end(name: str) -> None:
    stages: list[set[str]] = []
    last: list[SegmentationModel] = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        if model is not case.model:
            stages.append(changed_in(case.model, model))
            last.append(copy.deepcopy(model))
        assert seen.bound is case.seen.bound
        return brightness(seen, model)

    case = pictured(brightness)
    case = replace(case, again=again)
    value = MEASURES[name].function(case)
    # it looks at the picture alone, as an edge detector does: no weight changes it
    assert value == pytest.approx(1, abs=1e-12)
    order = ORDER if name.endswith("bottom_up") else ORDER[::-1]
    assert stages == [set(order[:count]) for count in (2, 4, 5, 6, 7)]
    again_last: list[SegmentationModel] = []

    def noted(seen: Capture, model: SegmentationModel) -> Tensor:
        again_last.append(model)
        return brightness(seen, model)

    case = replace(case, again=noted)
    [other] = {"randomisation_top_down", "randomisation_bottom_up"} - {name}
    MEASURES[other].function(case)
    # all weights new: the same network, wherever one began
    assert changed_in(last[-1], again_last[-1]) == set()


def test_randomisation_is_the_mean_of_the_similarities_that_exist() -> None:
    case = pictured(brightness)
    S = case.heatmap
    ranked = S.flatten().argsort().argsort().view(16, 16).float() / 255
    maps = iter([ranked, 1 - ranked, torch.zeros(16, 16), ranked**2, S.flip(0)])
    case = replace(case, again=lambda seen, model: next(maps))
    flipped = stats.spearmanr(S.flatten().numpy(), S.flip(0).flatten().numpy()).statistic
    expected = (1 - 1 + 1 + flipped) / 4
    assert quality.randomisation_top_down(case) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["randomisation_top_down", "randomisation_bottom_up"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_map_of_the_picture_fails_randomisation_and_a_map_of_the_network_passes(
    name: str, seed: int
) -> None:
    edges = MEASURES[name].function(pictured(brightness, seed=seed))
    assert edges == pytest.approx(1, abs=1e-12)
    assert MEASURES[name].function(explained("layer_cam", seed=seed)) < 0.9


def test_modules_without_a_way_to_start_anew_get_noise_of_their_own_kind() -> None:
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(5 + 0.1 * torch.randn(4000))
    before = module.scale.detach().clone()
    quality._reset(module, seeded("a"))
    new = module.scale.detach()
    assert abs(float(torch.corrcoef(torch.stack([new, before]))[0, 1])) < 0.1
    assert float(new.mean()) == pytest.approx(5, abs=0.02)
    assert float(new.std()) == pytest.approx(0.1, abs=0.01)


class Silent(torch.nn.Module):
    """Uses a module's weights without calling it, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(images, self.inner.weight, self.inner.bias)


def test_a_module_that_is_not_called_runs_with_what_holds_it() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), Silent(), torch.nn.Conv2d(3, 1, 1))
    model = SegmentationModel(net, classes=["roof"]).double()
    assert quality._running(model, toy_images(0)) == ["0", "1.inner", "2"]


def test_a_network_that_cannot_be_copied_has_no_number() -> None:
    case = pictured(brightness)
    case.model.net.kept = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(Undefined, match=r"^a network that cannot be copied$"):
        quality.randomisation_top_down(case)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [("roof",), THREE])
def test_random_class_finds_the_class_agnostic_map(seed: int, classes: tuple[str, ...]) -> None:
    def value(method: str) -> float:
        return quality.random_class(
            explained(method, seed=seed, model=toy_model(seed, classes=classes))
        )

    assert value("eigen_cam") == pytest.approx(1, abs=1e-12)
    assert value("hires_cam") < 0.99
    assert value("layer_cam") < 0.99


def test_random_class_changes_the_class_alone_and_reaches_all() -> None:
    bounds: list[BoundTarget] = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        bounds.append(seen.bound)
        return brightness(seen, model)

    case = explained("hires_cam")
    case = replace(case, again=again)
    for seed in range(20):
        case = replace(case, seed=seed)
        quality.random_class(case)
    assert {bound.class_index for bound in bounds} == {0, 2}
    mine = case.seen.bound
    assert all(b.region is mine.region and b.prediction is mine.prediction for b in bounds)
    assert all(bound.space == "logit" and bound.weights is mine.weights for bound in bounds)


def test_random_class_of_a_margin_turns_it_round() -> None:
    """The rival of z_roof - z_field cannot be itself: the other way it is z_field - z_roof."""
    bounds: list[BoundTarget] = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        bounds.append(seen.bound)
        return brightness(seen, model)

    case = explained("hires_cam")
    case = replace(
        case,
        again=again,
        seen=replace(case.seen, bound=replace(case.seen.bound, space="margin", rival=0)),
    )
    for seed in range(12):
        quality.random_class(replace(case, seed=seed))
    assert {(bound.class_index, bound.rival) for bound in bounds} == {(0, 1), (2, 0)}


def test_the_other_class_of_one_channel_is_minus_the_logit() -> None:
    case = explained("hires_cam", model=toy_model(0))
    layer = "decoder.blocks.0"
    raw = METHODS["hires_cam"](case.seen, layer, case.model)
    assert not isinstance(raw, Tensor)
    against = normalise(-raw.values[0], (16, 16))[0]
    rho = stats.spearmanr(case.heatmap.flatten().numpy(), against.flatten().numpy()).statistic
    assert quality.random_class(case) == pytest.approx(rho, abs=1e-6)


def lit_region(seen: Capture, model: SegmentationModel) -> Tensor:
    """1 on the region it is given, and a little of the picture."""
    return (0.9 * seen.bound.region[0] + 0.1 * brightness(seen, model)).float()


def test_what_moves_with_the_picture_is_equivariant() -> None:
    assert quality.equivariance(pictured(brightness)) == pytest.approx(1, abs=1e-12)
    # the region is turned with the picture, else this map would not follow
    assert quality.equivariance(pictured(lit_region)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mask", ["prediction", "valid"])
def test_prediction_and_valid_pixels_are_turned_and_cut_too(mask: str) -> None:
    """Eigen methods take their sign from P, and their guide from V."""

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        lit: Tensor = getattr(seen.bound, mask)[0]
        return (0.9 * lit + 0.1 * brightness(seen, model)).float()

    valid = torch.ones(16, 16, dtype=torch.bool)
    valid[9:, 11:] = False
    case = pictured(again, valid=valid)
    assert quality.equivariance(case) == pytest.approx(1, abs=1e-12)
    assert quality.shift_equivariance(case) == pytest.approx(1, abs=1e-12)
    assert quality.overlap_consistency(case) == pytest.approx(1, abs=1e-12)


def test_a_map_that_stays_where_it_is_by_hand() -> None:
    """A ramp to the right: four of the seven turns reverse or keep it, quarter turns cross it."""
    calls = []

    def ramp(seen: Capture, model: SegmentationModel) -> Tensor:
        calls.append(seen.images.shape)
        height, width = seen.images.shape[-2:]
        return (torch.arange(1, width + 1) / width).expand(height, width)

    case = pictured(ramp)
    calls.clear()
    # flip -1, half turn -1, both +1, quarter turns 0
    assert quality.equivariance(case) == pytest.approx(-1 / 7, abs=1e-6)
    assert len(calls) == 7


def test_a_picture_that_is_not_square_is_turned_by_halves() -> None:
    shapes = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        shapes.append(tuple(seen.images.shape[-2:]))
        return brightness(seen, model)

    case = pictured(brightness)
    wide = toy_images(0)[0][:, :12]
    region = torch.zeros(12, 16, dtype=torch.bool)
    region[4:8, 3:9] = True
    case = given_case(wide.mean(dim=0), region, image=wide, again=again, model=case.model)
    assert quality.equivariance(case) == pytest.approx(1, abs=1e-9)
    assert shapes == [(12, 16)] * 3


def test_stripes_that_stay_where_they_are_by_hand() -> None:
    """Odd columns lit: sideways shifts by 1 px reverse them, those up and down do not."""

    def stripes(seen: Capture, model: SegmentationModel) -> Tensor:
        height, width = seen.images.shape[-2:]
        return (torch.arange(width) % 2).float().expand(height, width)

    assert quality.shift_equivariance(pictured(stripes), pixels=1) == pytest.approx(0, abs=1e-12)
    assert quality.shift_equivariance(pictured(stripes), pixels=2) == pytest.approx(1, abs=1e-12)
    assert quality.shift_equivariance(pictured(stripes)) == pytest.approx(1, abs=1e-12)


def test_shifts_repeat_the_edge_and_take_region_and_valid_pixels_along() -> None:
    seen: list[Capture] = []

    def again(capture: Capture, model: SegmentationModel) -> Tensor:
        seen.append(capture)
        return brightness(capture, model)

    case = pictured(again)
    case = replace(case, seen=replace(case.seen, baseline=toy_images(9)))
    seen.clear()
    assert quality.shift_equivariance(case) == pytest.approx(1, abs=1e-12)
    x, bound = case.seen.images[0], case.seen.bound
    moves = ((4, 0), (-4, 0), (0, 4), (0, -4))  # the network's stride
    for part, (down, right) in zip(seen, moves, strict=True):
        assert part.baseline is not None
        for i in range(16):
            for j in range(16):
                a, b = i - down, j - right
                inside = 0 <= a < 16 and 0 <= b < 16
                nearest = (min(max(a, 0), 15), min(max(b, 0), 15))
                assert torch.equal(part.images[0, :, i, j], x[:, nearest[0], nearest[1]])
                assert part.baseline[0, 0, i, j] == toy_images(9)[0, 0, nearest[0], nearest[1]]
                for name in ("region", "prediction", "valid", "weights"):
                    now, before = getattr(part.bound, name)[0], getattr(bound, name)[0]
                    assert now[i, j] == (before[a, b] if inside else 0)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "layer_cam"])
def test_a_network_of_points_follows_every_shift_and_one_with_a_grid_does_not(method: str) -> None:
    """1 x 1 convolutions see no edge and no grid: any shift is followed exactly, up to rounding."""

    def case(net: torch.nn.Module, layer: str) -> HeatmapCase:
        model = SegmentationModel(net, classes=["roof"]).double()
        image = toy_images(3)
        region = torch.zeros(16, 16, dtype=torch.bool)
        region[5:10, 6:11] = True
        seen = capture(model, image, Target("roof", region="truth"), [layer], region[None])

        def again(seen: Capture, model: SegmentationModel) -> Tensor:
            made = METHODS[method](seen, layer, model)
            raw = made if isinstance(made, Tensor) else made.values
            return normalise(raw[0], (16, 16))[0]

        return replace(given_case(again(seen, model), region), model=model, seen=seen, again=again)

    with torch.random.fork_rng():
        torch.manual_seed(4)
        first, last = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 1, 1)
        pool = torch.nn.AvgPool2d(4), torch.nn.Upsample(scale_factor=4)
    act = torch.nn.ReLU
    points = case(torch.nn.Sequential(first, act(), last), "1")
    for pixels in (1, 3):
        assert quality.shift_equivariance(points, pixels=pixels) == pytest.approx(1, abs=1e-6)
    grid = case(torch.nn.Sequential(first, pool[0], act(), last, pool[1]), "2")
    assert quality.shift_equivariance(grid, pixels=2) < 0.95
    # maps come up bilinear: near the picture's edge they continue otherwise
    whole = quality.shift_equivariance(grid, pixels=4)
    assert quality.shift_equivariance(grid, pixels=2) < whole


def test_shifts_without_a_number() -> None:
    case = pictured(brightness)
    with pytest.raises(Undefined, match=r"^too small a picture for a shift$"):
        quality.shift_equivariance(case, pixels=16)
    with pytest.raises(Undefined, match=r"^a region moved out of the picture$"):
        quality.shift_equivariance(case, pixels=12)


def test_windows_overlap_and_see_their_part_of_the_region() -> None:
    parts: list[Capture] = []

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        parts.append(seen)
        return lit_region(seen, model)

    case = pictured(again)
    parts.clear()
    assert quality.overlap_consistency(case) == pytest.approx(1, abs=1e-12)
    first, second = parts
    x, R = case.seen.images, case.seen.bound.region
    assert torch.equal(first.images, x[..., :12, :12])
    assert torch.equal(second.images, x[..., 4:, 4:])
    assert torch.equal(first.bound.region, R[..., :12, :12])
    assert torch.equal(second.bound.region, R[..., 4:, 4:])


def test_overlap_is_the_correlation_where_both_windows_are() -> None:
    """A map that falls off to the window's own lower right corner."""

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        height, width = seen.images.shape[-2:]
        return (torch.arange(height)[:, None] * torch.arange(width) / (height * width)).float()

    case = pictured(again)
    whole = (torch.arange(12)[:, None] * torch.arange(12)).double().numpy()
    expected = reference.pearson(whole[4:, 4:], whole[:8, :8])
    assert expected < 0.999
    assert quality.overlap_consistency(case) == pytest.approx(expected, abs=1e-6)
    assert quality.overlap_consistency(pictured(brightness)) > expected


class Fixed(torch.nn.Module):
    """A network of one size of picture, as many transformers are."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.encoder = torch.nn.Identity()
        self.encoder.output_stride = 4  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != 16:
            raise RuntimeError("Input image size (12*12) doesn't match model (16*16).")
        result: Tensor = self.net(images)
        return result


def test_windows_that_cannot_be() -> None:
    case = pictured(brightness)
    case.model.net.encoder.output_stride = 16  # type: ignore[union-attr]
    with pytest.raises(Undefined, match=r"^too small a picture for two windows$"):
        quality.overlap_consistency(case)
    case = pictured(brightness)
    fixed = SegmentationModel(Fixed(case.model.net), classes=["roof"]).double()
    wanted = re.escape("a network that does not take the windows' size")
    with pytest.raises(Undefined, match=f"^{wanted}$"):
        quality.overlap_consistency(replace(case, model=fixed))
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[:2, :2] = True
    case = pictured(brightness)
    case = replace(case, seen=replace(case.seen, bound=bound_of(region)))
    with pytest.raises(Undefined, match=r"^a window without the region$"):
        quality.overlap_consistency(case)


# --- what all promise ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", MEASURES)
def test_a_seed_gives_one_number_and_another_seed_another(name: str) -> None:
    values = [MEASURES[name].function(explained("hires_cam", seed=1)) for _ in range(2)]
    assert values[0] == values[1]
    assert MEASURES[name].low <= values[0] <= MEASURES[name].high
    if name not in ("equivariance", "shift_equivariance", "overlap_consistency"):
        case = explained("hires_cam", seed=1)
        others = set()
        for seed in range(6):
            case = replace(case, seed=seed)
            others.add(MEASURES[name].function(case))
        assert len(others) > 1


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_of_the_callers_is_changed(name: str, inference: bool) -> None:
    case = explained("hires_cam")
    unsettle(case.model)
    inputs = (case.seen.images, case.heatmap, case.seen.bound.region, case.seen.bound.weights)
    with torch.inference_mode(inference):
        before = facts(case.model, *inputs)
        value = MEASURES[name].function(case)
        assert facts(case.model, *inputs) == before
    assert value == pytest.approx(MEASURES[name].function(explained("hires_cam")), abs=1e-9)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [*AGAIN, "infidelity"])
def test_nothing_is_changed_when_something_fails(name: str, error: type[BaseException]) -> None:
    case = explained("hires_cam")
    unsettle(case.model)
    fails = Fails(error)
    with fails.network(case.model, after=0):
        before = facts(case.model, case.seen.images)
        with pytest.raises(told(error, "network"), match="on purpose"):
            MEASURES[name].function(case)
        assert fails.raised == 1
        assert facts(case.model, case.seen.images) == before
    if name == "infidelity":
        return

    def broken(seen: Capture, model: SegmentationModel) -> Tensor:
        fails.now()
        return case.heatmap

    case = replace(case, again=broken)
    before = facts(case.model, case.seen.images)
    with pytest.raises(error, match="on purpose"):
        MEASURES[name].function(case)
    assert facts(case.model, case.seen.images) == before


def test_masked_input_methods_are_made_again_with_the_same_baseline() -> None:
    case = explained("hires_cam")
    base = toy_images(9)
    case = replace(case, seen=replace(case.seen, baseline=base))
    seen: list[Tensor | None] = []

    def again(capture: Capture, model: SegmentationModel) -> Tensor:
        seen.append(capture.baseline)
        return brightness(capture, model)

    case = replace(case, again=again)
    quality.random_class(case)
    quality.equivariance(case)
    quality.overlap_consistency(case)
    found = [one for one in seen if one is not None]
    assert len(found) == 1 + 7 + 2
    assert torch.equal(found[0], base)
    assert torch.equal(found[1], base.flip(-1))
    assert torch.equal(found[-1], base[..., 4:, 4:])


def test_records_are_those_of_the_module() -> None:
    assert set(quality.__all__) == {*MEASURES, "alike"}
    again = {name for name, measure in MEASURES.items() if AGAIN_COSTS in measure.forwards}
    assert again == set(AGAIN) == {n for n, measure in MEASURES.items() if measure.explains_again}
    assert MEASURES["infidelity"].forwards == str(quality.PATCHES)
    assert MEASURES["max_sensitivity"].forwards == f"{quality.PERTURBATIONS} x {AGAIN_COSTS}"
    for name in ("randomisation_top_down", "randomisation_bottom_up"):
        assert MEASURES[name].forwards == f"1 + {quality.STAGES} x {AGAIN_COSTS}"
