"""The training loop: seeded, honest about what it held out, whole folders, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segproof.data import FolderDataset, Sample, SampleSource
from segproof.data.scenes import SceneDataset, write_scenes
from segproof.errors import DataError, ModelError, SegproofError, StudyError, UnknownNameError
from segproof.models.loaders.load import demo_model_spec, load_model
from segproof.models.training import score, train

TINY: dict[str, Any] = {
    "encoder": "tu-mobilenetv3_small_050",
    "decoder_channels": (16, 12, 8, 8, 4),
    "steps": 3,
    "batch": 2,
    "crop": 64,
}


class Tiles:
    """Given samples, and a record of which were read."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.seen = samples, set[int]()

    @property
    def ids(self) -> list[str]:
        return [sample["id"] for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.seen.add(index)
        return self.samples[index]


@pytest.fixture(scope="module")
def tiles() -> list[Sample]:
    scenes = SceneDataset(4, seed=7, size=64, empty=0)
    return [scenes[index] for index in range(4)]


@pytest.fixture(scope="module")
def trained(tiles: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    train([Tiles(tiles)], folder, seed=3, **TINY)
    return folder


def test_a_run_writes_a_folder_that_loads(trained: Path) -> None:
    names = sorted(path.name for path in trained.iterdir())
    assert names == ["config.json", "model.safetensors", "segproof.json", "training.json"]
    assert [path.name for path in trained.parent.iterdir()] == ["model"], "no scratch left"
    model = load_model(f"smp:{trained}")
    assert model.classes == ("background", "building")
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    record = json.loads((trained / "training.json").read_text())
    assert record["seed"] == 3
    assert record["steps"] == 3
    assert (record["tiles_trained"], record["tiles_held_out"]) == (3, 1)
    assert "--encoder tu-mobilenetv3_small_050 --decoder-channels 16,12,8,8,4" in record["command"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_equal_seeds_give_equal_weights(trained: Path, tiles: list[Sample], tmp_path: Path) -> None:
    torch.manual_seed(99)  # the global state must neither matter nor change
    before = torch.get_rng_state()
    calls: list[tuple[int, int]] = []
    train(
        [Tiles(tiles)],
        tmp_path / "again",
        seed=3,
        progress=lambda step, steps, loss: calls.append((step, steps)),
        **TINY,
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    train([Tiles(tiles)], tmp_path / "other", seed=4, **TINY)
    first, again, other = (
        load_file(folder / "model.safetensors")
        for folder in (trained, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_held_out_tiles_are_read_after_the_last_step_only(
    tiles: list[Sample], tmp_path: Path
) -> None:
    source, seen = Tiles(tiles), set[int]()
    settings = TINY | {"steps": 6}

    def watch(step: int, steps: int, loss: float) -> None:
        seen.update(source.seen)

    record = train([source], tmp_path / "m", seed=1, holdout=0.5, progress=watch, **settings)
    held = {source.ids.index(name) for name in record["held_out_ids"]}
    assert len(held) == 2
    assert seen == {0, 1, 2, 3} - held
    assert record["held_out"]["tiles"] == 2


def test_validation_tiles_of_their_own(tiles: list[Sample], tmp_path: Path) -> None:
    record = train([Tiles(tiles[:3])], tmp_path / "m", val=Tiles(tiles[3:]), **TINY)
    assert record["tiles_trained"] == 3
    assert record["held_out_ids"] == [tiles[3]["id"]]
    write_scenes(tmp_path / "tiles", 2, size=64)
    same = FolderDataset(tmp_path / "tiles")
    with pytest.raises(DataError, match="2 tiles given twice"):
        train([same], tmp_path / "n", val=FolderDataset(tmp_path / "tiles"), **TINY)
    with pytest.raises(DataError, match="3 tiles given twice"):
        train([SceneDataset(9), SceneDataset(3)], tmp_path / "n", **TINY)


def test_training_continues_from_a_folder(
    trained: Path, tiles: list[Sample], tmp_path: Path
) -> None:
    settings = {key: TINY[key] for key in ("batch", "crop")}
    record = train([Tiles(tiles)], tmp_path / "m", init=trained, steps=1, lr=1e-9, **settings)
    assert record["initial_weights"] == "model"
    start, end = (load_file(f / "model.safetensors") for f in (trained, tmp_path / "m"))
    name = "segmentation_head.0.weight"
    assert torch.allclose(start[name], end[name], atol=1e-6)
    assert (tmp_path / "m" / "config.json").read_text() == (trained / "config.json").read_text()


def test_the_loss_falls(tiles: list[Sample], tmp_path: Path) -> None:
    losses: list[float] = []
    settings = TINY | {"steps": 30, "batch": 3}
    train(
        [Tiles(tiles)],
        tmp_path / "m",
        progress=lambda step, steps, loss: losses.append(loss),
        **settings,
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_constant_network_scores_as_computed_by_hand() -> None:
    class Right(torch.nn.Module):
        """Says building on the right half."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.full_like(images[:, :1], -1.0)
            logits[..., 2:4] = 1.0
            return logits

    mask = torch.zeros(4, 4, dtype=torch.int64)
    mask[:2] = 1
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[0, 3] = False  # 7 of 8 left in the half: 3 of them right, of 7 true pixels
    sample = Sample(image=torch.rand(3, 4, 4), mask=mask, valid=valid, id="a")
    found = score(Right(), Tiles([sample]), mean=[0.0] * 3, std=[1.0] * 3)
    # 3 hits of 7 shown and 7 true, so 11 in the union
    assert found == {"tiles": 1, "iou": 0.2727, "precision": 0.4286, "recall": 0.4286}
    empty = Sample(
        image=torch.rand(3, 4, 4), mask=torch.zeros_like(mask), valid=valid & False, id="b"
    )
    assert score(Right(), Tiles([empty]), mean=[0.0] * 3, std=[1.0] * 3)["iou"] is None


def sample_like(tile: Sample, **changes: Any) -> Tiles:
    """Two copies of a tile with some of its parts exchanged."""
    samples = [tile.copy(), tile.copy()]
    for sample, name in zip(samples, "ab", strict=True):
        sample["id"] = name
        sample["image"] = changes.get("image", sample["image"])
        sample["mask"] = changes.get("mask", sample["mask"])
    return Tiles(samples)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"steps": 0}, StudyError, "steps=0"),
        ({"batch": 0}, StudyError, "batch=0"),
        ({"crop": 60}, StudyError, "try --crop 64"),
        ({"lr": float("nan")}, StudyError, "lr=nan"),
        ({"holdout": 1.0}, StudyError, "holdout=1"),
        ({"holdout": 0.99}, DataError, "all of them held out"),
        ({"crop": 128}, DataError, "try --crop 64"),
        ({"arch": "unett"}, UnknownNameError, "did you mean unet"),
        ({"encoder": "resnet1"}, UnknownNameError, "resnet1"),
        ({"encoder": "tu-nothing"}, UnknownNameError, "tu-nothing"),
        ({"decoder_channels": (8, 4)}, ModelError, "--decoder-channels"),
        ({"init": "no-such-folder"}, ModelError, "no-such-folder"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, Any], error: type[SegproofError], text: str,
    tiles: list[Sample], tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(error, match=text):
        train([Tiles(tiles)], tmp_path / "m", **(TINY | settings))
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image": torch.rand(3, 64, 64) * 255}, "values in"),
        ({"image": torch.rand(3, 64, 32)}, "equal height and width"),
        ({"mask": torch.full((64, 64), 3)}, "class indices up to 3"),
    ],
)
def test_bad_tiles_are_refused(
    changes: dict[str, Any], text: str, tiles: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        train([sample_like(tiles[0], **changes)], tmp_path / "m", **TINY)


def test_bands_must_agree(tiles: list[Sample], tmp_path: Path) -> None:
    grey = sample_like(tiles[0], image=torch.rand(1, 64, 64))
    sources: list[SampleSource] = [Tiles(tiles[:2]), grey]
    with pytest.raises(DataError, match="bands"):
        train(sources, tmp_path / "m", **TINY)


def test_no_tiles_and_used_folders_are_refused(tiles: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tiles"):
        train([], tmp_path / "m", **TINY)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="another --out"):
        train([Tiles(tiles)], tmp_path, **TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_diverging_loss_stops_the_run(
    tiles: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segproof.models.training._loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ModelError, match="loss of nan at step 1"):
        train([Tiles(tiles)], tmp_path / "m", **TINY)
    assert not (tmp_path / "m").exists()


def test_the_shipped_network_finds_roofs_it_never_saw() -> None:
    folder = Path(demo_model_spec().removeprefix("smp:"))
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    record = json.loads((folder / "training.json").read_text())
    assert record["held_out"]["iou"] >= 0.90
    trained = record["data"][0]
    fresh = SceneDataset(12, seed=77)
    assert min(fresh.seeds) >= trained["first_seed"] + trained["scenes"]
    model = load_model(demo_model_spec())
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    found = score(model.net, fresh, mean=mean, std=std)
    assert found["iou"] is not None
    assert found["iou"] >= 0.90
