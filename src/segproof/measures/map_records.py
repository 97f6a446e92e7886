"""Records what every measure of a whole heatmap is; see `segproof.measures.records`."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from segproof.deferred import Deferred
from segproof.measures.measure import MapMeasure, Measure

__all__ = ["AGAIN", "MAP_MEASURES"]

AGAIN: Final = "re-explanation"  # a forward, a backward, and what the method itself shows
_METHOD: Final = "A method that can explain again; controls have none."


def _map(
    module: str,
    name: str,
    better: Literal["higher", "lower", "neither"],
    low: float,
    high: float,
    unit: str,
    source: str,
    forwards: str,
    **rest: Any,
) -> Measure[MapMeasure]:
    function = Deferred(f"segproof.measures.{module}:{name}")
    again = AGAIN in forwards
    needs = rest.pop("needs", _METHOD if again else "")
    return Measure(
        name,
        function,
        better,
        low,
        high,
        unit,
        source=source,
        forwards=forwards,
        needs=needs,
        tried_as=name,
        explains_again=again,
        **rest,
    )


_FILLED: Final = "A fill that does not leak."

MAP_MEASURES: Final[dict[str, Measure[MapMeasure]]] = {
    measure.name: measure
    for measure in (
        _map(
            "curves",
            "deletion",
            "lower",
            0.0,
            1.0,
            "mean confidence",
            "petsiuk2018rise",
            "20",
            label="deletion",
            formula="area under the confidence while the hottest pixels go first",
            meaning="Says how fast the class vanishes when the hottest pixels are removed first.",
            needs=_FILLED,
            failure=(
                "Removing the object itself is trivial: a map of the region wins; read"
                " deletion_outside beside it, and check that the fill does not leak."
            ),
        ),
        _map(
            "curves",
            "insertion",
            "higher",
            0.0,
            1.0,
            "mean confidence",
            "petsiuk2018rise",
            "20",
            label="insertion",
            formula="area under the confidence while the hottest pixels come first",
            meaning="Says how fast the class appears when the hottest pixels are shown first.",
            needs=_FILLED,
            failure=(
                "A scatter of shown pixels is no picture that the network was trained on: a compact"
                " map can win over a truer one that is spread out."
            ),
        ),
        _map(
            "curves",
            "deletion_outside",
            "lower",
            0.0,
            1.0,
            "mean confidence",
            "petsiuk2018rise",
            "20",
            label="deletion outside the region",
            formula="area under the confidence while the hottest pixels outside R go first",
            meaning="Says how fast the class vanishes when the hottest context is removed first.",
            needs=_FILLED,
            failure=(
                "Where the network needs no context all maps have the same high value, and the"
                " differences are noise; a map that is 0 outside the region is ordered by chance."
            ),
        ),
        _map(
            "curves",
            "insertion_outside",
            "higher",
            0.0,
            1.0,
            "mean confidence",
            "petsiuk2018rise",
            "20",
            label="insertion outside the region",
            formula="area under the confidence while the hottest pixels outside R come first",
            meaning="Says how fast the class appears when the hottest context is shown first.",
            needs=_FILLED,
            failure=(
                "Where the region alone is enough all maps have the same high value; a map that is"
                " 0 outside the region is ordered by chance."
            ),
        ),
        _map(
            "curves",
            "road_morf",
            "lower",
            0.0,
            1.0,
            "mean confidence",
            "rong2022road",
            "9, and 9 linear systems",
            label="ROAD, most relevant first",
            formula="mean confidence with the hottest 10 to 90 % of pixels imputed",
            meaning=(
                "Says how sure the network stays when the hottest pixels are imputed from their"
                " neighbours."
            ),
            failure=(
                "A region that is removed whole is imputed smoothly and may still be seen by its"
                " outline: on a trained roof network a random map beat Grad-CAM and the prediction"
                " itself."
            ),
        ),
        _map(
            "curves",
            "road_lerf",
            "higher",
            0.0,
            1.0,
            "mean confidence",
            "rong2022road",
            "9, and 9 linear systems",
            label="ROAD, least relevant first",
            formula="mean confidence with the coldest 10 to 90 % of pixels imputed",
            meaning=(
                "Says how sure the network stays when the coldest pixels are imputed from their"
                " neighbours."
            ),
            failure=(
                "It says little of what is hottest: any map that is low far from the object does"
                " well."
            ),
        ),
        _map(
            "curves",
            "road",
            "higher",
            -1.0,
            1.0,
            "difference of mean confidences",
            "rong2022road",
            "18, and 18 linear systems",
            label="ROAD",
            formula="road_lerf - road_morf",
            meaning=(
                "Says how much more the network loses with the hottest pixels imputed than with"
                " the coldest."
            ),
            failure=(
                "A map of the region alone does well in both of its parts, whatever the network"
                " looks at."
            ),
        ),
        _map(
            "curves",
            "context_need",
            "neither",
            0.0,
            128.0,
            "px",
            "hoyer2019grid",
            "7",
            label="context need",
            formula="smallest r at which R, dilated by r, has 95 % of the clean confidence",
            meaning="Says how far around the target the network has to see before it is sure.",
            needs=_FILLED,
            failure=(
                "It does not depend on the heatmap: it describes network and picture, the same for"
                " all maps of a target; under a fill that leaks it is 0."
            ),
        ),
        _map(
            "curves",
            "preserved",
            "higher",
            0.0,
            1.0,
            "share of the clean prediction",
            "mullan2023kernelweighted",
            "1",
            label="preserved",
            formula="sum of min(p, p') / sum of p, p' behind the heatmap as a soft mask",
            meaning="Says how much of the prediction is left behind the heatmap as a soft mask.",
            needs=_FILLED,
            failure=(
                "A map that is 1 everywhere has the highest value: read the map's area beside it."
            ),
        ),
        _map(
            "curves",
            "excess",
            "lower",
            0.0,
            math.inf,
            "share of the clean prediction",
            "mullan2023kernelweighted",
            "1",
            label="excess",
            formula="sum of max(p' - p, 0) / sum of p, p' behind the heatmap as a soft mask",
            meaning="Says how much is predicted behind the heatmap that was not there before.",
            needs=_FILLED,
            failure=(
                "A map that is 1 everywhere, or a prediction that vanishes, has no excess: read"
                " preserved beside it."
            ),
        ),
        _map(
            "localisation",
            "pointing_game",
            "higher",
            0.0,
            1.0,
            "hit",
            "zhang2018excitation",
            "0",
            label="pointing game",
            formula="1 if the hottest pixel lies in R, else 0",
            meaning="Says whether the hottest pixel lies in the target region.",
            failure=(
                "Sees one pixel, and rewards a map of the prediction, whatever the network used."
            ),
        ),
        _map(
            "localisation",
            "relevance_mass",
            "higher",
            0.0,
            1.0,
            "share of heat",
            "arras2022clevr",
            "0",
            label="relevance mass",
            formula="sum of S over R / sum of S over V",
            meaning="Says how much of the heat lies in the target region.",
            failure=(
                "Rewards a map of the prediction, whatever the network used, and punishes true heat"
                " on evidence outside the region."
            ),
        ),
        _map(
            "localisation",
            "relevance_rank",
            "higher",
            0.0,
            1.0,
            "share of pixels",
            "arras2022clevr",
            "0",
            label="relevance rank",
            formula="share of the |R| hottest pixels that lie in R",
            meaning="Says how many of the hottest pixels lie in the target region.",
            failure=(
                "Rewards a map of the prediction, whatever the network used, and is high by chance"
                " where the region is large."
            ),
        ),
        _map(
            "localisation",
            "ring_share",
            "neither",
            0.0,
            1.0,
            "share of heat",
            "hoyer2019grid",
            "0",
            label="ring share",
            formula="sum of S outside R within 16 px of it / sum of S over V",
            meaning="Says how much of the heat lies close around the target region.",
            failure=(
                "The blur of a coarse layer's map spills over the outline and looks like heat on"
                " context."
            ),
        ),
        _map(
            "localisation",
            "gini",
            "higher",
            0.0,
            1.0,
            "index",
            "chalasani2020concise",
            "0",
            label="Gini index",
            formula="Gini index of S over V",
            meaning="Says how unevenly the heat is spread: 0 is even, close to 1 is a few pixels.",
            failure="Says nothing of truth: one pixel at random is as concise as a map can be.",
        ),
        _map(
            "localisation",
            "effective_area",
            "neither",
            0.0,
            1.0,
            "share of pixels",
            "roy2007effective",
            "0",
            label="effective area",
            formula="exp(entropy of S / sum of S) / |V|",
            meaning="Says which share of the picture as much heat would fill evenly.",
            failure="Says nothing of truth, and a layer's resolution sets how small it can be.",
        ),
        _map(
            "robustness",
            "max_sensitivity",
            "lower",
            0.0,
            math.inf,
            "ratio",
            "yeh2019infidelity",
            f"8 x {AGAIN}",
            label="max-sensitivity",
            formula="largest |S(x') - S(x)| / |S(x)| of 8 x' within 2 % of the value range",
            meaning="Says how far the map moves when the picture changes a little.",
            failure=(
                "A map that ignores the network does not move at all; few draws miss the worst"
                " case."
            ),
        ),
        _map(
            "robustness",
            "infidelity",
            "lower",
            0.0,
            1.0,
            "share of dY squared",
            "yeh2019infidelity",
            "64",
            label="infidelity",
            formula="1 - E[I.S dY]^2 / (E[(I.S)^2] E[dY^2]) over 64 squares I",
            meaning="Says how badly the heat in a square foretells what its removal changes.",
            needs=_FILLED,
            failure=(
                "Takes either sign, so that heat on what speaks against the class counts as well,"
                " and a fill that leaks misleads it."
            ),
        ),
        _map(
            "robustness",
            "randomisation_top_down",
            "lower",
            -1.0,
            1.0,
            "Spearman",
            "adebayo2018sanity",
            f"1 + 5 x {AGAIN}",
            label="randomisation, output first",
            formula="mean correlation with the maps of the network re-initialised in 5 steps",
            meaning="Says how alike the map stays while the network forgets, from its output on.",
            needs=f"{_METHOD} A network that can be copied.",
            failure=(
                "A map of noise passes, and skip connections that carry the picture's edges keep"
                " even a faithful map alike."
            ),
        ),
        _map(
            "robustness",
            "randomisation_bottom_up",
            "lower",
            -1.0,
            1.0,
            "Spearman",
            "adebayo2018sanity",
            f"1 + 5 x {AGAIN}",
            label="randomisation, input first",
            formula="mean correlation with the maps of the network re-initialised in 5 steps",
            meaning="Says how alike the map stays while the network forgets, from its input on.",
            needs=f"{_METHOD} A network that can be copied.",
            failure="A map of noise passes, and the first step alone changes all that follows.",
        ),
        _map(
            "robustness",
            "random_class",
            "lower",
            -1.0,
            1.0,
            "Spearman",
            "adebayo2018sanity",
            AGAIN,
            label="random class",
            formula="correlation with the map of another class",
            meaning="Says how alike the map is to that of another class, drawn at random.",
            failure=(
                "Two classes that the network tells by the same pixels have like maps that are both"
                " right; with two classes the other map is little more than the negative."
            ),
        ),
        _map(
            "robustness",
            "equivariance",
            "higher",
            -1.0,
            1.0,
            "Pearson",
            "crabbe2023evaluating",
            f"7 x {AGAIN}",
            label="equivariance",
            formula="mean correlation with the maps of the flipped and turned picture, undone",
            meaning="Says how well the map follows flips and quarter turns of the picture.",
            failure=(
                "Blames the map for what the network does: one that reads a turned picture"
                " otherwise should have another map."
            ),
        ),
        _map(
            "robustness",
            "shift_equivariance",
            "higher",
            -1.0,
            1.0,
            "Pearson",
            "crabbe2023evaluating",
            f"4 x {AGAIN}",
            label="shift equivariance",
            formula="mean correlation with the maps of the picture shifted by a stride, undone",
            meaning="Says how well the map follows shifts of the picture.",
            failure=(
                "A shift by whole strides hides what the grid does to the map, and what leaves the"
                " picture may have mattered."
            ),
        ),
        _map(
            "robustness",
            "overlap_consistency",
            "higher",
            -1.0,
            1.0,
            "Pearson",
            "huang2018tiling",
            f"2 x {AGAIN}",
            label="overlap consistency",
            formula="correlation of the maps of two windows over their overlap",
            meaning="Says how well the maps of two overlapping windows of the picture agree.",
            needs=f"{_METHOD} A picture that is large enough for two windows.",
            failure=(
                "A network that truly uses what only one window holds should have two maps, and is"
                " punished for it."
            ),
        ),
    )
}
