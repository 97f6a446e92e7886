"""Our maps against those of grad-cam, captum, torchcam and attribution-quality: the same to 1e-5
where definitions agree, clearly another where `peers.NOTES` says why they do not.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pytorch_grad_cam import GradCAMPlusPlus

from peers import (
    CANNOT,
    CELLS,
    EIGEN,
    EITHER_SIGN,
    NETWORKS,
    NOTES,
    PEERS,
    PLACES,
    TOLERANCE,
    Cell,
    HeatmapCase,
    Place,
    cannot,
    case_of,
    distance,
    measure,
    unrounded,
)
from segproof.data import read_image, read_mask
from segproof.explain.methods import LAYERLESS, METHODS
from segproof.models.loaders.load import load_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHANNELWISE_SIDE = 128  # hundreds of pictures are shown twice: a smaller cut keeps it in seconds
COARSEST, FINEST = "decoder:1", "decoder:-1"
GRADIENT = tuple(name for name in PEERS["grad-cam"].methods if name not in (*EIGEN, "ablation_cam"))
UNET = PLACES[0]


def params(cells: tuple[Cell, ...]) -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(cell, id=cell.id, marks=[slow] if cell.slow else []) for cell in cells]


@pytest.mark.parametrize("cell", params(CELLS))
def test_peers(cell: Cell) -> None:
    figure = measure(cell)
    print(f"\nparity {cell.id}: {figure:.2e}")
    assert cell.holds(figure), cell.note


def test_the_table_is_whole() -> None:
    """Every method that a peer has is compared on every network, and every reason is in use."""
    asked = {(cell.peer, cell.method, cell.place.network) for cell in CELLS}
    assert asked == {
        (peer, method, network)
        for peer, tool in PEERS.items()
        for method in tool.methods
        for network in NETWORKS
    }
    assert {cell.note for cell in CELLS} - {""} == set(NOTES)
    assert {method for _, method, _ in asked} == set(METHODS) - {"seg_xres_cam", *LAYERLESS}
    agree = {cell.method for cell in CELLS if not cell.note}
    assert agree == set(METHODS) - {"seg_xres_cam", *LAYERLESS}


@pytest.mark.parametrize(
    ("peer", "method", "reason"),
    [
        ("attribution-quality", "grad_cam", "tokens"),
        ("captum", "grad_cam", "tokens"),
        ("attribution-quality", "kernel_weighted", "kernels"),
    ],
)
def test_what_cannot_be_asked_fails(peer: str, method: str, reason: str) -> None:
    assert reason in CANNOT
    place = next(place for place in PLACES if cannot(peer, method, place) == reason)
    with pytest.raises((ValueError, AttributeError)):
        measure(Cell(peer, method, place))


def test_what_is_left_in_float64_is_rounding_of_scores() -> None:
    """They round Y to float32 before they subtract."""
    method = "ablation_cam"
    case = case_of(UNET, method).double()
    rounded = distance(case, "grad-cam", method, UNET)
    with unrounded():
        exact = distance(case, "grad-cam", method, UNET)
    print(f"\nparity {method}: {exact:.2e} (rounded: {rounded:.2e})")
    assert exact < rounded <= 10 * TOLERANCE


def test_the_comparison_would_notice() -> None:
    """Another method, the other sign of an eigenvector or another target is further away."""
    case, peer = case_of(UNET, "grad_cam"), PEERS["grad-cam"]
    ours = case.heat(case.ours("grad_cam", UNET.layer, "paper"), "paper")
    theirs = peer.ask(case, GradCAMPlusPlus, UNET, "paper")
    assert np.abs(ours - theirs).max() > 100 * TOLERANCE
    strict = case.heat(case.ours("grad_cam", UNET.layer, "strict"), "strict")
    assert np.abs(ours - strict).max() > 100 * TOLERANCE
    for method in EITHER_SIGN:
        raw = case.ours(method, UNET.layer, "paper")
        signs = [case.heat(sign * raw, "paper") for sign in (1, -1)]
        assert np.abs(signs[0] - signs[1]).max() > 0.1


# --- the page -----------------------------------------------------------------------------------
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", DOCS / "_make" / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_figures(page: str) -> str:
    page = re.sub(r"^Versions: .*?\n\n", "Versions\n\n", page, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\b\d(\.\d+)?(e[+-]\d+)?(?=[ ,:;*|\\])", "#", page)


def test_the_page_is_this_table() -> None:
    """Renew docs/evidence/parity.md with `python docs/_make/parity.py`."""
    made = script().page({cell: 0.5 if cell.note else 1e-7 for cell in CELLS})
    assert made.count("\n## ") == len(NETWORKS) + 1  # and the measures
    written = (DOCS / "evidence" / "parity.md").read_text(encoding="utf-8")
    assert without_figures(written) == without_figures(made)
    figures = [float(found) for found in re.findall(r"\| (\d\.\de[+-]\d\d)", written)]
    assert len(figures) > len(METHODS)
    assert max(figures) <= TOLERANCE


# --- a really trained network -------------------------------------------------------------------
def real_case(shared: Path, side: int) -> HeatmapCase:
    """The published tile, cut to its middle."""
    model = load_model(f"smp:{shared / 'models' / 'roofs-unet-lite0'}")
    test = shared / "whu" / "test"
    image = read_image(test / "image" / "2_566.png")["image"]
    mask = read_mask(test / "label" / "2_566.png")[0]
    return HeatmapCase(model, image, mask == 1, "building").cut(side)


def check_real(case: HeatmapCase, method: str, layer: str) -> None:
    place = Place("", case.model.resolve_layer(layer, case.size), inside="conv2")
    figure = distance(case, "grad-cam", method, place)
    print(f"\nparity {method} {layer}: {figure:.2e}")
    assert figure <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, FINEST])
@pytest.mark.parametrize("method", GRADIENT)
def test_real_network(shared: Path, method: str, layer: str) -> None:
    check_real(real_case(shared, CHANNELWISE_SIDE if method == "score_cam" else 256), method, layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, FINEST])
def test_real_network_ablation(shared: Path, layer: str) -> None:
    with unrounded():
        check_real(real_case(shared, CHANNELWISE_SIDE).double(), "ablation_cam", layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, "decoder:2"])
@pytest.mark.parametrize("method", EIGEN)
def test_real_network_eigen(shared: Path, method: str, layer: str) -> None:
    check_real(real_case(shared, 256), method, layer)
