from .of_measures import (
    AREAS as AREAS,
    CUT_MEASURES as CUT_MEASURES,
    FILLS as FILLS,
    HEADLINE as HEADLINE,
    THRESHOLDS as THRESHOLDS,
    Shown as Shown,
    average_precision as average_precision,
    credit as credit,
    graded_maps as graded_maps,
    judge_measures as judge_measures,
    judge_methods as judge_methods,
    measure_cards as measure_cards,
    method_table as method_table,
    shapley as shapley,
    shapley_table as shapley_table,
)
from .run import (
    Evidence as Evidence,
)
from .tier_b_planted import (
    planted as planted,
)

__all__: list[str]
