"""Records what every measure is: function, direction, range, cost, meaning and how it misleads.

Tables, texts, settings and `segproof measures` are derived from these records. The module loads no
PyTorch: functions are imported when they are first called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from segproof.choices import Preset
from segproof.deferred import Deferred
from segproof.errors import UnknownNameError, canonical
from segproof.measures.map_records import MAP_MEASURES
from segproof.measures.measure import CutFunction, Measure, PictureMeasure

__all__ = [
    "BOUNDARY",
    "HEADLINE",
    "MAP_MEASURES",
    "MEASURES",
    "PAPER_M3",
    "all_measures",
    "describe_measure",
    "headline",
]

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
    name: str, better: Literal["higher", "lower"], unit: str, meaning: str, **rest: Any
) -> Measure[PictureMeasure]:
    # the forward of the perturbed picture is shared by all measures that read it
    rest = {"kind": "picture", "forwards": "1", **rest}
    function = Deferred(f"segproof.measures.pictures:{name}")
    return Measure(name, function, better, 0.0, 1.0, unit, meaning=meaning, **rest)


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
    spelled = canonical(name, measures)
    if spelled is None:
        raise UnknownNameError.of("measure", name, measures)
    measure = measures[spelled]
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
