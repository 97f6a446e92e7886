"""Tiles and masks: one sample dict (TorchGeo's), readers that refuse what they cannot vouch for."""

from segproof.data.given import as_sample, as_samples, expand_pictures
from segproof.data.layouts import LAYOUTS, SUFFIXES, Matching, find_pairs
from segproof.data.masks import IGNORE, MaskFile, MaskValues, meanings, open_mask, read_mask
from segproof.data.rasters import (
    MAX_BYTES,
    Raster,
    Reading,
    Sample,
    input_reading,
    read_image,
    read_raster,
)
from segproof.data.tiles import (
    SHIFT,
    FolderDataset,
    SampleSource,
    Surveyed,
    digest_of,
    survey,
    surveyed,
)

__all__ = [
    "IGNORE",
    "LAYOUTS",
    "MAX_BYTES",
    "SHIFT",
    "SUFFIXES",
    "FolderDataset",
    "MaskFile",
    "MaskValues",
    "Matching",
    "Raster",
    "Reading",
    "Sample",
    "SampleSource",
    "Surveyed",
    "as_sample",
    "as_samples",
    "digest_of",
    "expand_pictures",
    "find_pairs",
    "input_reading",
    "meanings",
    "open_mask",
    "read_image",
    "read_mask",
    "read_raster",
    "survey",
    "surveyed",
]
