from .fills import (
    check_fill as check_fill,
)
from .measures import (
    check_measure as check_measure,
)
from .methods import (
    check_memory as check_memory,
    check_method as check_method,
)
from .models import (
    check_model as check_model,
)
from .properties import (
    LIMITS as LIMITS,
    PROPERTIES as PROPERTIES,
    Property as Property,
)
from .report import (
    Check as Check,
    Report as Report,
)
from .sideeffects import (
    FACTS as FACTS,
    facts as facts,
    unsettle as unsettle,
)
from .toys import (
    LAYERS as LAYERS,
    Fails as Fails,
    ToyNet as ToyNet,
    toy_images as toy_images,
    toy_model as toy_model,
    toy_truth as toy_truth,
)

__all__: list[str]
