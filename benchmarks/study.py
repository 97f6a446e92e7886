"""The whole study of a tile by us and by a fair script around grad-cam (gradcam.py).

    python benchmarks/study.py [--networks lite0,resnet34] [--tiles N] [--repeats N] [--quick]

Two layers, five methods, five thresholds, three strategies, IoU change, one fill, 512 x 512: ours
at float32 and at `auto`, with freed blocks kept as our commands do, theirs with the allocator as it
comes. What a study spends once, on its plan and kernels, is shown beside. Asked, of their time
divided by ours: 1.6 at float32 and 6 at auto with smp Unet resnet34 (random weights), 1.8 and 4
with the shared network.
"""

from __future__ import annotations

import argparse

from bench import Contestant, Figure, Spread, as_it_comes, contest, options, parsed, ratios, report
from claims import NETWORKS
from gradcam import Key, best_batch, disagreement, peer_study
from segproof.models.precision import keep_blocks
from segproof.study.tile import study_tile
from subjects import THRESHOLDS, Planned, Subject, planned, subjects

TILES = 8  # of a study that the costs of a study as a whole are shared by
SAME = ("grad_cam", "xgrad_cam")  # definitions that agree up to guards


def figures(subject: Subject, given: argparse.Namespace) -> list[Figure]:
    """Both claims of a network."""
    keep_blocks()
    ours = {name: planned(subject, name) for name in ("float32", "auto")}
    forwards: dict[str, int] = {}
    as_it_comes()
    batch = best_batch(subject.model, subject.image(0))

    def theirs(turn: int) -> None:
        found = peer_study(
            subject.model, subject.image(turn), subject.truth(turn), subject.paths, THRESHOLDS,
            batch,
        )  # fmt: skip
        forwards["grad-cam"] = len(found) + len(subject.paths) * 5 + channels(ours["auto"])

    def mine(name: str) -> Contestant:
        def work(turn: int) -> None:
            forwards[name] = ours[name].run(turn)

        return Contestant(work)

    seconds = contest(
        {"grad-cam": Contestant(theirs, kept=False), **{name: mine(name) for name in ours}},
        given,
        warm=False,
        title=NETWORKS[subject.name],
    )
    apart = checked(subject, ours["float32"], batch)
    found = []
    for name, made in ours.items():
        many = TILES * Spread.of(seconds["grad-cam"]).median
        many /= TILES * Spread.of(seconds[name]).median + made.once
        found.append(
            Figure(
                f"study-{subject.name}-{name}",
                ratios(seconds["grad-cam"], seconds[name]),
                {who: seconds[who] for who in ("grad-cam", name)},
                {
                    "kernels": made.plan.kernels.name,
                    "forwards of a tile, ours": forwards[name],
                    "forwards of a tile, grad-cam's script": forwards["grad-cam"],
                    "batch of its Score-CAM": batch,
                    "seconds once a study, ours": made.once,
                    f"ratio with these, for {TILES} tiles": many,
                    "greatest difference of a confidence (Grad-CAM, XGrad-CAM)": apart,
                },
            )
        )
    return found


def channels(made: Planned) -> int:
    """Channels of both layers: forwards of their Score-CAM besides its first ones."""
    return sum(layer.channels for layer in made.plan.shapes)


def checked(subject: Subject, made: Planned, batch: int) -> float:
    """That both sides do the same work: how far confidences of one picture differ at most."""
    ours = {key: value for key, value in confidences(subject, made).items() if key[1] in SAME}
    image, truth = subject.image(0), subject.truth(0)
    theirs = peer_study(subject.model, image, truth, subject.paths, THRESHOLDS, batch, SAME)
    return disagreement(theirs, ours)


def confidences(subject: Subject, made: Planned) -> dict[Key, float]:
    """Ours, of the pictures of the first tile, under the keys of `peer_study`."""
    found: dict[Key, float] = {}
    for row in study_tile(made.plan, subject.model, subject.tiles, 0).rows:
        if row.binarisation and row.status == "ok" and row.confidence is not None:
            key = (row.layer, row.method, f"{row.level:g}", row.strategy)
            found[key] = row.confidence
    return found


def main() -> None:
    """Measure, print and write."""
    given = parsed(options(__doc__, networks=True))
    found: list[Figure] = []
    for subject in subjects(given):
        found += figures(subject, given)
    report("study", found, given)


if __name__ == "__main__":
    main()
