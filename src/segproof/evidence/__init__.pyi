from .credit import (
    average_precision as average_precision,
    credit as credit,
    shapley as shapley,
    shapley_table as shapley_table,
)
from .graded_maps import (
    graded_maps as graded_maps,
)
from .of_measures import (
    AREAS as AREAS,
    CUT_MEASURES as CUT_MEASURES,
    HEADLINE as HEADLINE,
    THRESHOLDS as THRESHOLDS,
    TRIED_FILLS as TRIED_FILLS,
    Shown as Shown,
    judge_measures as judge_measures,
    measure_cards as measure_cards,
)
from .of_methods import (
    judge_methods as judge_methods,
    method_table as method_table,
)
from .run import (
    ALL_METHODS as ALL_METHODS,
    DEFAULT_MEASURES as DEFAULT_MEASURES,
    DEFAULT_METHODS as DEFAULT_METHODS,
    TIERS as TIERS,
    WHOLE as WHOLE,
    Evidence as Evidence,
    own_code as own_code,
    run_evidence as run_evidence,
    verdict as verdict,
)
from .tier_b_planted import (
    planted as planted,
)

__all__: list[str]
