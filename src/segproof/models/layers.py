"""Finds the layers of any network that are worth explaining at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from segproof.models.axes import Axes, Evidence, Trace, is_grid, named

__all__ = ["Layer", "find_layers"]

ENCODERS: Final = ("encoder", "backbone", "segformer", "beit", "dpt")
DECODERS: Final = ("decoder", "decode_head", "classifier")
_WEIGHTED: Final = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NEUTRAL: Final = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample)
_POOLS: Final = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layer:
    """A place to explain at: module path, alias (`decoder:1` is coarsest), stride in pixels,
    channels, grid (h, w); how its result is read as a picture, and by what that is decided.
    """

    path: str
    alias: str
    stride: int
    channels: int
    size: tuple[int, int]
    axes: str = "channels first"
    decided: str = ""


def find_layers(
    net: nn.Module, evidence: Evidence, seen: Trace, classes: int, size: tuple[int, int]
) -> list[Layer]:
    """Encoder stages, finest first, then decoder blocks, coarsest first, of a network as it was
    `seen` at `size`.

    Encoder and decoder are known by their usual names; in other networks what runs up to the
    coarsest map is the encoder. Modules that return the `classes` logits are no layers.
    """
    modules = named(net)
    read = {path: evidence.find(path, size, result) for path, result in seen.results.items()}
    axes = {path: found for path, found in read.items() if isinstance(found, Axes)}
    shapes: dict[str, tuple[int, ...]] = {
        path: (1, seen.results[path].shapes[found.where][found.order[0]], *found.grid)
        for path, found in axes.items()
    }
    maps = _maps(modules, shapes, size)
    inside, outside = _root(maps, ENCODERS), _root(maps, DECODERS)
    ran = frozenset(seen.fed_by)
    if outside is not None and (inside is not None or not outside.endswith("classifier")):
        paths = list(maps)
        first = next(i for i, path in enumerate(paths) if _below(path, outside))
        before = paths[:first] if inside is None else [p for p in paths if _below(p, inside)]
        encoder = _stages(before, modules, maps, ran)
        decoder = _blocks(outside, modules, seen, maps, classes)
        # where the name stands for the last convolution alone, what holds it is the decoder
        while "." in outside and all(maps[path][1] == classes for path in decoder):
            outside = outside.rpartition(".")[0]
            if inside is not None and (_below(inside, outside) or inside == outside):
                break
            decoder = _blocks(outside, modules, seen, maps, classes)
    else:
        chain = _chain(maps)
        while len(chain) > 1 and maps[chain[-1]][1] == classes:
            head = chain.pop()
            inside_head = _outermost([path for path in maps if _below(path, head)])
            if inside_head and maps[inside_head[0]][1] != classes:
                chain += [path for path in inside_head if maps[path][1] != classes]
                break
        coarsest = min((maps[path][2] for path in chain), default=0)
        turn = max((i for i, path in enumerate(chain) if maps[path][2] == coarsest), default=-1)
        stages = chain[: turn + 1]
        for path in tuple(stages):  # one that holds several resolutions holds stages
            below = [other for other in maps if _below(other, path)]
            if len({maps[other][2] for other in below} - {maps[path][2]}) > 2:
                stages[stages.index(path) : stages.index(path)] = below
        encoder = _stages(stages, modules, maps, ran)
        decoder = chain[turn + 1 :]
    # a network without a decoder of its own is explained where its features end
    decoder = sorted(decoder or encoder[-1:], key=lambda path: maps[path][2])
    return [
        Layer(
            path=path,
            alias=f"{kind}:{place}",
            stride=round(size[0] / maps[path][2]),
            channels=maps[path][1],
            size=(maps[path][2], maps[path][3]),
            axes=axes[path].name,
            decided=axes[path].decided,
        )
        for kind, paths in (("encoder", encoder), ("decoder", decoder))
        for place, path in enumerate(paths, start=1)
    ]


def _below(path: str, root: str) -> bool:
    return path.startswith(f"{root}.")


def _depth(path: str) -> int:
    return path.count(".")


def _root(maps: dict[str, Any], names: Sequence[str]) -> str | None:
    """The outermost module with one of the names that has maps inside."""
    found = []
    for path in maps:
        parts = path.split(".")
        found += [".".join(parts[: i + 1]) for i, part in enumerate(parts[:-1]) if part in names]
    return min(found, key=_depth, default=None)


def _maps(
    modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]], size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """The results that lie over the image: no gates, levels of a pooling pyramid or attention."""
    pooled = {path for path, shape in shapes.items() if _pooled(modules[path], shape)}
    maps = {
        path: shape
        for path, shape in shapes.items()
        if shape[0] == 1
        and not any(_below(path, other) or path == other for other in pooled)
        and not any("attn" in part or "attention" in part for part in path.split("."))
    }
    # convolutions without padding lose a border, so that no map is an even part of the image
    return {
        path: shape for path, shape in maps.items() if is_grid(shape[2], shape[3], size)
    } or maps


def _pooled(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """A gate or a pyramid level: a map of one cell, or as large as a pooling in it prescribes."""
    if shape[2:] == (1, 1):
        return True
    prescribed = [m.output_size for m in module.modules() if isinstance(m, _POOLS)]
    return any(shape[2:] == (p if isinstance(p, tuple) else (p, p)) for p in prescribed)


def _stages(
    paths: Sequence[str],
    modules: dict[str, nn.Module],
    maps: dict[str, tuple[int, ...]],
    ran: frozenset[str],
) -> list[str]:
    """For each resolution the last and outermost module that ran at it, finest first; a stage that
    is dilated where it would lower the resolution counts as one of its own. A module that holds
    several stages is none.
    """

    def depth(path: str) -> int:
        # lists of modules never run themselves and are no level of the network
        return sum(path[:i] in ran for i, letter in enumerate(path) if letter == ".")

    last: dict[tuple[int, int], str] = {}
    for path in paths:
        if isinstance(modules[path], _NEUTRAL):
            continue
        convolutions = (m for m in modules[path].modules() if isinstance(m, nn.Conv2d))
        dilation = max((max(m.dilation) for m in convolutions), default=1)
        key = (-maps[path][2], dilation)
        best = last.get(key)
        if best is None or depth(path) <= depth(best):
            last[key] = path
    for path in last.values():
        hidden = {maps[other][2] for other in last.values() if _below(other, path)}
        if len(hidden - {maps[path][2]}) > 1:
            return _stages([p for p in paths if p != path], modules, maps, ran - {path})
    # an inner part of a stage may have a dilation of its own, and is no stage
    chosen = [
        path for path in last.values() if not any(_below(path, other) for other in last.values())
    ]
    return sorted(chosen, key=lambda path: (-maps[path][2], paths.index(path)))


def _blocks(
    root: str,
    modules: dict[str, nn.Module],
    seen: Trace,
    maps: dict[str, tuple[int, ...]],
    classes: int,
) -> list[str]:
    """Decoder blocks in running order: members of the list `blocks` or `stages`, else the outermost
    modules.
    """
    for name in ("blocks", "stages"):
        blocks = [path for path in maps if _below(path, f"{root}.{name}")]
        blocks = [path for path in blocks if _depth(path) == _depth(root) + 2]
        if blocks:
            return blocks
    inner = _outermost([path for path in maps if _below(path, root)])
    found = []
    for path in inner:
        module = modules[path]
        if isinstance(module, _NEUTRAL):
            continue
        # norms of what the encoder hands over show nothing that the encoder's layers do not
        weighs = next(module.parameters(), None) is not None
        if _is_step(module) and weighs and not seen.fed_by[path] & set(inner):
            continue
        finished = any(
            path in seen.fed_by[other] and _is_step(modules[other]) and maps[other] == maps[path]
            for other in inner
            if not isinstance(modules[other], _NEUTRAL)
        )
        if not finished:
            found.append(path)
    while len(found) > 1 and maps[found[-1]][1] == classes:
        weighted = [m for m in modules[found[-1]].modules() if isinstance(m, _WEIGHTED)]
        if len(weighted) != 1:
            break
        found.pop()
    return found


def _is_step(module: nn.Module) -> bool:
    """A norm or an activation: a leaf that only goes on with what the module before it began."""
    return not any(module.children()) and not isinstance(module, _WEIGHTED)


def _outermost(paths: Sequence[str]) -> list[str]:
    kept = set(paths)
    return [
        path
        for path in paths
        if not any(path[:i] in kept for i, letter in enumerate(path) if letter == ".")
    ]


def _chain(maps: dict[str, tuple[int, ...]]) -> list[str]:
    """The outermost modules in running order; inside a network that only wraps another, and inside
    one that goes down to coarser maps and comes up again, its parts.
    """

    def parts(path: str) -> list[str]:
        return _outermost([other for other in maps if _below(other, path)])

    chain = _outermost(list(maps))
    while len(chain) == 1 and parts(chain[0]):
        chain = parts(chain[0])
    found = []
    for path in chain:
        inner = _hourglass(path, maps, parts)
        found += [path] if inner is None else inner
    return found


def _hourglass(
    path: str, maps: dict[str, tuple[int, ...]], parts: Callable[[str], list[str]]
) -> list[str] | None:
    """The parts of a module that hides levels coarser than its own result, all the way down; None
    for any other.
    """
    inside = parts(path)
    while len(inside) == 1 and parts(inside[0]):
        inside = parts(inside[0])
    if not inside or min(maps[other][2] for other in inside) >= maps[path][2]:
        return None
    found = []
    for other in inside:
        inner = _hourglass(other, maps, parts)
        found += [other] if inner is None else inner
    return found
