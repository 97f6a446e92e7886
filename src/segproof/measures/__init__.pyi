from .case import (
    Card as Card,
    HeatmapCase as HeatmapCase,
    MapMeasure as MapMeasure,
    Undefined as Undefined,
)
from .map_measures import (
    MAP_MEASURES as MAP_MEASURES,
)
from .pictures import (
    BOUNDARY as BOUNDARY,
    MEASURES as MEASURES,
    Measure as Measure,
    MeasureInfo as MeasureInfo,
    boundary_f as boundary_f,
    boundary_f_prediction as boundary_f_prediction,
    certainty as certainty,
    confidence as confidence,
    dice as dice,
    entropy as entropy,
    entropy_kept as entropy_kept,
    entropy_paper as entropy_paper,
    iou as iou,
    iou_prediction as iou_prediction,
    kept as kept,
    measured as measured,
)
from .robustness import (
    alike as alike,
)
from .track_record import (
    evidence_of as evidence_of,
    shipped_evidence as shipped_evidence,
)

__all__: list[str]
