"""Decides how a module's result lies over the picture, by running the network at two sizes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

__all__ = [
    "Axes",
    "Doubt",
    "Evidence",
    "Result",
    "Trace",
    "as_written",
    "is_grid",
    "named",
    "others",
    "part",
    "plainly",
    "tracing",
    "with_part",
]

Size = tuple[int, int]
Shape = tuple[int, ...]
Keys = tuple[Any, ...]
Seen = tuple[tuple[Size, Shape], ...]  # sizes of pictures, and the shape of one result for each

TWO_SIZES: Final = "by two sizes"
ONE_SIZE: Final = "by its only size"
A_CHANGE: Final = "by where a change of the picture shows"
BEFORE: Final = 32  # tokens that may stand before a grid: class, register and query tokens
CORNERS: Final = ((False, True), (True, False), (False, False), (True, True))  # (lower, right)
TRACES: Final = 4  # sizes whose shapes are remembered
CLEAR, APART = 0.8, 0.2  # share of cells in order that tells a reading, and by how much it leads


@dataclass(frozen=True)
class Axes:
    """How one tensor [N, ...] is read as a picture [N, C, h, w].

    `order` names its axes: (C, h, w) of four, (C, tokens) of three. `before` tokens stand before a
    grid of `grid` = (h, w) cells, which run along the rows, or down the `columns`. `where` leads to
    the tensor in the module's result, `decided` says by what evidence.
    """

    order: tuple[int, ...]
    grid: Size
    before: int = 0
    columns: bool = False
    where: Keys = ()
    decided: str = TWO_SIZES

    @property
    def name(self) -> str:
        """The reading in words, such as "channels last" or "tokens 14 x 21 after 1"."""
        if len(self.order) == 2:
            text = f"tokens {self.grid[0]} x {self.grid[1]}"
            text += f" after {self.before}" if self.before else ""
            text += ", column by column" if self.columns else ""
            text += "" if self.order == (2, 1) else ", channels first"
        else:
            names: dict[tuple[int, ...], str] = {
                (1, 2, 3): "channels first",
                (3, 1, 2): "channels last",
                (1, 3, 2): "channels first, width before height",
                (3, 2, 1): "channels last, width before height",
            }
            text = names.get(self.order, "channels between height and width")
        return text

    def read(self, value: Tensor) -> Tensor:
        """The picture [N, C, h, w] in the tensor."""
        if len(self.order) == 3:
            return value.permute(0, *self.order)
        rows = value.transpose(1, 2) if self.order == (2, 1) else value
        height, width = self.grid
        cells = rows[:, :, self.before :]
        if self.columns:
            return cells.reshape(*cells.shape[:2], width, height).transpose(2, 3)
        return cells.reshape(*cells.shape[:2], height, width)

    def write(self, value: Tensor, grid: Tensor) -> Tensor:
        """The tensor with the picture [N, C, h, w] in place of its own; tokens before it stay."""
        if len(self.order) == 3:
            back = [0, 0, 0, 0]
            for place, axis in enumerate((0, *self.order)):
                back[axis] = place
            return grid.permute(*back)
        cells = (grid.transpose(2, 3) if self.columns else grid).flatten(2)
        rows = value.transpose(1, 2) if self.order == (2, 1) else value
        rows = torch.cat([rows[:, :, : self.before], cells], dim=2) if self.before else cells
        return rows.transpose(1, 2) if self.order == (2, 1) else rows


@dataclass(frozen=True)
class Doubt:
    """Readings of one result between which the evidence does not decide."""

    readings: tuple[Axes, ...]

    def __str__(self) -> str:
        return " or ".join(
            f"{axes.name} ({_keys(axes.where)}{axes.grid[0]} x {axes.grid[1]} cells)"
            for axes in self.readings
        )


@dataclass(frozen=True)
class Result:
    """What a module returned: the shapes of its tensors of three or four axes by their place.

    `kind`: the tensor alone, the first of a tuple or record, or one among equals in a list or dict.
    `full` says that there was nothing else in it.
    """

    shapes: dict[Keys, Shape]
    kind: Literal["alone", "first", "equal"]
    full: bool

    @classmethod
    def of(cls, value: Any) -> Result:
        """The shapes in a result: those of the outermost level that holds tensors."""
        if isinstance(value, Tensor):
            return cls({(): tuple(value.shape)} if _counts(value) else {}, "alone", full=True)
        parts = _parts(value)
        level: dict[Keys, Any] = {(key,): item for key, item in parts.items()}
        if not any(isinstance(item, Tensor) for item in level.values()):
            level = {
                (*keys, key): item
                for keys, outer in level.items()
                for key, item in _parts(outer).items()
            }
        tensors = {
            keys: item for keys, item in level.items() if isinstance(item, Tensor) and _counts(item)
        }
        kept: dict[int, Keys] = {}
        for keys, item in tensors.items():
            kept.setdefault(id(item), keys)  # one tensor under two names is one result
        shapes = {keys: tuple(tensors[keys].shape) for keys in kept.values()}
        first = isinstance(value, tuple) or is_dataclass(value)
        full = len(tensors) == len(level)
        return cls(shapes, "first" if first else "equal", full=full)


@dataclass
class Trace:
    """What one run showed: results by path in running order, and, by path, the modules whose
    result was handed to it as it is.
    """

    results: dict[str, Result] = field(default_factory=dict)
    fed_by: dict[str, frozenset[str]] = field(default_factory=dict)


@dataclass
class Evidence:
    """What the modules of one network returned at several sizes of zeros, and what follows."""

    traces: dict[Size, Trace] = field(default_factory=dict)
    changes: dict[str, tuple[Size, dict[Keys, list[Tensor]]]] = field(default_factory=dict)
    tried: bool = False

    def gather(
        self, net: nn.Module, size: Size, unit: int, show: Callable[[Tensor | Size], Any]
    ) -> None:
        """Run the network by `show` at `size`, and once at another size that it takes.

        `show` gets a picture [B, H, W] or the size of one of zeros. Where shapes leave two
        readings, two pictures that differ in one corner are shown too.
        """
        if size not in self.traces and (not self.tried or len(self.traces) < 2):
            self.trace(net, size, show)
        if self.tried:
            return
        self.tried = True
        for other in others(size, unit):
            try:
                self.trace(net, other, show)
            except Exception:  # noqa: S112  # a size that the network does not take, in its own words
                continue
            # a third size where tokens of two sizes make up more than one grid
            if len(self.traces) == 3 or not any(several for _, several in self._open(size)):
                break
        self._probe(net, size, show)

    def trace(self, net: nn.Module, size: Size, show: Callable[[Tensor | Size], Any]) -> Trace:
        """The results of all modules for a picture of zeros of `size`, remembered for a few."""
        if size in self.traces:
            return self.traces[size]
        with tracing(net) as seen:
            show(size)
        if len(self.traces) < TRACES:
            self.traces[size] = seen
        return seen

    def find(self, path: str, size: Size, result: Result, batch: int = 1) -> Axes | Doubt | None:
        """How the result of a module for `batch` pictures of `size` is read; None: no picture."""
        found: dict[Keys, Axes | Doubt] = {}
        for keys, shape in result.shapes.items():
            if shape[0] != batch:
                continue
            read = self._read(path, keys, size, (1, *shape[1:]))
            if read is not None:
                found[keys] = read
        if not found:
            return None
        keys = next(iter(found))
        if len(found) == 1 or (result.kind == "first" and keys == next(iter(result.shapes))):
            pyramid = result.full and len({_grid_of(read) for read in found.values()}) > 1
            if len(found) == 1 or not (pyramid and len(found) == len(result.shapes)):
                return found[keys]
        several = [
            axes
            for read in found.values()
            for axes in (read.readings if isinstance(read, Doubt) else (read,))
        ]
        return Doubt(tuple(several))

    def _read(self, path: str, keys: Keys, size: Size, shape: Shape) -> Axes | Doubt | None:
        known: dict[Size, Shape] = {}
        for other, trace in self.traces.items():
            if path in trace.results and keys in trace.results[path].shapes:
                known[other] = trace.results[path].shapes[keys]
        known.pop(size, None)
        if self._still:
            known = {}
        readings = _readings((*known.items(), (size, shape)))
        if not readings:
            return None
        placed = [replace(axes, where=keys) for axes in readings]
        if len(placed) > 1 or len(placed[0].order) == 2:
            return self._by_change(path, keys, placed, size)
        return placed[0]

    @property
    def _still(self) -> bool:
        """Whether hardly any result follows the size: the network makes all pictures one size."""
        if len(self.traces) < 2:
            return False
        first, second, *_ = self.traces.values()
        both = [path for path in first.results if path in second.results]
        moved = sum(first.results[path].shapes != second.results[path].shapes for path in both)
        return moved <= len(both) / 10

    def _open(self, size: Size) -> Iterator[tuple[str, bool]]:
        """Paths of modules whose shapes leave something open, and whether that is the grid: of
        tokens it is the order at least.
        """
        for path, result in self.traces[size].results.items():
            for keys, shape in result.shapes.items():
                read = self._read(path, keys, size, shape)
                if isinstance(read, Doubt):
                    yield path, True
                elif read is not None and len(read.order) == 2:
                    yield path, False

    def _probe(self, net: nn.Module, size: Size, show: Callable[[Tensor | Size], Any]) -> None:
        """How much each value changes with a corner of a picture of noise."""
        asked = {path for path, _ in self._open(size)}
        if not asked:
            return
        draw = torch.Generator().manual_seed(0)
        plain, other = torch.rand(2, 1, *size, generator=draw)
        pictures = [plain]
        # one corner tells rows from columns; few tokens seem to follow one corner by chance
        corners = CORNERS if len(self.traces) == 1 else CORNERS[:1]
        pictures += [torch.where(_corner(size, size, one), other, plain) for one in corners]
        values: list[dict[str, dict[Keys, Tensor]]] = [{} for _ in pictures]
        modules = named(net)

        def keep(path: str, into: dict[str, dict[Keys, Tensor]]) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
                shapes = Result.of(result).shapes
                into[path] = {keys: part(result, keys).detach().clone() for keys in shapes}

            return hook

        for picture, into in zip(pictures, values, strict=True):
            handles = []
            try:
                for path in asked:
                    hook = keep(path, into)
                    handles.append(modules[path].register_forward_hook(hook, prepend=True))
                with as_written():
                    show(picture)
            except Exception:  # the shapes stand; what they leave open is refused
                return
            finally:
                for handle in handles:
                    handle.remove()
        for path, before in values[0].items():
            changed: dict[Keys, list[Tensor]] = {}
            for keys, value in before.items():
                after = [found.get(path, {}).get(keys) for found in values[1:]]
                if all(one is not None and one.shape == value.shape for one in after):
                    changed[keys] = [
                        (one - value).abs().double().cpu() for one in after if one is not None
                    ]
            self.changes[path] = (size, changed)

    def _by_change(
        self, path: str, keys: Keys, readings: list[Axes], size: Size
    ) -> Axes | Doubt | None:
        """The reading under which the cells of a changed corner changed most.

        With two sizes, rows come first unless a change says otherwise; between other readings, and
        of tokens at one size, it has to decide.
        """
        at, changes = self.changes.get(path, (size, {}))
        wide = [axes for axes in readings if min(axes.grid) > 1 and len(axes.order) == 2]
        candidates = [*readings, *(replace(axes, columns=True) for axes in wide)]
        sure = len(readings) == 1 and readings[0].decided == TWO_SIZES
        best = readings[0] if sure else None
        scores = []
        for axes in candidates if keys in changes else ():
            known = _at(axes, at, changes[keys][0])
            if known is not None:
                pairs = zip(changes[keys], CORNERS, strict=False)
                found = [
                    _order(known.read(one).mean(dim=1)[0], at, corner) for one, corner in pairs
                ]
                scores.append((sum(found) / len(found), axes))
        scores.sort(key=lambda pair: -pair[0])
        ahead = scores[0][0] - max((score for score, _ in scores[1:]), default=0) if scores else 0
        if ahead >= APART and scores[0][0] >= CLEAR:
            first = scores[0][1]
            best = first if sure and not first.columns else replace(first, decided=A_CHANGE)
        if best is None and len(readings) == 1:
            return None  # as many tokens as a grid has cells, which follow the picture nowhere
        return best if best is not None else Doubt(tuple(readings))


def _grid_of(read: Axes | Doubt) -> Size:
    return read.grid if isinstance(read, Axes) else read.readings[0].grid


def _at(axes: Axes, size: Size, change: Tensor) -> Axes | None:
    """The same reading of a tensor for a picture of `size`."""
    if len(axes.order) == 3:
        return axes
    length = change.shape[axes.order[1]]
    height, width = axes.grid
    if length == axes.before + height * width:
        return axes
    fits = [
        grid
        for stride in range(1, max(size) + 1)
        for grid in _strided(size, stride)
        if grid[0] * grid[1] == length - axes.before
    ]
    return replace(axes, grid=fits[0]) if len(set(fits)) == 1 else None


def _corner(grid: Size, size: Size, corner: tuple[bool, bool]) -> Tensor:
    """The cells of a grid over a picture of `size` in one of its quarters, (lower, right)."""
    sides = []
    for cells, side, far in zip(grid, size, corner, strict=True):
        places = (torch.arange(cells) + 0.5) * side / cells
        sides.append((places > side // 2) == far)
    return sides[0][:, None] & sides[1][None]


def _order(change: Tensor, size: Size, corner: tuple[bool, bool]) -> float:
    """Share of pairs of cells, one in the corner, one outside, where that one changed more; of a
    picture [h, w] of changes.
    """
    height, width = change.shape
    if height < 2 or width < 2:
        return 0.5
    inside = _corner((height, width), size, corner).flatten()
    ranks = change.flatten().argsort().argsort().double()
    n, m = int(inside.sum()), int((~inside).sum())
    if not n or not m or not float(change.abs().max()):
        return 0.5
    return float((ranks[inside].sum() - n * (n - 1) / 2) / (n * m))


# --- shapes ---------------------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def _readings(seen: Seen) -> list[Axes]:
    """All readings of the newest of some shapes [1, ...] that fit the sizes of their pictures."""
    if len({len(shape) for _, shape in seen}) != 1 or any(shape[0] != 1 for _, shape in seen):
        return []
    find = _of_maps if len(seen[0][1]) == 4 else _of_tokens
    return find(seen)


def _of_maps(seen: Seen) -> list[Axes]:
    size, shape = seen[-1]
    if len(seen) == 1:
        return _of_one_map(size, shape)
    found = []
    for order in sorted(permutations((1, 2, 3)), key=lambda o: ((1, 3, 2).index(o[0]), o)):
        c, h, w = order
        if len({s[c] for _, s in seen}) != 1:
            continue
        heights = [(sides[0], s[h]) for sides, s in seen]
        widths = [(sides[1], s[w]) for sides, s in seen]
        if _follows(heights) and _follows(widths):
            misfit = _misfit(heights) + _misfit(widths)
            found.append((misfit, Axes(order, (shape[h], shape[w]))))
    found.sort(key=lambda pair: pair[0])
    # all sides may have grown: the axes then grow as their sides do
    return [axes for misfit, axes in found if misfit <= 2 * found[0][0] + 1e-9]


def _follows(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether an axis grows and shrinks with a side: pairs of (side, length)."""
    moved = False
    for (side, length), (other_side, other_length) in combinations(pairs, 2):
        if side == other_side and length != other_length:
            return False
        if (side - other_side) * (length - other_length) < 0:
            return False
        moved |= length != other_length
    return moved


def _misfit(pairs: Sequence[tuple[int, int]]) -> float:
    """How far an axis is from being a part of the side: spread of length / side."""
    ratios = [length / side for side, length in pairs]
    return max(ratios) / min(ratios) - 1


def _of_one_map(size: Size, shape: Shape) -> list[Axes]:
    """Readings at the only known size: natural orders before transposed ones, even parts of the
    picture before uneven ones.
    """
    _, a, b, c = shape
    natural = [Axes((1, 2, 3), (b, c)), Axes((3, 1, 2), (a, b))]
    turned = [Axes((1, 3, 2), (c, b)), Axes((3, 2, 1), (b, a))]
    even = [axes for axes in natural if is_grid(*axes.grid, size)]
    if not even and size[0] != size[1]:
        even = [axes for axes in turned if is_grid(*axes.grid, size)]
    # convolutions without padding lose a border, so that no map is an even part of the image
    uneven = [
        axes
        for axes in natural
        if axes.grid[0] <= size[0]
        and axes.grid[1] <= size[1]
        and abs(axes.grid[0] / axes.grid[1] * size[1] / size[0] - 1) < 0.25
    ]
    return [replace(axes, decided=ONE_SIZE) for axes in even or uneven]


def _of_tokens(seen: Seen) -> list[Axes]:
    size, shape = seen[-1]
    if len(seen) == 1:
        return [
            Axes((2, 1), (h, w), before, decided=ONE_SIZE)
            for before in range(BEFORE + 1)
            for rank, h, w in _grids(*size).get(shape[1] - before, ())
            if h * w > 1 and not rank
        ]
    found: dict[Axes, int] = {}
    for c, t in ((2, 1), (1, 2)):
        if len({s[c] for _, s in seen}) != 1 or len({s[t] for _, s in seen}) == 1:
            continue
        for stride in range(1, max(size) + 1):
            exact = all(not side % stride for sides, _ in seen for side in sides)
            for h, w in _strided(size, stride):
                before = shape[t] - h * w
                if not 0 <= before <= BEFORE:
                    continue
                if all(
                    any(a * b + before == s[t] for a, b in _strided(sides, stride))
                    for sides, s in seen
                ):
                    axes = Axes((c, t), (h, w), before)
                    found[axes] = min(found.get(axes, 1), 0 if exact else 1)
    # a stride that divides every side explains the lengths better than one that is rounded
    best = min(found.values(), default=0)
    return [axes for axes, rank in found.items() if rank == best]


def _strided(size: Size, stride: int) -> set[Size]:
    """The grids of pictures of a size at one stride, rounded up and down."""
    up = (-(-size[0] // stride), -(-size[1] // stride))
    down = (size[0] // stride, size[1] // stride)
    return {grid for grid in (up, down) if min(grid)}


@lru_cache(maxsize=64)
def _grids(height: int, width: int) -> dict[int, set[tuple[int, int, int]]]:
    """All grids of an image of these sides: number of cells -> {(rank, h, w)}; strides that divide
    both sides rank 0, other powers of two 1, the rest 2.
    """
    found: dict[int, set[tuple[int, int, int]]] = {}
    for stride in range(1, max(height, width) + 1):
        exact = height % stride == 0 and width % stride == 0
        rank = 0 if exact else 1 if stride & (stride - 1) == 0 else 2
        for h, w in _strided((height, width), stride):
            found.setdefault(h * w, set()).add((rank, h, w))
    return found


def is_grid(height: int, width: int, size: Size) -> bool:
    """Whether h x w cells are an image of `size` over one stride, rounded up or down."""
    known = _grids(*size).get(height * width, set())
    return any((h, w) == (height, width) for _, h, w in known)


def others(size: Size, unit: int) -> list[Size]:
    """Sizes near `size` to try next: one side grows where the other shrinks, so that every axis
    tells which one it follows; else both grow, the width much more.
    """
    height, width = size
    found: list[Size] = []
    for step in dict.fromkeys((unit, 32, 28, 64, 16)):
        more = [step * max(1, round(side / 4 / step)) for side in size]
        less = [step * max(1, round(side / 2 / step)) for side in size]
        if width - less[1] >= step:
            found.append((height + more[0], width - less[1]))
        if height - less[0] >= step:
            found.append((height - less[0], width + more[1]))
        found.append((height + step, width + 3 * step))
    if not width % 2:
        found.append((2 * height, width // 2 * 3))

    def cells(sides: Size, stride: int) -> int:
        return -(-sides[0] // stride) * -(-sides[1] // stride)

    # as many tokens as before would seem not to follow the picture at all
    strides = (1, 4, 8, 16, 32, unit)
    return [
        other
        for other in dict.fromkeys(found)
        if all(cells(other, stride) != cells(size, stride) for stride in strides)
    ]


# --- results --------------------------------------------------------------------------------------
def _counts(value: Tensor) -> bool:
    return value.ndim in (3, 4) and value.is_floating_point() and value.numel() > 0


def _parts(value: Any) -> dict[Any, Any]:
    """What a mapping, a sequence or a record holds, by key, place or field."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    return {}


def _keys(where: Keys) -> str:
    return "".join(f"[{key!r}]" for key in where) + (": " if where else "")


def part(result: Any, where: Keys) -> Tensor:
    """The tensor at a place in a module's result."""
    for key in where:
        result = _parts(result)[key]
    found: Tensor = result
    return found


def with_part(result: Any, old: Tensor, new: Tensor) -> Any:
    """A result of the same kind with `new` wherever it held `old`."""
    if result is old:
        return new
    parts = {key: with_part(item, old, new) for key, item in _parts(result).items()}
    changed = {key: item for key, item in parts.items() if item is not _parts(result)[key]}
    if not changed:
        return result
    if isinstance(result, Mapping):
        made: Any = copy.copy(result)
        for key, item in changed.items():
            made[key] = item
        return made
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*parts.values())
    if isinstance(result, list | tuple):
        return type(result)(parts.values())
    made = copy.copy(result)
    for key, item in changed.items():
        object.__setattr__(made, key, item)
    return made


# --- runs -----------------------------------------------------------------------------------------
@contextmanager
def as_written() -> Iterator[None]:
    """Networks run as they were written inside: hooks of compiled ones are served and nothing is
    compiled; gradient checkpoints keep their segments in the graph, whose second run would know
    nothing of the layers in them.
    """
    # whatever was compiled has loaded the compiler; without it there is nothing to hold back
    loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if loaded else nullcontext(), _unsegmented():
        yield


@contextmanager
def _unsegmented() -> Iterator[None]:
    """Gradient checkpoints keep their segments in the graph inside: what is run again in a backward
    would know nothing of the layers in it.
    """

    def directly(run: Callable[..., Any], _preserve: bool, *given: Any) -> Any:
        return run(*given)

    def nothing(*_given: Any, **_named: Any) -> Iterator[None]:
        yield

    # torch has no public switch; names differ between its releases
    names = (
        "_checkpoint_without_reentrant_generator",
        "_checkpoint_without_reentrant_generator_impl",
    )
    before = {name: getattr(checkpoint, name) for name in names if hasattr(checkpoint, name)}
    inherited = "apply" not in vars(checkpoint.CheckpointFunction)
    own = vars(checkpoint.CheckpointFunction).get("apply")
    try:
        for name in before:
            setattr(checkpoint, name, nothing)
        checkpoint.CheckpointFunction.apply = staticmethod(directly)
        yield
    finally:
        for name, function in before.items():
            setattr(checkpoint, name, function)
        if inherited:
            del checkpoint.CheckpointFunction.apply
        else:
            checkpoint.CheckpointFunction.apply = own


def named(net: nn.Module) -> dict[str, nn.Module]:
    """The modules inside by path, the network itself as "". What `torch.compile` wrapped is listed
    in place of its wrapper, so that paths are those of the uncompiled network.
    """
    found: dict[str, nn.Module] = {}
    wrappers: set[str] = set()
    for path, module in net.named_modules():
        if type(module).__name__ == "OptimizedModule" and "_orig_mod" in dict(
            module.named_children()
        ):
            wrappers.add(path)
        steps, plain = path.split(".") if path else [], []
        for place, step in enumerate(steps):
            if step != "_orig_mod" or ".".join(steps[:place]) not in wrappers:
                plain.append(step)
        found[".".join(plain)] = module
    return found


def plainly(path: str) -> str:
    """A path as it is in the network before it was compiled."""
    return ".".join(step for step in path.split(".") if step != "_orig_mod")


@contextmanager
def tracing(net: nn.Module) -> Iterator[Trace]:
    """Remembers, while the network runs inside, what every module returned last."""
    seen = Trace()
    last: list[Any] = [None, frozenset()]  # the newest result and the modules that returned it

    def remember(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, inputs: Any, result: Any) -> None:
            given = inputs[0] if inputs else None
            seen.fed_by[path] = last[1] if given is not None and given is last[0] else frozenset()
            if isinstance(result, Tensor):
                last[:] = [result, (last[1] if result is last[0] else frozenset()) | {path}]
            seen.results.pop(path, None)
            seen.results[path] = Result.of(result)

        return hook

    handles = []
    try:
        for path, module in named(net).items():
            if path:
                handles.append(module.register_forward_hook(remember(path), prepend=True))
        with as_written():
            yield seen
    finally:
        for handle in handles:
            handle.remove()
