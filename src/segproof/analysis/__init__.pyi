from .comparison import (
    MARGIN as MARGIN,
    RunComparison as RunComparison,
    compare as compare,
)
from .statistics import (
    LEAST_IMAGES as LEAST_IMAGES,
    LEAST_METHODS as LEAST_METHODS,
    Interval as Interval,
    interval as interval,
    kendall_tau as kendall_tau,
)
from .tables import (
    ALPHA as ALPHA,
    BOUNDARY as BOUNDARY,
    JOINED as JOINED,
    SHORT as SHORT,
    VALID_DROP as VALID_DROP,
    Preset as Preset,
    Tables as Tables,
    measure_label as measure_label,
    method_label as method_label,
    strategy_label as strategy_label,
)

__all__: list[str]
