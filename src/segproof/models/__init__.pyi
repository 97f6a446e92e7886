from .axes import (
    Axes as Axes,
    Doubt as Doubt,
    Evidence as Evidence,
    Result as Result,
    as_written as as_written,
    named as named,
    others as others,
    part as part,
    plainly as plainly,
    tracing as tracing,
    with_part as with_part,
)
from .contract import (
    SegmentationModel as SegmentationModel,
    all_finite as all_finite,
    evaluating as evaluating,
    probabilities as probabilities,
    queries as queries,
    query_model as query_model,
    running as running,
)
from .inputs import (
    WrongSizeError as WrongSizeError,
    display_range as display_range,
    unit_range as unit_range,
)
from .layers import (
    Layer as Layer,
)
from .loaders.load import (
    as_model as as_model,
    demo_model_spec as demo_model_spec,
    load_model as load_model,
    save_model as save_model,
)
from .memory import (
    OutOfMemoryError as OutOfMemoryError,
    halving as halving,
)
from .outputs import (
    Activation as Activation,
    describe as describe,
)
from .precision import (
    EXACT as EXACT,
    PRECISIONS as PRECISIONS,
    Kernels as Kernels,
    keep_blocks as keep_blocks,
)
from .training import (
    descend as descend,
    train as train,
)

__all__: list[str]
