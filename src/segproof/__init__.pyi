from .data import (
    FolderDataset as FolderDataset,
    MaskValues as MaskValues,
    Reading as Reading,
    Sample as Sample,
    read_image as read_image,
    read_mask as read_mask,
)
from .errors import (
    DataError as DataError,
    DiskError as DiskError,
    ModelError as ModelError,
    SegproofError as SegproofError,
    StudyError as StudyError,
    TooManyFailedError as TooManyFailedError,
    UnknownNameError as UnknownNameError,
)
from .explain import (
    METHODS as METHODS,
    BoundTarget as BoundTarget,
    Explanation as Explanation,
    Region as Region,
    Target as Target,
    as_picture as as_picture,
    as_pictures as as_pictures,
    explain as explain,
    explain_all as explain_all,
    explain_objects as explain_objects,
    fuse as fuse,
    objects as objects,
)
from .measures import (
    MEASURES as MEASURES,
)
from .models import (
    Layer as Layer,
    SegmentationModel as SegmentationModel,
    as_model as as_model,
    load_model as load_model,
    probabilities as probabilities,
    queries as queries,
    query_model as query_model,
    save_model as save_model,
)
from .perturb import (
    FILLS as FILLS,
    STRATEGIES as STRATEGIES,
    binarise as binarise,
)
from .study import (
    CONTROLS as CONTROLS,
    Results as Results,
    StopRule as StopRule,
    Study as Study,
)

__all__: list[str]
__version__: str
