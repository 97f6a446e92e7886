"""Heatmaps beside one bare forward, and beside the same maps by other tools.

    python benchmarks/heatmaps.py [--networks lite0,resnet34] [--tiles N] [--repeats N] [--quick]

Grad-CAM, Grad-CAM++, XGrad-CAM and Eigen-CAM of the two finest decoder blocks, 512 x 512, float32,
from one call; then one call of grad-cam for each, with a thin SVD, and what torchcam and captum
have of them. Asked: at most 1.6 bare forwards together; Eigen-CAM of 16 channels of 512 x 512 less
than .15 of one and below 100 MB besides its activations (in a process of its own, Linux).
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import Contestant, Figure, Spread, contest, options, parsed, ratios, report
from claims import NETWORKS
from gradcam import heatmap, thin_projection
from processes import MB, alone, high_water, reset_high_water, resident
from segproof import Target, explain_all, load_model
from segproof.explain.cam import eigen_cam
from segproof.explain.forward_pass import Capture, capture
from segproof.models.contract import evaluating
from segproof.models.loaders.load import demo_model_spec
from subjects import GRADIENT_AND_EIGEN, SIDE, Subject, subjects

CHANNELS = 16
PEER_ROUNDS = 5  # theirs are long


def ours(subject: Subject, methods: Sequence[str]) -> Contestant:
    """One call for all methods and both layers."""

    def work(turn: int) -> None:
        explain_all(
            subject.model, subject.image(turn), methods=methods, layers=subject.paths,
            target=subject.target, truth=subject.truth(turn),
        )  # fmt: skip

    return Contestant(work)


def by_grad_cam(subject: Subject, methods: Sequence[str]) -> Contestant:
    """A call for each method and layer."""

    def work(turn: int) -> None:
        model = subject.model
        shown = ((subject.image(turn) - model.mean) / model.std)[None]
        for path in subject.paths:
            for name in methods:
                heatmap(model, shown, subject.truth(turn), path, name)
        model.net.zero_grad()

    return Contestant(work, kept=False)


def by_torchcam(subject: Subject, methods: Sequence[str]) -> Contestant:
    """A forward and a backward for each method and layer."""
    kinds = {"grad_cam": "GradCAM", "grad_cam_pp": "GradCAMpp", "xgrad_cam": "XGradCAM"}
    torchcam = quietly("torchcam.methods")

    def work(turn: int) -> None:
        model, truth = subject.model, subject.truth(turn)
        shown = ((subject.image(turn) - model.mean) / model.std)[None]
        score = mean_logit(subject, turn)
        for path in subject.paths:
            for name in methods:
                layer = model.net.get_submodule(path)
                with getattr(torchcam, kinds[name])(model.net, layer) as cam:
                    [found] = cam(scores=model.net(shown), targets=score)
                resized(found[:, None], truth.shape)
        model.net.zero_grad()

    return Contestant(work, kept=False)


def by_captum(subject: Subject) -> Contestant:
    """Its LayerGradCam, a call for each layer."""
    captum = quietly("captum.attr")

    def work(turn: int) -> None:
        model, score = subject.model, mean_logit(subject, turn)
        shown = ((subject.image(turn) - model.mean) / model.std)[None]

        def scores(images: torch.Tensor) -> torch.Tensor:
            return score(model.net(images)[0])[None]

        for path in subject.paths:
            found = captum.LayerGradCam(scores, model.net.get_submodule(path)).attribute(shown)
            resized(found.detach(), subject.truth(turn).shape)
        model.net.zero_grad()

    return Contestant(work, kept=False)


def mean_logit(subject: Subject, turn: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is explained, of logits [K, H, W]: their mean over the truth."""
    truth = subject.truth(turn)
    return lambda logits: logits[-1][truth].mean()


def resized(found: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A map [1, 1, h, w] at the picture's size."""
    return torch.nn.functional.interpolate(found, size=tuple(size), mode="bilinear")


def quietly(name: str) -> Any:
    """A module whose own dependencies warn while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def figures(subject: Subject, given: argparse.Namespace) -> list[Figure]:
    """The claims of a network: all maps, and Eigen-CAM with the time of its finest layer."""
    model = subject.model
    wide = subject.paths[-1]

    def forward(turn: int) -> None:
        with torch.inference_mode(), evaluating(model):
            model(subject.image(turn)[None])

    seen = capture(
        model, subject.image(0)[None], subject.target, subject.paths, subject.truth(0)[None]
    )
    shape = tuple(seen.activations[wide].shape)
    if shape != (1, CHANNELS, SIDE, SIDE):
        raise SystemExit(f"{wide} gives {shape}; expected {CHANNELS} x {SIDE} x {SIDE}")
    numbers = seen.activations[wide].numpy()
    title = NETWORKS[subject.name]
    seconds = contest(
        {
            "bare forward": Contestant(forward),
            "ours": ours(subject, GRADIENT_AND_EIGEN),
            "Eigen-CAM": Contestant(lambda _turn: eigen_cam(seen, wide, model)),
            "thin SVD": Contestant(lambda _turn: thin_projection(numbers), kept=False),
        },
        given,
        warm=True,
        title=title,
    )
    one = seconds["bare forward"]
    maps = {name: seconds[name] for name in ("bare forward", "ours")}
    others, notes = ({}, {}) if given.quick else beside_peers(subject, given)
    all_maps = Figure(
        f"heatmaps-{subject.name}", ratios(seconds["ours"], one), {**maps, **others}, notes
    )
    eigen = {name: seconds[name] for name in ("bare forward", "Eigen-CAM", "thin SVD")}
    return [
        all_maps,
        Figure(f"eigen-{subject.name}", ratios(seconds["Eigen-CAM"], one), eigen),
    ]


def beside_peers(
    subject: Subject, given: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of the same maps by others and by us, and the ratios of theirs to ours."""
    gradient = GRADIENT_AND_EIGEN[:-1]
    pairs = {
        "grad-cam, all four": (
            by_grad_cam(subject, GRADIENT_AND_EIGEN), ours(subject, GRADIENT_AND_EIGEN),
        ),
        "torchcam, without Eigen-CAM": (by_torchcam(subject, gradient), ours(subject, gradient)),
        "captum, Grad-CAM": (by_captum(subject), ours(subject, gradient[:1])),
    }  # fmt: skip
    contestants = {name: theirs for name, (theirs, _) in pairs.items()}
    contestants |= {f"ours, as {name}": mine for name, (_, mine) in pairs.items()}
    title = f"{NETWORKS[subject.name]}, others"
    seconds = contest(contestants, given, warm=False, title=title, most=PEER_ROUNDS)
    notes = {
        f"{name}: time / ours": Spread.of(ratios(seconds[name], seconds[f"ours, as {name}"])).text()
        for name in pairs
    }
    return seconds, notes


def eigen_memory() -> float:
    """Peak memory of Eigen-CAM besides its activations, MB; in a process that did nothing else."""
    model = load_model(demo_model_spec())
    truth = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    truth[:, 100:300, 100:300] = True

    def seen(side: int) -> Capture:
        logits = torch.rand(1, 2, side, side)
        bound = Target("building", "truth").bind(logits, truth[:, :side, :side], model=model)
        layer = torch.rand(1, CHANNELS, side, side)
        return Capture(torch.rand(1, 3, side, side), logits, bound, {"layer": layer})

    eigen_cam(seen(SIDE // 2), "layer", model)  # what is loaded at first use is no part of it
    large = seen(SIDE)
    before = resident()
    reset_high_water()
    eigen_cam(large, "layer", model)
    return (high_water() - before) / MB


def main() -> None:
    """Measure, print and write."""
    parser = options(__doc__, repeats=15, quick=5, networks=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parsed(parser)
    if given.worker:
        print(eigen_memory())
        return
    found: list[Figure] = []
    for subject in subjects(given):
        found += figures(subject, given)
    peaks = [float(alone(__file__, "--worker")) for _ in range(3 if given.quick else 5)]
    found.append(Figure("eigen-memory", peaks))
    report("heatmaps", found, given)


if __name__ == "__main__":
    main()
