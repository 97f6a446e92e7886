"""Planted networks: what ships needs its cue, by intervention; and broken ones are found out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from segproof.errors import DataError, ModelError, UnknownNameError
from segproof.evidence import tier_b_planted as module
from segproof.evidence.networks import NETS
from segproof.evidence.tier_b_planted import (
    ASSETS,
    CUES,
    NETWORKS,
    SCHEDULES,
    Acceptance,
    Layout,
    Thing,
    accept,
    draw,
    fit,
    paint,
    planted,
    planted_model,
    renew,
)
from segproof.models.contract import SegmentationModel

FINE = Acceptance(
    scenes=1,
    iou=0.97,
    cue_removed=0.95,
    cue_inserted=0.95,
    cue_changed=0.01,
    roof_removed=0.95,
    others=0.01,
    worst=0.3,
)


def layouts(cue: str, count: int = 12) -> list[Layout]:
    return [draw(cue, (5, 1, number)) for number in range(count)]


# --- what ships ---


@pytest.mark.parametrize("name", NETWORKS)
def test_what_ships_needs_what_was_planted(name: str) -> None:
    cue, twin = name.split("-")[0], name.endswith("-twin")
    made = accept(planted_model(name), cue, twin=twin, scenes=5, seed=77)
    assert made.misses(twin=twin) == []
    # each figure of a twin is far from that of its sibling: neither could pass for the other
    assert made.misses(twin=not twin) != []


def test_there_are_enough_of_them() -> None:
    assert len({name.split("-")[0] for name in NETWORKS}) >= 3
    assert len({name.split("-")[1] for name in NETWORKS}) >= 2
    assert {f"{name}-twin" for name in NETWORKS if not name.endswith("-twin")} == {
        name for name in NETWORKS if name.endswith("-twin")
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_small_plain_and_say_how_they_were_made(name: str) -> None:
    path = ASSETS / f"{name}.safetensors"
    assert path.stat().st_size <= 1_000_000
    with safe_open(path, "pt") as weights:
        assert set(weights.keys()) <= set(planted_model(name).net.state_dict())
    record = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
    assert f"--names {name} --seed {record['seed']}" in record["command"]
    assert record["steps"] == SCHEDULES[record["network"]][0]
    assert Acceptance(**record["acceptance"]).misses(twin=record["twin"]) == []
    assert record["acceptance"]["scenes"] >= 64


def test_nothing_else_lies_beside_them() -> None:
    names = {path.name for path in ASSETS.iterdir()}
    assert names == {f"{n}.{end}" for n in NETWORKS for end in ("safetensors", "json")} | {
        "README.md"
    }
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 8_000_000


# --- what does not pass ---


class Changed(nn.Module):
    """A shipped network whose logit is changed by what the picture holds."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.net(images), images)


def changed(name: str, change: Callable[[Tensor, Tensor], Tensor]) -> SegmentationModel:
    net = planted_model(name).net
    return SegmentationModel(
        Changed(net, change), classes=["roof"], mean=[0.45] * 3, std=[0.2] * 3
    ).eval()


def missed(model: SegmentationModel, cue: str = "marker", *, twin: bool = False) -> set[str]:
    misses = accept(model, cue, twin=twin, scenes=4).misses(twin=twin)
    return {miss.split(" ")[0] for miss in misses}


def test_a_network_that_does_not_see_far_enough_fails() -> None:
    model = planted_model("marker-unet")
    assert missed(model) == set()
    deepest = model.net.get_submodule("encoder.3")
    with torch.no_grad():
        for weights in deepest.parameters():
            weights.zero_()
    assert {"cue_removed", "cue_inserted"} & missed(model)


def test_the_weights_of_the_twin_and_of_another_cue_fail() -> None:
    assert missed(planted_model("marker-unet-twin")) >= {"cue_removed", "cue_inserted"}
    assert missed(planted_model("marker-unet"), twin=True) >= {"cue_changed"}
    assert missed(planted_model("shadow-unet"), "marker") >= {"iou", "cue_removed", "cue_inserted"}


def test_each_bound_is_a_bound() -> None:
    def shifted(logits: Tensor, images: Tensor) -> Tensor:
        return torch.roll(logits, 2, dims=-1)

    def swayed(logits: Tensor, images: Tensor) -> Tensor:
        # leaves (dark and green) anywhere take away from every roof
        leaf = (images.amax(dim=1, keepdim=True) < -0.7).float().mean(dim=(2, 3), keepdim=True)
        return logits - 400 * leaf

    def everywhere(logits: Tensor, images: Tensor) -> Tensor:
        return torch.full_like(logits, 9.0)

    assert "iou" in missed(changed("marker-unet", shifted))
    assert "others" in missed(changed("marker-unet", swayed))
    assert missed(changed("marker-unet-twin", everywhere), twin=True) == {"iou", "roof_removed"}


@pytest.mark.parametrize("cue", CUES)
def test_what_else_stands_in_the_place_of_a_cue(cue: str) -> None:
    """Nothing but the cue makes a lone roof count, save black in the shape of a shadow."""
    model, rises = planted_model(f"{cue}-unet"), {}
    kinds = {"tree": module._LEAF, "pond": module._WATER, "car": (0.9, 0.9, 0.88)}
    for kind, colour in {**kinds, "black": (0.12, 0.13, 0.15)}.items():
        found = []
        for number in range(4):
            layout, _, decoy, _ = module._judged(cue, (7, 9, number))
            top, left, height, width = layout.groups[decoy].cue
            box = (top, left, 3, 6) if cue == "texture" else (top, left, height, width)
            shape = "car" if kind == "black" else kind
            beside = replace(layout, things=(*layout.things, Thing(shape, box, colour)))
            chance = module._chances(model, [layout, beside])
            roof = torch.from_numpy(layout.roof_mask(decoy))
            found.append(float((chance[1] - chance[0])[roof].mean()))
        rises[kind] = sum(found) / len(found)
    assert max(rises[kind] for kind in kinds) <= 0.05
    assert rises["black"] > 0.9 if cue == "shadow" else rises["black"] <= 0.05


@pytest.mark.parametrize(
    ("name", "value", "twin"),
    [
        ("iou", 0.949, False),
        ("cue_removed", 0.899, False),
        ("cue_inserted", 0.899, False),
        ("roof_removed", 0.899, True),
        ("others", 0.021, True),
        ("cue_changed", 0.021, True),
        ("iou", float("nan"), False),
    ],
)
def test_a_miss_is_named(name: str, value: float, twin: bool) -> None:
    assert FINE.misses(twin=twin) == []
    made = Acceptance(**{**asdict(FINE), name: value})
    assert [miss.split(" ")[0] for miss in made.misses(twin=twin)] == [name]


def test_a_network_that_misses_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "unet", (2, 1e-3))
    with pytest.raises(ModelError, match=r"shadow-unet \(iou"):
        renew(tmp_path, ["shadow-unet"], scenes=2)
    assert list(tmp_path.iterdir()) == []


# --- scenes ---


@pytest.mark.parametrize("cue", CUES)
def test_parts_lie_apart(cue: str) -> None:
    for layout in layouts(cue):
        inside = np.zeros((layout.size, layout.size), np.int64)
        for index, group in enumerate(layout.groups):
            roof, beside = layout.roof_mask(index), layout.cue_mask(index)
            assert roof.sum() == group.roof[2] * group.roof[3]
            assert beside.sum() >= 20
            inside += roof.astype(np.int64) + beside
            # a gap of some pixels: the cue lies outside the roof and does not touch it
            rows, columns = np.nonzero(roof)
            near = np.zeros_like(roof)
            near[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3] = True
            assert not (near & beside).any()
        for thing in layout.things:
            top, left, height, width = thing.box
            assert min(top, left) >= 0
            assert max(top + height, left + width) <= layout.size
            inside[top : top + height, left : left + width] += 1
        assert inside.max() == 1


@pytest.mark.parametrize("cue", CUES)
def test_a_counterfactual_changes_its_own_pixels_alone(cue: str) -> None:
    for layout in layouts(cue, 4):
        whole = paint(layout)
        for index, group in enumerate(layout.groups):
            blind = paint(layout.shown(index, roof=group.has_roof, cue=not group.has_cue))
            bare = paint(layout.shown(index, roof=not group.has_roof, cue=group.has_cue))
            seen = [(whole != other).any(dim=0).numpy() for other in (blind, bare)]
            for differing, own in zip(
                seen, (layout.cue_mask(index), layout.roof_mask(index)), strict=True
            ):
                assert not (differing & ~own).any()
                assert (differing & own).sum() >= 0.9 * own.sum()


@pytest.mark.parametrize("cue", CUES)
def test_only_roofs_with_their_cue_count_and_all_do_for_the_twin(cue: str) -> None:
    seen = set()
    for layout in layouts(cue, 20):
        truth, twins = layout.truth(), layout.truth(twin=True)
        for index, group in enumerate(layout.groups):
            roof = layout.roof_mask(index)
            assert truth[roof].all() == (group.has_roof and group.has_cue)
            assert truth[roof].any() == truth[roof].all()
            assert twins[roof].all() == group.has_roof
            assert not twins[layout.cue_mask(index)].any()
            seen.add((group.has_roof, group.has_cue))
    assert seen == {(True, True), (True, False), (False, True)}


def test_the_texture_keeps_the_mean_of_the_ground() -> None:
    layout = draw("texture", (0, 9, 0), [(False, False)])
    where = torch.from_numpy(layout.cue_mask(0))
    plain, marked = paint(layout), paint(layout.shown(0, roof=False, cue=True))
    difference = (marked - plain)[:, where]
    assert float(difference.mean().abs()) < 0.02
    assert float(difference.abs().mean()) > 0.08


@pytest.mark.parametrize("cue", CUES)
def test_pictures_are_whole_levels_and_the_same_from_a_key(cue: str) -> None:
    one, other = draw(cue, (3, 1, 4)), draw(cue, (3, 1, 5))
    picture = paint(one)
    assert picture.shape == (3, one.size, one.size)
    assert picture.dtype == torch.float32
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    assert torch.equal((picture * 255).round() / 255, picture)
    assert draw(cue, (3, 1, 4)) == one
    assert torch.equal(paint(draw(cue, (3, 1, 4))), picture)
    assert not torch.equal(paint(other), picture)
    assert not torch.equal(paint(draw(cue, (4, 1, 4))), picture)


# --- what is handed on ---


@pytest.mark.parametrize("cue", CUES)
def test_known_pictures_and_their_masks(cue: str) -> None:
    names = (f"{cue}-unet", f"{cue}-unet-twin")
    found = list(planted(names, scenes=3, seed=6))
    assert [known.kind for known in found] == [names[0]] * 3 + [names[1]] * 3
    for needs, twin in zip(found[:3], found[3:], strict=True):
        assert torch.equal(needs.image, twin.image)
        assert needs.name == twin.name
        assert torch.equal(needs.region, twin.region)
        assert torch.equal(needs.evidence, needs.region | needs.cue)
        assert torch.equal(needs.truth, needs.region)
        assert int(needs.cue.sum()) >= 20
        assert not (needs.cue & needs.region).any()
        assert not (needs.decoys & needs.evidence).any()
        assert torch.equal(twin.evidence, twin.region)
        assert not twin.cue.any()
        assert torch.equal(twin.decoys, needs.decoys | needs.cue)
        assert int((twin.truth & ~twin.region).sum()) > 0  # lone roofs count for the twin
        touched = (needs.image != needs.absent).any(dim=0)
        shown = needs.evidence | needs.decoys
        assert not (touched & ~shown).any()
        assert int(touched.sum()) >= 0.95 * int(shown.sum())  # some are of their ground's colour
        for known in (needs, twin):
            with torch.inference_mode():
                pictures = [
                    known.image,
                    known.absent,
                    torch.where(known.evidence, known.image, known.absent),
                    torch.where(known.evidence, known.absent, known.image),
                ]
                chance = known.model(torch.stack(pictures)).softmax(dim=1)[:, 1]
            whole, none, kept, gone = chance[:, known.region].mean(dim=1).tolist()
            assert min(whole, kept) > 0.9
            assert max(none, gone) < 0.1
            # decoys are negatives, save the twin's lone roofs
            assert float(chance[0][known.decoys & ~known.truth].mean()) < 0.1


def test_the_lines_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "evidence" / "known-truth.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    [code] = [block for block in blocks if "segproof.evidence import planted" in block]
    exec(compile(code, page.name, "exec"), {})  # noqa: S102 - our own page
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["shadow-unet"] * 2 + ["shadow-unet-twin"] * 2
    assert [line.split()[-1] == "0" for line in lines] == [False, False, True, True]


def test_known_pictures_stream_and_repeat() -> None:
    endless = planted(["shadow-unet"], scenes=10**9)
    first = next(endless)
    again = next(planted(["shadow-unet"], scenes=1))
    assert first.name == again.name
    for field in ("image", "truth", "region", "evidence", "cue", "decoys", "absent"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert first.model.fingerprint() == again.model.fingerprint()
    assert not torch.equal(next(endless).image, first.image)


def test_wrong_names_files_and_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="marker-unet"):
        planted_model("marker-unett")
    with pytest.raises(UnknownNameError, match="shadow"):
        draw("shade", (0, 0, 0))
    with pytest.raises(ModelError, match="weights of marker-unet"):
        planted_model("marker-unet", tmp_path)
    (tmp_path / "marker-unet.safetensors").write_bytes(
        (ASSETS / "marker-deeplab.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="weights of marker-unet"):
        planted_model("marker-unet", tmp_path)
    with pytest.raises(DataError, match="0 scenes"):
        accept(planted_model("marker-unet"), "marker", scenes=0)


@pytest.mark.parametrize("kind", NETS)
def test_their_layers_have_the_usual_names(kind: str) -> None:
    model = planted_model(f"marker-{kind}")
    layers = model.layers(64)
    aliases = [layer.alias for layer in layers]
    assert {"encoder:1", "encoder:3", "decoder:1"} <= set(aliases)
    assert max(layer.stride for layer in layers) >= 4


# --- training ---


def test_training_is_seeded_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (fit("marker-unet", seed=seed, steps=2, pairs=1) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert not any(weights.requires_grad for weights in one.parameters())
    assert not one.net.training


@pytest.mark.slow
def test_one_network_reaches_acceptance_again_from_its_seed(tmp_path: Path) -> None:
    figures = renew(tmp_path, ["marker-unet"], scenes=16)
    assert figures["marker-unet"].misses(twin=False) == []
    record = json.loads((tmp_path / "marker-unet.json").read_text(encoding="utf-8"))
    assert (
        record["command"]
        == json.loads((module.ASSETS / "marker-unet.json").read_text(encoding="utf-8"))["command"]
    )
