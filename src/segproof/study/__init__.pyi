from .early_stop import (
    LEAST as LEAST,
    Asked as Asked,
    StopRule as StopRule,
)
from .fill_check import (
    OUTLINES as OUTLINES,
    choose_fills as choose_fills,
    choose_outline as choose_outline,
    probe_fills as probe_fills,
)
from .integrity import (
    DataReport as DataReport,
    Status as Status,
    status as status,
    survey_data as survey_data,
    verify as verify,
)
from .results import (
    Results as Results,
    probe as probe,
    write_atomic as write_atomic,
)
from .run import (
    Study as Study,
)
from .settings import (
    CONTROLS as CONTROLS,
    GROUPS as GROUPS,
    PUBLISHED as PUBLISHED,
    Settings as Settings,
    names_of_setting as names_of_setting,
    read_toml as read_toml,
    reading_for as reading_for,
)
from .speed import (
    choose_kernels as choose_kernels,
    distance_of as distance_of,
    score_distance as score_distance,
)
from .tile import (
    MAP_MEASURES as MAP_MEASURES,
    Plan as Plan,
)
from .workers import (
    best_workers as best_workers,
)

__all__: list[str]
