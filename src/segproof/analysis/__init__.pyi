from .analysis import (
    Analysis as Analysis,
)
from .basis import (
    ALPHA as ALPHA,
    VALID_DROP as VALID_DROP,
    Headline as Headline,
    candidates as candidates,
    headline as headline,
    headline_measure as headline_measure,
)
from .comparison import (
    RunComparison as RunComparison,
    compare as compare,
)
from .names import (
    HEADLINE_MEASURES as HEADLINE_MEASURES,
    JOINED as JOINED,
    KEYS as KEYS,
    SHORT as SHORT,
    higher_is_better as higher_is_better,
    measure_label as measure_label,
    measure_of as measure_of,
    method_label as method_label,
    strategy_label as strategy_label,
)
from .statistics import (
    LEAST_IMAGES as LEAST_IMAGES,
    LEAST_METHODS as LEAST_METHODS,
    Interval as Interval,
    interval as interval,
    kendall_tau as kendall_tau,
)
from .tables import (
    heatmap_scores as heatmap_scores,
)

__all__: list[str]
