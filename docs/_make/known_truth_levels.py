"""Renew the table of evidence.md that says which sizes of region a study should take.

python docs/_make/known_truth_levels.py     # ten minutes of one core
"""

from __future__ import annotations

import pandas as pd
from known_truth import PAGE, table
from page import renew

from segproof import evidence
from segproof.evidence.of_measures import scene_scores
from segproof.evidence.tier_b_planted import planted

SEEDS = range(6)
AREAS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3)
SETS = (
    *((0.05,), (0.1,), (0.2,)),
    *((0.1, 0.2), (0.05, 0.1), (0.05, 0.2)),
    *((0.05, 0.1, 0.2, 0.3), (0.02, 0.05, 0.1, 0.2), (0.01, 0.02, 0.05, 0.1, 0.2)),
    AREAS,
)


def judged() -> pd.DataFrame:
    """The contrast of every map of known quality at every area, on all networks of tier b."""
    cut = {"contrast": evidence.CUT_MEASURES["contrast"]}
    return pd.concat(
        evidence.judge_measures(
            planted(scenes=2, seed=seed),
            cut=cut,
            fills=evidence.TRIED_FILLS[-1:],
            thresholds=(),
            areas=AREAS,
            seed=seed,
        )
        for seed in SEEDS
    )


def levels(found: pd.DataFrame) -> str:
    """Tau and the share of cases with the oracle first, for each choice of areas."""
    body = []
    for areas in SETS:
        scores = scene_scores(found[found["level"].isin(areas)])
        named = (
            "all twelve from .005 to .3" if areas == AREAS else ", ".join(f"{x:g}" for x in areas)
        )
        first = int(scores["first"].sum())
        body.append([named, f"{scores['tau'].mean():.2f}", f"{first} of {len(scores)}"])
    return table(["areas", "tau of the contrast", "oracle first"], body)


if __name__ == "__main__":
    renew(PAGE, {"levels": levels(judged())})
