"""The command that explains pictures and writes their heatmaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter

from segproof.analysis import method_label
from segproof.cli.console import OK, err, out, progress
from segproof.cli.loading import load
from segproof.cli.options import (
    LISTS,
    MaskFlags,
    Masks,
    ModelFlag,
    Network,
    NetworkFlags,
    PictureFlags,
    Pictures,
    ScoreFlag,
    listed,
)
from segproof.cli.running import say_shortcut
from segproof.data import MaskValues, Reading, expand_pictures, read_image, read_mask
from segproof.errors import DataError, StudyError
from segproof.explain import (
    METHODS,
    REGIONS,
    Explanation,
    Preset,
    Reduce,
    Space,
    Target,
    check_region,
    explain_all,
    explain_objects,
    resolve_method,
    score_cam,
)
from segproof.models import SegmentationModel, display_range, query_model
from segproof.perturb import DEFAULT_FILLS
from segproof.report import escape, figures as plot
from segproof.study import distance_of, reading_for, write_atomic


def explain(
    *images: Annotated[str, Parameter(help="Pictures, folders of pictures, patterns.")],
    model: ModelFlag,
    class_: Annotated[
        str | None, Parameter("--class", help="Class to explain, by name or index.")
    ] = None,
    out_: Annotated[Path, Parameter("--out", help="Folder to write to.")],
    methods: Annotated[
        str, Parameter(help=f"Methods, a,b, of {', '.join(METHODS)}, or all (those with a layer).")
    ] = "grad_cam",
    layers: Annotated[str, Parameter(help="Layers, a,b, by alias or module path.")] = "decoder:-1",
    region: Annotated[
        str | None, Parameter(help=f"What is explained: {', '.join(REGIONS.values())}. X,Y in px.")
    ] = None,
    objects: Annotated[
        bool, Parameter(negative=(), help="Each object of the region (prediction, truth) alone.")
    ] = False,
    min_area: Annotated[int, Parameter(help="Smallest object, px.")] = 64,
    space: Annotated[Space, Parameter(help="The scalar: what is read of each pixel.")] = "logit",
    reduce: Annotated[Reduce, Parameter(help="... and how the pixels are joined.")] = "mean",
    rival: Annotated[
        str | None, Parameter(help="Class that space margin compares with. [the strongest]")
    ] = None,
    query: Annotated[
        int | None, Parameter(help="Explain one query's mask instead of a class (Mask2Former ...).")
    ] = None,
    mask: Annotated[Path | None, Parameter(help="Truth mask, for truth, fp, fn.")] = None,
    preset: Annotated[Preset, Parameter(help="strict, or paper as published.")] = "strict",
    fill: Annotated[
        str | None, Parameter(help="What Score-CAM, RISE and the like hide pixels with.")
    ] = None,
    smooth: Annotated[
        bool, Parameter(negative=(), help="Mean over flips and turns of the picture.")
    ] = False,
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue pictures to a size that the network takes.")
    ] = False,
    batch: Annotated[int, Parameter(help="Pictures per forward.")] = 4,
    score_channels: ScoreFlag = None,
    seed: Annotated[int, Parameter(help="Seed of the fill.")] = 0,
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Explain pictures: write a heatmap for each."""
    loaded = load(model, network)
    if query is not None:
        loaded, class_ = query_model(loaded, query), f"query {query}"
    if class_ is None:
        raise StudyError("no class", "--class NAME", f"one of {', '.join(loaded.classes)}")
    region = region or ("truth" if preset == "paper" else "prediction")
    check_region(preset, region)
    target = Target(class_, region, space, reduce, preset, rival=rival)
    index = loaded.class_index(class_)
    names, places = listed(methods, LISTS["methods"]) or (), listed(layers) or ()
    if not names or not places:
        raise StudyError("no method or no layer", "at least one of each", "name them")
    for name in names:
        resolve_method(name, preset)
    shortcut = score_channels is not None
    if shortcut and ("score_cam" not in names or preset == "paper"):
        raise StudyError(
            f"--score-channels with methods {', '.join(names)} and preset {preset}",
            "score_cam among the methods, and preset strict",
            "leave it out, or add --methods score_cam",
        )
    if smooth and objects:
        raise StudyError("--smooth with --objects", "one of both", "explain one object:N smoothly")
    paths = expand_pictures(images)
    how_read = reading_for(loaded, **pictures.settings())
    truth_of = partial(
        read_mask,
        classes=loaded.mask_values,
        ignore_index=loaded.mask_ignore if masks.ignore_index is None else masks.ignore_index,
        values=None
        if masks.mask_values is None
        else MaskValues.of(masks.mask_values, loaded.mask_names),
    )
    _check_images(paths, mask, loaded, how_read, truth_of)
    records: list[dict[str, Any]] = []
    with progress("pictures") as advance:
        for done, path in enumerate(paths):
            advance(done, len(paths))
            sample = read_image(path, reading=how_read)
            truth, valid = None, sample["valid"]
            if mask is not None:
                values, counts = truth_of(mask)
                truth, valid = values == loaded.mask_value(index), valid & counts
            how: dict[str, Any] = {
                "methods": [
                    partial(score_cam, channels=score_channels)
                    if shortcut and name == "score_cam"
                    else name
                    for name in names
                ],
                "layers": places,
                "target": target,
                "truth": truth,
                "valid": valid,
                "fill": fill,
                "batch": batch,
                "seed": seed,
                "padded": pad,
            }
            if objects:
                each = explain_objects(loaded, sample["image"], min_area=min_area, **how)
            else:
                each = iter([explain_all(loaded, sample["image"], smooth=smooth, **how)])
            maps: list[Explanation] = []
            for number, maps in enumerate(each, start=1):
                out_.mkdir(parents=True, exist_ok=True)
                whole = f"{path.stem}-object{number}" if objects else path.stem
                for heatmap in maps:
                    stem = whole if len(maps) == 1 else f"{whole}-{_file_part(heatmap)}"
                    records.append(
                        _write_explanation(
                            out_, path, stem, sample["image"], heatmap, truth, fill, loaded
                        )
                        | {"score_channels": score_channels}
                    )
            # the distance of the shortcut, on the first picture of several
            if shortcut and not (objects or done) and len(paths) > 1:
                exact = explain_all(
                    loaded, sample["image"], smooth=smooth, **(how | {"methods": ["score_cam"]})
                )
                ours = [heatmap for heatmap in maps if heatmap.method == "score_cam"]
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
    for layer_, found in (records[0].get("exact") or {}).items():
        say_shortcut(layer_, found)
    for record in records:
        if record["status"] != "ok":
            err.print(f"{escape(record['picture'])}: {record['status']}", style="yellow")
    out.print(f"{len(records)} explained: {escape(str(out_))}")
    return OK


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
    heatmap = made.heatmap().cpu().numpy().astype(np.float32)
    write_atomic(folder / f"{stem}.npy", lambda stream: np.save(stream, heatmap))
    what = "" if made.target.region == "prediction" else f" ({made.target.region})"
    title = f"{method_label(made.method)}, {made.layer}, {made.target.class_}{what}: {stem}"
    note = "" if made.status == "ok" else f"status {made.status}: no heatmap"
    region = None if made.explained is None else made.explained.cpu().numpy()
    figure = plot.overlay(
        image.numpy(),
        heatmap,
        title,
        region=region,
        truth=None if truth is None else truth.numpy(),
        note=note,
        limits=display_range(model.mean, model.std, model.bands),
    )
    write_atomic(folder / f"{stem}.png", lambda stream: stream.write(plot.png(figure)))
    masked = made.method in ("score_cam", "rise", "occlusion", "integrated_gradients")
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
