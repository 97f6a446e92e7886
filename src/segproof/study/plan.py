"""Plans a study: the list of pictures that every tile is shown as, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from segproof.explain import CHANNELWISE, INPUT_LAYER, LAYERLESS
from segproof.models import EXACT, Kernels, Layer
from segproof.perturb import CONTROLS, FILLS, STRATEGIES, control_id
from segproof.study.settings import Fusion, Settings

__all__ = [
    "FIGURES",
    "OTSU",
    "HeatmapKey",
    "HeatmapSource",
    "Kind",
    "Picture",
    "Plan",
    "outline_name",
]

OTSU: Final = 0.0  # in place of a level, which Otsu's threshold and soft masks do not have
FIGURES: Final = 6  # tiles whose maps are kept for the figures

# What a picture keeps: everything, all but the target, nothing, the target, or what a heatmap says.
Kind = Literal["original", "target_removed", "empty", "target_only", "method", "control"]
Cut = tuple[str, float]  # binarisation and level
HeatmapKey = tuple[str, str, int]  # method, layer, seed: one heatmap of a tile


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that the network is shown of a tile: what is kept, and what replaces the rest.

    Kinds "method" and "control" cut the heatmap `heatmap` by `binarisation` at `level`; the others
    need none. The fields bear the names of the result columns that they end in.
    """

    kind: Kind
    method: str
    layer: str
    binarisation: str
    level: float | None
    strategy: str
    reference: str
    fill: str
    seed: int = 0

    @property
    def heatmap(self) -> HeatmapKey:
        """The heatmap that it is cut from."""
        return self.method, self.layer, self.seed


@dataclass(frozen=True)
class HeatmapSource:
    """A heatmap of every tile, a method's at a layer or a control's, and how it is cut."""

    kind: Kind
    method: str
    layer: str
    seed: int
    cuts: tuple[Cut, ...]
    strategies: tuple[str, ...] = tuple(STRATEGIES)


@dataclass(frozen=True)
class Plan:
    """A study that has seen its model and data: layers, fills, and the pictures of each tile."""

    study: Settings
    layers: Mapping[str, str]
    shapes: tuple[Layer, ...]
    fills: tuple[str, ...]
    probe: Mapping[str, Mapping[str, Mapping[str, float]]]
    tiles: int
    class_index: int
    shape: tuple[int, int, int]
    probe_forwards: int = 0
    grow: int = 0
    roughen: int = 0
    kernels: Kernels = EXACT
    pace: Mapping[str, Any] = field(default_factory=dict)
    pictured: tuple[int, ...] = tuple(range(FIGURES))  # tiles whose picture is kept

    def batched(self, batch: int) -> Plan:
        """The same plan with `batch` pictures per forward."""
        return replace(self, study=self.study.model_copy(update={"batch": batch}))

    @property
    def outline(self) -> str:
        """How regions are widened, in words."""
        return outline_name(self.grow, self.roughen)

    @property
    def fused(self) -> tuple[Fusion, ...]:
        """Ways to join the layers' maps: they need two layers."""
        return self.study.fuse if len(self.layers) > 1 else ()

    @property
    def removal_fills(self) -> tuple[str, ...]:
        """Fills under which the target itself is removed: in `strict` all of them, to show
        validity.
        """
        others = FILLS if self.study.preset == "strict" else self.fills
        return tuple(dict.fromkeys([*self.fills, *others]))

    def maps(self) -> tuple[tuple[str, str], ...]:
        """Method and layer of every explanation of a tile, in the order in which they are made."""
        layered = [name for name in self.study.methods if name not in LAYERLESS]
        bare = [name for name in self.study.methods if name in LAYERLESS]
        at_layers = [(name, layer) for layer in self.layers for name in layered]
        # joined maps come last: they are made from those of the layers
        joined = [(name, f"fused:{way}") for way in self.fused for name in layered]
        return (*at_layers, *((name, INPUT_LAYER) for name in bare), *joined)

    def pictures(self) -> tuple[Picture, ...]:
        """Every picture of a tile, in the order of its rows. Its length is their number."""
        cut = (picture for source in self.heatmaps() for picture in self.cut(source))
        return (*self._uncut(), *cut)

    def heatmaps(self) -> Iterator[HeatmapSource]:
        """Every heatmap of a tile, in the order in which it is cut."""
        study = self.study
        areas = _cuts("area", study.areas)
        soft: tuple[Cut, ...] = (("soft", OTSU),) if study.soft else ()
        cuts = (*_cuts("threshold", study.thresholds), *areas, *_cuts("mass", study.masses))
        cuts += (("otsu", OTSU),) if study.otsu else ()
        for number, (method, layer) in enumerate(self.maps()):
            if "inverse" in study.controls:
                # one control over all maps: the number of the map stands for a seed
                only = ("background_only",)
                yield HeatmapSource("control", control_id("inverse"), "", number, areas, only)
            yield HeatmapSource("method", method, layer, 0, (*cuts, *soft))
        yield from self.control_heatmaps(study.controls)

    def control_heatmaps(self, controls: Sequence[str]) -> Iterator[HeatmapSource]:
        """The heatmaps of these controls that are made without a method (measures.md section 7)."""
        study = self.study
        areas = _cuts("area", study.areas)
        softly = (*areas, ("soft", OTSU)) if study.soft else areas
        cuts = {
            "random": softly,
            "p_c": (*_cuts("threshold", study.thresholds), *softly),
            "uniform": areas,
            "edges": softly,
            "truth": softly,
        }
        for name in cuts:
            if name in controls:
                for seed in range(CONTROLS[name].seeds):
                    yield HeatmapSource("control", control_id(name), "", seed, cuts[name])

    def cut(self, source: HeatmapSource) -> Iterator[Picture]:
        """The pictures of one heatmap: each cut, strategy, reference and fill."""
        study = self.study
        ways = [(strategy, study.region) for strategy in source.strategies]
        third = "highlighted_and_target"  # M3 alone reads the target, so it alone has references
        ways += [(third, name) for name in study.further if third in source.strategies]
        for binarisation, level in source.cuts:
            for strategy, reference in ways:
                for fill in self.fills:
                    yield Picture(
                        source.kind, source.method, source.layer, binarisation, level, strategy,
                        reference, fill, source.seed,
                    )  # fmt: skip

    def _uncut(self) -> Iterator[Picture]:
        """The pictures that need no heatmap; the original is the first, others compare with it."""
        study = self.study
        yield _uncut("original", study.region, "")
        for fill in self.removal_fills:
            yield _uncut("target_removed", study.region, fill)
        for fill in self.fills:
            if "empty" in study.controls:
                yield _uncut("empty", study.region, fill)
            if "target_only" in study.controls:
                for reference in (study.region, *study.further):
                    yield _uncut("target_only", reference, fill)

    @property
    def pictures_per_tile(self) -> int:
        """Perturbed pictures per tile, the original included."""
        return len(self.pictures())

    @property
    def forwards_per_tile(self) -> int:
        """Forwards per tile, at most: capture, those that methods spend on each channel, and one
        for each picture. Channels and maps that are flat need none, and identical pictures one
        together: that shows when the maps are there.
        """
        spent = sum(
            1 + CHANNELWISE[method] * self._channels(method, layer)
            for method in self.study.methods
            if method in CHANNELWISE
            for layer in self.shapes
        )
        bare = [name for name in self.study.methods if name in LAYERLESS]
        spent += sum(LAYERLESS[name]((self.shape[1], self.shape[2])) for name in bare)
        return 1 + spent + self.pictures_per_tile

    def _channels(self, method: str, layer: Layer) -> int:
        """Channels of a layer that a method shows one by one."""
        most = self.study.score_channels if method == "score_cam" else None
        return layer.channels if most is None else min(most, layer.channels)

    @property
    def forwards(self) -> int:
        """Forwards of the whole study at most, the search for valid fills not included."""
        return self.tiles * self.forwards_per_tile


def outline_name(grow: int, rough: int) -> str:
    """Name of a scheme of outlines, as in `fill_check.OUTLINES`."""
    parts = [f"{word} {pixels}" for word, pixels in (("grow", grow), ("roughen", rough)) if pixels]
    return ", ".join(parts) or "exact"


def _cuts(binarisation: str, levels: Sequence[float]) -> tuple[Cut, ...]:
    return tuple((binarisation, level) for level in levels)


def _uncut(
    kind: Literal["original", "target_removed", "empty", "target_only"], reference: str, fill: str
) -> Picture:
    return Picture(kind, control_id(kind), "", "", None, kind, reference, fill)
