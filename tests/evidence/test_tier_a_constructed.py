"""Networks built by hand decide as they say: shown by intervention, not by reading the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segproof.errors import UnknownNameError
from segproof.evidence.known import KnownScene
from segproof.evidence.tier_a_constructed import KINDS, Kind, constructed, constructed_model
from segproof.models.contract import probabilities


def chance(known: KnownScene, image: Tensor) -> Tensor:
    """P(roof) [H, W]."""
    with torch.no_grad():
        return probabilities(known.model(image[None]), known.model.activation)[0, 1]


def without(known: KnownScene, mask: Tensor) -> float:
    """Mean P over R with `mask` as in the empty picture."""
    return float(chance(known, torch.where(mask, known.absent, known.image))[known.region].mean())


@pytest.fixture(scope="module")
def scenes() -> list[KnownScene]:
    return list(constructed(6, seed=3))


def test_every_network_finds_exactly_its_roofs(scenes: list[KnownScene]) -> None:
    for known in scenes:
        assert bool(((chance(known, known.image) >= 0.5) == known.truth).all()), known.name
        assert float(chance(known, known.absent).max()) < 0.01


@pytest.mark.parametrize(
    ("kind", "needs"),
    [("local", {"roof"}), ("shortcut", {"cue"}), ("both", {"roof", "cue"})],
)
def test_what_is_needed_is_what_the_kind_says(
    scenes: list[KnownScene], kind: Kind, needs: set[str]
) -> None:
    by_kind = {(known.name, known.kind): known for known in scenes}
    for known in (known for known in scenes if known.kind == kind):
        masks = {"roof": known.truth, "cue": by_kind[known.name, "both"].cue}
        for part, mask in masks.items():
            left = without(known, mask)
            assert left < 0.02 if part in needs else left > 0.98, (kind, part)
        assert without(known, by_kind[known.name, "both"].decoys) > 0.98


def test_decoys_and_ground_change_nothing_at_all(scenes: list[KnownScene]) -> None:
    for known in scenes:
        ground = ~(known.evidence | known.decoys)
        before = chance(known, known.image)[known.region]
        for mask in (known.decoys, ground):
            other = torch.where(mask, torch.rot90(known.absent, 2, (-2, -1)), known.image)
            assert bool((chance(known, other)[known.region] == before).all())


def test_half_of_the_cue_is_half_of_the_decision(scenes: list[KnownScene]) -> None:
    known = next(known for known in scenes if known.kind == "both")
    columns = known.cue.nonzero()[:, 1]
    half = known.cue & (torch.arange(known.cue.shape[1]) < columns.min() + 8)
    assert int(half.sum()) * 2 == int(known.cue.sum())
    assert without(known, half) == pytest.approx(0.5, abs=0.12)


def test_masks_tile_evidence_and_decoys(scenes: list[KnownScene]) -> None:
    for known in scenes:
        assert known.tier == "a"
        assert not bool((known.evidence & known.decoys).any())
        assert bool((known.cue & known.evidence == known.cue).all())
        assert not bool((known.cue & known.region).any())
        assert int(known.truth.sum()) == 400
        assert int(known.cue.sum()) == (0 if known.kind == "local" else 256)


def test_scenes_are_decided_by_the_seed() -> None:
    first, again, other = (list(constructed(2, seed=seed)) for seed in (0, 0, 1))
    assert [known.kind for known in first] == [*KINDS, *KINDS]
    for one, two in zip(first, again, strict=True):
        assert bool((one.image == two.image).all())
    assert not bool((first[0].image == other[0].image).all())
    assert not bool((first[0].image == first[3].image).all())
    assert bool((first[0].image == first[1].image).all())  # kinds share the scene


def test_layers_are_found_under_the_usual_names() -> None:
    found = {layer.alias: layer.stride for layer in constructed_model("both").layers(64)}
    assert found == {
        "encoder:1": 1, "encoder:2": 2, "encoder:3": 4,
        "decoder:1": 4, "decoder:2": 2, "decoder:3": 1,
    }  # fmt: skip


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="kind 'lokal'; expected one of local"):
        constructed_model("lokal")
