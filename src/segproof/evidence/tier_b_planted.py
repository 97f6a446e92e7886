"""Trains networks whose reason is known: a roof counts only with its cue (tier b).

A scene is a layout of groups (a roof and the place of its cue, each shown or not) and of things
that never matter, painted over the same ground and under the same noise. So a counterfactual is
the layout with one part changed, and every other pixel stays as it was, bit for bit.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import cyclopts
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random import PCG64, Generator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segproof.errors import DataError, ModelError, UnknownNameError
from segproof.evidence.known import KnownScene
from segproof.evidence.networks import NETS
from segproof.models import SegmentationModel, descend, probabilities

__all__ = [
    "CUES",
    "NETWORKS",
    "Acceptance",
    "Group",
    "Layout",
    "Thing",
    "accept",
    "draw",
    "fit",
    "paint",
    "planted",
    "planted_model",
    "renew",
]

Array = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Colour = tuple[float, float, float]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels

CUES: Final = ("shadow", "marker", "texture")
SIZE: Final = 64  # px; slots are half of it
SLOT: Final = 32
_REACH: Final = 9  # px around a roof that only its own cue may use
_ROOFS: Final[tuple[Colour, ...]] = (
    (0.64, 0.34, 0.26),
    (0.72, 0.48, 0.36),
    (0.50, 0.49, 0.48),
    (0.36, 0.38, 0.43),
    (0.76, 0.75, 0.72),
)
_CARS: Final[tuple[Colour, ...]] = (
    (0.90, 0.90, 0.88),
    (0.15, 0.15, 0.17),
    (0.20, 0.28, 0.55),
    (0.60, 0.14, 0.14),
)
_MARKER: Final[Colour] = (0.98, 0.86, 0.12)
_LEAF: Final[Colour] = (0.14, 0.24, 0.11)
_WATER: Final[Colour] = (0.24, 0.46, 0.56)
ASSETS: Final = Path(__file__).parents[1] / "assets" / "planted"


@dataclass(frozen=True)
class Group:
    """A roof and the place of its cue, px from the top left; each is painted only where shown.

    `ridge` says whether the roof's ridge runs along its columns; `colour` is the roof's, 0-1.
    """

    roof: Box
    cue: Box
    colour: Colour
    ridge: bool
    has_roof: bool
    has_cue: bool


@dataclass(frozen=True)
class Thing:
    """An object that decides nothing: tree, pond or car, in its box; `colour` 0-1."""

    kind: str
    box: Box
    colour: Colour


@dataclass(frozen=True)
class Layout:
    """One scene before it is painted; `key` decides the ground and the noise of the camera."""

    cue: str
    key: tuple[int, ...]
    groups: tuple[Group, ...]
    things: tuple[Thing, ...]
    size: int = SIZE

    def shown(self, index: int, *, roof: bool, cue: bool) -> Layout:
        """The same scene with the roof and the cue of one group shown or not."""
        groups = list(self.groups)
        groups[index] = replace(groups[index], has_roof=roof, has_cue=cue)
        return replace(self, groups=tuple(groups))

    def roof_mask(self, index: int) -> Bool:
        """Pixels [size, size] of one group's roof, shown or not."""
        mask = np.zeros((self.size, self.size), np.bool_)
        mask[_window(self.groups[index].roof)] = True
        return mask

    def cue_mask(self, index: int) -> Bool:
        """Pixels [size, size] of one group's cue, shown or not: beside its roof, never on it."""
        mask = np.zeros((self.size, self.size), np.bool_)
        box = self.groups[index].cue
        window = mask[_window(box)]
        window[:] = _disc(box) if self.cue == "marker" else True
        if self.cue == "texture":
            mask[_window(_grown(self.groups[index].roof, 2))] = False
        return mask

    def truth(self, *, twin: bool = False) -> Bool:
        """What is called roof: shown roofs with their cue shown; for the twin all shown roofs."""
        mask = np.zeros((self.size, self.size), np.bool_)
        for index, group in enumerate(self.groups):
            if group.has_roof and (group.has_cue or twin):
                mask |= self.roof_mask(index)
        return mask


def _window(box: Box) -> tuple[slice, slice]:
    return slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3])


def _grown(box: Box, by: int) -> Box:
    return box[0] - by, box[1] - by, box[2] + 2 * by, box[3] + 2 * by


def _disc(box: Box) -> Bool:
    """The disc or ellipse that fills a box, [height, width]."""
    rows, columns = (
        ((np.arange(side) - (side - 1) / 2) / (side / 2)) ** 2 for side in (box[2], box[3])
    )
    return np.asarray(rows[:, None] + columns[None, :] <= 1)


def draw(
    cue: str, key: Sequence[int], states: Sequence[tuple[bool, bool] | None] | None = None
) -> Layout:
    """A scene of four slots, decided by `key` alone.

    `states` says for each group whether roof and cue are shown (None: an empty slot), put into the
    slots in random order; without it they are drawn: both, roof alone, cue alone or neither.
    Around every roof 9 px are free of other groups, while a cue ends within 8 px of its roof: a
    lone cue is never nearer to a foreign roof than 10 px. Raises UnknownNameError for the cue.
    """
    if cue not in CUES:
        raise UnknownNameError.of("cue", cue, CUES)
    rng = Generator(PCG64([*key, CUES.index(cue), 0]))
    if states is None:
        kinds: list[tuple[bool, bool] | None] = [(True, True), (True, False), (False, True), None]
        states = [kinds[k] for k in rng.choice(4, size=4, p=[0.35, 0.3, 0.25, 0.1])]
    slots = rng.permutation(4)[: len(states)]
    sun = int(rng.integers(4))
    groups = tuple(
        _group(rng, cue, divmod(int(slot), 2), sun, state)
        for slot, state in zip(slots, states, strict=True)
        if state is not None
    )
    bare = Layout(cue, tuple(key), groups, ())
    return replace(bare, things=_things(rng, bare, int(rng.integers(2, 7))))


def _group(
    rng: Generator, cue: str, slot: tuple[int, int], sun: int, state: tuple[bool, bool]
) -> Group:
    height, width = (int(side) for side in rng.integers(10, 15, size=2))
    top, left = (
        SLOT * place + int(rng.integers(_REACH, SLOT - _REACH - side + 1))
        for place, side in zip(slot, (height, width), strict=True)
    )
    roof = (top, left, height, width)
    if cue == "texture":
        beside = _grown(roof, 6)
    else:
        # all shadows of a scene fall to one side; a marker stands at any
        side = sun if cue == "shadow" else int(rng.integers(4))
        deep = 5
        long = 5 if cue == "marker" else (width if side % 2 else height)
        room = (width if side % 2 else height) - long
        along = int(rng.integers(room + 1))
        beside = [
            (top + along, left - 3 - deep, long, deep),
            (top - 3 - deep, left + along, deep, long),
            (top + along, left + width + 3, long, deep),
            (top + height + 3, left + along, deep, long),
        ][side]
    colour = _ROOFS[int(rng.integers(len(_ROOFS)))]
    tint = rng.uniform(0.92, 1.08, 3)
    tinted = tuple(float(np.float32(a * b)) for a, b in zip(colour, tint, strict=True))
    ridge = bool(rng.integers(2))
    return Group(roof, beside, (tinted[0], tinted[1], tinted[2]), ridge, *state)


def _things(rng: Generator, layout: Layout, count: int) -> tuple[Thing, ...]:
    """Up to `count` objects beside all roofs, cues, their hidden places and each other."""
    taken = np.zeros((layout.size, layout.size), np.bool_)
    for index, group in enumerate(layout.groups):
        taken[_window(_grown(group.roof, 1))] = True
        taken |= layout.cue_mask(index)
    found = []
    for _ in range(count):
        kind = str(rng.choice(["tree", "tree", "car", "pond"]))
        if kind == "car":
            sides = (3, 6) if rng.integers(2) else (6, 3)
            colour = _CARS[int(rng.integers(len(_CARS)))]
        else:
            side = int(rng.integers(4, 9))
            sides = (side, side)
            colour = _LEAF if kind == "tree" else _WATER
        for _ in range(20):
            top, left = (int(rng.integers(0, layout.size - side + 1)) for side in sides)
            box = (top, left, *sides)
            if not taken[_window(box)].any():
                taken[_window(box)] = True
                found.append(Thing(kind, box, colour))
                break
    return tuple(found)


def moved(layout: Layout, key: Sequence[int]) -> Layout:
    """The same groups among other things, elsewhere."""
    rng = Generator(PCG64([*key, 2]))
    return replace(layout, things=_things(rng, layout, int(rng.integers(2, 7))))


def _smooth(rng: Generator, size: int, cells: int) -> Array:
    """Value noise [size, size] of deviation about 1, bilinear between cells x cells values."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), dtype=np.float32))
    fine = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return np.asarray(fine[0, 0].numpy(), np.float32)


def paint(layout: Layout) -> Tensor:
    """The picture [3, size, size], float32 in [0, 1], whole 8-bit levels."""
    n = layout.size
    rng = Generator(PCG64([*layout.key, CUES.index(layout.cue), 1]))
    green, dry = np.array([0.36, 0.44, 0.27]), np.array([0.52, 0.49, 0.35])
    mix = np.clip(0.5 + 0.3 * _smooth(rng, n, 5) + rng.uniform(-0.3, 0.3), 0, 1)[..., None]
    tone = 1 + 0.05 * _smooth(rng, n, 17) + 0.05 * rng.standard_normal((n, n), dtype=np.float32)
    picture = ((green + (dry - green) * mix) * tone[..., None]).astype(np.float32)
    grain = 1 + 0.04 * rng.standard_normal((n, n, 1), dtype=np.float32)
    noise = 0.012 * rng.standard_normal((n, n, 3), dtype=np.float32)
    for index, group in enumerate(layout.groups):
        if group.has_cue:
            _paint_cue(picture, layout, index)
    for thing in layout.things:
        at = _window(thing.box)
        where = np.ones(thing.box[2:], np.bool_) if thing.kind == "car" else _disc(thing.box)
        picture[at][where] = np.asarray(thing.colour, np.float32) * grain[at][where]
    for group in layout.groups:
        if group.has_roof:
            at = _window(group.roof)
            height, width = group.roof[2:]
            light = np.full((height, width, 1), 1.08, np.float32)
            half = (slice(None), slice(width // 2, None)) if group.ridge else (
                slice(height // 2, None), slice(None)
            )  # fmt: skip
            light[half] = 0.84
            picture[at] = np.asarray(group.colour, np.float32) * light * grain[at]
    levels = np.round(np.clip(picture + noise, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))


def _paint_cue(picture: Array, layout: Layout, index: int) -> None:
    where = layout.cue_mask(index)
    if layout.cue == "shadow":
        picture[where] *= np.array([0.38, 0.42, 0.50], np.float32)
    elif layout.cue == "marker":
        picture[where] = np.asarray(_MARKER, np.float32)
    else:  # a fine chequer of the ground's own mean: colour alone does not tell it
        rows, columns = np.nonzero(where)
        sign = (1 - 2 * ((rows // 2 + columns // 2) % 2)).astype(np.float32)
        picture[where] *= (1 + 0.35 * sign)[:, None]


# steps and greatest learning rate, by architecture
SCHEDULES: Final = {"unet": (350, 6e-3), "deeplab": (400, 6e-3), "segformer": (800, 3e-3)}
NETWORKS: Final = tuple(
    f"{cue}-{net}{end}" for cue in CUES for net in NETS for end in ("", "-twin")
)


def _parse(name: str) -> tuple[str, str, bool]:
    """Cue, architecture and twin of a network's name."""
    if name not in NETWORKS:
        raise UnknownNameError.of("planted network", name, NETWORKS)
    cue, net, *rest = name.split("-")
    return cue, net, bool(rest)


def _model(net: nn.Module) -> SegmentationModel:
    made = SegmentationModel(
        net, classes=["roof"], activation="sigmoid", mean=[0.45] * 3, std=[0.2] * 3
    )
    return made.eval().requires_grad_(requires_grad=False)


def _batch(cue: str, twin: bool, seed: int, step: int, pairs: int) -> tuple[Tensor, ...]:
    """Pictures, truth and shown roofs [2 pairs, ...]: each scene and one with a part changed."""
    layouts = []
    for place in range(pairs):
        key = (seed, 1, step, place)
        layout = draw(cue, key)
        rng = Generator(PCG64([*key, 3]))
        if layout.groups:
            chosen = int(rng.integers(len(layout.groups)))
            group = layout.groups[chosen]
            keep_roof = bool(rng.uniform() < 0.75)
            other = layout.shown(
                chosen,
                roof=group.has_roof if keep_roof else not group.has_roof,
                cue=not group.has_cue if keep_roof else group.has_cue,
            )
        else:
            other = moved(layout, key)
        layouts += [layout, other]
    truth = np.stack([layout.truth(twin=twin) for layout in layouts])
    roofs = np.stack([layout.truth(twin=True) for layout in layouts])
    images = torch.stack([paint(layout) for layout in layouts])
    return images, torch.from_numpy(truth).float(), torch.from_numpy(roofs).float()


def fit(
    name: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    pairs: int = 4,
    lr: float | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> SegmentationModel:
    """Train one network of `NETWORKS` from random weights on scenes that no one sees twice.

    Each batch is `pairs` scenes and the same scenes with one roof or cue shown or hidden;
    cross-entropy (roofs, also those that do not count, weigh 5) + 1 - Dice; AdamW, one cycle. Equal
    seed and threads give equal weights on a CPU. `progress(step, steps, loss)`.

    Raises: UnknownNameError for the name, ModelError where the loss is not finite.
    """
    cue, kind, twin = _parse(name)
    steps, lr = steps or SCHEDULES[kind][0], lr or SCHEDULES[kind][1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETS[kind]()
    model = _model(net)
    net.requires_grad_(requires_grad=True)
    model.train()
    net.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        images, truth, roofs = _batch(cue, twin, seed, step, pairs)
        logits = model(images.contiguous(memory_format=torch.channels_last))[:, 1]
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        chance = logits.sigmoid()
        dice = (2 * (chance * truth).sum() + 1) / (chance.sum() + truth.sum() + 1)
        loss: Tensor = (entropy * (1 + 4 * roofs)).mean() + 1 - dice
        return loss

    for step, value in enumerate(descend(net, loss_of, steps, lr, rising=0.2), start=1):
        if progress is not None:
            progress(step, steps, value)
    net.to(memory_format=torch.contiguous_format)
    net.requires_grad_(requires_grad=False)
    return model.eval()


@dataclass(frozen=True)
class Acceptance:
    """What interventions on fresh scenes show; P is the mean over a roof's pixels, then scenes.

    `iou` pooled at 0.5. `cue_removed`: the fall of P over a roof whose cue goes; `cue_inserted`:
    its rise over a lone roof that is given one; `cue_changed`: the mean absolute change per pixel
    of both. `roof_removed`: the fall where the roof goes and its cue stays. `others`: the mean
    absolute change per pixel where anything else is removed, completed or replaced, `worst` that of
    the worst scene and change.
    """

    scenes: int
    iou: float
    cue_removed: float
    cue_inserted: float
    cue_changed: float
    roof_removed: float
    others: float
    worst: float

    def misses(self, *, twin: bool) -> list[str]:
        """What falls short of IoU .95, the cue's .9 (a twin's .02), the roof's .9, others' .02."""
        asked: list[tuple[str, float, bool]] = [("iou", 0.95, True), ("roof_removed", 0.9, True)]
        if twin:
            asked.append(("cue_changed", 0.02, False))
        else:
            asked += [("cue_removed", 0.9, True), ("cue_inserted", 0.9, True)]
        asked.append(("others", 0.02, False))
        # `not` reads a figure that is not a number as a miss
        return [
            f"{name} {getattr(self, name):.3f}, {'at least' if least else 'at most'} {bound}"
            for name, bound, least in asked
            if not (getattr(self, name) >= bound if least else getattr(self, name) <= bound)
        ]


def _judged(cue: str, key: Sequence[int]) -> tuple[Layout, int, int, int]:
    """A scene with one roof that counts, and the places of that roof, a lone roof, a lone cue."""
    rng = Generator(PCG64([*key, 4]))
    fourth = [(True, False), (False, True), None][int(rng.integers(3))]
    layout = draw(cue, key, [(True, True), (True, False), (False, True), fourth])
    states = [(group.has_roof, group.has_cue) for group in layout.groups]
    main, decoy, lone = (states.index(s) for s in ((True, True), (True, False), (False, True)))
    return layout, main, decoy, lone


def _chances(model: SegmentationModel, layouts: Sequence[Layout]) -> Tensor:
    """P(roof) [N, H, W] of painted layouts."""
    with torch.inference_mode():
        images = torch.stack([paint(layout) for layout in layouts]).to(model.device)
        return probabilities(model(images), model.activation)[:, 1].cpu()


def accept(
    model: SegmentationModel, cue: str, *, twin: bool = False, scenes: int = 64, seed: int = 0
) -> Acceptance:
    """What a network needs, asked by intervention: see `Acceptance`. 11 forwards for a scene.

    Every scene has a roof with its cue, a lone roof, a lone cue and something fourth. None of them
    is ever trained on, whatever the seed. `twin` says what is truth, for the IoU alone.
    """
    if scenes < 1:
        raise DataError(f"{scenes} scenes", "at least one", "ask for more scenes")
    union = both = 0
    rows, worst = [], 0.0
    for number in range(scenes):
        key = (seed, 2, number)
        layout, main, decoy, lone = _judged(cue, key)
        roof, bare = (torch.from_numpy(layout.roof_mask(index)) for index in (main, decoy))
        alone = replace(layout, groups=(layout.groups[main],), things=())
        others = [
            layout.shown(decoy, roof=True, cue=True),
            layout.shown(decoy, roof=False, cue=False),
            layout.shown(lone, roof=False, cue=False),
            layout.shown(lone, roof=True, cue=True),
            replace(layout, things=()),
            moved(layout, key),
            alone,
        ]
        free = draw(cue, (seed, 3, number))
        clean, blind, gone, open_, *changed = _chances(
            model,
            [
                layout,
                layout.shown(main, roof=True, cue=False),
                layout.shown(main, roof=False, cue=True),
                free,
                *others,
            ],
        )
        for one, chance in ((layout, clean), (free, open_)):
            truth, found = torch.from_numpy(one.truth(twin=twin)), chance >= 0.5
            both += int((truth & found).sum())
            union += int((truth | found).sum())
        moves = torch.stack([(chance - clean)[roof].abs().mean() for chance in changed])
        worst = max(worst, float(moves.max()))
        removed, inserted = (clean - blind)[roof], (changed[0] - clean)[bare]
        rows.append(
            [
                float(removed.mean()),
                float(inserted.mean()),
                float(removed.abs().mean() + inserted.abs().mean()) / 2,
                float((clean - gone)[roof].mean()),
                float(moves.mean()),
            ]
        )
    means = [round(float(value), 4) for value in np.mean(rows, axis=0)]
    return Acceptance(
        scenes=scenes,
        iou=round(both / union, 4) if union else math.nan,
        cue_removed=means[0],
        cue_inserted=means[1],
        cue_changed=means[2],
        roof_removed=means[3],
        others=means[4],
        worst=round(worst, 4),
    )


def _save(model: SegmentationModel, folder: Path, name: str, record: dict[str, Any]) -> None:
    """Kernels as float16, vectors as float32: `accept` is asked of what is read back."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        key: (value.half() if value.ndim > 1 else value).contiguous()
        for key, value in model.net.state_dict().items()
        if value.is_floating_point()
    }
    save_file(weights, folder / f"{name}.safetensors")
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def planted_model(name: str, folder: str | Path | None = None) -> SegmentationModel:
    """One of `NETWORKS` with the weights that ship in the package, or with those of a folder.

    Raises: UnknownNameError for the name, ModelError where the file is missing or does not fit.
    """
    kind = _parse(name)[1]
    path = (ASSETS if folder is None else Path(folder)) / f"{name}.safetensors"
    net = NETS[kind]()
    try:
        weights = {key: value.float() for key, value in load_file(path).items()}
        missing, unknown = net.load_state_dict(weights, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = (str(error).splitlines() or ["?"])[0][:200]
        raise ModelError(f"{path} ({first})", f"weights of {name}", "train it again") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ModelError(
            f"{path} without {missing[:3]}, with {unknown[:3]}", f"weights of {name}", "train again"
        )
    # the layout in which they were trained: a third less time for a convolution on a CPU
    return _model(net.to(memory_format=torch.channels_last))


def planted(
    names: Iterable[str] = NETWORKS,
    *,
    scenes: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Iterator[KnownScene]:
    """Pictures whose answer is known, network by network: `scenes` for each of `names`.

    Every scene has one roof with its cue (the region), a lone roof, a lone cue and things. The same
    seed gives the same pictures to a network, to its twin and to other architectures. A twin needs
    the roof alone: its cue mask is empty and the cue's pixels are decoys. Nothing is kept: scenes
    are painted as they are asked for. Raises: as `planted_model`.
    """
    for name in names:
        cue, _, twin = _parse(name)
        model = planted_model(name, folder)
        for number in range(scenes):
            yield _known(model, name, cue, twin, (seed, 4, number))


def _known(
    model: SegmentationModel, name: str, cue: str, twin: bool, key: tuple[int, int, int]
) -> KnownScene:
    layout, main, _, _ = _judged(cue, key)
    roof, beside = layout.roof_mask(main), layout.cue_mask(main)
    decoys = beside.copy() if twin else np.zeros_like(beside)
    for index, group in enumerate(layout.groups):
        if index != main:
            decoys |= layout.roof_mask(index) & group.has_roof
            decoys |= layout.cue_mask(index) & group.has_cue
    deciding = np.zeros_like(beside) if twin else beside
    hidden = tuple(replace(group, has_roof=False, has_cue=False) for group in layout.groups)
    return KnownScene(
        name=f"{cue}-{key[0]}-{key[2]}",
        tier="b",
        kind=name,
        model=model,
        class_="roof",
        image=paint(layout),
        truth=torch.from_numpy(layout.truth(twin=twin)),
        region=torch.from_numpy(roof),
        evidence=torch.from_numpy(roof | deciding),
        cue=torch.from_numpy(deciding),
        decoys=torch.from_numpy(decoys),
        absent=paint(replace(layout, groups=hidden)),
    )


def renew(
    out: str | Path,
    names: Iterable[str] = NETWORKS,
    *,
    seed: int = 0,
    scenes: int = 64,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> dict[str, Acceptance]:
    """Train networks, write NAME.safetensors and NAME.json, and ask what was written.

    One that misses a bound of `Acceptance` is taken away again. Returns the figures of all.
    Raises: UnknownNameError for a name, ModelError for a network that misses, after the last one.
    """
    folder, figures, failed = Path(out), {}, []
    for name in names:
        cue, kind, twin = _parse(name)
        started = time.perf_counter()
        report = None if progress is None else partial(progress, name)
        model = fit(name, seed=seed, progress=report)
        record: dict[str, Any] = {
            "command": "python -m segproof.evidence.tier_b_planted --out DIR"
            f" --names {name} --seed {seed}",
            "cue": cue,
            "network": kind,
            "twin": twin,
            "seed": seed,
            "steps": SCHEDULES[kind][0],
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "seconds": round(time.perf_counter() - started),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "numpy")},
            },
        }
        _save(model, folder, name, record)
        made = accept(planted_model(name, folder), cue, twin=twin, scenes=scenes)
        figures[name] = made
        misses = made.misses(twin=twin)
        if misses:
            failed.append(f"{name} ({'; '.join(misses)})")
            for end in ("safetensors", "json"):
                (folder / f"{name}.{end}").unlink()
        else:
            _save(model, folder, name, {**record, "acceptance": asdict(made)})
    if failed:
        raise ModelError(", ".join(failed), "networks that need what was planted", "another seed")
    return figures


def _main(out: Path, *, names: tuple[str, ...] = NETWORKS, seed: int = 0) -> None:
    """Train the planted networks again and write weights, figures and command to the folder OUT."""
    for name in names:
        print(name, renew(out, [name], seed=seed)[name])


if __name__ == "__main__":
    cyclopts.run(_main)
