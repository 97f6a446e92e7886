"""Explains pictures: the command that writes their heatmaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from cyclopts import Parameter

from segproof.choices import REGIONS
from segproof.cli.console import OK, Switch, log, out, progress
from segproof.cli.loading import load
from segproof.cli.options import (
    NETWORK,
    PICTURES,
    AllowFlag,
    Given,
    options_of,
    part_of,
    settings_of,
)
from segproof.errors import DataError, StudyError
from segproof.explain import METHODS
from segproof.perturb import DEFAULT_FILLS
from segproof.study import Settings, write_atomic

if TYPE_CHECKING:
    import torch

    from segproof.data import Reading
    from segproof.explain import Explanation, Target
    from segproof.models import SegmentationModel

# What the command shares with a study, and what it has instead of the study's defaults.
_SHARED: Final = (
    *("model", "class", "methods", "layers", "space", "reduce", "rival", "preset", "pad"),
    *("batch", "seed", "score_channels", "mask_values", "ignore_index"),
)
_DEFAULTS: Final[dict[str, Any]] = {"methods": ("grad_cam",), "layers": ("decoder:-1",)}

if TYPE_CHECKING:
    ExplainOptions: TypeAlias = Given | None
else:
    ExplainOptions = options_of(*_SHARED, *NETWORK, *PICTURES, **_DEFAULTS)


def explain(
    *images: Annotated[str, Parameter(help="Pictures, folders of pictures, or patterns.")],
    given: ExplainOptions = None,
    out_: Annotated[Path, Parameter("--out", help="Folder for the heatmaps.")],
    region: Annotated[
        str | None,
        Parameter(
            help=f"Pixels that are explained: {', '.join(REGIONS.values())}; X,Y in pixels."
            " Without it, prediction; with preset paper, truth."
        ),
    ] = None,
    objects: Annotated[
        Switch,
        Parameter(help="Explain each object of the region (prediction or truth) by itself."),
    ] = False,
    min_area: Annotated[int, Parameter(help="Skip objects that are smaller than N pixels.")] = 64,
    query: Annotated[
        int | None,
        Parameter(
            help="Explain the mask of one query instead of a class (Mask2Former and the like)."
        ),
    ] = None,
    mask: Annotated[
        Path | None, Parameter(help="Mask of the truth, for the regions truth, fp and fn.")
    ] = None,
    fill: Annotated[
        str | None,
        Parameter(help="What Score-CAM, RISE and other methods that hide pixels hide them with."),
    ] = None,
    smooth: Annotated[
        Switch,
        Parameter(help="Average the heatmaps of the flipped and turned picture."),
    ] = False,
    allow_code: AllowFlag = False,
) -> int:
    """Explain pictures: write a heatmap for each."""
    from segproof.cli.announce import say_shortcut
    from segproof.data import expand_pictures, read_image
    from segproof.explain import explain_all, explain_objects
    from segproof.models import query_model
    from segproof.report import escape
    from segproof.study import distance_of, reading_for

    loaded = load(given, allow_code=allow_code)
    settings = _DEFAULTS | settings_of(given)
    if query is not None:
        loaded, settings["class"] = query_model(loaded, query), f"query {query}"
    if "class" not in settings:
        raise StudyError("no class", "--class NAME", f"one of {', '.join(loaded.classes)}")
    target = _target(settings, region)
    methods = _methods(settings, target)
    if smooth and objects:
        raise StudyError("--smooth with --objects", "one of both", "explain one object:N smoothly")
    paths = expand_pictures(images)
    how_read = reading_for(loaded, **part_of(given, PICTURES))
    truth_of = _reader_of_masks(settings, loaded)
    _check_images(paths, mask, loaded, how_read, truth_of)
    # each setting that the core takes under another name, or not at all where it is not given
    how: dict[str, Any] = {
        "methods": methods,
        "layers": settings["layers"],
        "target": target,
        "fill": fill,
        "batch": _value_of(settings, "batch"),
        "seed": _value_of(settings, "seed"),
        "padded": _value_of(settings, "pad"),
    }
    channels = settings.get("score_channels")
    records: list[dict[str, Any]] = []
    with progress("pictures") as advance:
        for done, path in enumerate(paths):
            advance(done, len(paths))
            sample = read_image(path, reading=how_read)
            truth, valid = None, sample["valid"]
            if mask is not None:
                values, counts = truth_of(mask)
                index = loaded.class_index(target.class_)
                truth, valid = values == loaded.mask_value(index), valid & counts
            here = {**how, "truth": truth, "valid": valid}
            if objects:
                each = explain_objects(loaded, sample["image"], min_area=min_area, **here)
            else:
                each = iter([explain_all(loaded, sample["image"], smooth=smooth, **here)])
            maps: list[Explanation] = []
            for number, maps in enumerate(each, start=1):
                out_.mkdir(parents=True, exist_ok=True)
                whole = f"{path.stem}-object{number}" if objects else path.stem
                for explanation in maps:
                    stem = whole if len(maps) == 1 else f"{whole}-{_file_part(explanation)}"
                    written = _write_explanation(
                        out_, path, stem, sample["image"], explanation, truth, fill, loaded
                    )
                    records.append(written | {"score_channels": channels})
            # the distance of the shortcut, on the first picture of several
            if channels is not None and not (objects or done) and len(paths) > 1:
                exact = explain_all(
                    loaded, sample["image"], smooth=smooth, **(here | {"methods": ["score_cam"]})
                )
                ours = [explanation for explanation in maps if explanation.method == "score_cam"]
                records[0]["exact"] = distance_of(ours, exact)
        advance(len(paths), len(paths))
    if not records:
        raise DataError(
            f"no object of {min_area} px or more",
            "one at least",
            "lower --min-area, or explain another class",
        )
    text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    write_atomic(out_ / "explanations.json", lambda stream: stream.write(text.encode()))
    for layer, distance in (records[0].get("exact") or {}).items():
        say_shortcut(layer, distance)
    for record in records:
        if record["status"] != "ok":
            log.warning("%s: %s", record["picture"], record["status"])
    out.print(f"{len(records)} explained: {escape(str(out_))}")
    return OK


def _value_of(settings: Mapping[str, Any], name: str) -> Any:
    """A setting that was given, or its default in a study."""
    return settings.get(name, Settings.model_fields[name].default)


def _target(settings: Mapping[str, Any], region: str | None) -> Target:
    """What is explained, checked."""
    from segproof.explain import Target, check_region

    preset = _value_of(settings, "preset")
    region = region or ("truth" if preset == "paper" else "prediction")
    check_region(preset, region)
    space, reduce, rival = (_value_of(settings, name) for name in ("space", "reduce", "rival"))
    return Target(settings["class"], region, space, reduce, preset, rival=rival)


def _methods(settings: Mapping[str, Any], target: Target) -> list[Any]:
    """The methods that are named, with Score-CAM of some channels where that is asked for.

    Raises:
        StudyError: nothing to explain with, or channels without Score-CAM.
    """
    from segproof.explain import resolve_method, score_cam

    names, channels = settings["methods"], settings.get("score_channels")
    if not names or not settings["layers"]:
        raise StudyError("no method or no layer", "at least one of each", "name them")
    for name in names:
        resolve_method(name, target.preset)
    if channels is None:
        return list(names)
    if "score_cam" not in names or target.preset == "paper":
        raise StudyError(
            f"--score-channels with methods {', '.join(names)} and preset {target.preset}",
            "score_cam among the methods, and preset strict",
            "leave it out, or add --methods score_cam",
        )
    approximate = partial(score_cam, channels=channels)
    return [approximate if name == "score_cam" else name for name in names]


def _reader_of_masks(
    settings: Mapping[str, Any], model: SegmentationModel
) -> Callable[[Path], tuple[torch.Tensor, torch.Tensor]]:
    """Reads a mask of the truth: class indices, and which pixels count."""
    from segproof.data import MaskValues, read_mask

    meanings = settings.get("mask_values")
    ignored = settings.get("ignore_index")
    return partial(
        read_mask,
        classes=model.mask_values,
        ignore_index=model.mask_ignore if ignored is None else ignored,
        values=None if meanings is None else MaskValues.of(meanings, model.mask_names),
    )


def _file_part(heatmap: Explanation) -> str:
    """Method and layer as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", f"{heatmap.method}-{heatmap.layer}")


def _check_images(
    images: Sequence[Path],
    mask: Path | None,
    model: SegmentationModel,
    reading: Reading,
    truth_of: Callable[[Path], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Everything is read once before the first forward, so that nothing is left half-done."""
    from segproof.data import read_image

    stems: dict[str, Path] = {}
    for path in images:
        if path.stem in stems:
            raise DataError(
                f"{stems[path.stem]} and {path}", "distinct stems", "results would overwrite"
            )
        stems[path.stem] = path
        sample = read_image(path, reading=reading)
        model.check_units(sample["image"])
        if mask is not None:
            found = truth_of(mask)[0]
            if found.shape != sample["image"].shape[1:]:
                raise DataError(
                    f"mask {mask} of {tuple(found.shape)} pixels",
                    f"{tuple(sample['image'].shape[1:])}, the size of {path}",
                    "give the mask of this picture",
                )


def _write_explanation(
    folder: Path,
    path: Path,
    stem: str,
    image: torch.Tensor,
    made: Explanation,
    truth: torch.Tensor | None,
    fill: str | None,
    model: SegmentationModel,
) -> dict[str, Any]:
    import numpy as np

    from segproof.analysis import method_label
    from segproof.models import display_range
    from segproof.report import overlay, png

    heatmap = made.heatmap().cpu().numpy().astype(np.float32)
    write_atomic(folder / f"{stem}.npy", lambda stream: np.save(stream, heatmap))
    what = "" if made.target.region == "prediction" else f" ({made.target.region})"
    title = f"{method_label(made.method)}, {made.layer}, {made.target.class_}{what}: {stem}"
    note = "" if made.status == "ok" else f"status {made.status}: no heatmap"
    region = None if made.explained is None else made.explained.cpu().numpy()
    figure = overlay(
        image.numpy(),
        heatmap,
        title,
        region=region,
        truth=None if truth is None else truth.numpy(),
        note=note,
        limits=display_range(model.mean, model.std, model.bands),
    )
    write_atomic(folder / f"{stem}.png", lambda stream: stream.write(png(figure)))
    record = METHODS.get(made.method)
    masked = record is not None and record.reads_baseline
    return {
        "image": str(path),
        "heatmap": f"{stem}.npy",
        "picture": f"{stem}.png",
        "class": made.target.class_,
        "method": made.method,
        "layer": made.layer,
        "region": made.target.region,
        "region_px": 0 if region is None else int(region.sum()),
        "space": made.target.space,
        "reduce": made.target.reduce,
        "rival": made.target.rival,
        "symmetries": made.symmetries,
        "padding_px": list(made.padding),
        "preset": made.target.preset,
        "status": made.status,
        "target_value": made.value,
        "effective_channels": made.effective_channels,
        "fill": (fill or DEFAULT_FILLS[made.target.preset]) if masked else None,
        "forwards": made.forwards + 1,
    }
