"""List the figures of speed and memory, each with its goal and the script that measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CLAIMS", "Claim"]


@dataclass(frozen=True)
class Claim:
    """A number in words, its bound, and `script` (benchmarks/`script`.py), which measures it.

    `timed`: a ratio of times, which another machine of the same kind should find again.
    """

    script: str
    text: str
    sense: Literal["at least", "at most"]
    bound: float
    unit: str = "x"
    timed: bool = True

    def holds(self, value: float) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound

    def worse(self, value: float, before: float) -> float:
        """How much worse a value is than one before, as a share of it; negative where better."""
        change = (value - before) / before
        return -change if self.sense == "at least" else change

    @property
    def goal(self) -> str:
        """The bound in words."""
        return f"{self.sense} {self.bound:g} {self.unit}".strip()


NETWORKS: Final = {"resnet34": "smp Unet resnet34", "lite0": "the shared U-Net"}
_STUDY: Final = "whole study of a tile, {}, {}: grad-cam's script / ours"
_FLOOR: Final = "study, {}, {}: time / (forwards x best bare forward + one backward)"
_OVERHEAD: Final = "study, {}, {}: share of the time outside forwards and the backward"
_GOALS: Final = {"resnet34": (1.6, 6.0), "lite0": (1.8, 4.0)}
_FORMATS: Final = ("float32", "auto")

CLAIMS: Final[dict[str, Claim]] = {
    **{
        f"study-{network}-{name}": Claim("study", _STUDY.format(words, name), "at least", bound)
        for network, words in NETWORKS.items()
        for name, bound in zip(_FORMATS, _GOALS[network], strict=True)
    },
    **{
        f"floor-{network}-{name}": Claim("floor", _FLOOR.format(words, name), "at most", 1.10)
        for network, words in NETWORKS.items()
        for name in _FORMATS
    },
    **{
        f"overhead-{network}-{name}": Claim(
            "floor", _OVERHEAD.format(words, name), "at most", 0.05, ""
        )
        for network, words in NETWORKS.items()
        for name in _FORMATS
    },
    **{
        f"heatmaps-{network}": Claim(
            "heatmaps", f"four gradient and eigen methods, two layers, {words}: time / one bare"
            " forward", "at most", 1.6,
        )
        for network, words in NETWORKS.items()
    },
    **{
        f"eigen-{network}": Claim(
            "heatmaps", f"Eigen-CAM of a layer of 512 x 512 x 16: time / one bare forward, {words}",
            "at most", 0.15,
        )
        for network, words in NETWORKS.items()
    },
    "eigen-memory": Claim(
        "heatmaps", "Eigen-CAM of that layer: peak memory besides the activations", "at most", 100,
        "MB", timed=False,
    ),
    "memory-score_cam": Claim(
        "memory", "Score-CAM of 256 channels, 512 px: peak memory, ours / grad-cam's", "at most",
        0.25, timed=False,
    ),
    "memory-tiles": Claim(
        "memory", "study of 64 tiles: peak memory / that with 8", "at most", 1.05, timed=False
    ),
    "scale-pixels": Claim(
        "scale", "a tile's study, 256 to 1024 px: time grows as pixels to the power of", "at most",
        1.1, "",
    ),
    "scale-channels": Claim(
        "scale", "Score-CAM, 16 to 256 channels: time grows as channels to the power of", "at most",
        1.1, "",
    ),
    **{
        f"rankings-{task}": Claim(
            "rankings", f"bfloat16 beside float32, {words}: pairs in another order", "at most", 0,
            "", timed=False,
        )
        for task, words in {
            "1": "task 1 (methods in each cell of the sweep)",
            "2": "task 2 (methods by IoU drop)",
            "3": "task 3 (layers)",
        }.items()
    },
}  # fmt: skip
