"""The study: rows against the literal formulas, resume, refusal, faults of single tiles."""

from __future__ import annotations

import io
import shlex
import shutil
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from rich.console import Console

import reference
from segproof import (
    DataError,
    FolderDataset,
    Results,
    Sample,
    SegmentationModel,
    Study,
    StudyError,
    Target,
    UnknownNameError,
    binarise,
    explain,
    load_model,
    probabilities,
)
from segproof.analysis import Analysis, headline
from segproof.data.scenes import write_scenes
from segproof.errors import ModelError
from segproof.explain.api import clean_of, explain_all
from segproof.explain.forward_pass import capture
from segproof.explain.masked import occlusion_windows
from segproof.explain.methods import METHODS
from segproof.explain.target import Region
from segproof.measures import MAP_MEASURES
from segproof.measures.case import HeatmapCase
from segproof.measures.records import BOUNDARY
from segproof.models.loaders.load import demo_model_spec, save_model
from segproof.perturb.fills import make_fill
from segproof.perturb.records import FILLS, FillFunction
from segproof.perturb.regions import dilate, rough_noise, roughen
from segproof.perturb.seeding import seeded
from segproof.report import page as report
from segproof.report.terminal import print_analysis
from segproof.study import fill_check as probe
from segproof.study.fill_check import (
    OUTLINES,
    choose_fills,
    choose_outline,
    probe_fills,
)
from segproof.study.store import COLUMNS
from segproof.study.tile import donor_of, edges, study_tile

RANDOM_SEEDS = 5
REQUIRED = [
    *("sample", "method", "layer", "binarisation", "level", "strategy", "reference", "fill"),
    *("area", "coverage", "confidence", "entropy", "kept", "certainty", "iou", "iou_delta"),
    "status",
]
SMALL: dict[str, Any] = {
    "model": demo_model_spec(),
    "class": "building",
    "methods": ("grad_cam", "eigen_cam"),
    "layers": ("decoder:1", "decoder:2"),
    "thresholds": (0.3,),
    "areas": (0.1, 0.2),
}


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated tiles of 96 px; the second has no building."""
    folder = tmp_path_factory.mktemp("tiles") / "data"
    write_scenes(folder, 3, seed=2, size=96)
    return folder


@pytest.fixture(scope="session")
def network() -> SegmentationModel:
    return load_model(demo_model_spec())


@pytest.fixture(scope="session")
def strict(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Study.of(data=str(tiles), **SMALL).run(tmp_path_factory.mktemp("strict") / "run")


@pytest.fixture(scope="session")
def paper(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    settings = SMALL | {"preset": "paper", "methods": ("grad_cam_pp", "score_cam")}
    settings |= {"layers": ("decoder:2",)}
    return Study.of(data=str(tiles), **settings).run(tmp_path_factory.mktemp("paper") / "run")


def test_columns_are_the_promised_ones(strict: Results) -> None:
    assert list(strict.rows.columns)[: len(REQUIRED)] == REQUIRED
    assert list(strict.rows.columns) == list(COLUMNS)
    exported = pd.read_parquet(strict.folder / "results.parquet")
    pd.testing.assert_frame_equal(exported.astype(strict.rows.dtypes), strict.rows)


@pytest.mark.parametrize("run", ["strict", "paper"])
def test_rows_are_the_literal_formulas(
    run: str, request: pytest.FixtureRequest, tiles: Path, network: SegmentationModel
) -> None:
    """Every row of a method, recomputed from the picture by the slow float64 reference."""
    results: Results = request.getfixturevalue(run)
    sample = FolderDataset(tiles)[0]
    image, truth = sample["image"], sample["mask"] == 1
    preset = results.preset
    target = Target("building", region="truth", preset=preset)
    fills = results.manifest["fills"]
    rows = results.rows
    rows = rows[(rows["sample"] == sample["id"]) & ~rows["method"].str.startswith("control:")]
    checked = 0
    every = np.ones(truth.shape, dtype=bool)
    before = _probability(network, image.numpy())
    made_fills = {
        fill: _fill(network, image, truth, target, fill, results, tiles) for fill in fills
    }
    keep: Any
    for (method, layer), part in rows.groupby(["method", "layer"]):
        how: dict[str, Any] = {"method": method, "layer": layer}
        made = explain(network, image, target=target, truth=truth, **how)
        heat = made.heatmap().double().numpy()
        assert made.status == "ok"
        lines: list[Any] = list(part.itertuples())
        for row in lines:
            if row.binarisation == "threshold":
                region = reference.binarise_threshold(heat, row.level, every)
            else:
                region = made.region(area=row.level).numpy()
                inside, outside = heat[region].min(), heat[~region].max()
                assert region.sum() == reference.area_count(row.level, every)
                assert inside >= outside
                if inside == outside:
                    continue  # ties at the edge are broken by the study's own seed
            keep = {
                "background_only": ~region,
                "highlighted_only": region,
                "highlighted_and_target": region | truth.numpy(),
            }[row.strategy]
            b = made_fills[row.fill](image[None], torch.from_numpy(keep)[None])[0].numpy()
            x = reference.shown(row.strategy, region, truth.numpy(), image.numpy(), b)
            p = _probability(network, x)
            expected = {
                "area": region.mean(),
                "coverage": (region & truth.numpy()).sum() / truth.numpy().sum(),
                "confidence": reference.confidence(p, 1, truth.numpy()),
                "kept": reference.kept(p, 1, truth.numpy(), "softmax"),
                "certainty": reference.certainty(p, 1, truth.numpy(), "softmax"),
                "iou": reference.iou(reference.decided(p, 1, "softmax"), truth.numpy(), every),
                "entropy": reference.entropy_paper(p, 1, truth.numpy())
                if preset == "paper"
                else reference.entropy(p, 1, truth.numpy(), "softmax"),
                "iou_delta": reference.iou_delta(p, before, 1, truth.numpy(), every, "softmax"),
            }
            for column, value in expected.items():
                # a pixel at p = 0.5 may flip between batch sizes: one pixel of R is 1e-3
                loose = 3e-3 if column in ("kept", "certainty", "iou", "iou_delta") else 2e-5
                assert getattr(row, column) == pytest.approx(value, abs=loose), (column, row)
            checked += 1
    assert checked >= 12


def _probability(network: SegmentationModel, image: Any) -> Any:
    with torch.inference_mode():
        logits = network(torch.as_tensor(np.asarray(image), dtype=torch.float32)[None])
    return probabilities(logits, "softmax")[0].double().numpy()


def _seen(
    network: SegmentationModel, image: torch.Tensor, truth: torch.Tensor, target: Target
) -> Any:
    from segproof.explain.forward_pass import capture

    return capture(network, image[None], target, [], truth[None], gradients=False)


def _fill(
    network: SegmentationModel,
    image: torch.Tensor,
    truth: torch.Tensor,
    target: Target,
    fill: str,
    results: Results,
    tiles: Path,
) -> FillFunction:
    """The study's fill of its first tile, with a patch of the next tile that has one."""
    data = FolderDataset(tiles)
    plan = Study.of(data=str(tiles), **SMALL)._resolved(network, data)
    donor = donor_of(replace(plan, fills=tuple(results.manifest["fills"])), network, data, 0)
    seed = (0, data.ids[0], fill)
    seen = _seen(network, image, truth, target)
    return make_fill(fill, clean_of(seen, network, truth, seed=seed, donor=donor))


def test_the_command_of_a_study_makes_it_again(tiles: Path) -> None:
    study = Study.of(data=str(tiles), **SMALL, controls=(), seed=3)
    words = shlex.split(study.command("a folder/run"))
    assert words[-2:] == ["--out", "a folder/run"]
    flags = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    assert flags["--controls"] == "none"
    assert flags["--thresholds"] == "0.3"
    assert flags["--class"] == "building"
    assert flags["--seed"] == "3"
    assert "--batch" not in flags


def test_plan_counts_what_is_shown(strict: Results, tiles: Path) -> None:
    plan = Study.of(data=str(tiles), **SMALL).plan()
    ok = strict.tiles[strict.tiles["status"] == "ok"]
    assert len(ok) == 2
    # without Score-CAM the bound is exact but for flat maps, which are not shown
    flat = (
        strict.rows.assign(flat=strict.rows["status"] == "all_zero").groupby("sample")["flat"].sum()
    )
    spent = ok.set_index("sample")["asked"] + flat
    assert (spent == plan.forwards_per_tile).all()
    assert len(strict.rows) == 2 * plan.pictures_per_tile
    assert plan.forwards == 3 * plan.forwards_per_tile


def test_a_study_takes_the_published_five_unless_told_otherwise() -> None:
    five = ("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "eigen_cam")
    needed = {"model": "smp:x", "data": "y", "class": "building"}
    assert Study.of(**needed).methods == five
    assert set(five) < set(METHODS)
    assert Study.of(**needed, methods=tuple(METHODS)).methods == tuple(METHODS)


@pytest.mark.parametrize(
    ("methods", "each", "once"),
    [
        (("grad_cam",), 0, 0),
        (("ablation_cam",), 1, 1),
        (("kernel_weighted",), 2, 1),
        (("score_cam", "ablation_cam", "hires_cam", "kernel_weighted"), 4, 3),
    ],
)
def test_plan_counts_forwards_for_each_channel(
    tiles: Path, methods: tuple[str, ...], each: int, once: int
) -> None:
    plan = Study.of(data=str(tiles), **(SMALL | {"methods": methods})).plan()
    channels = sum(shape.channels for shape in plan.shapes)
    spent = each * channels + once * len(plan.shapes)
    assert plan.forwards_per_tile == 1 + spent + plan.pictures_per_tile


def test_controls_are_rows(strict: Results) -> None:
    rows = strict.rows
    counts = rows.groupby("method").size()
    fills = strict.manifest["fills"]
    assert len(fills) == 2
    assert counts["control:original"] == 2
    assert counts["control:target_removed"] == 2 * len(FILLS)
    assert counts["control:empty"] == counts["control:target_only"] == 2 * len(fills)
    assert counts["control:random"] == 2 * RANDOM_SEEDS * 2 * 3 * len(fills)
    assert counts["control:p_c"] == 2 * 3 * 3 * len(fills)
    original = rows[rows["method"] == "control:original"]
    assert (original["iou_delta"] == 0).all()
    assert (original["iou_prediction"] == 1).all()
    matched = rows[(rows["binarisation"] == "area") & (rows["level"] == 0.1)]
    matched = matched[matched["status"] == "ok"]
    assert matched["area"].unique().tolist() == [round(0.1 * 96 * 96) / (96 * 96)]


def test_random_blobs_differ_by_seed_and_repeat(strict: Results) -> None:
    rows = strict.rows[(strict.rows["method"] == "control:random") & (strict.rows["level"] == 0.1)]
    one = rows[(rows["strategy"] == "highlighted_only") & (rows["fill"] == rows["fill"].iloc[0])]
    assert one.groupby("sample")["confidence"].nunique().tolist() == [RANDOM_SEEDS, RANDOM_SEEDS]


def test_strict_takes_valid_fills(strict: Results) -> None:
    validity = strict.manifest["fills_valid"]
    assert set(validity) == set(FILLS)
    for fill in strict.manifest["fills"]:
        assert validity[fill]["valid"] == (validity[fill]["mean_drop"] >= 0.5)
    passing = [fill for fill in FILLS if validity[fill]["valid"] and FILLS[fill].quick]
    # the least artificial one, and the next of another kind
    assert strict.manifest["fills"] == ["background_texture", "borrowed"]
    assert passing[:3] == ["background_texture", "inpaint", "borrowed"]


def test_fills_are_chosen_of_two_kinds() -> None:
    study = Study.of(model="smp:x", data="y", **{"class": "building"})

    def chosen(*good: str) -> tuple[str, ...]:
        drops = {fill: 0.1 + 0.01 * place for place, fill in enumerate(FILLS)}
        drops |= dict.fromkeys(good, 0.8)
        return choose_fills(study, {fill: {"mean_drop": drop} for fill, drop in drops.items()})

    assert chosen(*FILLS) == ("background_texture", "borrowed")
    assert chosen("linear") == ("noise", "black")  # half a second a picture: only if it is named
    assert chosen("inpaint", "background_texture", "noise") == ("background_texture", "noise")
    assert chosen("inpaint", "background_texture") == ("background_texture", "inpaint")
    assert chosen("black") == ("black", "noise")  # noise misleads the least of the others
    assert chosen() == ("noise", "black")


def test_grown_regions_are_wider_by_so_many_pixels(
    tiles: Path, tmp_path: Path, network: SegmentationModel
) -> None:
    settings = SMALL | {"limit": 1, "controls": (), "fills": ("black",), "methods": ("grad_cam",)}
    study = Study.of(data=str(tiles), **settings, grow=3)
    rows = study.run(tmp_path / "run").rows
    sample = FolderDataset(tiles)[0]
    truth = sample["mask"] == 1
    removed = rows[rows["method"] == "control:target_removed"].iloc[0]
    grown = dilate(truth, 3)
    assert removed["area"] == pytest.approx(float(grown.float().mean()))
    shown = torch.where(grown, 0.0, sample["image"])
    p = _probability(network, shown.numpy())
    assert removed["confidence"] == pytest.approx(p[1][truth.numpy()].mean(), abs=2e-5)
    target = Target("building", region="truth")
    for row in rows[(rows["binarisation"] == "threshold") & (rows["status"] == "ok")].itertuples():
        made = explain(
            network, sample["image"], method="grad_cam", layer=str(row.layer), target=target,
            truth=truth,
        )  # fmt: skip
        wide = dilate(made.region(threshold=0.3), 3)
        assert row.area == pytest.approx(float(wide.float().mean()))
    assert "--grow 3" in study.command("x")


def test_outlines_are_roughened_after_they_are_grown(
    tiles: Path, tmp_path: Path, network: SegmentationModel
) -> None:
    settings = SMALL | {"limit": 1, "controls": (), "fills": ("black",), "methods": ("grad_cam",)}
    study = Study.of(data=str(tiles), **settings, grow=1, roughen=5)
    rows = study.run(tmp_path / "run").rows
    sample = FolderDataset(tiles)[0]
    truth = sample["mask"] == 1
    noise = rough_noise((96, 96), 5, seeded("roughen", study.seed, sample["id"]))
    removed = rows[rows["method"] == "control:target_removed"].iloc[0]
    gone = roughen(dilate(truth, 1), noise)
    assert not torch.equal(gone, dilate(truth, 1))
    assert removed["area"] == pytest.approx(float(gone.float().mean()))
    p = _probability(network, torch.where(gone, 0.0, sample["image"]).numpy())
    assert removed["confidence"] == pytest.approx(p[1][truth.numpy()].mean(), abs=2e-5)
    target = Target("building", region="truth")
    chosen = rows[(rows["binarisation"] == "threshold") & (rows["status"] == "ok")]
    assert len(chosen)
    for row in chosen.itertuples():
        made = explain(
            network, sample["image"], method="grad_cam", layer=str(row.layer), target=target,
            truth=truth,
        )  # fmt: skip
        wide = roughen(dilate(made.region(threshold=0.3), 1), noise)
        assert row.area == pytest.approx(float(wide.float().mean()))
        assert row.coverage == pytest.approx(float(wide[truth].float().mean()))
    assert "--grow 1 --roughen 5" in study.command("x")


@pytest.fixture(scope="module")
def wide_run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Results]:
    """Soft masks, both references, boundary-F, every control; tiles with and without buildings."""
    settings = SMALL | {"fills": ("black", "inpaint"), "areas": (0.1,), "layers": ("decoder:2",)}
    study = Study.of(
        data=str(tiles), **settings, soft=True, boundary=True, references=("truth", "prediction")
    )
    return study, study.run(tmp_path_factory.mktemp("wide") / "run")


def test_soft_masks_references_and_boundaries_are_the_literal_formulas(
    wide_run: tuple[Study, Results], tiles: Path, network: SegmentationModel
) -> None:
    _, results = wide_run
    sample = FolderDataset(tiles)[0]
    x, G = sample["image"], sample["mask"] == 1
    p = _probability(network, x.numpy())
    R = {"truth": G.numpy(), "prediction": p[1] > p[0]}
    assert (R["truth"] != R["prediction"]).any()
    target = Target("building", region="truth")
    seen = capture(network, x[None], target, [], G[None], gradients=False).bound
    rows = results.rows[results.rows["sample"] == sample["id"]]
    maps: dict[str, Any] = {
        name: explain(
            network, x, method=name, layer="decoder:2", target=target, truth=G
        ).heatmap().double().numpy()
        for name in ("grad_cam", "eigen_cam")
    }  # fmt: skip
    maps["control:truth"] = G.double().numpy()
    maps["control:p_c"] = p[1] / p[1].max()
    black = np.zeros_like(x.numpy())
    checked = set()
    for row in rows[rows["fill"] == "black"].itertuples():
        region: Any = R[str(row.reference)]
        if row.binarisation == "soft" and row.method in maps:
            S = maps[str(row.method)]
            keep = {
                "background_only": 1 - S,
                "highlighted_only": S,
                "highlighted_and_target": np.maximum(S, region),
            }[str(row.strategy)]
            assert row.area == pytest.approx(S.mean(), abs=1e-6)
            assert row.coverage == pytest.approx((S * region).sum() / region.sum(), abs=1e-6)
            assert row.level == 0
        elif row.method == "control:target_only":
            keep = region.astype(float)
        elif row.method == "grad_cam" and row.binarisation == "threshold":
            made = explain(
                network, x, method="grad_cam", layer="decoder:2", target=target, truth=G
            ).region(threshold=0.3).numpy()  # fmt: skip
            if row.strategy != "highlighted_and_target":
                continue
            keep = (made | region).astype(float)
        else:
            continue
        shown = keep * x.numpy() + (1 - keep) * black
        now = _probability(network, shown.astype(np.float32))
        assert row.confidence == pytest.approx(now[1][region].mean(), abs=3e-5), row
        one = torch.from_numpy(now)[None]
        for name, info in BOUNDARY.items():
            value = float(info.function(one, seen, G[None]))
            assert getattr(row, name) == pytest.approx(value, abs=2e-3)
        checked.add((row.method, row.binarisation, row.strategy, row.reference))
    assert len(checked) == 4 * 4 + 2 + 2
    # nothing but M3 is read against another region, the study's own stays the headline
    other = rows[rows["reference"] == "prediction"]
    assert set(other["strategy"]) == {"highlighted_and_target", "target_only"}
    assert headline(rows).reference == "truth"
    soft = set(rows.loc[rows["binarisation"] == "soft", "method"])
    assert soft == {
        *("grad_cam", "eigen_cam", "control:random", "control:p_c", "control:edges"),
        "control:truth",
    }


def test_gain_and_tables_know_both_references(wide_run: tuple[Study, Results]) -> None:
    _, results = wide_run
    rows = results.rows
    gain = Analysis(rows).m3_gain
    assert set(gain["reference"]) == {"truth", "prediction"}
    alone_rows = rows[rows["method"] == "control:target_only"]
    certainty = {
        (row.sample, row.reference, row.fill): row.certainty for row in alone_rows.itertuples()
    }
    for line in gain[gain["binarisation"] == "soft"].itertuples():
        part = rows[
            (rows["method"] == line.method)
            & (rows["binarisation"] == "soft")
            & (rows["strategy"] == "highlighted_and_target")
            & (rows["reference"] == line.reference)
            & (rows["fill"] == line.fill)
        ]
        gains: Any = [
            row.certainty - certainty[row.sample, row.reference, row.fill]  # type: ignore[operator]
            for row in part.itertuples()
        ]
        assert line.mean == pytest.approx(float(np.mean(gains)), abs=1e-9)
    made = Analysis(rows)
    assert made.sweep["boundary_f"].notna().any()
    out = Console(record=True, width=160, file=io.StringIO())
    print_analysis(out, made, everything=True)
    said = out.export_text()
    third: Any = made.best[(made.best["measure"] == "M3") & (made.best["binarisation"] == "area")]
    third = third[third["fill"] == made.headline.fill].set_index("reference")["mean"]
    assert f"{third['truth']:.3f}" != f"{third['prediction']:.3f}"
    assert f" {third['truth']:.3f}" in said
    assert f" {third['prediction']:.3f}" not in said
    page = report.render(rows, results.tiles, results.manifest, analysis=made)
    assert "Boundary F" in page
    assert "prediction" in page


def test_planned_forwards_are_spent(wide_run: tuple[Study, Results]) -> None:
    study, results = wide_run
    plan = study.plan()
    ok = results.tiles[results.tiles["status"] == "ok"]
    assert len(ok)
    assert set(ok["asked"]) == {plan.forwards_per_tile}
    rows = results.rows
    assert set(rows.groupby("sample").size()) == {plan.pictures_per_tile}


def test_a_reference_that_is_empty_is_a_status(tmp_path: Path) -> None:
    """A tile whose only building is missed by the truth: the prediction is read, the truth not."""
    write_scenes(tmp_path / "data", 1, seed=2, size=96)
    [mask] = (tmp_path / "data" / "label").iterdir()
    Image.fromarray(np.zeros((96, 96), dtype=np.uint8)).save(mask)
    settings = SMALL | {"areas": (0.1,), "thresholds": (), "fills": ("black",)}
    study = Study.of(
        data=str(tmp_path / "data"), **settings, region="prediction", references=("truth",)
    )
    rows = study.run(tmp_path / "run").rows
    other = rows[rows["reference"] == "truth"]
    assert len(other)
    assert set(other["status"]) == {"empty_region"}
    assert other["confidence"].isna().all()
    assert other["coverage"].isna().all()


def test_outlines_are_tried_in_the_stated_order() -> None:
    def probed(**passing: tuple[str, ...]) -> Any:
        return {
            name: {fill: {"mean_drop": 0.9 if fill in good else 0.1} for fill in FILLS}
            for name, good in passing.items()
        }

    names = [name.replace(" ", "_") for name in OUTLINES]
    assert names == ["exact", "grow_4", "grow_10", "roughen_10"]
    texture, dark = ("inpaint", "black"), ("black",)
    assert choose_outline(probed(exact=texture, grow_4=texture)) == "exact"
    assert choose_outline(probed(exact=dark, grow_4=dark, grow_10=texture)) == "grow_10"
    assert choose_outline(probed(exact=dark, grow_4=("blur", "black"))) == "exact"
    assert choose_outline(probed(exact=(), grow_4=("linear",), grow_10=dark)) == "grow_10"
    assert choose_outline(probed(exact=(), grow_4=())) == "exact"
    assert choose_outline({}) == ""


def test_probed_drops_are_the_literal_ones(tiles: Path, network: SegmentationModel) -> None:
    study = Study.of(data=str(tiles), **SMALL, limit=1)
    data = FolderDataset(tiles)
    found, forwards = probe_fills(study, network, data, 1, OUTLINES)
    assert list(found) == list(OUTLINES)
    assert forwards == 2 + len(OUTLINES) * len(FILLS)
    x, G = data[0]["image"], data[0]["mask"] == 1
    before = _probability(network, x.numpy())[1][G.numpy()].mean()
    noise = rough_noise((96, 96), 10, seeded("roughen", study.seed, data[0]["id"]))
    gone = {
        "exact": G,
        "grow 4": dilate(G, 4),
        "grow 10": dilate(G, 10),
        "roughen 10": roughen(G, noise),
    }
    for name, mask in gone.items():
        after = _probability(network, torch.where(mask, 0.0, x).numpy())[1][G.numpy()].mean()
        assert found[name]["black"]["mean_drop"] == pytest.approx(1 - after / before, abs=1e-5)
        assert found[name]["black"]["n"] == 1


def test_a_wider_outline_is_taken_stored_and_shown_where_no_natural_fill_passes(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def _probe(study: Any, model: Any, data: Any, count: int, outlines: Any) -> Any:
        asked.append(list(outlines))
        good = {"exact": ("black",), "grow 4": ("borrowed", "black")}
        return {
            name: {
                fill: {
                    "mean_drop": 0.8 if fill in good.get(name, ()) else 0.2,
                    "min_drop": 0,
                    "n": 1,
                }
                for fill in FILLS
            }
            for name in outlines
        }, 7

    monkeypatch.setattr(probe, "_probe", _probe)
    settings = SMALL | {"areas": (0.1,), "thresholds": (), "methods": ("grad_cam",)}
    study = Study.of(data=str(tiles), **settings, controls=())
    plan = study.plan()
    assert (plan.grow, plan.roughen, plan.fills) == (4, 0, ("borrowed", "black"))
    assert asked == [["exact"], ["grow 4", "grow 10", "roughen 10"]]
    assert plan.probe_forwards == 14
    stop = study.run(tmp_path / "run", stop=lambda: True)
    assert len(stop.tiles) == 1
    monkeypatch.setattr(probe, "_probe", lambda *_: pytest.fail("probed again"))
    results = study.run(tmp_path / "run")
    assert len(results.tiles) == 3
    assert results.manifest["outline"] == {"name": "grow 4", "grow": 4, "roughen": 0}
    assert results.manifest["probe"]["grow 4"]["borrowed"]["mean_drop"] == 0.8
    assert results.manifest["fills"] == ["borrowed", "black"]
    data = FolderDataset(tiles)
    for position in (0, 2):
        part = results.rows[results.rows["sample"] == data[position]["id"]]
        removed = part[part["method"] == "control:target_removed"]
        grown = dilate(data[position]["mask"] == 1, 4).float().mean()
        assert removed["area"].to_numpy() == pytest.approx(float(grown))
    page = report.render(results.rows, results.tiles, results.manifest)
    assert "Which fill and outline were taken" in page
    assert page.count(") taken</") == 2
    # what a study says itself is left as it is
    monkeypatch.setattr(probe, "_probe", _probe)
    for how in ({"grow": 2}, {"roughen": 3}, {"outline": "fixed"}):
        asked.clear()
        own = Study.of(data=str(tiles), **SMALL, **how).plan()
        assert len(asked) == 1
        assert (own.grow, own.roughen) == (how.get("grow", 0), how.get("roughen", 0))


def test_runs_without_the_columns_that_came_later_load(strict: Results, tmp_path: Path) -> None:
    shutil.copytree(strict.folder, tmp_path / "old")
    with closing(sqlite3.connect(tmp_path / "old" / "run.db")) as db:
        for name in BOUNDARY:
            db.execute(f"ALTER TABLE rows DROP COLUMN {name}")
    old = Results.load(tmp_path / "old")
    pd.testing.assert_frame_equal(old.rows, strict.rows)
    old.export(old.manifest)
    assert Analysis(old.rows).verdict == Analysis(strict.rows).verdict


def test_masses_and_otsu_are_further_rows(tiles: Path, tmp_path: Path) -> None:
    settings = SMALL | {
        "masses": (0.5,),
        "otsu": True,
        "limit": 1,
        "thresholds": (),
        "areas": (0.1,),
    }
    study = Study.of(data=str(tiles), **settings, controls=("random", "inverse"))
    results = study.run(tmp_path / "run")
    rows = results.rows[results.rows["method"].isin(("grad_cam", "eigen_cam"))]
    assert set(rows["binarisation"]) == {"area", "mass", "otsu"}
    sample = FolderDataset(tiles)[0]
    target = Target("building", region="truth")
    for row in rows[(rows["status"] == "ok") & (rows["binarisation"] != "area")].itertuples():
        made: Any = explain(
            load_model(demo_model_spec()), sample["image"], method=str(row.method),
            layer=str(row.layer), target=target, truth=sample["mask"] == 1,
        )  # fmt: skip
        how: dict[str, Any] = {"mass": 0.5} if row.binarisation == "mass" else {"otsu": True}
        assert row.area == pytest.approx(
            float(binarise(made.heatmap(), **how).float().mean()), abs=1e-3
        )
    assert len(results.rows) == study.plan().pictures_per_tile
    assert "--otsu" in study.command("x").split()
    page = report.render(results.rows, results.tiles, results.manifest)
    assert "at matched area" in page


def test_measures_of_whole_heatmaps_are_scores(
    tiles: Path, tmp_path: Path, network: SegmentationModel
) -> None:
    """Each against the measure called by hand; controls scored where they can be; counted, stored,
    exported and shown.
    """
    names = ("deletion", "relevance_mass", "gini", "random_class", "road_morf")
    settings = SMALL | {"limit": 2, "areas": (0.1,), "thresholds": ()}
    study = Study.of(data=str(tiles), **settings, controls=("random", "p_c"), measures=names)
    results = study.run(tmp_path / "run")
    fused = Study.of(
        data=str(tiles), **settings, controls=(), fuse=("max",), measures=("random_class",)
    )
    found = fused.run(tmp_path / "fused").scores
    joined = found[found["layer"] == "fused:max"].set_index("method")["value"]
    assert -1 <= joined["grad_cam"] < 0.9
    assert joined["eigen_cam"] == pytest.approx(1)  # class-agnostic, joined or not
    scores = results.scores
    candidates = [(m, la) for la in SMALL["layers"] for m in SMALL["methods"]]
    keys = set(zip(scores["method"], scores["layer"], strict=True))
    assert keys == {*candidates, ("control:random", ""), ("control:p_c", "")}
    assert len(scores) == len(names) * 6  # the second tile has no building
    assert scores["value"].isna().equals(scores["reason"] != "")
    data = FolderDataset(tiles)
    sample = data[0]
    truth, target = sample["mask"] == 1, Target("building", region="truth")
    fill = results.manifest["fills"][0]
    made_fill = _fill(network, sample["image"], truth, target, fill, results, tiles)
    for method, layer in candidates[:2]:
        made = explain(
            network, sample["image"], method=method, layer=layer, target=target, truth=truth
        )
        seen = capture(network, sample["image"][None], target, [], truth[None], gradients=False)
        case = HeatmapCase(network, seen, made.heatmap(), made_fill, truth)
        for name in ("deletion", "relevance_mass", "gini"):
            [row] = scores[
                (scores["method"] == method)
                & (scores["layer"] == layer)
                & (scores["measure"] == name)
            ].itertuples()
            assert row.value == pytest.approx(MAP_MEASURES[name].function(case), abs=2e-5)
            assert row.fill == fill
    control = scores[(scores["method"] == "control:p_c") & (scores["measure"] == "random_class")]
    assert control["reason"].tolist() == ["a control has no method"]
    judged = results.judged()
    assert set(judged["measure"]) == set(names)
    counted = judged[judged["method"] == "control:p_c"].set_index("measure")["reasons"]
    assert counted["random_class"] == "a control has no method (1)"
    exported = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert len(exported) == len(scores)
    page = report.render(results.rows, results.tiles, results.manifest, scores=judged)
    assert "deletion (lower is better)" in page
    assert "a control has no method (1)" in page
    # what they cost is counted too
    spent = results.tiles["asked"].iloc[0]
    assert spent > study.plan().forwards_per_tile + 20 * 6


def test_runs_without_further_measures_have_no_scores(strict: Results) -> None:
    assert strict.scores.empty
    assert strict.judged().empty
    assert not (strict.folder / "scores.csv").exists()
    with pytest.raises(UnknownNameError, match="did you mean deletion"):
        Study.of(model="smp:x", data="y", measures=("deletions",), **{"class": "building"})


def test_uniform_and_inverse_are_controls(strict: Results) -> None:
    rows, fills = strict.rows, strict.manifest["fills"]
    uniform = rows[rows["method"] == "control:uniform"]
    assert len(uniform) == 2 * 2 * 3 * len(fills)
    inverse = rows[rows["method"] == "control:inverse"]
    maps = len(SMALL["methods"]) * len(SMALL["layers"])
    assert len(inverse) == 2 * maps * 2 * len(fills)
    assert set(inverse["strategy"]) == {"background_only"}
    assert set(inverse["seed"]) == set(range(maps))
    ok = inverse[inverse["status"] == "ok"]
    methods = rows[(rows["method"] == "grad_cam") & (rows["binarisation"] == "area")]
    removed = methods[methods["strategy"] == "background_only"]
    # what a map does not highlight hurts less than what it does
    assert ok["confidence"].mean() > removed["confidence"].mean() + 0.1


def test_skipped_tiles_are_counted_with_their_reason(strict: Results) -> None:
    assert strict.manifest["tiles"] == {
        "ok": 2,
        "skipped": 1,
        "failed": 0,
        "reasons": {"no building in the truth": 1},
    }
    skipped = strict.tiles[strict.tiles["status"] == "skipped"]["sample"].item()
    assert not (strict.rows["sample"] == skipped).any()


def test_two_runs_a_resumed_one_and_workers_export_the_same_bytes(
    strict: Results, tiles: Path, tmp_path: Path
) -> None:
    study = Study.of(data=str(tiles), **SMALL)
    wanted = (strict.folder / "results.csv").read_bytes()
    calls = iter([True, False, False])
    first = study.run(tmp_path / "resumed", stop=lambda: next(calls))
    assert len(first.tiles) == 1
    assert (first.folder / "results.csv").read_bytes() != wanted
    study.run(tmp_path / "resumed")
    assert (tmp_path / "resumed" / "results.csv").read_bytes() == wanted
    context, one = get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=torch.set_num_threads, initargs=one
    ) as executor:
        study.run(tmp_path / "spread", executor=executor)
    assert (tmp_path / "spread" / "results.csv").read_bytes() == wanted


def test_batch_size_changes_nothing_that_matters(
    strict: Results, tiles: Path, tmp_path: Path
) -> None:
    other = Study.of(data=str(tiles), **SMALL, batch=1).run(tmp_path / "run")
    for column in ("confidence", "entropy", "area"):
        np.testing.assert_allclose(other.rows[column], strict.rows[column], atol=2e-5)


def test_another_study_in_the_folder_is_refused_and_untouched(strict: Results, tiles: Path) -> None:
    before = {path.name: path.read_bytes() for path in strict.folder.iterdir()}
    with pytest.raises(StudyError, match=r"thresholds = \[0\.3\].*expected thresholds = \[0\.4\]"):
        Study.of(data=str(tiles), **(SMALL | {"thresholds": (0.4,)})).run(strict.folder)
    assert {path.name: path.read_bytes() for path in strict.folder.iterdir()} == before


def test_a_foreign_folder_is_refused(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(StudyError, match="other files"):
        Study.of(data=str(tiles), **SMALL).run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_changed_tile_is_noticed(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 1, seed=2, size=96)
    settings = SMALL | {"controls": (), "layers": ("decoder:1",), "methods": ("grad_cam",)}
    study = Study.of(data=str(tmp_path / "data"), **settings)
    study.run(tmp_path / "run")
    [label] = (tmp_path / "data" / "label").iterdir()
    Image.fromarray(255 - np.array(Image.open(label))).save(label)
    with pytest.raises(StudyError, match="changed since it was studied"):
        study.run(tmp_path / "run")


def test_one_bad_tile_fails_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first, second, third = write_scenes(folder, 3, seed=2, size=96)
    second.write_bytes(second.read_bytes()[:200])
    label = folder / "label" / third.name
    Image.fromarray(np.array(Image.open(label))[:64]).save(label)
    settings = SMALL | {"controls": (), "layers": ("decoder:1",), "methods": ("grad_cam",)}
    results = Study.of(data=str(folder), **settings).run(tmp_path / "run", keep_going=True)
    tiles = results.tiles.set_index("sample")
    status, reason = tiles["status"].to_dict(), tiles["reason"].to_dict()
    assert status == {first.stem: "ok", second.stem: "failed", third.stem: "failed"}
    assert "damaged file" in reason[second.stem]
    assert "64 x 96" in reason[third.stem]


def test_when_no_tile_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    for image in write_scenes(tmp_path / "data", 2, seed=2, size=96):
        values = np.full((96, 96), 7, dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "data" / "label" / image.name)
    with pytest.raises(DataError, match=r"none readable; the first: .*\(7\) in the mask"):
        Study.of(data=str(tmp_path / "data"), **SMALL).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tiny_targets_and_classes_never_predicted_are_skipped(
    tiles: Path, tmp_path: Path, network: SegmentationModel
) -> None:
    class Two:
        ids = ("tiny", "unseen")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            image = FolderDataset(tiles)[0]["image"]
            mask = torch.zeros(96, 96, dtype=torch.int64)
            mask[:4, :4] = 1
            if index:
                # ground without a roof, and a truth that claims one
                image, mask[:40, :40] = FolderDataset(tiles)[1]["image"], 1
            return Sample(image=image, mask=mask, id=self.ids[index])

    results = Study.of(data="memory", **SMALL).run(tmp_path / "run", model=network, data=Two())
    assert results.tiles["status"].tolist() == ["skipped", "skipped"]
    assert results.tiles["reason"].tolist() == [
        "building smaller than 64 px",
        "building never predicted",
    ]


def test_a_flat_map_is_a_status_never_a_number(tiles: Path, tmp_path: Path) -> None:
    """A network whose first decoder block the output does not depend on."""
    model = load_model(demo_model_spec())
    with torch.no_grad():
        weight = model.get_parameter("net.decoder.blocks.1.conv1.0.weight")
        weight[:, : weight.shape[1] - _skip(model)] = 0
    settings = SMALL | {"methods": ("grad_cam", "score_cam")}
    results = Study.of(data=str(tiles), **settings).run(
        tmp_path / "run", model=model, data=FolderDataset(tiles)
    )
    first = results.rows["layer"] == "decoder:1"
    rows = results.rows[first & (results.rows["method"] == "grad_cam")]
    assert len(rows)
    assert set(rows["status"]) == {"all_zero"}
    measures = ["area", "confidence", "entropy", "kept", "certainty", "iou", "iou_delta"]
    assert rows[measures].isna().all().all()
    ok = results.rows[results.rows["layer"] == "decoder:2"]
    assert (ok["status"] == "ok").any()
    assert ok.loc[ok["status"] == "ok", measures].notna().all().all()


def _skip(model: SegmentationModel) -> int:
    """Channels of the skip connection that joins the second decoder block."""
    shapes = {layer.alias: layer.channels for layer in model.layers(96)}
    joined = int(model.get_parameter("net.decoder.blocks.1.conv1.0.weight").shape[1])
    return joined - shapes["decoder:1"]


def test_non_finite_logits_fail_the_tile(tiles: Path, tmp_path: Path) -> None:
    model = load_model(demo_model_spec())
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    results = Study.of(data=str(tiles), **(SMALL | {"fills": ("black",)})).run(
        tmp_path / "run", model=model, data=FolderDataset(tiles), keep_going=True
    )
    assert set(results.tiles["status"]) == {"failed"}
    assert results.tiles["reason"].str.contains("not finite").all()


def test_fused_layers_are_further_rows(tiles: Path, tmp_path: Path) -> None:
    settings = SMALL | {"fuse": ("mean", "product"), "controls": (), "limit": 1}
    results = Study.of(data=str(tiles), **settings).run(tmp_path / "run")
    names = set(results.rows["layer"]) - {""}
    assert names == {"decoder:1", "decoder:2", "fused:mean", "fused:product"}


def test_methods_without_a_layer_are_rows_of_the_input(tiles: Path, tmp_path: Path) -> None:
    settings = SMALL | {"methods": ("grad_cam", "occlusion"), "controls": (), "limit": 1}
    study = Study.of(data=str(tiles), **settings, fuse=("mean",))
    results = study.run(tmp_path / "run")
    found = results.rows.groupby("method")["layer"].unique()
    assert list(found["occlusion"]) == ["input"]
    assert set(found["grad_cam"]) == {"decoder:1", "decoder:2", "fused:mean"}
    plan = study.plan()
    flat = int((results.rows["status"] == "all_zero").sum())
    assert int(results.tiles["asked"].sum()) + flat == plan.forwards_per_tile
    assert plan.forwards_per_tile == 1 + len(occlusion_windows((96, 96))) + plan.pictures_per_tile
    assert len(results.rows) == plan.pictures_per_tile
    ranked = results.faithfulness()
    assert "input" in set(ranked["layer"])
    page = report.render(results.rows, results.tiles, results.manifest, results.pictures(1))
    assert "Occlusion" in page


@pytest.mark.parametrize("region", ["prediction", "fp", "ring:2", "ring:2@truth"])
def test_a_study_of_another_region(
    tiles: Path, tmp_path: Path, network: SegmentationModel, region: str
) -> None:
    settings = SMALL | {"controls": (), "limit": 1, "min_area": 1}
    results = Study.of(data=str(tiles), **settings, region=region).run(tmp_path / "run")
    rows = results.rows
    assert set(rows["reference"]) == {region}
    sample = FolderDataset(tiles)[0]
    p = torch.from_numpy(_probability(network, sample["image"].numpy()))
    truth, decided = sample["mask"] == 1, p[1] > 0.5
    pixels = Region.of(region).find(decided[None], truth[None], torch.ones_like(truth)[None])[0]
    assert pixels.any()
    assert rows.iloc[0]["confidence"] == pytest.approx(float(p[1][pixels].mean()), abs=2e-5)


def test_tiles_padded_to_the_stride_count_their_own_pixels_only(tmp_path: Path) -> None:
    """Tiles of 90 x 77 px through a network that needs multiples of 32."""
    net = smp.Linknet("resnet18", encoder_weights=None, classes=1)
    save_model(
        net, tmp_path / "net", classes=["building"], mean=[0.5] * 3, std=[0.25] * 3,
        config={"encoder_name": "resnet18", "classes": 1},
    )  # fmt: skip
    write_scenes(tmp_path / "data", 1, seed=2, size=96)
    for path in (tmp_path / "data").rglob("*.png"):
        with Image.open(path) as opened:
            cut = opened.crop((0, 0, 77, 90))
        cut.save(path)
    settings = SMALL | {"model": f"smp:{tmp_path / 'net'}", "controls": ("random",)}
    settings |= {"methods": ("eigen_cam",), "fills": ("black",)}
    refused = Study.of(data=str(tmp_path / "data"), **settings)
    with pytest.raises(ModelError, match=r"pad by 6 px at the bottom and 19 px at the right"):
        refused.run(tmp_path / "refused")
    study = Study.of(data=str(tmp_path / "data"), **settings, pad=True)
    results = study.run(tmp_path / "run")
    assert results.manifest["tiles"]["ok"] == 1, results.manifest["tiles"]
    rows = results.rows[(results.rows["binarisation"] == "area") & (results.rows["level"] == 0.1)]
    shares = rows[rows["status"] == "ok"]["area"].unique().tolist()
    assert shares == [round(0.1 * 90 * 77) / (90 * 77)]
    [picture] = results.pictures(1)
    assert picture["image"].shape == (3, 90, 77)
    assert all(heat.shape == (90, 77) for heat in picture["heatmaps"].values())
    assert "--pad --" in study.command("x")


def test_the_original_is_the_clean_prediction(
    strict: Results, tiles: Path, network: SegmentationModel
) -> None:
    sample = FolderDataset(tiles)[0]
    p = _probability(network, sample["image"].numpy())
    row = strict.rows.iloc[0]
    assert row["method"] == "control:original"
    truth = (sample["mask"] == 1).numpy()
    assert row["confidence"] == pytest.approx(p[1][truth].mean(), abs=2e-5)


def test_study_tile_has_no_side_effects(tiles: Path, network: SegmentationModel) -> None:
    plan = Study.of(data=str(tiles), **SMALL).plan(network)
    data = FolderDataset(tiles)
    weights = network.fingerprint()
    state = torch.get_rng_state()
    first, second = (study_tile(plan, network, data, 0) for _ in range(2))
    assert first.rows == second.rows
    assert network.fingerprint() == weights
    assert torch.equal(torch.get_rng_state(), state)


def test_sobel_edges_of_a_step() -> None:
    image = torch.zeros(3, 5, 6)
    image[..., 3:] = 1
    found = edges(image)
    assert torch.equal(found[:, 2:4], torch.ones(5, 2))
    assert found[:, [0, 1, 4, 5]].sum() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": ("grad_kam",)}, UnknownNameError, "did you mean grad_cam"),
        ({"layers": ("decoder:9",)}, UnknownNameError, "did you mean decoder:"),
        ({"class": "bilding"}, UnknownNameError, "did you mean building"),
        ({"fills": ("balck",)}, UnknownNameError, "did you mean black"),
        ({"controls": ("randon",)}, UnknownNameError, "did you mean random"),
        ({"preset": "strickt"}, UnknownNameError, "did you mean strict"),
        ({"treshold": (0.1,)}, UnknownNameError, "did you mean thresholds"),
        ({"thresholds": (0.0,)}, StudyError, "between 0 and 1"),
        ({"areas": (1.2,)}, StudyError, "between 0 and 1"),
        ({"thresholds": (0.1, 0.1)}, StudyError, "repetition"),
        ({"thresholds": (), "areas": ()}, StudyError, "at least one level"),
        ({"methods": ()}, StudyError, "at least one of each"),
        ({"limit": 0}, StudyError, "limit = 0"),
        ({"layers": ("decoder:1", "decoder:-5")}, StudyError, "one layer twice"),
        ({"preset": "paper", "region": "prediction"}, StudyError, "region truth"),
    ],
)
def test_wrong_settings_say_what_to_do(
    change: dict[str, Any], error: type[Exception], message: str, tiles: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        Study.of(data=str(tiles), **(SMALL | change)).run(tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("found ")
    assert "; expected " in text
    assert not (tmp_path / "run").exists()


def test_explanations_of_a_study_are_those_of_explain(
    tiles: Path, network: SegmentationModel
) -> None:
    sample = FolderDataset(tiles)[0]
    truth = sample["mask"] == 1
    target = Target("building", region="truth")
    made = explain_all(
        network,
        sample["image"],
        methods=["grad_cam", "eigen_cam"],
        layers=["decoder:1"],
        target=target,
        truth=truth,
    )
    assert [item.method for item in made] == ["grad_cam", "eigen_cam"]
    assert all(float(item.heatmap().max()) == 1.0 for item in made)


def test_two_real_tiles_from_end_to_end(shared: Path, tmp_path: Path) -> None:
    """Two crops of WHU test tiles through the trained network, both presets, report included."""
    for name in ("2_566", "1006"):
        for part in ("image", "label"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            with Image.open(shared / "whu" / "test" / part / f"{name}.png") as picture:
                picture.crop((0, 128, 256, 384)).save(tmp_path / "data" / part / f"{name}.png")
    for preset in ("strict", "paper"):
        results = Study.of(
            model=f"smp:{shared / 'models' / 'roofs-unet-lite0'}",
            data=str(tmp_path / "data"),
            preset=preset,
            thresholds=(0.3,),
            areas=(0.2,),
            methods=("grad_cam", "eigen_cam"),
            controls=("p_c",),
            **{"class": "building"},
        ).run(tmp_path / preset)
        assert results.manifest["tiles"]["ok"] == 2
        assert len(results.sweep())
        assert len(results.faithfulness())
        assert len(results.layers())
        if preset == "strict":
            validity = results.manifest["fills_valid"]
            assert validity["background_texture"]["valid"]
            assert not validity["neutral"]["valid"]
