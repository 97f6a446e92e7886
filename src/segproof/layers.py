"""Layers of any network as pictures: tokens become grids, and the layers worth explaining are
found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["Layer", "Trace", "as_grid", "find_layers", "tracing"]

PREFIXES: Final = (0, 1, 2, 5, 4, 3, 8, 9)  # class, distillation and register tokens before a grid
ENCODERS: Final = ("encoder", "backbone", "segformer", "beit", "dpt")
DECODERS: Final = ("decoder", "decode_head", "classifier")
_WEIGHTED: Final = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NEUTRAL: Final = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample)
_POOLS: Final = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layer:
    """A place to explain at: module path, alias (`decoder:1` is coarsest), stride in pixels,
    channels.
    """

    path: str
    alias: str
    stride: int
    channels: int
    size: tuple[int, int]


@dataclass
class Trace:
    """What one run showed: grid shapes (N, C, h, w) by path in running order, and, by path, the
    modules whose result was handed to it as it is.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fed_by: dict[str, frozenset[str]] = field(default_factory=dict)


def as_grid(
    module: nn.Module, result: object, batch: int, size: tuple[int, int]
) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    """The picture [N, C, h, w] in what a module returned for images [N, B, H, W] of `size` (H, W),
    and the function that puts such a picture back in its place; None where there is no picture.

    Exactly a permutation of the values of [N, C, h, w], [N, h, w, C] or tokens [N, L, C], alone or
    first in a tuple. Class and register tokens are left out and put back as they were.
    """
    if type(result) is tuple and result and isinstance(result[0], Tensor) and result[0].ndim == 3:
        inner = as_grid(module, result[0], batch, size)
        if inner is None:
            return None
        grid, back = inner
        rest = result[1:]
        return grid, lambda changed: (back(changed), *rest)
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    if result.ndim == 4:
        if _channels_last(module, result, size):
            return result.permute(0, 3, 1, 2), lambda grid: grid.permute(0, 2, 3, 1)
        return result, lambda grid: grid
    # [N, C, 1] of a pooling along the tokens would look like C tokens of one channel
    if result.ndim != 3 or result.shape[0] != batch or isinstance(module, nn.AdaptiveAvgPool1d):
        return None
    found = token_grid(result.shape[1], size)
    if found is None:
        return None
    before, height, width = found
    tokens = result
    grid = tokens[:, before:].transpose(1, 2).reshape(batch, -1, height, width)

    def put_back(changed: Tensor) -> Tensor:
        flat = changed.flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :before], flat], dim=1) if before else flat.contiguous()

    return grid, put_back


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens before the grid, h, w) of a row of tokens for images of `size` (H, W).

    h and w are the sides over one stride, rounded up or down. The likeliest reading is taken:
    strides that divide both sides before other powers of two before the rest, few extra tokens
    before many.
    """
    grids = _grids(*size)
    candidates = [
        (place + 3.5 * rank, before, h, w)
        for place, before in enumerate(PREFIXES)
        for rank, h, w in grids.get(tokens - before, ())
    ]
    if not candidates:
        return None
    _, before, h, w = min(candidates)
    return before, h, w


@lru_cache(maxsize=64)
def _grids(height: int, width: int) -> dict[int, set[tuple[int, int, int]]]:
    """All grids of an image of these sides: number of cells -> {(rank, h, w)}."""
    found: dict[int, set[tuple[int, int, int]]] = {}
    for stride in range(1, max(height, width) + 1):
        exact = height % stride == 0 and width % stride == 0
        rank = 0 if exact else 1 if stride & (stride - 1) == 0 else 2
        up = (-(-height // stride), -(-width // stride))
        for h, w in {up, (height // stride, width // stride)}:
            if h and w:
                found.setdefault(h * w, set()).add((rank, h, w))
    return found


def _is_grid(height: int, width: int, size: tuple[int, int]) -> bool:
    known = _grids(*size).get(height * width, set())
    return any((h, w) == (height, width) for _, h, w in known)


def _channels_last(module: nn.Module, result: Tensor, size: tuple[int, int]) -> bool:
    """Whether four axes are [N, h, w, C]: the axes whose lengths follow the image are h and w."""
    shape = result.shape
    first, last = _is_grid(shape[2], shape[3], size), _is_grid(shape[1], shape[2], size)
    if not (first and last):
        return last
    # h = w = C, so that only the module can tell: transformers norm and project the last axis
    leaves = [
        m
        for m in module.modules()
        if not any(m.children()) and next(m.parameters(), None) is not None
    ]
    if not leaves:
        return False
    kind = type(leaves[-1])
    ours = kind.__module__.startswith(("torch.", "timm.")) and not kind.__name__.endswith("2d")
    if isinstance(leaves[-1], nn.LayerNorm):
        return ours
    return ours and kind is nn.Linear and not any(isinstance(m, nn.Conv2d) for m in leaves)


@contextmanager
def tracing(net: nn.Module, batch: int, size: tuple[int, int]) -> Iterator[Trace]:
    """Remembers, while the network runs inside, what every module returned that is a picture."""
    seen = Trace()
    last: list[Any] = [None, frozenset()]  # the newest result and the modules that returned it

    def remember(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            given = inputs[0] if inputs else None
            seen.fed_by[path] = last[1] if given is not None and given is last[0] else frozenset()
            if isinstance(result, Tensor):
                last[:] = [result, (last[1] if result is last[0] else frozenset()) | {path}]
            found = as_grid(module, result, batch, size)
            if found is not None:
                seen.shapes.pop(path, None)
                seen.shapes[path] = tuple(found[0].shape)

        return hook

    handles = [
        module.register_forward_hook(remember(path)) for path, module in net.named_modules() if path
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def find_layers(net: nn.Module, seen: Trace, classes: int, size: tuple[int, int]) -> list[Layer]:
    """Encoder stages, finest first, then decoder blocks, coarsest first, of a traced network.

    Encoder and decoder are known by their usual names; in other networks what runs up to the
    coarsest map is the encoder. Modules that return the `classes` logits are no layers.
    """
    modules = dict(net.named_modules())
    maps = _maps(modules, seen.shapes, size)
    inside, outside = _root(maps, ENCODERS), _root(maps, DECODERS)
    ran = frozenset(seen.fed_by)
    if outside is not None and (inside is not None or not outside.endswith("classifier")):
        paths = list(maps)
        first = next(i for i, path in enumerate(paths) if _below(path, outside))
        before = paths[:first] if inside is None else [p for p in paths if _below(p, inside)]
        encoder = _stages(before, modules, maps, ran)
        decoder = _blocks(outside, modules, seen, maps, classes)
    else:
        chain = _chain(maps)
        while len(chain) > 1 and maps[chain[-1]][1] == classes:
            chain.pop()
        coarsest = min((maps[path][2] for path in chain), default=0)
        turn = max((i for i, path in enumerate(chain) if maps[path][2] == coarsest), default=-1)
        encoder = _stages(chain[: turn + 1], modules, maps, ran)
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
        path: shape for path, shape in maps.items() if _is_grid(shape[2], shape[3], size)
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
    is dilated where it would lower the resolution counts as one of its own.
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
    """Decoder blocks in running order: members of the container `blocks`, else the outermost."""
    blocks = [path for path in maps if _below(path, f"{root}.blocks")]
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
        if not isinstance(modules[found[-1]], _WEIGHTED):
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
    """The outermost modules in running order; inside a network that only wraps another, its
    parts.
    """
    chain = _outermost(list(maps))
    while len(chain) == 1:
        parts = _outermost([path for path in maps if _below(path, chain[0])])
        if not parts:
            break
        chain = parts
    return chain
