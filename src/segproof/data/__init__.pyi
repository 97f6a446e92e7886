from .file_names import (
    SUFFIXES as SUFFIXES,
)
from .given import (
    as_sample as as_sample,
    as_samples as as_samples,
    expand_pictures as expand_pictures,
)
from .layouts import (
    LAYOUTS as LAYOUTS,
    Matching as Matching,
    find_pairs as find_pairs,
)
from .masks import (
    IGNORE as IGNORE,
    MaskFile as MaskFile,
    MaskValues as MaskValues,
    meanings as meanings,
    open_mask as open_mask,
    read_mask as read_mask,
)
from .rasters import (
    MAX_BYTES as MAX_BYTES,
    Raster as Raster,
    Reading as Reading,
    Sample as Sample,
    input_reading as input_reading,
    read_image as read_image,
    read_raster as read_raster,
)
from .scenes import (
    SceneDataset as SceneDataset,
    scene as scene,
    write_scenes as write_scenes,
)
from .tiles import (
    SHIFT as SHIFT,
    FolderDataset as FolderDataset,
    SampleSource as SampleSource,
    Surveyed as Surveyed,
    digest_of as digest_of,
    survey as survey,
    surveyed as surveyed,
)

__all__: list[str]
