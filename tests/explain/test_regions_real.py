"""Real multi-class tiles: the void of CamVid and Dubai is out of every region, map and measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import SEED
from segproof import FolderDataset, Results, SegmentationModel, Study, Target, load_model
from segproof.cli import app as cli
from segproof.data import Sample
from segproof.errors import DataError
from segproof.explain.api import clean_of, explain_all, with_baseline
from segproof.explain.forward_pass import capture
from segproof.explain.methods import CHANNELWISE, LAYERLESS, METHODS
from segproof.explain.target import hard_mask
from segproof.measures.records import MEASURES
from segproof.models.contract import evaluating, probabilities
from segproof.models.loaders.load import save_model
from segproof.perturb.fills import make_fill
from segproof.perturb.records import FILLS
from segproof.study.fill_check import probe_fills
from segproof.study.results import table_of
from segproof.study.tile import study_tile
from toys import toy_images, toy_model, toy_truth

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
VOID = 11
HELD_OUT = 8  # the last tiles of the second drive
LAYER = "decoder:2"
GRADIENT = sorted(METHODS.keys() - CHANNELWISE.keys() - LAYERLESS.keys())


# --- masks as they are ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "classes", "void", "tiles"), [("camvid", 11, 11, 39), ("dubai", 5, 5, 51)]
)
def test_void_does_not_count(name: str, classes: int, void: int, tiles: int, shared: Path) -> None:
    data = FolderDataset(shared / name, classes=classes, ignore_index=void)
    seen: set[int] = set()
    ignored = 0
    for (_, path), sample in zip(data.pairs, data, strict=True):
        raw = torch.from_numpy(np.array(Image.open(path)).astype(np.int64))
        assert torch.equal(sample["valid"], raw != void)
        assert torch.equal(sample["mask"][raw != void], raw[raw != void])
        seen |= set(np.unique(sample["mask"].numpy()).tolist())
        ignored += int((~sample["valid"]).sum())
    assert len(data) == tiles
    assert seen == set(range(classes))
    assert ignored > 10_000
    with pytest.raises(
        DataError, match=rf"values \([^)]*\b{void}\b.*or name one with ignore_index"
    ):
        list(FolderDataset(shared / name, classes=classes))


def test_roads_are_binary_and_soft_edges_are_refused(shared: Path, tmp_path: Path) -> None:
    data = FolderDataset(shared / "roads")
    share = np.mean([float(sample["mask"].double().mean()) for sample in data])
    assert share == pytest.approx(3207494 / (100 * 400 * 400), abs=1e-9)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = data.pairs[0]
    small = Image.open(mask).resize((200, 200), Image.Resampling.BILINEAR)
    Image.open(image).resize((200, 200)).save(tmp_path / "images" / "a.png")
    small.save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="soft edges") as found:
        FolderDataset(tmp_path)[0]
    assert "127" in found.value.fix
    # what the message says to do
    hard = (np.array(small) > 127).astype(np.uint8) * 255
    Image.fromarray(hard).save(tmp_path / "masks" / "a.png")
    assert 0.05 < float(FolderDataset(tmp_path)[0]["mask"].double().mean()) < 0.5


# --- a network that has learnt something ----------------------------------------------------------
@pytest.fixture(scope="module")
def tiles(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CamVid at half its scale, 224 x 160 px from the middle, void kept as 11."""
    folder = tmp_path_factory.mktemp("camvid")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for image, mask in FolderDataset(shared / "camvid").pairs:
        picture = np.array(Image.open(image).reduce(2))[10:170, 8:232]
        Image.fromarray(picture).save(folder / "images" / f"{image.stem}.png")
        labels = np.array(Image.open(mask))[::2, ::2][10:170, 8:232]
        Image.fromarray(labels).save(folder / "masks" / f"{image.stem}.png")
    return folder


@pytest.fixture(scope="module")
def data(tiles: Path) -> FolderDataset:
    return FolderDataset(tiles, classes=len(CLASSES), ignore_index=VOID)


@pytest.fixture(scope="module")
def folder(data: FolderDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small U-Net, trained from random weights on crops of the first 31 tiles, and saved."""
    samples = [data[k] for k in range(len(data) - HELD_OUT)]
    images = torch.stack([sample["image"] for sample in samples])
    masks = torch.stack([torch.where(s["valid"], s["mask"], VOID) for s in samples])
    config: dict[str, Any] = {
        "encoder_name": "resnet18", "classes": len(CLASSES), "decoder_channels": [64, 32, 16, 16, 8]
    }  # fmt: skip
    steps, side = 120, 128
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = smp.Unet(encoder_weights=None, **config)
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
        for _ in range(steps):
            chosen = torch.randint(len(images), (4,))
            top = int(torch.randint(images.shape[-2] - side + 1, ()))
            left = int(torch.randint(images.shape[-1] - side + 1, ()))
            cut = (..., slice(top, top + side), slice(left, left + side))
            z = net((images[chosen][cut] - 0.5) / 0.25)
            loss = nn.functional.cross_entropy(z, masks[chosen][cut], ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
    where = tmp_path_factory.mktemp("network")
    save_model(
        net, where, classes=CLASSES, config=config, activation="softmax",
        mean=[0.5] * 3, std=[0.25] * 3,
    )  # fmt: skip
    return where


@pytest.fixture(scope="module")
def trained(folder: Path) -> SegmentationModel:
    return load_model(f"smp:{folder}")


class Altered(nn.Module):
    """The same network with other logits at some pixels, as far from its own as one likes."""

    def __init__(self, inner: nn.Module, at: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("at", at)
        self.register_buffer("logits", logits)

    at: Tensor
    logits: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.at, self.logits, self.inner(images))


def altered(model: SegmentationModel, valid: Tensor, seed: int | None) -> SegmentationModel:
    """`model` with random logits of +-20 where not valid; the same network where no seed is given.

    Both are wrapped, so that layers have the same names.
    """
    logits = torch.zeros(len(model.classes), *valid.shape, dtype=model.mean.dtype)
    at = torch.zeros_like(valid)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        at, logits = ~valid, 20 * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return (
        SegmentationModel(
            Altered(model.net, at, logits),
            classes=model.classes,
            mean=model.mean.flatten().tolist(),
            std=model.std.flatten().tolist(),
        )
        .to(model.mean.dtype)
        .eval()
    )


def noisy_truth(truth: Tensor, valid: Tensor) -> Tensor:
    """The truth with other content under void pixels."""
    drawn = torch.rand(truth.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    return torch.where(valid, truth, drawn)


def held_out(data: FolderDataset) -> Iterator[Sample]:
    return (data[k] for k in range(len(data) - HELD_OUT, len(data)))


def busiest(data: FolderDataset) -> Sample:
    """The held-out tile with the most void pixels."""
    return max(held_out(data), key=lambda sample: int((~sample["valid"]).sum()))


def truth_of(sample: Sample, name: str) -> Tensor:
    return (sample["mask"] == CLASSES.index(name)) & sample["valid"]


@pytest.mark.slow
def test_network_has_learnt(trained: SegmentationModel, data: FolderDataset) -> None:
    """IoU on tiles of other places than it was trained on; a constant answer gets the share."""
    both, either, share = (torch.zeros(len(CLASSES)) for _ in range(3))
    for sample in held_out(data):
        with torch.inference_mode():
            p = trained(sample["image"][None]).argmax(dim=1)[0]
        for k, name in enumerate(CLASSES):
            here, there = (p == k) & sample["valid"], truth_of(sample, name)
            both[k] += (here & there).sum()
            either[k] += (here | there).sum()
            share[k] += there.sum()
    iou, share = both / either, share / share.sum()
    for name in ("road", "sky", "building"):
        k = CLASSES.index(name)
        assert iou[k] > 0.45, (name, iou[k])
        assert iou[k] > share[k] + 0.15, (name, iou[k], share[k])


# --- (i) regions and valid pixels -----------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("region", ["truth", "prediction"])
def test_regions_hold_no_void(region: Any, trained: SegmentationModel, data: FolderDataset) -> None:
    tempting = 0
    for (_, path), sample in zip(data.pairs[-HELD_OUT:], held_out(data), strict=True):
        raw = torch.from_numpy(np.array(Image.open(path)))
        void = raw == VOID
        assert bool(void.any())
        for name in ("building", "road", "tree"):
            k = CLASSES.index(name)
            seen = capture(
                trained, sample["image"][None], Target(name, region=region), [],
                (sample["mask"] == k)[None], valid=sample["valid"][None], gradients=False,
            )  # fmt: skip
            bound = seen.bound
            assert torch.equal(bound.valid[0], ~void)
            decided = hard_mask(probabilities(seen.logits, "softmax"), k, "softmax")[0]
            assert torch.equal(bound.prediction[0], decided & ~void)
            expected = (raw == k) if region == "truth" else decided & ~void
            assert torch.equal(bound.region[0], expected)
            assert not bool((bound.weights[0] != 0)[void].any())
            tempting += int((decided & void).sum())
    assert tempting > 500  # the network does predict these classes on void pixels


# --- (ii) and (iv) nothing depends on void pixels -------------------------------------------------
def all_maps(
    model: SegmentationModel, sample: Sample, truth: Tensor, target: Target, methods: list[str]
) -> dict[str, tuple[float, Tensor, Tensor]]:
    """Y, the raw map and the region at a tenth of the area of every method."""
    made = explain_all(
        model, sample["image"], methods=methods, layers=[LAYER], target=target,
        truth=truth, valid=sample["valid"],
    )  # fmt: skip
    return {item.method: (item.value, item.raw, item.region(area=0.1)) for item in made}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["road", "building"])
@pytest.mark.parametrize(
    "how",
    [
        {"space": "logit"},
        {"space": "margin"},
        {"space": "probability"},
        {"space": "log_probability", "reduce": "sum"},
        {"region": "prediction"},
        {"region": "prediction", "space": "margin"},
        {"preset": "paper"},
    ],
    ids=lambda how: "-".join(how.values()),
)
def test_gradient_maps_do_not_depend_on_void(
    how: Any, name: str, trained: SegmentationModel, data: FolderDataset
) -> None:
    sample = busiest(data)
    valid, truth = sample["valid"], truth_of(sample, name)
    target = Target(name, **{"region": "truth", **how})
    plain = all_maps(altered(trained, valid, None), sample, truth, target, GRADIENT)
    assert sum(bool(raw.max() > raw.min()) for _, raw, _ in plain.values()) == len(GRADIENT)
    for seed in (1, 2):
        model = altered(trained, valid, seed)
        with torch.inference_mode():
            changed = model(sample["image"][None]) - trained(sample["image"][None])
        assert changed[0, :, ~valid].abs().mean() > 5  # the change is there
        assert changed[0, :, valid].abs().max() < 1e-3
        other = all_maps(model, sample, noisy_truth(truth, valid), target, GRADIENT)
        for method, (value, raw, region) in plain.items():
            assert other[method][0] == value, method
            assert torch.equal(other[method][1], raw), method
            assert torch.equal(other[method][2], region), method


@pytest.mark.slow
def test_gradients_come_from_valid_pixels_alone(
    trained: SegmentationModel, data: FolderDataset
) -> None:
    """dY/dz is zero under void, and Y is the mean over the valid truth, by hand."""
    sample = busiest(data)
    valid, truth = sample["valid"], truth_of(sample, "road")
    with torch.inference_mode():
        z = trained(sample["image"][None])
    z = z.clone().requires_grad_()
    target = Target("road", region="truth", space="margin")
    noisy = noisy_truth(truth, valid)[None]
    bound = target.bind(z.detach(), noisy, model=trained, valid=valid[None])
    score = bound.score(z)
    [slope] = torch.autograd.grad(score.sum(), z)
    assert not bool(slope[0, :, ~valid].any())
    k = CLASSES.index("road")
    rivals = z.detach()[0, [c for c in range(len(CLASSES)) if c != k]].amax(dim=0)
    expected = (z.detach()[0, k] - rivals).double()[truth].mean()
    assert float(score[0].detach()) == pytest.approx(float(expected), abs=1e-4)
    assert int((slope[0, k] != 0).sum()) == int(truth.sum())


@pytest.mark.slow
def test_masked_input_methods_do_not_depend_on_void(
    trained: SegmentationModel, data: FolderDataset
) -> None:
    """Score-CAM's fill is made of the background, which the truth under void must not move."""
    sample = busiest(data)
    valid, truth = sample["valid"], truth_of(sample, "road")
    target, methods = Target("road", region="truth"), sorted(CHANNELWISE)
    plain = all_maps(altered(trained, valid, None), sample, truth, target, methods)
    other = all_maps(altered(trained, valid, 1), sample, noisy_truth(truth, valid), target, methods)
    for method, (value, raw, region) in plain.items():
        assert other[method][0] == value
        assert torch.equal(other[method][1], raw), method
        assert torch.equal(other[method][2], region), method


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("region", ["truth", "prediction"])
def test_measures_and_fills_do_not_depend_on_void(
    fill: str, region: Any, trained: SegmentationModel, data: FolderDataset
) -> None:
    sample = busiest(data)
    valid, truth = sample["valid"], truth_of(sample, "building")
    found: list[tuple[dict[str, float], Tensor]] = []
    for seed in (None, 1, 2):
        model = altered(trained, valid, seed)
        here = truth if seed is None else noisy_truth(truth, valid)
        seen = capture(
            model, sample["image"][None], Target("building", region=region), [], here[None],
            valid=valid[None], gradients=False,
        )  # fmt: skip
        make = make_fill(fill, clean_of(seen, model, here, seed=(0, fill)))
        shown = make(seen.images, ~seen.bound.region)
        with torch.inference_mode(), evaluating(model):
            p = probabilities(model(shown), "softmax")
        values = {
            name: float(info.function(p, seen.bound, here[None])[0])
            for name, info in MEASURES.items()
        }
        found.append((values, with_baseline(seen, shown).baseline))  # type: ignore[arg-type]
    for values, shown in found[1:]:
        assert values == found[0][0]
        assert torch.equal(shown, found[0][1])
    assert all(np.isfinite(value) for name, value in found[0][0].items())


class One:
    """A data set of one sample."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self.ids = sample, [sample["id"]]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample


@pytest.mark.slow
@pytest.mark.parametrize(
    ("region", "preset"), [("truth", "strict"), ("prediction", "strict"), ("truth", "paper")]
)
def test_rows_of_a_study_do_not_depend_on_void(
    region: str, preset: str, trained: SegmentationModel, data: FolderDataset, tmp_path: Path
) -> None:
    """Every number of every row, controls among them, under other logits and masks below void."""
    study = Study.of(
        model="memory", data="memory", methods=("grad_cam", "eigen_cam", "xgrad_cam"),
        layers=(LAYER,), thresholds=(0.2, 0.5), areas=(0.1,), preset=preset, region=region,
        **{"class": "building"},
    )  # fmt: skip
    sample = busiest(data)
    valid = sample["valid"]
    found = []
    for seed in (None, 1):
        mask = sample["mask"].clone()
        if seed is not None:
            drawn = torch.randint(len(CLASSES), mask.shape)
            mask = torch.where(valid, mask, drawn)
        one = One(Sample(image=sample["image"], mask=mask, valid=valid, id="one"))
        model = altered(trained, valid, seed)
        plan = study.plan(model, one)
        tile = study_tile(plan, model, one, 0)
        assert tile.status == "ok", tile.reason
        probe, _ = probe_fills(study, model, one, 1)
        found.append((tile.rows, probe, plan.fills))
    assert len(found[0][0]) > 50
    assert found[0] == found[1]


# --- the same on toys, in a moment and without the tiles ------------------------------------------
def toy(shift: float = 0.0) -> tuple[SegmentationModel, Tensor, Tensor, Tensor]:
    """Network of three classes, picture, truth and valid pixels; `shift` is added to z of roof."""
    valid = torch.rand(48, 48, generator=torch.Generator().manual_seed(5)) < 0.7
    model = toy_model(classes=("ground", "roof", "road"))
    with torch.no_grad():
        model.net.segmentation_head.bias[1] += shift  # type: ignore[index, operator, union-attr]
    return model, toy_images(side=48)[0], toy_truth(side=48)[0] & valid, valid


def test_rows_of_a_toy_do_not_depend_on_void() -> None:
    model, image, truth, valid = toy()
    study = Study.of(
        model="memory", data="memory", layers=("inner.decoder.blocks.0",), min_area=1,
        thresholds=(0.1, 0.5, 0.9), areas=(0.2,), fills=("background_texture",),
        **{"class": "roof"},
    )  # fmt: skip
    found = []
    for seed in (None, 1, 2, 3):
        drawn = torch.randint(3, truth.shape, generator=torch.Generator().manual_seed(seed or 0))
        mask = torch.where(valid, truth.long(), drawn)
        one = One(Sample(image=image, mask=mask, valid=valid, id="one"))
        changed = altered(model, valid, seed)
        tile = study_tile(study.plan(changed, one), changed, one, 0)
        assert tile.status == "ok", tile.reason
        found.append(tile.rows)
    assert found[1:] == [found[0]] * 3
    rows = table_of(found[0])
    assert rows["area"].max() == 1  # the empty picture: all of V


def test_background_for_fills_does_not_depend_on_the_truth_under_void() -> None:
    model, image, truth, valid = toy(-50)
    noisy, kept = noisy_truth(truth, valid), []
    for here in (truth, noisy):
        seen = capture(
            model, image[None], Target("roof", region="truth"), [], here[None],
            valid=valid[None], gradients=False,
        )  # fmt: skip
        kept.append(clean_of(seen, model, here, seed=(0,)).background)
    assert not torch.equal(truth, noisy)
    assert torch.equal(*kept)
    assert 100 < int(kept[0].sum()) < int(valid.sum()) - 100


def test_sign_of_eigen_cam_does_not_depend_on_void() -> None:
    """Where the class is predicted nowhere, p_c decides the sign: that of valid pixels."""
    model, image, truth, valid = toy(-50)
    target = Target("roof", region="truth")
    maps = [
        explain_all(
            altered(model, valid, seed), image, methods=["eigen_cam"], target=target,
            layers=["inner.decoder.blocks.0"], truth=truth, valid=valid,
        )[0].raw
        for seed in (None, *range(20))
    ]  # fmt: skip
    assert all(torch.equal(other, maps[0]) for other in maps[1:])


# --- (iii) areas ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_areas_count_valid_pixels(trained: SegmentationModel, data: FolderDataset) -> None:
    for sample in held_out(data):
        valid, truth = sample["valid"], truth_of(sample, "road")
        total = int(valid.sum())
        assert total < valid.numel()
        made = explain_all(
            trained, sample["image"], methods=["grad_cam", "eigen_cam"], layers=[LAYER],
            target=Target("road", region="truth"), truth=truth, valid=valid,
        )  # fmt: skip
        for item in made:
            assert item.status == "ok"
            for q in (0.01, 0.1, 0.333, 0.9, 0.999):
                region = item.region(area=q)
                assert int(region.sum()) == round(q * total)
                assert not bool((region & ~valid).any())
            assert not bool((item.region(threshold=0.01) & ~valid).any())


# --- the command ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_study_of_one_class(
    folder: Path, data: FolderDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "tiles"
    for k in range(len(data) - 3, len(data)):
        for path in data.pairs[k]:
            target = few / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    run = tmp_path / "run"
    arguments = [
        "study", "--model", f"smp:{folder}", "--data", str(few), "--class", "road",
        "--ignore-index", str(VOID), "--methods", "grad_cam,eigen_cam", "--layers", "decoder:2",
        "--thresholds", "0.3", "--areas", "0.1,0.3", "--out", str(run),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    assert "3 ok" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 10_000
    rows = Results.load(run).rows
    assert (pd.read_parquet(run / "results.parquet")["sample"].nunique()) == 3
    for k in range(len(data) - 3, len(data)):
        sample = data[k]
        total, roads = int(sample["valid"].sum()), int(truth_of(sample, "road").sum())
        assert total < sample["valid"].numel()
        mine = rows[rows["sample"] == data.ids[k]]
        counts = mine["area"].dropna() * total
        assert counts.to_numpy() == pytest.approx(counts.round().to_numpy(), abs=1e-6)
        assert mine["area"].max() == 1.0  # everything removed, and never more than V
        removed = mine[mine["strategy"] == "target_removed"]
        assert removed["area"].to_numpy() == pytest.approx(roads / total)
        at_area = mine[(mine["binarisation"] == "area") & (mine["status"] == "ok")]
        assert len(at_area) > 50
        wanted = at_area["level"].map(lambda q, n=total: round(q * n) / n)
        assert at_area["area"].to_numpy() == pytest.approx(wanted.to_numpy(), abs=1e-12)
        assert (mine.loc[mine["strategy"] == "original", "iou"] > 0.3).all()
    # without the void index the reason and the remedy are told
    at = arguments.index("--ignore-index")
    forgetful = [*arguments[:at], *arguments[at + 2 : -1], str(tmp_path / "other")]
    assert cli.main(forgetful) == cli.WRONG_INPUT
    assert "ignore_index" in capsys.readouterr().err
