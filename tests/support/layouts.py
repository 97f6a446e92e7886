"""Layouts of public data sets as their documentation describes them, as lists of file names.

`PYTHONPATH=src:tests/support python tests/support/layouts.py` prints the table of
docs/guide/your-data.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segproof.data import FolderDataset


@dataclass(frozen=True)
class Layout:
    """Pairs of image and mask, other files, and the globs that the layout needs."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()
    images: str | None = None
    masks: str | None = None

    def write(self, root: Path, side: int = 8) -> Path:
        """Every file as a tiny picture; the n-th mask has n pixels of class 1."""
        for number, (image, mask) in enumerate(self.pairs, 1):
            values = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
            save(root / image, values)
            truth = np.zeros(side * side, np.uint8)
            truth[:number] = 1
            save(root / mask, truth.reshape(side, side))
        for other in self.others:
            save(root / other, np.full((side, side), 9, np.uint8))
        return root


def save(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg", ".tif", ".tiff"):
        Image.fromarray(values).save(path)
    else:
        path.write_text("{}", encoding="utf-8")


def each(image: str, mask: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((image.replace("@", name), mask.replace("@", name)) for name in names)


LAYOUTS = (
    Layout("WHU buildings", each("image/@.tif", "label/@.tif", "1", "2_566")),
    Layout("Inria", each("images/@.tif", "gt/@.tif", "austin1", "vienna36")),
    Layout(
        "xBD",
        each(
            "train/images/@.png",
            "train/targets/@_target.png",
            "guatemala-volcano_00000000_pre_disaster",
            "guatemala-volcano_00000000_post_disaster",
        ),
        ("train/labels/guatemala-volcano_00000000_pre_disaster.json",),
    ),
    Layout(
        "LoveDA",
        each("Train/Rural/images_png/@.png", "Train/Rural/masks_png/@.png", "0", "1")
        + each("Train/Urban/images_png/@.png", "Train/Urban/masks_png/@.png", "1366", "1367"),
    ),
    Layout("DeepGlobe roads", each("train/@_sat.jpg", "train/@_mask.png", "104", "999980")),
    Layout(
        "DeepGlobe land cover",
        each("train/@_sat.jpg", "train/@_mask.png", "119", "606"),
        ("valid/10452_sat.jpg", "test/1383_sat.jpg", "class_dict.csv"),
    ),
    Layout(
        "Massachusetts buildings",
        each("tiff/train/@.tiff", "tiff/train_labels/@.tif", "22678915_15", "22678930_15"),
    ),
    Layout("Massachusetts roads", each("train/sat/@.tiff", "train/map/@.tif", "10078660_15", "7")),
    Layout(
        "OpenEarthMap",
        each("aachen/images/aachen_@.tif", "aachen/labels/aachen_@.tif", "1", "2")
        + each("zanzibar/images/zanzibar_@.tif", "zanzibar/labels/zanzibar_@.tif", "1", "2"),
        ("train.txt",),
    ),
    Layout(
        "ISPRS Potsdam",
        each(
            "2_Ortho_RGB/top_potsdam_@_RGB.tif",
            "5_Labels_for_participants/top_potsdam_@_label.tif",
            "2_10",
            "7_12",
        ),
    ),
    Layout(
        "ISPRS Vaihingen",
        each(
            "top/top_mosaic_09cm_area@.tif",
            "gts_for_participants/top_mosaic_09cm_area@.tif",
            "1",
            "37",
        ),
    ),
    Layout("LandCover.ai", each("images/@.tif", "masks/@.tif", "M-33-20-D-c-4-2", "N-33-60-D-c")),
    Layout(
        "LandCover.ai, cut", each("output/@.jpg", "output/@_m.png", "M-33-20-D_0", "M-33-20-D_1")
    ),
    Layout(
        "CamVid", each("train/@.png", "train_labels/@_L.png", "0001TP_006690", "Seq05VD_f05100")
    ),
    Layout("CamVid, SegNet", each("train/@.png", "trainannot/@.png", "0001TP_006690", "0016E5_00")),
    Layout(
        "Pascal VOC",
        each("JPEGImages/@.jpg", "SegmentationClass/@.png", "2007_000032", "2007_000039"),
        (
            "JPEGImages/2007_000027.jpg",
            "SegmentationObject/2007_000032.png",
            "SegmentationObject/2007_000039.png",
            "ImageSets/Segmentation/train.txt",
        ),
        "JPEGImages/*",
        "SegmentationClass/*",
    ),
    Layout(
        "ADE20K, scene parsing",
        each("images/training/@.jpg", "annotations/training/@.png", "ADE_train_00000001", "b"),
        ("objectInfo150.txt",),
    ),
    Layout(
        "Cityscapes",
        each(
            "leftImg8bit/train/aachen/aachen_@_leftImg8bit.png",
            "gtFine/train/aachen/aachen_@_gtFine_labelIds.png",
            "000000_000019",
            "000001_000019",
        )
        + each(
            "leftImg8bit/train/bochum/bochum_@_leftImg8bit.png",
            "gtFine/train/bochum/bochum_@_gtFine_labelIds.png",
            "000000_000313",
        ),
        (
            "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_color.png",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json",
            "gtFine/train/aachen/aachen_000001_000019_gtFine_instanceIds.png",
            "gtFine/train/bochum/bochum_000000_000313_gtFine_instanceIds.png",
        ),
        "leftImg8bit/**/*.png",
        "gtFine/**/*_labelIds.png",
    ),
    Layout("mmsegmentation", each("img_dir/train/@.jpg", "ann_dir/train/@.png", "a", "b")),
    Layout(
        "SpaceNet 2, rasterised",
        each(
            "AOI_2_Vegas_Train/RGB-PanSharpen/RGB-PanSharpen_AOI_2_Vegas_@.tif",
            "AOI_2_Vegas_Train/masks/mask_AOI_2_Vegas_@.tif",
            "img1",
            "img10",
        ),
        ("AOI_2_Vegas_Train/geojson/buildings/buildings_AOI_2_Vegas_img1.geojson",),
    ),
    Layout(
        "iSAID",
        each(
            "train/images/@.png",
            "train/Semantic_masks/images/@_instance_color_RGB.png",
            "P0000",
            "P0011",
        ),
    ),
    Layout(
        "UAVid",
        each("uavid_train/seq1/Images/@.png", "uavid_train/seq1/Labels/@.png", "000000", "000100")
        + each("uavid_train/seq2/Images/@.png", "uavid_train/seq2/Labels/@.png", "000000"),
    ),
    Layout(
        "EPFL roads",
        each("training/images/satImage_@.png", "training/groundtruth/satImage_@.png", "001", "100"),
        ("test_set_images/test_1.png",),
    ),
    Layout(
        "nnU-Net",
        each("imagesTr/@_0000.png", "labelsTr/@.png", "img-1", "img-2"),
        ("imagesTs/img-3_0000.png", "dataset.json"),
    ),
    Layout("Kaggle, train_images", each("train_images/@.png", "train_masks/@.png", "0a1b", "ff00")),
    Layout("one folder, a + a_mask", each("@.png", "@_mask.png", "a", "b")),
    Layout("image_001 + label_001", each("image_@.png", "label_@.png", "001", "002")),
    Layout("images/img1 + masks/mask1", each("images/img@.png", "masks/mask@.png", "1", "2")),
    Layout("sat + map", each("sat/@.png", "map/@.png", "1", "2")),
    Layout("images/train + masks/train", each("images/train/@.png", "masks/train/@.png", "1", "2")),
    Layout(
        "Supervisely",
        each("ds0/img/@.png", "ds0/masks_machine/@.png", "1", "2"),
        ("meta.json", "ds0/ann/1.png.json", "ds0/ann/2.png.json"),
    ),
    Layout(
        "Dubai aerial imagery",
        each("Tile 1/images/@.jpg", "Tile 1/masks/@.png", "image_part_001", "image_part_002")
        + each("Tile 2/images/@.jpg", "Tile 2/masks/@.png", "image_part_001"),
        ("classes.json",),
    ),
    Layout("a folder a sample", each("@/image.png", "@/mask.png", "s1", "s2")),
    Layout("A + B, told apart by content", each("A/@.png", "B/@.png", "1", "2")),
    Layout("one folder, a.jpg + a.png", each("@.jpg", "@.png", "1", "2")),
)


def table() -> str:
    """Layout, an image and its mask, how they are found: the lines of a Markdown table."""
    lines = ["| layout | an image | its mask | options |", "|---|---|---|---|"]
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            root = layout.write(Path(folder))
            made = FolderDataset(root, images=layout.images, masks=layout.masks)
            image, mask = (path.relative_to(root).as_posix() for path in made.pairs[0])
        option = f"`--images '{layout.images}' --masks '{layout.masks}'`" if layout.images else ""
        lines.append(f"| {layout.name} | `{image}` | `{mask}` | {option} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
