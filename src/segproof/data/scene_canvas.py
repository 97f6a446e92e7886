"""Holds a scene while it is painted, lights it by one sun, and sees it through one camera.

A scene is painted in metres at twice the resolution as three layers (albedo, height, slope shade).
Cast shadows are traced over the heights; the camera averages 2 x 2, blurs, adds noise and keeps 8
bits. Lengths are in metres, x goes right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["RESOLUTION"]

RESOLUTION = 0.3  # metres per pixel of the finished picture
PX = RESOLUTION / 2  # metres per pixel while painting
MARGIN = 40  # painted pixels beyond each edge, so that shadows enter from outside

Array = NDArray[np.float32]
Bool = NDArray[np.bool_]
Colour = tuple[float, float, float]
Window = tuple[slice, slice]


def fbm(rng: Generator, size: int, cells: Sequence[float]) -> Array:
    """Multi-octave value noise [size, size], mean 0 and deviation 1; `cells` in metres."""
    total = np.zeros((size, size), np.float32)
    for cell in cells:
        at = np.arange(size) * (PX / cell) + rng.uniform()
        low = at.astype(np.intp)
        t = (at - low).astype(np.float32)
        t = t * t * (3 - 2 * t)
        grid = rng.standard_normal((low[-1] + 2, low[-1] + 2), dtype=np.float32)
        rows = grid[low] + (grid[low + 1] - grid[low]) * t[:, None]
        left = rows[:, low]
        total += (left + (rows[:, low + 1] - left) * t) * np.float32(cell**0.35)
    noise: Array = (total - total.mean()) / (total.std() + np.float32(1e-6))
    return noise


@dataclass
class Canvas:
    """The three painted layers, what lies where, and the textures they share."""

    rng: Generator
    size: int  # painted pixels per side
    sun: tuple[float, float, float]  # unit vector towards the sun (x right, y down, z up)
    albedo: Array = field(init=False)
    height: Array = field(init=False)
    shade: Array = field(init=False)
    roof: Bool = field(init=False)
    busy: Bool = field(init=False)  # ground that trees and gardens must leave free

    def __post_init__(self) -> None:
        n = self.size
        self.albedo = np.zeros((n, n, 3), np.float32)
        self.height = np.zeros((n, n), np.float32)
        self.shade = np.ones((n, n), np.float32)
        self.roof = np.zeros((n, n), np.bool_)
        self.busy = np.zeros((n, n), np.bool_)
        self.coarse = fbm(self.rng, n, (25.0, 11.0, 5.0))
        self.middle = fbm(self.rng, n, (2.6, 1.3, 0.7))
        self.fine = self.rng.standard_normal((n, n), dtype=np.float32)
        self.grain = (self.fine + np.roll(self.fine, 1, 0) + np.roll(self.fine, 1, 1)) * 0.6
        axis = (np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(PX)
        self.x, self.y = axis[None, :], axis[:, None]
        self.half = n * PX / 2

    def window(self, x: float, y: float, reach: float) -> Window | None:
        """The part of the canvas within `reach` metres of a point, None where it is outside."""
        cut = []
        for centre in (y, x):
            low = max(0, int((centre - reach + self.half) / PX))
            high = min(self.size, int((centre + reach + self.half) / PX) + 1)
            if high - low < 2:
                return None
            cut.append(slice(low, high))
        return cut[0], cut[1]

    def local(self, at: Window, x: float, y: float, turn: float) -> tuple[Array, Array]:
        """Metres along and across a heading, from a point, over a window."""
        dx, dy = self.x[:, at[1]] - np.float32(x), self.y[at[0]] - np.float32(y)
        c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        return dx * c + dy * s, dy * c - dx * s

    def slope_light(self, gx: Array, gy: Array) -> Array:
        """Sunlight on a surface of the given height gradient, 1 on level ground."""
        sx, sy, sz = (np.float32(v) for v in self.sun)
        facing = (sz - gx * sx - gy * sy) / np.sqrt(1 + gx * gx + gy * gy)
        return (np.maximum(facing, np.float32(0)) / sz).astype(np.float32, copy=False)

    def paint(
        self,
        at: Window,
        where: Bool,
        colour: Colour,
        rough: float = 0.0,
        blotch: float = 0.0,
        tone: Array | None = None,
        *,
        busy: bool = True,
    ) -> None:
        """Lay a colour where the mask says so, with grain, blotches and a tone [h, w]."""
        paint = np.asarray(colour, np.float32)
        vary = tone[where] if tone is not None else np.float32(1)
        if rough:
            vary = vary + np.float32(rough) * self.grain[at][where]
        if blotch:
            vary = vary + np.float32(blotch) * self.middle[at][where]
        self.albedo[at][where] = np.multiply.outer(vary, paint) if np.ndim(vary) else paint
        if busy:
            self.busy[at] |= where

    def slab(
        self, x: float, y: float, turn: float, length: float, width: float, colour: Colour
    ) -> None:
        """A paved rectangle without height: driveway, patio, yard, foundation."""
        at = self.window(x, y, 0.5 * math.hypot(length, width) + 0.3)
        if at is None:
            return
        u, v = self.local(at, x, y, turn)
        inside = (np.abs(u) < length / 2) & (np.abs(v) < width / 2) & ~self.roof[at]
        self.paint(at, inside, colour, 0.035, 0.035)
        joint = inside & ((np.abs(np.mod(u, 3.0) - 1.5) > 1.42) | (np.abs(v) > width / 2 - 0.15))
        self.albedo[at][joint] *= np.float32(0.9)

    def box(
        self, x: float, y: float, turn: float, size: tuple[float, float], rise: float, c: Colour
    ) -> None:
        """A small block standing on whatever is there (chimney, cooling unit)."""
        at = self.window(x, y, max(size) + 0.3)
        if at is None:
            return
        u, v = self.local(at, x, y, turn)
        inside = (np.abs(u) < size[0] / 2) & (np.abs(v) < size[1] / 2)
        if inside.any():
            self.paint(at, inside, c)
            self.height[at][inside] = self.height[at][inside].max() + np.float32(rise)
            self.shade[at][inside] = 1.0

    def wall(self, start: tuple[float, float], end: tuple[float, float], hedge: bool) -> None:
        """A fence (thin, straight) or a hedge (thick, bumpy) between two points."""
        length = math.dist(start, end)
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        at = self.window(x, y, length / 2 + 1.5)
        if at is None or length < 1:
            return
        u, v = self.local(at, x, y, math.atan2(end[1] - start[1], end[0] - start[0]))
        thick = 0.75 + 0.22 * self.middle[at] if hedge else np.float32(0.14)
        inside = (np.abs(u) < length / 2) & (np.abs(v) < thick) & ~self.busy[at]
        if hedge:
            self.paint(at, inside, (0.22, 0.31, 0.17), 0.16, 0.14)
            self.shade[at][inside] = (1 + 0.25 * self.middle[at])[inside]
        else:
            self.paint(at, inside, (0.50, 0.45, 0.40), 0.05, 0.05)
        self.height[at][inside] = 1.9 if hedge else 1.7


def ground(canvas: Canvas, where: Bool | None, kind: str) -> None:
    """Lawn, dry grass, meadow, soil or crop over the whole canvas or a part of it."""
    rng = canvas.rng
    green, dry = {
        "lawn": ((0.33, 0.41, 0.24), (0.50, 0.48, 0.32)),
        "dry": ((0.47, 0.46, 0.31), (0.58, 0.52, 0.37)),
        "meadow": ((0.29, 0.39, 0.24), (0.42, 0.43, 0.27)),
        "soil": ((0.45, 0.38, 0.30), (0.55, 0.48, 0.39)),
        "crop": ((0.30, 0.41, 0.20), (0.39, 0.46, 0.25)),
    }[kind]
    jitter = rng.normal(0, 0.018, 3)
    a, b = (np.asarray(c) + jitter for c in (green, dry))
    bias, twist = rng.uniform(-0.8, 0.5), int(rng.integers(4))
    patches = np.rot90(canvas.coarse, twist) * 0.7 + np.rot90(canvas.middle, twist) * 0.35
    mix = 1 / (1 + np.exp(-1.3 * (patches + np.float32(bias))))
    tone = 1 + 0.085 * canvas.grain + 0.05 * canvas.middle
    if kind in ("crop", "meadow", "soil") or rng.uniform() < 0.25:
        turn, period = rng.uniform(0, math.pi), rng.uniform(1.6, 4.5)
        along = canvas.x * math.cos(turn) + canvas.y * math.sin(turn) + 0.25 * canvas.coarse
        stripes = np.sin(along * np.float32(2 * math.pi / period))
        tone = tone + rng.uniform(0.015, 0.055) * stripes.astype(np.float32)
    colour = (mix[..., None] * (b - a).astype(np.float32) + a.astype(np.float32)) * tone[..., None]
    if where is None:
        canvas.albedo[:] = colour
    else:
        np.copyto(canvas.albedo, colour, where=where[..., None])


def shadow(height: Array, sun: tuple[float, float, float]) -> Array:
    """Share of sunlight that is blocked, [S, S], by stepping over the heights towards the sun."""
    flat = math.hypot(sun[0], sun[1])
    fall = sun[2] / flat * PX
    steps = int(float(height.max()) / fall)
    blocked = np.zeros(height.shape, np.bool_)
    n = height.shape[0]
    for k in range(2, steps + 1, 2):
        dx, dy = round(k * sun[0] / flat), round(k * sun[1] / flat)
        here = (slice(max(0, -dy), min(n, n - dy)), slice(max(0, -dx), min(n, n - dx)))
        there = (slice(max(0, dy), min(n, n + dy)), slice(max(0, dx), min(n, n + dx)))
        blocked[here] |= height[there] - height[here] > np.float32(k * fall + 0.2)
    soft: Array = ndimage.uniform_filter(blocked.astype(np.float32), 3)
    return np.asarray(ndimage.uniform_filter(soft, 3), np.float32)


def halve(layer: Array) -> Array:
    """Average of 2 x 2 painted pixels: [2h, 2w, ...] -> [h, w, ...]."""
    rows = layer[0::2] + layer[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def photograph(canvas: Canvas) -> Array:
    """Light the layers, then see them: average, blur, white balance, noise, 8 bits: [h, w, 3]."""
    rng = canvas.rng
    ambient = np.asarray((0.33, 0.37, 0.44)) * rng.uniform(0.75, 1.15)
    ambient = ambient.astype(np.float32)
    canyon = ndimage.uniform_filter(canvas.height, 25) - canvas.height
    open_sky = 1 - np.clip(0.11 * canyon, 0, 0.4)
    sunlit = canvas.shade * (1 - shadow(canvas.height, canvas.sun))
    light = sunlit[..., None] * (1 - ambient) + open_sky[..., None] * ambient
    picture = canvas.albedo * light
    m, n = MARGIN, canvas.size - 2 * MARGIN
    picture = halve(picture[m : m + n, m : m + n])
    picture = ndimage.gaussian_filter(picture, (rng.uniform(0.35, 0.55),) * 2 + (0,))
    soft = ndimage.uniform_filter(picture, (3, 3, 1))
    picture = picture + np.float32(rng.uniform(0, 0.7)) * (picture - soft)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + (picture - grey) * np.float32(rng.uniform(0.65, 1.05))
    balance = rng.normal(1, 0.03, 3) * rng.uniform(0.88, 1.15)
    contrast = rng.uniform(1.0, 1.25)
    picture = (picture * balance.astype(np.float32) - 0.4) * np.float32(contrast) + 0.4
    picture = picture + np.asarray((0.004, 0.008, 0.016), np.float32) * np.float32(
        rng.uniform(0, 2)
    )
    noise = rng.standard_normal((n // 2, n // 2, 4), dtype=np.float32)
    level = np.float32(rng.uniform(0.008, 0.02))
    picture = picture + level * (noise[..., :1] + 0.5 * noise[..., 1:])
    return np.asarray(np.round(np.clip(picture, 0, 1) * 255) / 255, np.float32)
