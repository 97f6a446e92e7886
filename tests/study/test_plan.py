"""What a study plans, asks for and shows: against the pictures that a network really was given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import tiny
from segproof.cli.app import main
from segproof.data import FolderDataset
from segproof.errors import StudyError
from segproof.explain.api import explain
from segproof.explain.methods import CHANNELWISE, LAYERLESS
from segproof.explain.target import Target
from segproof.measures.case import Undefined
from segproof.measures.robustness import alike
from segproof.models.contract import SegmentationModel
from segproof.models.loaders.load import demo_model_spec
from segproof.perturb import FILLS
from segproof.study.pictures import TilePictures
from segproof.study.plan import Kind
from segproof.study.results import Results
from segproof.study.run import Study
from segproof.study.speed import distance_of
from segproof.study.store import Row

WIDE: dict[str, Any] = {
    "methods": ("grad_cam", "layer_cam", "grad_cam_elementwise", "score_cam", "eigen_cam",
                "ablation_cam", "kernel_weighted", "occlusion", "input_x_gradient"),
    "thresholds": (0.3, 0.6),
    "areas": (0.1, 0.2),
    "masses": (0.5,),
    "otsu": True,
    "soft": True,
    "references": ("prediction",),
    "fuse": ("mean", "max"),
    "fills": ("black", "noise"),
    "controls": ("original", "empty", "target_only", "target_removed", "random", "p_c", "edges",
                 "truth", "uniform", "inverse"),
    "measures": ("gini", "infidelity"),
    "limit": 2,
}  # fmt: skip


class Spy:
    """A network that notes how many pictures it was shown."""

    def __init__(self) -> None:
        self.model = tiny.network()
        self.shown = 0
        self.model.net.register_forward_pre_hook(self._note)

    def _note(self, _net: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.shown += len(given[0])

    def run(self, tiles: Path, out: Path, **settings: Any) -> Results:
        study = Study.of(**(tiny.SETTINGS | {"data": str(tiles)} | settings))
        return study.run(out, model=self.model, data=FolderDataset(tiles))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiles(tmp_path_factory.mktemp("plan") / "tiles", 3)


@pytest.fixture(scope="module")
def wide(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, int]:
    spy = Spy()
    return spy.run(tiles, tmp_path_factory.mktemp("wide") / "run", **WIDE), spy.shown


def test_every_picture_that_the_network_is_shown_is_counted(wide: tuple[Results, int]) -> None:
    """Tiles, the choice of kernels, and two forwards that list the layers and tell their axes."""
    results, shown = wide
    manifest = results.manifest
    assert manifest["tiles"]["ok"] == 2
    assert manifest["forwards"] == results.tiles["forwards"].sum()
    assert manifest["forwards"] + manifest["kernels"]["forwards"] + 2 == shown
    assert manifest["forwards_asked"] == results.tiles["asked"].sum() > manifest["forwards"]


def test_what_is_planned_is_asked_for(wide: tuple[Results, int], tiles: Path) -> None:
    """Every channel of this network says something: what is planned at most is asked for."""
    results, _ = wide
    plan = Study.of(**(tiny.SETTINGS | {"data": str(tiles)} | WIDE)).plan(tiny.network())
    bare = [name for name in plan.study.methods if name in LAYERLESS]
    each = sum(CHANNELWISE.get(name, 0) * 4 + (name in CHANNELWISE) for name in plan.study.methods)
    spent = 1 + 2 * each + sum(LAYERLESS[name]((tiny.SIDE, tiny.SIDE)) for name in bare)
    assert plan.forwards_per_tile == spent + plan.pictures_per_tile
    assert len(results.rows) == 2 * plan.pictures_per_tile
    # infidelity shows 64 pictures for each map and for each control that is judged, and gini none
    judged = results.scores[results.scores["measure"] == "infidelity"]
    unseen = results.rows[results.rows["confidence"].isna()]
    for tile in results.tiles.itertuples():
        flat = int((unseen["sample"] == tile.sample).sum())
        more = 64 * int((judged["sample"] == tile.sample).sum())
        assert tile.asked == plan.forwards_per_tile - flat + more


def test_the_plan_lists_every_picture_in_the_order_of_the_rows(
    wide: tuple[Results, int], tiles: Path
) -> None:
    results, _ = wide
    pictures = (
        Study.of(**(tiny.SETTINGS | {"data": str(tiles)} | WIDE)).plan(tiny.network()).pictures()
    )
    columns = ["method", "layer", "binarisation", "level", "strategy", "reference", "fill", "seed"]
    listed = pd.DataFrame([[getattr(one, name) for name in columns] for one in pictures])
    listed.columns = pd.Index(columns)
    for _, rows in results.rows.groupby("sample"):
        pd.testing.assert_frame_equal(
            rows[columns].reset_index(drop=True), listed, check_dtype=False
        )
    # counted by hand: 7 methods at 2 layers and joined in 2 ways, 2 without a layer: 30 maps of
    # 7 cuts, 4 readings (M3 has a second reference) and 2 fills; controls: random 5 x 3 cuts,
    # p_c 5, uniform 2, edges 3, truth 3; inverse: 2 areas of each map
    kinds = {kind: sum(one.kind == kind for one in pictures) for kind in get_args(Kind)}
    assert kinds == {
        "original": 1, "target_removed": len(FILLS), "empty": 2, "target_only": 4,
        "method": 30 * 7 * 4 * 2, "control": (15 + 5 + 2 + 3 + 3) * 4 * 2 + 30 * 2 * 2,
    }  # fmt: skip
    assert len(set(pictures)) == len(pictures)


def test_alike_pictures_are_shown_once_and_measured_alike(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps of two methods that agree where activations are not negative, singly and in batches."""
    settings = {"methods": ("layer_cam", "grad_cam_elementwise"), "limit": 1, "soft": True}
    settings |= {"controls": ("truth", "target_only"), "references": ("prediction",)}
    made, spies = {}, {}
    for batch in (1, 4):
        spies[batch] = Spy()
        made[batch] = spies[batch].run(tiles, tmp_path / f"{batch}", batch=batch, **settings)
    unlike = iter(range(10**6))
    monkeypatch.setattr(TilePictures, "_key", lambda *_: str(next(unlike)).encode())
    spy = Spy()
    every = spy.run(tiles, tmp_path / "every", batch=1, **settings)
    assert every.manifest["forwards"] == every.manifest["forwards_asked"]
    for batch, results in made.items():
        assert results.manifest["forwards_asked"] == every.manifest["forwards"]
        assert results.manifest["forwards"] == made[1].manifest["forwards"]
        pd.testing.assert_frame_equal(
            results.rows, every.rows, check_exact=batch == 1, rtol=0, atol=2e-6
        )
    # all of one method's pictures at least are those of the other
    ones = (every.rows["method"] == "grad_cam_elementwise") & every.rows["confidence"].notna()
    assert ones.sum() > 30
    assert every.manifest["forwards"] - made[1].manifest["forwards"] >= ones.sum()


def test_a_picture_is_the_same_one_only_with_the_same_fill_region_and_mask(tiles: Path) -> None:
    data = FolderDataset(tiles)
    model: SegmentationModel = tiny.network()
    settings = tiny.SETTINGS | {"data": str(tiles), "references": ("prediction",)}
    plan = Study.of(**settings).plan(model, data)
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[:2] = True

    class Bound:
        region = truth[None]
        valid = torch.ones_like(region)
        prediction = truth[None].clone()

    class Seen:
        bound = Bound()

    def key(tile: TilePictures, fill: str, reference: str, keep: Tensor) -> bytes:
        row = Row("t", "grad_cam", "a", "area", 0.1, "background_only", reference, fill)
        return tile._key(row, keep)

    def tile() -> TilePictures:
        return TilePictures(plan, model, "t", Seen(), truth, {}, lambda *_: None)  # type: ignore[arg-type]

    keep = ~truth
    first = key(tile(), "black", "truth", keep)
    assert first == key(tile(), "black", "truth", keep.clone())
    assert first == key(tile(), "black", "prediction", keep)  # the same R
    assert first != key(tile(), "noise", "truth", keep)
    assert first != key(tile(), "black", "truth", truth)
    assert first != key(tile(), "black", "truth", keep.float())
    assert first == key(tile(), "black", "truth", keep.T.contiguous().T)
    whole = torch.ones_like(truth)
    assert key(tile(), "black", "truth", whole) == key(tile(), "noise", "truth", whole)
    Bound.prediction = ~truth[None]
    assert first != key(tile(), "black", "prediction", keep)


SHORT: dict[str, Any] = {"methods": ("score_cam", "grad_cam"), "controls": (), "areas": ()}


def test_score_cam_of_some_channels_says_how_far_it_is_from_all(
    tiles: Path, tmp_path: Path
) -> None:
    spy = Spy()
    results = spy.run(tiles, tmp_path / "short", score_channels=2, **SHORT)
    said = results.manifest["score_cam"]
    assert said["channels"] == 2
    assert set(said["layers"]) == {"decoder.blocks.0", "decoder.blocks.1"}
    for found in said["layers"].values():
        assert (found["shown"], found["exact"], found["tiles"]) == (3, 5, 3)
        assert -1 <= found["spearman_min"] <= found["spearman"] <= 1
        assert 0 <= found["iou_min"] <= found["iou"] <= 1
    assert min(found["spearman"] for found in said["layers"].values()) < 1
    # all that was shown: tiles, kernels, both maps of three tiles, two sizes for the list of layers
    counted = results.manifest["forwards"] + results.manifest["kernels"]["forwards"]
    assert said["forwards"] == 3 * (2 * 1 + 2 * (3 + 5))
    assert counted + said["forwards"] + 2 == spy.shown
    plan = results_plan(tiles, score_channels=2)
    assert plan.forwards_per_tile == 1 + 2 * (1 + 2) + plan.pictures_per_tile
    exact = Spy().run(tiles, tmp_path / "exact", **SHORT)
    assert exact.manifest["score_cam"] is None
    every = Spy().run(tiles, tmp_path / "every", score_channels=9, **SHORT)
    pd.testing.assert_frame_equal(every.rows, exact.rows)
    assert all(found["iou"] == 1 for found in every.manifest["score_cam"]["layers"].values())


def results_plan(tiles: Path, **settings: Any) -> Any:
    study = Study.of(**(tiny.SETTINGS | {"data": str(tiles)} | SHORT | settings))
    return study.plan(tiny.network())


@pytest.mark.parametrize("change", [{"preset": "paper"}, {"methods": ("grad_cam",)}])
def test_a_shortcut_that_means_nothing_is_refused(tiles: Path, change: dict[str, Any]) -> None:
    settings = tiny.SETTINGS | {"data": str(tiles), "score_channels": 2} | SHORT | change
    with pytest.raises(StudyError, match="score_channels 2 with preset"):
        Study.of(**settings)


def test_maps_are_alike_by_rank_and_by_region() -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = tiny.network()
    layer, target = "decoder.blocks.1", Target("building")
    one = explain(model, picture, layer=layer, target=target)
    assert one.status == "ok"
    assert alike(one, one) == {"spearman": pytest.approx(1), "iou": 1}
    turned = dataclasses.replace(one, raw=one.raw.amax() + one.raw.amin() - one.raw)
    assert alike(one, turned)["spearman"] == pytest.approx(-1, abs=1e-3)
    assert alike(one, turned)["iou"] < 0.05
    flat = dataclasses.replace(one, raw=torch.zeros_like(one.raw), status="all_zero")
    with pytest.raises(Undefined, match="flat"):
        alike(one, flat)
    # a map that the shortcut lost counts, one that never was does not
    found = distance_of([one, flat, flat], [one, one, flat])[layer]
    assert (found["tiles"], found["spearman_min"], found["iou_min"]) == (2, 0, 0)
    assert found["spearman"] == pytest.approx(0.5)


def test_explain_says_the_distance_on_the_first_of_several_pictures(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(path) for path in sorted((tiles / "image").iterdir())[:2]]
    words = ["explain", "--model", demo_model_spec(), "--class", "building", "--layer", "decoder:5"]
    short = [*words, "--method", "score_cam", "--score-channels", "3"]
    assert main([*short, *pictures, "--out", str(tmp_path / "short")]) == 0
    assert "runs 4 pictures instead of" in " ".join(capsys.readouterr().out.split())
    first, second = json.loads((tmp_path / "short" / "explanations.json").read_text())
    assert (first["score_channels"], first["forwards"]) == (3, 5)
    assert first["exact"]["decoder:5"]["exact"] > 4
    assert "exact" not in second
    assert main([*words, *pictures, "--score-channels", "3", "--out", str(tmp_path / "no")]) == 2
    assert "--score-channels with methods grad_cam" in capsys.readouterr().err
    assert main([*short[:-1], "0", *pictures[:1], "--out", str(tmp_path / "none")]) == 2
    assert "found 0 channels; expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
