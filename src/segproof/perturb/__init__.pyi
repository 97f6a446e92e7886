from .controls import (
    random_blobs as random_blobs,
)
from .fill_context import (
    FillContext as FillContext,
)
from .fills import (
    OUTLINE as OUTLINE,
    background_of as background_of,
    blend as blend,
    make_fill as make_fill,
    membrane as membrane,
    perturb as perturb,
)
from .imputation import (
    NOISE as NOISE,
    linear_imputation as linear_imputation,
    unit_of as unit_of,
)
from .records import (
    CONTROL_PREFIX as CONTROL_PREFIX,
    CONTROLS as CONTROLS,
    DEFAULT_FILLS as DEFAULT_FILLS,
    FILLS as FILLS,
    Control as Control,
    Fill as Fill,
    FillFunction as FillFunction,
    control_id as control_id,
    control_name as control_name,
    control_of as control_of,
    is_control as is_control,
    register_fill as register_fill,
)
from .regions import (
    STRATEGIES as STRATEGIES,
    binarise as binarise,
    dilate as dilate,
    keep_mask as keep_mask,
    largest_square as largest_square,
    otsu_threshold as otsu_threshold,
    rank_pixels as rank_pixels,
    rough_noise as rough_noise,
    roughen as roughen,
    soft_keep as soft_keep,
)
from .seeding import (
    seeded as seeded,
)

__all__: list[str]
