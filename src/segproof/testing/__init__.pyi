from .checks import (
    FACTS as FACTS,
    LAYERS as LAYERS,
    LIMITS as LIMITS,
    PROPERTIES as PROPERTIES,
    Check as Check,
    Fails as Fails,
    Property as Property,
    Report as Report,
    ToyNet as ToyNet,
    check_fill as check_fill,
    check_measure as check_measure,
    check_memory as check_memory,
    check_method as check_method,
    check_model as check_model,
    facts as facts,
    toy_images as toy_images,
    toy_model as toy_model,
    toy_truth as toy_truth,
    unsettle as unsettle,
)

__all__: list[str]
