from .case import (
    HeatmapCase as HeatmapCase,
    Undefined as Undefined,
)
from .map_records import (
    MAP_MEASURES as MAP_MEASURES,
)
from .measure import (
    CutFunction as CutFunction,
    MapMeasure as MapMeasure,
    Measure as Measure,
    PictureMeasure as PictureMeasure,
)
from .pictures import (
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
from .records import (
    BOUNDARY as BOUNDARY,
    MEASURES as MEASURES,
    all_measures as all_measures,
    describe_measure as describe_measure,
    headline as headline,
)
from .robustness import (
    alike as alike,
)
from .track_record import (
    evidence_of as evidence_of,
    shipped_evidence as shipped_evidence,
)

__all__: list[str]
