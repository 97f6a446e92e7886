from .api import (
    FLAT as FLAT,
    SYMMETRIES as SYMMETRIES,
    Explanation as Explanation,
    as_picture as as_picture,
    as_pictures as as_pictures,
    as_target as as_target,
    clean_of as clean_of,
    explain as explain,
    explain_all as explain_all,
    explain_capture as explain_capture,
    explain_objects as explain_objects,
    fuse as fuse,
    normalise as normalise,
    pad_below as pad_below,
    resolve_method as resolve_method,
    with_baseline as with_baseline,
)
from .cam import (
    RawMap as RawMap,
    grad_cam_pp as grad_cam_pp,
)
from .forward_pass import (
    Capture as Capture,
    capture as capture,
    frozen as frozen,
    observe as observe,
    replaced as replaced,
)
from .masked import (
    score_cam as score_cam,
)
from .methods import (
    CHANNELWISE as CHANNELWISE,
    INPUT_LAYER as INPUT_LAYER,
    LAYERLESS as LAYERLESS,
    METHODS as METHODS,
    Method as Method,
    MethodFunction as MethodFunction,
    record_of as record_of,
    register as register,
)
from .target import (
    PRESETS as PRESETS,
    BoundTarget as BoundTarget,
    FixedTarget as FixedTarget,
    Preset as Preset,
    Reduce as Reduce,
    Region as Region,
    Space as Space,
    Target as Target,
    check_region as check_region,
    hard_mask as hard_mask,
    objects as objects,
)

__all__: list[str]
