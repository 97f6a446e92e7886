"""Records what every measure is: function, direction, range, cost, meaning and how it misleads.

Tables, texts, settings and `segproof measures` are derived from these records. The module loads no
PyTorch: functions are imported when they are first called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

from segproof.choices import Preset
from segproof.deferred import Deferred
from segproof.errors import UnknownNameError, canonical
from segproof.measures.track_record import evidence_of

if TYPE_CHECKING:
    from torch import Tensor

    from segproof.explain import BoundTarget
    from segproof.measures.case import HeatmapCase

__all__ = [
    "BOUNDARY",
    "HEADLINE",
    "MAP_MEASURES",
    "MEASURES",
    "PAPER_M3",
    "CutFunction",
    "MapMeasure",
    "Measure",
    "PictureMeasure",
    "all_measures",
    "describe_measure",
    "headline",
]

# probabilities [N, K, H, W], the bound target, the truth bool [N or 1, H, W] or None -> float64 [N]
PictureMeasure: TypeAlias = Callable[["Tensor", "BoundTarget", "Tensor | None"], "Tensor"]
# one heatmap of one picture -> a number
MapMeasure: TypeAlias = Callable[["HeatmapCase"], float]
# what was read of the clean picture and of M1, M2, M3 (attributes clean, m1, m2, m3) -> float64 [n]
CutFunction: TypeAlias = Callable[[Any], "Tensor"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measure(Generic[Function]):
    """What is to be known of a measure before it is believed; calling the record measures.

    `better` is its direction, `low` and `high` its range, `unit` what it is counted in, `formula`
    how it is computed and `meaning` what it says. `source` is a key of docs/references.bib, ""
    where the measure was made here. `forwards` is what one number costs, `needs` what has to be
    there for it, `failure` the known way in which it misleads. `column` is the column of results
    that a headline measure reads, `tried_as` its name in the shipped evidence. `explains_again`
    measures run the method on other pictures or networks.
    """

    name: str
    function: Function
    better: Literal["higher", "lower", "neither"] = "higher"
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    label: str = ""
    kind: Literal["headline", "picture", "map"] = "map"
    formula: str = ""
    meaning: str = ""
    source: str = ""
    forwards: str = "0"
    needs: str = ""
    failure: str = ""
    column: str = ""
    tried_as: str = ""
    explains_again: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """The measure's value, or values."""
        return self.function(*arguments)

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return "no direction" if self.better == "neither" else f"{self.better} is better"

    def track_record(self) -> list[dict[str, Any]]:
        """The shipped evidence on this measure, one entry a tier; empty where it was not tried."""
        binarisation = "area" if self.kind == "headline" else "map"
        return [dict(card) for card in evidence_of(self.tried_as, binarisation)]


# --- headline measures: made of the rows of M1, M2 and M3 -----------------------------------------
_FILL: Final = "A fill under which the target, removed, is gone: see `segproof fills`."

HEADLINE: Final[dict[str, Measure[CutFunction]]] = {
    measure.name: measure
    for measure in (
        Measure[CutFunction](
            "contrast",
            lambda shown: shown.m2["confidence"] - shown.m1["confidence"],
            "higher",
            -1.0,
            1.0,
            "difference of confidences",
            label="contrast M2 \N{MINUS SIGN} M1",
            kind="headline",
            formula="confidence of M2 - confidence of M1",
            meaning=(
                "Says how much more of the class the network sees in the highlighted region alone"
                " than in the picture without it. It is 1 where the region is all that counts, 0"
                " where it makes no difference, and negative where it speaks against the class."
            ),
            forwards="2",
            needs=_FILL,
            failure=(
                "A map of the object itself does well wherever the network decides by the object;"
                " compare with the control p_c. Where the fill draws an outline, both of its parts"
                " measure that outline."
            ),
            column="confidence",
            tried_as="contrast",
        ),
        Measure[CutFunction](
            "M1",
            lambda shown: shown.m1["confidence"],
            "lower",
            0.0,
            1.0,
            "probability",
            label="M1 confidence",
            kind="headline",
            formula="mean of p_c over R, the highlighted region removed",
            meaning=(
                "Says how sure the network still is of the class in the target region after the"
                " highlighted region was removed."
            ),
            source="gizzini2023extending",
            forwards="1",
            needs=_FILL,
            failure=(
                "It cannot see that a part of the cause is missing from the map. Under a fill that"
                " draws the class it measures the outline of the hole."
            ),
            column="confidence",
            tried_as="m1_confidence",
        ),
        Measure[CutFunction](
            "M2",
            lambda shown: shown.m2["confidence"],
            "higher",
            0.0,
            1.0,
            "probability",
            label="M2 confidence",
            kind="headline",
            formula="mean of p_c over R, nothing but the highlighted region shown",
            meaning=(
                "Says how sure the network is of the class in the target region when it sees"
                " nothing but the highlighted region."
            ),
            source="gizzini2023extending",
            forwards="1",
            needs=_FILL,
            failure=(
                "Poor maps tie at 0, and a fill that turns a window into the class raises it for"
                " every map."
            ),
            column="confidence",
            tried_as="m2_confidence",
        ),
        Measure[CutFunction](
            "M3",
            lambda shown: shown.m3["certainty"],
            "higher",
            0.0,
            1.0,
            "share of R",
            label="M3 certainty",
            kind="headline",
            formula="share of R that is kept, times 1 - its entropy; region and target shown",
            meaning=(
                "Says how surely the network sees the target when the target and the highlighted"
                " region are shown together."
            ),
            source="gizzini2023extending",
            forwards="1",
            needs="A fill; the target region, which is shown whatever the map says.",
            failure=(
                "The target is shown in any case: maps differ only by the context that they add,"
                " and where the network needs none all of them have the same value."
            ),
            column="certainty",
            tried_as="m3_certainty",
        ),
        Measure[CutFunction](
            "iou_drop",
            lambda shown: shown.clean["iou"] - shown.m1["iou"],
            "higher",
            -1.0,
            1.0,
            "difference of IoU",
            label="IoU drop",
            kind="headline",
            formula="IoU with the truth - IoU with the truth, the highlighted region removed",
            meaning=(
                "Says how much of the overlap with the truth is lost when the highlighted region is"
                " removed."
            ),
            source="gizzini2023extending",
            forwards="1",
            needs=f"A truth mask. {_FILL}",
            failure=(
                "It reads a hard mask: small changes around the decision threshold count, large"
                " ones on either side of it do not. Like M1, it cannot see a missing part."
            ),
            column="iou_drop",
            tried_as="iou_drop",
        ),
    )
}
# M3 as published; it stands for M3 in the preset `paper`
PAPER_M3: Final = Measure[CutFunction](
    "M3",
    lambda shown: shown.m3["entropy"],
    "lower",
    0.0,
    1.0,
    "share of the maximum",
    label="M3 entropy",
    kind="headline",
    formula="mean over all pixels of the truth times -p_c log2 p_c / log2 C",
    meaning=(
        "Says how undecided the network is about the target when the target and the highlighted"
        " region are shown together."
    ),
    source="gizzini2023extending",
    forwards="1",
    needs="A fill; a truth mask.",
    failure="It is as low where the network is sure that nothing is there as where it sees all.",
    column="entropy",
    tried_as="m3_entropy_paper",
)


def headline(preset: Preset = "strict") -> Mapping[str, Measure[CutFunction]]:
    """The headline measures of a preset by name, the one that ranks methods first."""
    return HEADLINE if preset == "strict" else {**HEADLINE, "M3": PAPER_M3}


# --- measures of one perturbed picture ------------------------------------------------------------
def _picture(
    name: str, better: Literal["higher", "lower"], unit: str, meaning: str, **known: Any
) -> Measure[PictureMeasure]:
    # the forward of the perturbed picture is shared by all measures that read it
    known = {"kind": "picture", "forwards": "1", **known}
    function = Deferred(f"segproof.measures.pictures:{name}")
    return Measure(name, function, better, 0.0, 1.0, unit, meaning=meaning, **known)


_TRUTH: Final = "A truth mask."
_HARD: Final = "It reads a hard mask and says nothing of how sure the network is of it."

MEASURES: Final[dict[str, Measure[PictureMeasure]]] = {
    measure.name: measure
    for measure in (
        _picture(
            "confidence",
            "higher",
            "probability",
            "Says how sure the network is of the class in the target region.",
            label="confidence",
            formula="mean of p_c over R",
            failure="A few pixels that collapse are hidden by the mean over a large region.",
        ),
        _picture(
            "entropy",
            "lower",
            "share of the maximum",
            "Says how undecided the network is in the target region.",
            label="entropy",
            formula="mean over R of the entropy of each pixel's classes / its maximum",
            failure="It is just as low where the network is sure that the class is not there.",
        ),
        _picture(
            "kept",
            "higher",
            "share of R",
            "Says how much of the target region is still decided as the class.",
            label="kept",
            formula="pixels of R decided as the class / pixels of R",
            failure=_HARD,
        ),
        _picture(
            "certainty",
            "higher",
            "share of R",
            "Says how much of the target region is decided as the class, and how surely.",
            label="certainty",
            formula="kept * (1 - mean entropy of the kept pixels)",
            failure="A small region seen surely and a large one seen unsurely can have one value.",
        ),
        _picture(
            "iou",
            "higher",
            "ratio",
            "Says how well the new mask overlaps with the truth.",
            label="IoU",
            formula="pixels in both masks / pixels in either",
            needs=_TRUTH,
            failure=_HARD,
        ),
        _picture(
            "iou_prediction",
            "higher",
            "ratio",
            "Says how well the new mask overlaps with the prediction on the clean picture.",
            label="IoU with the clean prediction",
            formula="pixels in both masks / pixels in either",
            failure=f"{_HARD} A prediction that was wrong counts as right.",
        ),
        _picture(
            "dice",
            "higher",
            "ratio",
            "Says how well the new mask overlaps with the truth, small overlaps counting more.",
            label="Dice",
            formula="2 * pixels in both masks / (pixels of one + pixels of the other)",
            needs=_TRUTH,
            failure=_HARD,
        ),
    )
}

# Twentieths of a forward each, so a study makes them where it names them.
BOUNDARY: Final[dict[str, Measure[PictureMeasure]]] = {
    measure.name: measure
    for measure in (
        _picture(
            "boundary_f",
            "higher",
            "ratio",
            "Says how well the outline of the new mask follows that of the truth.",
            label="boundary F",
            formula="2 P R / (P + R) of outline pixels within 3 px of the other outline",
            source="csurka2013boundary",
            needs=f"{_TRUTH} A study with `boundary`.",
            failure="It says nothing of the inside: a ring along the outline has the full value.",
        ),
        _picture(
            "boundary_f_prediction",
            "higher",
            "ratio",
            "Says how well the outline of the new mask follows that of the clean prediction.",
            label="boundary F with the clean prediction",
            formula="2 P R / (P + R) of outline pixels within 3 px of the other outline",
            source="csurka2013boundary",
            needs="A study with `boundary`.",
            failure="It says nothing of the inside, and a wrong prediction counts as right.",
        ),
    )
}


# --- measures of a whole heatmap ------------------------------------------------------------------
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
    **known: Any,
) -> Measure[MapMeasure]:
    function = Deferred(f"segproof.measures.{module}:{name}")
    again = AGAIN in forwards
    needs = known.pop("needs", _METHOD if again else "")
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
        **known,
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


# --- all of them ----------------------------------------------------------------------------------
def all_measures() -> Mapping[str, Measure[Any]]:
    """Every measure by name in the order in which a reader meets them, the headline ones first."""
    return {**HEADLINE, **MEASURES, **BOUNDARY, **MAP_MEASURES}


def describe_measure(name: str, preset: Preset = "strict") -> dict[str, Any]:
    """All that is known of a measure as plain data (ready for JSON), its track record included.

    A range without an end has None there.

    Raises:
        UnknownNameError: no such measure.
    """
    measures = {**all_measures(), **headline(preset)}
    known = canonical(name, measures)
    if known is None:
        raise UnknownNameError.of("measure", name, measures)
    measure = measures[known]
    ends = {"low": measure.low, "high": measure.high}
    return {
        "name": measure.name,
        "label": measure.label,
        "kind": measure.kind,
        "meaning": measure.meaning,
        "formula": measure.formula,
        "better": measure.better,
        **{end: value if math.isfinite(value) else None for end, value in ends.items()},
        "unit": measure.unit,
        "source": measure.source,
        "forwards": measure.forwards,
        "needs": measure.needs,
        "failure": measure.failure,
        "track_record": measure.track_record(),
    }
