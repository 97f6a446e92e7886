"""segproof explains segmentation networks and puts the explanations on trial."""

from segproof.cam import METHODS
from segproof.data import FolderDataset, MaskValues, Reading, Sample, read_image, read_mask
from segproof.errors import (
    DataError,
    DiskError,
    ModelError,
    SegproofError,
    StudyError,
    TooManyFailedError,
    UnknownNameError,
)
from segproof.explain import (
    Explanation,
    as_picture,
    as_pictures,
    explain,
    explain_all,
    explain_objects,
    fuse,
)
from segproof.load import as_model, load_model, save_model
from segproof.measures import MEASURES
from segproof.model import Layer, SegmentationModel, probabilities, queries, query_model
from segproof.perturb import FILLS, STRATEGIES, binarise
from segproof.results import Results
from segproof.sequential import Until
from segproof.settings import CONTROLS
from segproof.study import Study
from segproof.target import BoundTarget, Region, Target, objects

__all__ = [
    "CONTROLS",
    "FILLS",
    "MEASURES",
    "METHODS",
    "STRATEGIES",
    "BoundTarget",
    "DataError",
    "DiskError",
    "Explanation",
    "FolderDataset",
    "Layer",
    "MaskValues",
    "ModelError",
    "Reading",
    "Region",
    "Results",
    "Sample",
    "SegmentationModel",
    "SegproofError",
    "Study",
    "StudyError",
    "Target",
    "TooManyFailedError",
    "UnknownNameError",
    "Until",
    "as_model",
    "as_picture",
    "as_pictures",
    "binarise",
    "explain",
    "explain_all",
    "explain_objects",
    "fuse",
    "load_model",
    "objects",
    "probabilities",
    "queries",
    "query_model",
    "read_image",
    "read_mask",
    "save_model",
]
