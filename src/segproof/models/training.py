"""Trains small networks honestly: seeded, held-out tiles never trained on, no download."""

from __future__ import annotations

import math
import platform
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segproof.data import FolderDataset, Sample, SampleSource, SceneDataset
from segproof.errors import DataError, ModelError, StudyError, UnknownNameError
from segproof.models.loaders.load import load_model, save_model
from segproof.models.loaders.smp_folder import ARCHITECTURES

__all__ = ["score", "train"]

_CACHE_BYTES = 1 << 30  # tiles kept in memory; further ones are read again
_STRIDE = 32  # encoders of depth 5 halve the picture five times

Progress = Callable[[int, int, float], None]


@dataclass
class _Tiles:
    """Checked tiles of one or more sets, by position; read once while they fit in memory."""

    sources: Sequence[SampleSource]
    bands: int = 0
    _kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _bytes: int = 0

    def read(self, place: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Image float32 [B, H, W], mask float32 [H, W] and valid float32 [H, W] of one tile."""
        if place not in self._kept:
            tile = self._checked(self.sources[place[0]][place[1]])
            size = sum(part.numel() * part.element_size() for part in tile)
            if self._bytes + size > _CACHE_BYTES:
                return _floats(tile)
            self._kept[place] = tile
            self._bytes += size
        return _floats(self._kept[place])

    def _checked(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        image, mask, name = sample["image"], sample["mask"], sample.get("id", "?")
        self.bands = self.bands or image.shape[0]
        if image.shape[0] != self.bands:
            raise DataError(
                f"{image.shape[0]} bands in tile {name}",
                f"{self.bands}, as in the tiles before it",
                "train on tiles of one kind",
            )
        if image.shape[1:] != mask.shape:
            raise DataError(
                f"image {tuple(image.shape[1:])} and mask {tuple(mask.shape)} in tile {name}",
                "equal height and width",
                "check the pair",
            )
        if int(mask.max()) > 1 or int(mask.min()) < 0:
            raise DataError(
                f"class indices up to {int(mask.max())} in the mask of {name}",
                "0 and 1: this loop trains one class against the rest",
                "write a mask of that class alone",
            )
        if float(image.max()) > 1 or float(image.min()) < 0:
            raise DataError(
                f"values {float(image.min()):g} to {float(image.max()):g} in tile {name}",
                "image values in [0, 1]",
                "scale the raster to 8 bits first",
            )
        valid = sample.get("valid", torch.ones_like(mask)).bool()
        levels = (image * 255).round().to(torch.uint8)
        exact = torch.equal(levels.float() / 255, image)
        return (levels if exact else image), mask.to(torch.uint8), valid


def _floats(tile: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    image, mask, valid = tile
    return (
        (image.float() / 255 if image.dtype == torch.uint8 else image),
        mask.float(),
        valid.float(),
    )


def train(
    data: Sequence[SampleSource],
    out: str | Path,
    *,
    arch: str = "unet",
    encoder: str = "resnet18",
    decoder_channels: Sequence[int] | None = None,
    init: str | Path | None = None,
    class_name: str = "building",
    steps: int = 1000,
    batch: int = 8,
    crop: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
    holdout: float = 0.2,
    val: SampleSource | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a one-class network on tiles with 0/1 masks, save it, and return `training.json`.

    Random crops, flips, quarter turns, brightness and contrast; cross-entropy + Dice; AdamW, one
    cycle of learning rates. A share `holdout` of each set's tiles, drawn by `seed`, is kept out
    (or `val` is used instead) and scored by pooled IoU at 0.5. `init` continues from a saved
    folder. Equal seed, data and threads give equal weights on a CPU. `progress(step, steps, loss)`.

    Raises: DataError for unusable tiles, ModelError for a diverging loss, StudyError for bad
    settings or an output folder in use, UnknownNameError for an unknown architecture or encoder.
    """
    folder = Path(out)
    _check_settings(folder, steps=steps, batch=batch, crop=crop, lr=lr, holdout=holdout)
    if not data or any(len(source) == 0 for source in data):
        raise DataError("no tiles", "at least one set with tiles", "name a folder with --data")
    tiles = _Tiles(list(data) if val is None else [*data, val])
    _check_once(tiles.sources)
    if val is None:
        learn, held = _split(data, holdout, seed)
    else:
        learn = [(s, i) for s, source in enumerate(data) for i in range(len(source))]
        held = [(len(data), i) for i in range(len(val))]
    tiles.read(learn[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, config, mean, std, class_name = _network(
            arch, encoder, decoder_channels, init, class_name, tiles.bands
        )
        # convolutions run about 1.6 times faster with the channels last
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = _fit(
            net, tiles, learn, mean=mean, std=std, steps=steps, batch=batch, crop=crop, lr=lr,
            seed=seed, device=device, progress=progress,
        )  # fmt: skip
        scores = _score(net, (tiles.read(place) for place in held), mean, std, device)
    names = [tiles.sources[s].ids[i] for s, i in held]
    record: dict[str, Any] = {
        "command": _command(
            data, arch, encoder, decoder_channels, init,
            steps=steps, batch=batch, crop=crop, lr=lr, seed=seed, holdout=holdout,
        ),
        "data": [_describe(source) for source in data],
        "validation": "held-out tiles, drawn by the seed" if val is None else _describe(val),
        "initial_weights": "random" if init is None else Path(init).name,
        "tiles_trained": len(learn),
        "tiles_held_out": len(held),
        "final_loss": round(loss, 6),
        "held_out": scores,
        "held_out_ids": names,
        "seed": seed,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "segmentation-models-pytorch", "timm", "numpy")},
        },
    }  # fmt: skip
    _save(net.cpu(), folder, config, class_name, mean, std, record)
    return record


def score(
    net: nn.Module,
    tiles: SampleSource,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: str = "cpu",
) -> dict[str, Any]:
    """Pooled IoU, precision and recall at 0.5 of a one-channel network on whole tiles."""
    checked = _Tiles([tiles])
    places = ((0, index) for index in range(len(tiles)))
    return _score(net, (checked.read(place) for place in places), list(mean), list(std), device)


def _check_settings(
    folder: Path, *, steps: int, batch: int, crop: int, lr: float, holdout: float
) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f"something in {folder}", "a new or empty folder", "choose another --out")
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise StudyError(f"{name}={value}", "at least 1", f"give a larger --{name}")
    if crop < _STRIDE or crop % _STRIDE:
        raise StudyError(
            f"crop={crop}", f"a multiple of {_STRIDE}", f"try --crop {_multiple(crop)}"
        )
    if not (math.isfinite(lr) and lr > 0):
        raise StudyError(f"lr={lr}", "a learning rate > 0", "try --lr 0.002")
    if not 0 <= holdout < 1:
        raise StudyError(f"holdout={holdout}", "a share in [0, 1)", "try --holdout 0.2")


def _multiple(size: int) -> int:
    return max(_STRIDE, -(-size // _STRIDE) * _STRIDE)


def _split(
    data: Sequence[SampleSource], holdout: float, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(set, tile) places to train on and to hold out; each set gives its share."""
    random = torch.Generator().manual_seed(seed)
    learn: list[tuple[int, int]] = []
    held: list[tuple[int, int]] = []
    for number, source in enumerate(data):
        order = torch.randperm(len(source), generator=random).tolist()
        keep = max(1, round(holdout * len(source))) if holdout > 0 else 0
        held += [(number, index) for index in sorted(order[:keep])]
        learn += [(number, index) for index in sorted(order[keep:])]
    if not learn:
        count = sum(len(source) for source in data)
        raise DataError(
            f"{count} tile(s), all of them held out", "at least two tiles", "lower --holdout"
        )
    return learn, held


def _check_once(sources: Sequence[SampleSource]) -> None:
    """Refuse tiles that are given twice: a held-out one could be trained on by its copy."""
    for one, other in combinations(sources, 2):
        if isinstance(one, FolderDataset) and isinstance(other, FolderDataset):
            same = one.root.resolve() == other.root.resolve()
        else:
            same = one is other or (
                isinstance(one, SceneDataset) and isinstance(other, SceneDataset)
            )
        twice = sorted(set(one.ids).intersection(other.ids)) if same else []
        if twice:
            raise DataError(
                f"{len(twice)} tiles given twice ({twice[0]}, ...)",
                "each tile once, so that no held-out tile is trained on",
                "name each folder once",
            )


def _network(
    arch: str,
    encoder: str,
    decoder_channels: Sequence[int] | None,
    init: str | Path | None,
    class_name: str,
    bands: int,
) -> tuple[nn.Module, dict[str, Any], list[float], list[float], str]:
    """The network, the config.json that rebuilds it, its normalisation and its class."""
    if init is not None:
        return _continued(Path(init), bands)
    names = {name.lower(): name for name in ARCHITECTURES}
    if arch.lower() not in names:
        raise UnknownNameError.of("architecture", arch, names)
    config: dict[str, Any] = {
        "encoder_name": encoder,
        "encoder_weights": None,
        "in_channels": bands,
        "classes": 1,
        "activation": None,
    }
    if decoder_channels is not None:
        config["decoder_channels"] = [int(channels) for channels in decoder_channels]
    try:
        net = ARCHITECTURES[names[arch.lower()]](**config)
    except (KeyError, RuntimeError) as error:
        first = str(error).strip("'\"").splitlines()[0][:200]
        raise UnknownNameError(
            f"encoder {encoder!r} ({first})",
            "an encoder of segmentation_models_pytorch, or tu-NAME for one of timm",
            "check --encoder",
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"settings that {names[arch.lower()]} refuses ({str(error).splitlines()[0][:200]})",
            "one decoder width for each of the five stages",
            "check --decoder-channels",
        ) from error
    return net, config, [0.5] * bands, [0.5] * bands, class_name


def _continued(
    folder: Path, bands: int
) -> tuple[nn.Module, dict[str, Any], list[float], list[float], str]:
    model = load_model(f"smp:{folder}")
    if model.channels != 1:
        raise ModelError(
            f"{model.channels} output channels in {folder}",
            "one (a class against the rest)",
            "start from a one-class model, or without --init",
        )
    if model.bands not in (None, bands):
        raise ModelError(
            f"a model of {model.bands} bands in {folder}",
            f"{bands}, as in the tiles",
            "start without --init",
        )
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    mean, std = (value.flatten().tolist() for value in (model.mean, model.std))
    mean, std = (v * bands if len(v) == 1 else v for v in (mean, std))
    return model.net, config, mean, std, model.classes[-1]


def _fit(
    net: nn.Module,
    tiles: _Tiles,
    places: Sequence[tuple[int, int]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    steps: int,
    batch: int,
    crop: int,
    lr: float,
    seed: int,
    device: str,
    progress: Progress | None,
) -> float:
    """Run the steps; the mean loss over the last tenth of them."""
    random = torch.Generator().manual_seed(seed + 1)
    batches = _batches(tiles, places, batch, crop, random)
    shift, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    net.train()

    def loss_of(_step: int) -> Tensor:
        images, masks, valid = (part.to(device) for part in next(batches))
        return _loss(net((images - shift) / scale)[:, 0], masks, valid)

    last = deque[float](maxlen=max(1, steps // 10))
    for step, value in enumerate(descend(net, loss_of, steps, lr, rising=0.1), start=1):
        last.append(value)
        if progress is not None:
            progress(step, steps, value)
    _settle(net, batches, shift, scale, device, rounds=min(steps, 60))
    return sum(last) / len(last)


def descend(
    net: nn.Module, loss_of: Callable[[int], Tensor], steps: int, lr: float, *, rising: float
) -> Iterator[float]:
    """Change the weights by `loss_of(1 ... steps)`, a step for each loss that is asked for: AdamW,
    one cycle whose learning rate rises for the share `rising`, gradients cut to a norm of 1.

    Raises:
        ModelError: a loss that is not finite.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=lr, total_steps=max(steps, 2), pct_start=rising
    )
    for step in range(1, steps + 1):
        loss = loss_of(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(f"a loss of {value} at step {step}", "a finite loss", "lower --lr")
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield value


def _settle(
    net: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    shift: Tensor,
    scale: Tensor,
    device: str,
    rounds: int,
) -> None:
    """Measure the batch-norm statistics of the final weights: running ones lag behind."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the rounds
    net.train()
    with torch.no_grad():
        for _ in range(rounds if norms else 0):
            net((next(batches)[0].to(device) - shift) / scale)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def _loss(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy + (1 - Dice) over the valid pixels of the batch; all [N, H, W]."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    entropy = (entropy * valid).sum() / valid.sum().clamp(min=1)
    shown, truth = logits.sigmoid() * valid, masks * valid
    dice = (2 * (shown * truth).sum() + 1) / (shown.sum() + truth.sum() + 1)
    return entropy + 1 - dice


def _batches(
    tiles: _Tiles, places: Sequence[tuple[int, int]], batch: int, crop: int, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches; every tile is seen once before any is seen again."""
    queue: list[int] = []
    while True:
        chosen = []
        for _ in range(batch):
            if not queue:
                queue = torch.randperm(len(places), generator=random).tolist()
            chosen.append(_augment(*tiles.read(places[queue.pop()]), crop, random))
        images, masks, valid = (torch.stack(parts) for parts in zip(*chosen, strict=True))
        yield images.contiguous(memory_format=torch.channels_last), masks, valid


def _augment(
    image: Tensor, mask: Tensor, valid: Tensor, crop: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = mask.shape
    if height < crop or width < crop:
        raise DataError(
            f"a tile of {height} x {width} pixels",
            f"at least {crop} x {crop}, the crop",
            f"try --crop {max(_STRIDE, min(height, width) // _STRIDE * _STRIDE)}",
        )
    draw = torch.rand(8, generator=random).tolist()
    top, left = int(draw[0] * (height - crop + 1)), int(draw[1] * (width - crop + 1))
    turns, flip = int(draw[2] * 4), draw[3] < 0.5
    parts = []
    for part in (image, mask, valid):
        part = part[..., top : top + crop, left : left + crop].rot90(turns, (-2, -1))
        parts.append(part.flip(-1) if flip else part)
    contrast, brightness = 0.8 + 0.4 * draw[4], 0.2 * draw[5] - 0.1
    tint = 1 + 0.1 * (torch.rand(image.shape[0], 1, 1, generator=random) - 0.5)
    centre = parts[0].mean()
    jittered = ((parts[0] - centre) * contrast + centre + brightness) * tint
    return jittered.clamp(0, 1), parts[1], parts[2]


def _score(
    net: nn.Module,
    tiles: Iterator[tuple[Tensor, Tensor, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
) -> dict[str, Any]:
    shift, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    both = predicted = true = count = 0
    net.eval()
    with torch.inference_mode():
        for image, mask, valid in tiles:
            height, width = mask.shape
            pad = (0, -width % _STRIDE, 0, -height % _STRIDE)
            images = F.pad(image[None].to(device), pad, mode="replicate")
            logits = net((images - shift) / scale)[0, 0, :height, :width].cpu()
            shown, truth = (logits > 0) & (valid > 0), (mask > 0) & (valid > 0)
            both += int((shown & truth).sum())
            predicted += int(shown.sum())
            true += int(truth.sum())
            count += 1

    def share(part: int, whole: int) -> float | None:
        return round(part / whole, 4) if whole else None

    return {
        "tiles": count,
        "iou": share(both, predicted + true - both),
        "precision": share(both, predicted),
        "recall": share(both, true),
    }


def _describe(source: SampleSource) -> dict[str, Any]:
    if isinstance(source, SceneDataset):
        return {"scenes": len(source), "first_seed": source.seeds[0], "size": source.size}
    name = source.root.name if isinstance(source, FolderDataset) else type(source).__name__
    return {"folder": name, "tiles": len(source)}


def _command(
    data: Sequence[SampleSource],
    arch: str,
    encoder: str,
    decoder_channels: Sequence[int] | None,
    init: str | Path | None,
    **settings: object,
) -> str:
    """The command line that does the same; folders by their names, not by where they lay."""
    words = ["segproof train"]
    for source in data:
        if isinstance(source, SceneDataset):
            words.append(f"--scenes {len(source)} --scene-seed {source.seed}")
        else:
            words.append(f"--data {_describe(source)['folder']}")
    words.append("--out DIR")
    if init is not None:
        words.append(f"--init {Path(init).name}")
    else:
        words.append(f"--arch {arch} --encoder {encoder}")
        if decoder_channels is not None:
            words.append("--decoder-channels " + ",".join(map(str, decoder_channels)))
    return " ".join([*words, *(f"--{name} {value}" for name, value in settings.items())])


def _save(
    net: nn.Module,
    folder: Path,
    config: dict[str, Any],
    class_name: str,
    mean: Sequence[float],
    std: Sequence[float],
    record: dict[str, Any],
) -> None:
    """Write beside the target and move: a folder that exists is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "model"
        bands = ["red", "green", "blue"]
        if len(mean) != 3:
            bands = [f"band {number}" for number in range(1, len(mean) + 1)]
        save_model(
            net, whole, classes=[class_name], config=config, activation="sigmoid",
            mean=mean, std=std, bands=bands,
        )  # fmt: skip
        text = dumps(record, indent=2, ensure_ascii=False)
        (whole / "training.json").write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # checked to be empty before the first step
        shutil.move(whole, folder)
