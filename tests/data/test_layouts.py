"""Images and masks find each other in the layouts that public data sets have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from layouts import LAYOUTS, Layout, each, save, table
from segproof.data import FolderDataset, survey
from segproof.errors import DataError


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_layouts_of_public_data_sets(tmp_path: Path, layout: Layout) -> None:
    root = layout.write(tmp_path)
    if layout.images:
        with pytest.raises(DataError, match=r"[23] masks for") as got:
            FolderDataset(root)
        offered = re.findall(r"--images '([^']*)' --masks '([^']*)'", got.value.fix)
        wanted = [(root / image, root / mask) for image, mask in sorted(layout.pairs)]
        assert wanted in [sorted(FolderDataset(root, images=i, masks=m).pairs) for i, m in offered]
    made = FolderDataset(root, images=layout.images, masks=layout.masks)
    assert sorted(made.pairs) == sorted((root / i, root / m) for i, m in layout.pairs)
    assert len(set(made.ids)) == len(layout.pairs)
    # the masks themselves, not only their names
    by_image = {root / image: number for number, (image, _) in enumerate(layout.pairs, 1)}
    for (image, _), sample in zip(made.pairs, made, strict=True):
        assert int(sample["mask"].sum()) == by_image[image]
    assert made.rule.startswith("Images are ")
    again = FolderDataset(root, images=made.images, masks=made.masks)
    assert again.pairs == made.pairs


def test_at_most_two_layouts_need_an_option() -> None:
    assert len(LAYOUTS) >= 25
    assert [layout.name for layout in LAYOUTS if layout.images] == ["Pascal VOC", "Cityscapes"]
    page = Path(__file__).parents[2] / "docs" / "guide" / "your-data.md"
    assert table() in page.read_text(encoding="utf-8")


def offered(error: DataError) -> list[tuple[str, str]]:
    text = f"{error.expected} {error.fix}"
    return re.findall(r"--images '([^']*)' --masks '([^']*)'", text)


@pytest.mark.parametrize(
    "shape",
    [
        ("images/%/@.png", "masks/%/@.png"),
        ("%/@.png", "%_labels/@.png"),
        ("%_images/@.png", "%_masks/@.png"),
        ("%/@_sat.png", "%/@_mask.png"),
    ],
)
def test_splits_are_a_choice(tmp_path: Path, shape: tuple[str, str]) -> None:
    pairs = [
        (image.replace("%", split), mask.replace("%", split))
        for split in ("train", "val", "test")
        for image, mask in each(*shape, f"{split}1", f"{split}2")
    ]
    root = Layout("splits", tuple(pairs)).write(tmp_path)
    with pytest.raises(DataError, match="several data sets or splits") as got:
        FolderDataset(root)
    choices = offered(got.value)
    sizes = [len(FolderDataset(root, images=i, masks=m)) for i, m in choices]
    below = [] if len(sizes) > 1 else [root / name for name in ("train", "val", "test")]
    assert sizes == ([2, 2, 2, 6] if not below else [6])
    for folder in below:
        assert str(folder) in got.value.fix
        assert len(FolderDataset(folder)) == 2


@pytest.mark.parametrize("extra", ["gt", "labels", "masks_old", "annotations"])
def test_two_mask_folders_are_a_choice(tmp_path: Path, extra: str) -> None:
    pairs = each("images/@.png", "masks/@.png", "a", "b")
    root = Layout("two", pairs, (f"{extra}/a.png", f"{extra}/b.png")).write(tmp_path)
    with pytest.raises(DataError, match="2 masks for") as got:
        FolderDataset(root)
    assert sorted(offered(got.value)) == sorted(
        [("images/*", "masks/*"), ("images/*", f"{extra}/*")]
    )
    assert len(FolderDataset(root, images="images/*", masks="masks/*")) == 2


def test_two_image_folders_are_a_choice(tmp_path: Path) -> None:
    pairs = each("2_Ortho_RGB/top_@_RGB.tif", "Labels/top_@_label.tif", "1", "2")
    others = ("3_Ortho_IRRG/top_1_IRRG.tif", "3_Ortho_IRRG/top_2_IRRG.tif")
    root = Layout("Potsdam", pairs, others).write(tmp_path)
    with pytest.raises(DataError, match="several images for one mask") as got:
        FolderDataset(root)
    assert sorted(offered(got.value)) == [
        ("2_Ortho_RGB/*", "Labels/*"),
        ("3_Ortho_IRRG/*", "Labels/*"),
    ]


def test_a_folder_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    pairs = each("images/@.png", "masks/@.png", "a", "b")
    root = Layout("preview", pairs, ("preview/a.png", "preview/b.png")).write(tmp_path)
    assert FolderDataset(root).layout == "plain"


def test_names_that_only_look_like_roles(tmp_path: Path) -> None:
    names = ("roads_map", "tile_mask", "gt", "image_mask", "label", "x_1_y_2")
    root = Layout("names", each("images/@.png", "masks/@.png", *names)).write(tmp_path)
    made = FolderDataset(root)
    assert made.ids == sorted(names)
    assert [(i.name, m.name) for i, m in made.pairs] == [(f"{n}.png",) * 2 for n in sorted(names)]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/austin_@.png", "masks/chicago_@.png"),
        ("east/images/@.png", "west/masks/@.png"),
        ("images/2019_@.png", "masks/mask_2020_@.png"),
        ("images/east/@.png", "masks/west/@.png"),
    ],
)
def test_other_places_are_no_pairs(tmp_path: Path, image: str, mask: str) -> None:
    """Numbers that are equal by chance; who knows better says so with two globs."""
    root = Layout("other", each(image, mask, "1", "2")).write(tmp_path)
    with pytest.raises(DataError):
        FolderDataset(root)
    images, masks = image.replace("@.png", "*"), mask.replace("@.png", "*")
    assert len(FolderDataset(root, images=images, masks=masks)) == 2


def test_two_dates_of_one_place_are_a_choice(tmp_path: Path) -> None:
    pairs = each("A/@.png", "label/@.png", "train_1", "train_2")
    root = Layout("LEVIR-CD", pairs, ("B/train_1.png", "B/train_2.png")).write(tmp_path)
    with pytest.raises(DataError, match="several images for one mask") as got:
        FolderDataset(root)
    assert sorted(offered(got.value)) == [("A/*", "label/*"), ("B/*", "label/*")]


def test_repeated_stems_have_the_path_as_id(tmp_path: Path) -> None:
    pairs = each("@/images/0.png", "@/masks/0.png", "east", "west")
    root = Layout("cities", pairs).write(tmp_path)
    made = FolderDataset(root)
    assert made.ids == ["east_images_0", "west_images_0"]
    assert [sample["id"] for sample in made] == made.ids


def test_names_that_print_alike_are_refused(tmp_path: Path) -> None:
    pairs = each("images/@.png", "masks/@.png", "a\x1bb", r"a\x1bb")
    root = Layout("alike", pairs).write(tmp_path)
    with pytest.raises(DataError, match="both named"):
        FolderDataset(root)
    pairs = each("@/images/0.png", "@/masks/0.png", "a", "b")
    pairs += each("c/@/images/0.png", "c/@/masks/0.png", "d") + each(
        "c_d/images/@.png", "c_d/masks/@.png", "0"
    )
    with pytest.raises(DataError, match="c_d_images_0"):
        FolderDataset(Layout("joined", pairs).write(tmp_path / "joined"))


def test_globs(tmp_path: Path) -> None:
    root = Layout("odd", each("one/@.png", "two/deep/@-z.png", "p1", "p2")).write(tmp_path)
    made = FolderDataset(root, images="one/*", masks="two/**/*.png")
    assert [(i.name, m.name) for i, m in made.pairs] == [
        ("p1.png", "p1-z.png"),
        ("p2.png", "p2-z.png"),
    ]
    assert made.record()["images"] == "one/*"
    assert made.record()["chosen"] is True
    for images, masks, word in (
        ("one/*", None, "one side only"),
        ("none/*", "two/**/*", "no picture that --images"),
        ("../*", "two/**/*", "below the folder"),
        ("/etc/*", "two/**/*", "below the folder"),
        ("**/*", "two/**/*", "both --images and --masks match"),
    ):
        with pytest.raises(DataError, match=word):
            FolderDataset(root, images=images, masks=masks)
    root = Layout("half", each("one/@.png", "two/@_mask.png", "p1", "p2")).write(tmp_path / "h")
    with pytest.raises(DataError, match="1 of 2 images without a mask: p2"):
        FolderDataset(root, images="one/*", masks="two/p1*")
    reasons = [reason for _, reason, _ in survey(root, images="one/*", masks="two/p1*")]
    assert reasons[0] == ""
    assert "no mask for" in reasons[1]


def test_content_decides_only_where_it_can(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for folder in ("A", "B"):
        for name in ("1", "2"):
            save(tmp_path / folder / f"{name}.png", noise)
    with pytest.raises(DataError, match="do not pair as images and masks") as got:
        FolderDataset(tmp_path)
    assert "--images GLOB" in got.value.fix


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = Layout("links", each("images/@.png", "masks/@.png", "a")).write(tmp_path)
    (root / "images" / "again").symlink_to(root)
    assert FolderDataset(root).ids == ["a"]
