"""Fixtures for all tests: seeds, the real data where they are, a small real network."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from segproof.models.contract import SegmentationModel
from toys import toy_model

SEED = 20231003
ROOT = Path(__file__).resolve().parent.parent

# derandomize: the same cases every time; deadline: machines differ
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

# networks and pictures here are small: a second thread gains nothing, and threads of worker
# processes that share two cores wait for each other
torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"seed: {SEED}; torch {torch.__version__}, {torch.get_num_threads()} threads"


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Global generators, for code outside the package; the package takes its own seeds."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # grad-cam and scikit-learn read the global generator
    torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tiles and the trained network; skips where it is not."""
    given = os.environ.get("SEGPROOF_SHARED")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not (folder / "models").is_dir():
        pytest.skip("real data are not in this checkout: set SEGPROOF_SHARED")
    return folder


@pytest.fixture
def model() -> SegmentationModel:
    """A small encoder-decoder with one channel, float64, in eval mode."""
    return toy_model()
