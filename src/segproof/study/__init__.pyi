from .early_stop import (
    StopRule as StopRule,
)
from .files import (
    check_writable as check_writable,
    write_atomic as write_atomic,
)
from .fill_check import (
    OUTLINES as OUTLINES,
    choose_fills as choose_fills,
    choose_outline as choose_outline,
    probe_fills as probe_fills,
)
from .integrity import (
    IntegrityReport as IntegrityReport,
    Status as Status,
    status as status,
    verify as verify,
)
from .plan import (
    Picture as Picture,
    Plan as Plan,
)
from .results import (
    Results as Results,
)
from .run import (
    Listeners as Listeners,
    Study as Study,
)
from .settings import (
    CONTROLS as CONTROLS,
    GROUPS as GROUPS,
    PUBLISHED as PUBLISHED,
    Settings as Settings,
    command_of as command_of,
    names_of_setting as names_of_setting,
    read_toml as read_toml,
    reading_for as reading_for,
)
from .speed import (
    choose_kernels as choose_kernels,
    distance_of as distance_of,
    score_distance as score_distance,
)
from .store import (
    Kept as Kept,
)
from .survey import (
    DataReport as DataReport,
    Problem as Problem,
    ValueShare as ValueShare,
    check as check,
    survey_data as survey_data,
)
from .tile import (
    MAP_MEASURES as MAP_MEASURES,
)
from .workers import (
    best_workers as best_workers,
)

__all__: list[str]
