"""Generated scenes: the same from a seed everywhere, masks that fit, one sun, sane contents."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from segproof.data import FolderDataset
from segproof.data.scene_canvas import MARGIN, Canvas, shadow
from segproof.data.scenes import SceneDataset, scene, write_scenes
from segproof.errors import DataError

MANY = range(900_000_000, 900_000_050)


def digest(seed: int, size: int = 96) -> str:
    sample = scene(seed, size)
    data = sample["image"].numpy().tobytes() + sample["mask"].numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def test_a_seed_decides_everything() -> None:
    random.seed(1)  # global generators must not matter
    torch.manual_seed(1)
    first = digest(5)
    random.seed(2)
    torch.manual_seed(2)
    assert digest(5) == first
    assert len({digest(seed) for seed in range(6)}) == 6


def test_fifty_scenes_are_whole() -> None:
    shares, greys = [], []
    for seed in MANY:
        sample = scene(seed, 96)
        image, mask = sample["image"], sample["mask"]
        assert image.shape == (3, 96, 96)
        assert image.dtype == torch.float32
        assert mask.shape == (96, 96)
        assert mask.dtype == torch.int64
        assert sample["id"] == f"scene-{seed}"
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert torch.equal((image * 255).round() / 255, image), "a camera gives whole levels"
        assert set(mask.flatten().tolist()) <= {0, 1}
        assert float(image.std()) > 0.02
        shares.append(float(mask.float().mean()))
        greys.append(float(image.mean()))
    assert 0.08 < np.mean(shares) < 0.35
    assert max(shares) < 0.9
    assert 0.2 < np.mean(greys) < 0.6


def test_the_share_of_scenes_without_buildings_is_an_option() -> None:
    assert all(int(scene(seed, 64, empty=1)["mask"].sum()) == 0 for seed in range(8))
    shares = [float(scene(seed, 192, empty=0)["mask"].float().mean()) for seed in range(16)]
    assert sum(share > 0.01 for share in shares) >= 14
    assert 0.1 < np.mean(shares) < 0.35


def test_masks_lie_on_the_roofs() -> None:
    """The mask's outline is where the picture changes: a mask moved by 3 pixels fits it worse."""
    gains = []
    for seed in range(15):
        sample = scene(seed, 128, empty=0)
        grey, mask = sample["image"].mean(dim=0).numpy(), sample["mask"].numpy() > 0
        if mask.sum() < 200:
            continue
        steep = ndimage.gaussian_gradient_magnitude(grey, 1)
        outline = mask ^ ndimage.binary_erosion(mask, border_value=1)
        moved = np.roll(outline, (3, 3), (0, 1))
        gains.append(float(steep[outline].mean() / steep[moved].mean()))
    assert len(gains) >= 10
    assert np.median(gains) > 1.15
    assert np.mean([gain > 1 for gain in gains]) >= 0.9


def test_a_wall_casts_its_shadow_away_from_the_sun() -> None:
    height = np.zeros((80, 80), np.float32)
    height[30:50, 38:42] = 3.0  # a wall of 3 m; 0.15 m per painted pixel
    half = float(np.sqrt(0.5))
    dark = shadow(height, (half, 0.0, half))  # sun at 45 degrees on the right
    assert dark[40, 25] == 1, "3 m high at 45 degrees darkens 3 m = 20 px"
    assert dark[40, 34] == 1
    assert dark[40, 15] == 0
    assert dark[40, 45] == 0
    assert dark[20, 30] == 0
    turned = shadow(np.ascontiguousarray(height.T), (0.0, half, half))
    assert np.array_equal(turned, dark.T)


def test_slopes_facing_the_sun_are_brighter() -> None:
    half = float(np.sqrt(0.5))
    canvas = Canvas(np.random.default_rng(0), 2 * MARGIN, (half, 0.0, half))
    rise = np.full((1, 1), np.tan(np.radians(25)), np.float32)
    zero = np.zeros_like(rise)
    towards, away = canvas.slope_light(-rise, zero), canvas.slope_light(rise, zero)
    assert towards[0, 0] == pytest.approx(np.cos(np.radians(20)) / half, abs=1e-6)
    assert away[0, 0] == pytest.approx(np.cos(np.radians(70)) / half, abs=1e-6)
    assert canvas.slope_light(zero, zero)[0, 0] == pytest.approx(1)


def test_datasets_of_different_seeds_share_no_scene() -> None:
    one, other = SceneDataset(1000, seed=0), SceneDataset(1000, seed=1)
    assert not set(one.ids) & set(other.ids)
    small = SceneDataset(2, seed=3, size=64)
    assert len(small) == 2
    assert small.ids == ["scene-3000000", "scene-3000001"]
    assert [sample["id"] for sample in (small[0], small[1])] == small.ids
    assert torch.equal(small[1]["image"], scene(3_000_001, 64)["image"])
    with pytest.raises(IndexError):
        small[2]


def test_written_scenes_read_back_equal(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "tiles", 3, seed=2, size=64)
    assert [path.name for path in paths] == [f"scene-200000{k}.png" for k in range(3)]
    folder, scenes = FolderDataset(tmp_path / "tiles"), SceneDataset(3, seed=2, size=64)
    assert list(folder.ids) == scenes.ids
    for index in range(3):
        assert torch.equal(folder[index]["image"], scenes[index]["image"])
        assert torch.equal(folder[index]["mask"], scenes[index]["mask"])


@pytest.mark.parametrize(
    ("seed", "size", "empty", "text"),
    [(-1, 64, 0.1, "seed -1"), (0, 16, 0.1, "size 16"), (0, 64, 1.5, r"empty=1\.5")],
)
def test_bad_settings_are_refused(seed: int, size: int, empty: float, text: str) -> None:
    with pytest.raises(DataError, match=text):
        scene(seed, size, empty=empty)


def test_no_scenes_are_refused() -> None:
    with pytest.raises(DataError, match="0 scenes"):
        SceneDataset(0)
    with pytest.raises(DataError, match="seed -1"):
        SceneDataset(3, seed=-1)
