"""Runs the benchmark of known truth: tables, figures, cards and a verdict in a folder."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final

import pandas as pd

from segproof.data import SampleSource
from segproof.errors import SegproofError, StudyError, UnknownNameError
from segproof.evidence.credit import shapley_table
from segproof.evidence.known import KnownScene
from segproof.evidence.of_measures import (
    CUT_MEASURES,
    HEADLINE,
    TRIED_FILLS,
    WHOLE as WHOLE_MAP,
    judge_measures,
    measure_cards,
    scene_scores,
)
from segproof.evidence.of_methods import judge_methods, method_table
from segproof.evidence.tier_a_constructed import constructed
from segproof.evidence.tier_b_planted import NETWORKS, planted
from segproof.evidence.tier_c_marker import check_steps, reliance, table as reliance_table
from segproof.explain import METHODS, MethodFunction
from segproof.measures import CutFunction, MapMeasure, Measure
from segproof.perturb import CONTROL_PREFIX
from segproof.report import evidence_maps, evidence_measures, evidence_methods, png
from segproof.study import MAP_MEASURES, write_atomic

__all__ = [
    "DEFAULT_MEASURES",
    "DEFAULT_METHODS",
    "TIERS",
    "Evidence",
    "choose_measures",
    "own_code",
    "run_evidence",
    "verdict",
]

FEW: Final = ("shadow-unet", "marker-deeplab", "texture-segformer")  # every cue, every family


def _constructed(scenes: int | None, seed: int, *, full: bool) -> Iterator[KnownScene]:
    return constructed(scenes or (8 if full else 4), seed)


def _planted(scenes: int | None, seed: int, *, full: bool) -> Iterator[KnownScene]:
    few = [name for name in NETWORKS if name.removesuffix("-twin") in FEW]
    return planted(NETWORKS if full else few, scenes=scenes or 2, seed=seed)


TIERS: Final[dict[str, Callable[..., Iterator[KnownScene]]]] = {"a": _constructed, "b": _planted}
REAL: Final = "c"  # networks trained on real tiles with a pasted marker, which do not ship

# of whole heatmaps those that explain nothing again: maps of known quality have no method
WHOLE: Final = tuple(name for name, measure in MAP_MEASURES.items() if not measure.explains_again)
SLOW: Final = (  # the default leaves them out; context_need does not even look at the map
    *("road", "road_morf", "road_lerf", "infidelity", "deletion_outside", "insertion_outside"),
    "context_need",
)
DEFAULT_MEASURES: Final = (
    *CUT_MEASURES,
    *(name for name in WHOLE if name not in SLOW),
)
DEFAULT_METHODS: Final = (
    *("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "eigen_cam"),
    *("hires_cam", "layer_cam", "seg_xres_cam", "occlusion"),
    *(["integrated_gradients"] if find_spec("captum") else []),
)
ALL_METHODS: Final = tuple(
    name for name, method in METHODS.items() if not method.extra or find_spec(method.extra)
)
WANTED_TAU, WANTED_FIRST, WANTED_RECALL = 0.8, 0.95, 0.5
SEEN: Final = ("occlusion", "integrated_gradients")  # the positive control


@dataclass(frozen=True)
class Evidence:
    """All tables of a run: `of_measures`, `of_methods` and `credit` make them."""

    shapley: pd.DataFrame
    maps: pd.DataFrame
    scenes: pd.DataFrame
    measures: pd.DataFrame
    method_maps: pd.DataFrame
    methods: pd.DataFrame
    reliance: str = ""  # tier c, a table as text


def choose_measures(
    names: Sequence[str | Measure[MapMeasure] | MapMeasure],
) -> tuple[dict[str, Measure[CutFunction]], dict[str, Measure[MapMeasure] | MapMeasure]]:
    """Measures of cut maps and of whole ones, by name, as records or callables (higher is better).

    Raises:
        UnknownNameError: no such measure, or one that explains again what has no method here.
    """
    cut: dict[str, Measure[CutFunction]] = {}
    whole: dict[str, Measure[MapMeasure] | MapMeasure] = {}
    for name in names:
        if isinstance(name, Measure):
            whole[name.name] = name
        elif not isinstance(name, str):
            whole[getattr(name, "__name__", type(name).__name__)] = name
        elif name in CUT_MEASURES:
            cut[name] = CUT_MEASURES[name]
        elif name in WHOLE:
            whole[name] = MAP_MEASURES[name]
        else:
            raise UnknownNameError.of("measure", name, [*CUT_MEASURES, *WHOLE])
    return cut, whole


def own_code(name: str, *, allow_code: bool = False) -> Any:
    """A name as it is; of python:MODULE:FUNCTION the function, with `allow_code` only.

    Raises:
        StudyError: code that is not allowed, or no such function.
    """
    scheme, _, rest = name.partition(":")
    if scheme != "python":
        return name
    module, _, function = rest.partition(":")
    if not allow_code:
        raise StudyError(
            f"{name}, which runs code",
            "your word that this code may run",
            "pass --allow-code if you trust it",
        )
    sys.path.insert(0, str(Path.cwd()))  # a script of the console has no working folder in it
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise StudyError(
            f"{name} ending in {type(error).__name__}: {error}",
            "python:MODULE:FUNCTION of a method, a measure or a Measure",
            "import it in Python to see where it fails",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found) and not isinstance(found, Measure):
        raise StudyError(f"{name}, a {type(found).__name__}", "a function or a Measure", "name one")
    return found


def run_evidence(
    out: str | Path,
    tiers: Sequence[str] = ("a",),
    *,
    methods: Sequence[str | MethodFunction] = DEFAULT_METHODS,
    measures: Sequence[str | Measure[MapMeasure] | MapMeasure] = DEFAULT_MEASURES,
    layers: Sequence[str] | None = None,
    fills: Sequence[str] = TRIED_FILLS,
    scenes: int | None = None,
    full: bool = False,
    seed: int = 0,
    command: str = "",
    tiles: tuple[SampleSource, SampleSource] | None = None,
    steps: int = 400,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Evidence:
    """Judge measures and methods on tiers of known truth and write everything to the folder `out`.

    shapley.csv, measures.csv, methods.csv (tables), scenes.csv and method_maps.csv (a line a scene
    or map), maps.parquet (every value), cards.json, and figures. `full`: all networks, and more
    scenes, where `scenes` does not say how many; `tiles`, to train (for `steps` steps) and to test
    on, are for tier c, reliance.md. Whole-heatmap measures are taken of every other scene, under
    the last of `fills`; methods hide with it. `progress(done, total, what)`.

    Raises:
        UnknownNameError: a tier, method or measure that does not exist.
        SegproofError: nothing to do.
    """
    cut, whole = choose_measures(measures)
    for name in methods:
        if isinstance(name, str) and name not in METHODS:
            raise UnknownNameError.of("method", name, METHODS)
    for tier in tiers:
        if tier not in (*TIERS, REAL):
            raise UnknownNameError.of("tier", tier, (*TIERS, REAL))
    if REAL in tiers and tiles is None:
        raise StudyError(
            f"tier {REAL} without tiles",
            "two folders of tiles with roofs",
            "give them with --train and --test",
        )
    if tiles is not None and REAL not in tiers:
        raise StudyError(
            f"tiles for tier {REAL} and tiers {', '.join(tiers)}",
            f"tiles and tier {REAL}, or neither",
            f"ask for --tier {REAL}, or leave --train and --test out",
        )
    check_steps(steps)
    if not tiers or not fills or not (methods or measures):
        raise SegproofError("nothing to judge", "a tier, a fill, a method or measure", "name them")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    knowns = [
        known for tier in tiers if tier != REAL for known in TIERS[tier](scenes, seed, full=full)
    ]
    # a measure of a whole map costs as much as all cuts of it: every other scene has to do
    few = _every_other(knowns)
    parts = ((cut, knowns), (whole, few), (methods, knowns))
    total, before = sum(len(judged) for asked, judged in parts if asked), 0

    def tick(what: str) -> Callable[[int], None]:
        return lambda done: progress(before + done, total, what)

    progress(0, total, "measures")
    maps = []
    if cut:
        made = judge_measures(knowns, cut=cut, fills=fills, seed=seed, tick=tick("measures"))
        maps.append(made)
        before += len(knowns)
    if whole:
        maps.append(
            judge_measures(
                few, cut={}, whole=whole, fills=fills[-1:], seed=seed, tick=tick("whole maps")
            )
        )
        before += len(few)
    method_maps = pd.DataFrame()
    if methods:
        method_maps = judge_methods(
            knowns, methods, layers, fill=fills[-1], seed=seed, tick=tick("methods")
        )
    judged = pd.concat(maps, ignore_index=True) if maps else pd.DataFrame()
    found = Evidence(
        shapley=shapley_table(knowns),
        maps=judged,
        scenes=scene_scores(judged) if maps else judged,
        measures=measure_cards(judged, seed=seed) if maps else judged,
        method_maps=method_maps,
        methods=method_table(method_maps, seed=seed) if methods else method_maps,
    )
    judged_tiers = [tier for tier in tiers if tier != REAL]
    _write(folder, found, fills, {"command": command, "seed": seed, "tiers": judged_tiers})
    if REAL in tiers and tiles is not None:
        rows = reliance(
            *tiles,
            steps=steps,
            seed=seed,
            progress=lambda step, every, _loss: progress(step, every, f"tier {REAL}: training"),
        )
        text = reliance_table(rows) + "\n"
        _save(folder / "reliance.md", text.encode())
        found = replace(found, reliance=text)
    return found


def _every_other(knowns: Sequence[KnownScene]) -> list[KnownScene]:
    """Every other scene of each network, the first included."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for known in knowns:
        place = counts.get((known.tier, known.kind), 0)
        counts[known.tier, known.kind] = place + 1
        if place % 2 == 0:
            found.append(known)
    return found


def _write(folder: Path, found: Evidence, fills: Sequence[str], about: dict[str, Any]) -> None:
    for name in ("shapley", "scenes", "measures", "method_maps", "methods"):
        frame: pd.DataFrame = getattr(found, name)
        if not frame.empty:
            text = frame.to_csv(index=False, float_format="%.6g")
            _save(folder / f"{name}.csv", text.encode())
    if not found.maps.empty:
        write_atomic(folder / "maps.parquet", lambda stream: _parquet(found.maps, stream))
        _save(folder / "cards.json", cards_json(found.measures, about).encode())
        _save(folder / "measures.png", png(evidence_measures(found.measures)))
        cut = [name for name in CUT_MEASURES if name in set(found.maps["measure"])]
        if cut:
            figure = evidence_maps(found.maps, cut, fills[-1])
            _save(folder / "maps.png", png(figure))
    for tier in about["tiers"] if not found.methods.empty else ():
        _save(folder / f"methods-{tier}.png", png(evidence_methods(found.methods, tier)))


def _parquet(frame: pd.DataFrame, stream: BinaryIO) -> None:
    frame.to_parquet(stream, index=False)


def _save(path: Path, data: bytes) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(data)

    write_atomic(path, write)


def cards_json(measures: pd.DataFrame, about: Mapping[str, Any]) -> str:
    """The cards as the package ships them: each measure with its tau, tier by tier."""
    whole = measures[measures["kind"] == "all"].drop(columns=["kind", "better"])
    cards = {
        str(name): [
            {
                key: None if isinstance(value, float) and value != value else value
                for key, value in line.items()
            }
            for line in part.drop(columns="measure").round(5).to_dict("records")
        ]
        for name, part in whole.groupby("measure", sort=False)
    }
    made = {"version": version("segproof"), **about, "measures": cards}
    return json.dumps(made, indent=1) + "\n"


def verdict(found: Evidence, fill: str) -> list[str]:
    """What the run shows, in sentences: which measures pass, which methods see the cue."""
    said = []
    cards = found.measures
    if not cards.empty:
        wanted = cards[(cards["kind"] == "all") & (cards["fill"] == fill)]
        wanted = wanted[wanted["binarisation"].isin(["area", WHOLE_MAP])]
        for tier, part in wanted.groupby("tier", sort=False):
            good = part[
                (part["tau"] >= WANTED_TAU)
                & (part["oracle_first"] >= WANTED_FIRST)
                & (part["random_upper"] == 0)
                & (part["label"] == "")
            ]
            names = ", ".join(
                f"{name} ({tau:.2f})"
                for name, tau in zip(good["measure"], good["tau"], strict=True)
            )
            said.append(
                f"Tier {tier}: believe {names or 'none of the measures'} (tau with the truth at"
                f" matched area under {fill} of {WANTED_TAU} or more, the oracle first in"
                f" {WANTED_FIRST:.0%} of the scenes, random never in the upper half)."
            )
            blind = part[(part["sees_cue"] < 0.5) & part["measure"].isin(HEADLINE)]
            if len(blind):
                said.append(
                    f"Tier {tier}: {', '.join(blind['measure'])} cannot see a missing cue: the"
                    " object alone scores as well as all that decides."
                )
            dull = part[part["label"] == "uninformative"]["measure"]
            if len(dull):
                said.append(f"Tier {tier}: uninformative, most maps tie: {', '.join(dull)}.")
    if not found.methods.empty:
        cued = found.methods[found.methods["kind"] == "all"]
        cued = cued[~cued["method"].str.startswith(CONTROL_PREFIX)]
        for tier, part in cued.groupby("tier", sort=False):
            best = part.sort_values("cue_recall", ascending=False).groupby("method").head(1)
            seeing = best[best["cue_recall"] >= WANTED_RECALL]
            names = ", ".join(
                f"{row.method} at {row.layer} ({row.cue_recall:.2f}, {row.forwards} forwards)"
                for row in seeing.itertuples(index=False)
            )
            said.append(f"Tier {tier}: the cue is seen (recall >= .5) by {names or 'no method'}.")
            deep = part[part["layer"].str.startswith("decoder")]
            if len(deep):
                top = deep.sort_values("cue_recall", ascending=False).iloc[0]
                said.append(
                    f"Tier {tier}: at decoder blocks the best recall of the cue is"
                    f" {top['cue_recall']:.2f} ({top['method']} at {top['layer']})."
                )
            control = part[part["method"].isin(SEEN)]
            if len(control) and control["cue_recall"].max() < WANTED_RECALL:
                said.append(
                    f"Tier {tier}: the positive control failed: neither of"
                    f" {', '.join(control['method'].unique())} finds the cue, so that this"
                    " benchmark says nothing against a method."
                )
    return said
