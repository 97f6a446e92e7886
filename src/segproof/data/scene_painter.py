"""Paints the things of an aerial scene: roads, plots, buildings, trees, cars, pools, fields.

`paint` puts one kind of place together: suburb, commerce, country or the edge of town. Roads,
slabs, courts and pools share their colours with roofs, so colour alone does not solve the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from segproof.data.scene_canvas import (
    MARGIN,
    PX,
    Array,
    Bool,
    Canvas,
    Colour,
    ground,
    halve,
    photograph,
)

__all__ = ["paint"]

# each roof covering: its albedo, its texture, and whether it lies on pitched roofs
_ROOFS: dict[str, tuple[Colour, str, bool]] = {
    "red tile": ((0.60, 0.33, 0.26), "tile", True),
    "terracotta": ((0.72, 0.48, 0.35), "tile", True),
    "brown tile": ((0.46, 0.38, 0.34), "tile", True),
    "grey tile": ((0.47, 0.46, 0.45), "tile", True),
    "slate": ((0.27, 0.28, 0.31), "tile", True),
    "dark metal": ((0.32, 0.34, 0.38), "seam", True),
    "grey metal": ((0.61, 0.63, 0.65), "seam", True),
    "blue metal": ((0.58, 0.66, 0.74), "seam", True),
    "green metal": ((0.38, 0.46, 0.41), "seam", True),
    "red metal": ((0.58, 0.29, 0.24), "seam", True),
    "concrete": ((0.60, 0.58, 0.55), "gravel", False),
    "gravel": ((0.50, 0.48, 0.46), "gravel", False),
    "membrane": ((0.79, 0.79, 0.77), "plain", False),
}
_PITCHED = [name for name, (_, _, pitched) in _ROOFS.items() if pitched]
_FLAT = [name for name, (_, _, pitched) in _ROOFS.items() if not pitched]
_CARS: list[Colour] = [
    (0.88, 0.88, 0.87),
    (0.88, 0.88, 0.87),
    (0.66, 0.67, 0.69),
    (0.66, 0.67, 0.69),
    (0.13, 0.13, 0.14),
    (0.30, 0.31, 0.33),
    (0.58, 0.13, 0.12),
    (0.18, 0.26, 0.45),
    (0.60, 0.57, 0.50),
]
_PAVING: list[Colour] = [
    (0.66, 0.64, 0.60),
    (0.58, 0.56, 0.53),
    (0.44, 0.43, 0.42),
    (0.55, 0.47, 0.42),
    (0.60, 0.42, 0.35),
]


def paint(seed: int, size: int, empty: float) -> tuple[Array, Array]:
    """The picture float32 [size, size, 3] in [0, 1] of a scene, and the share of each pixel that is
    visible roof, float32 [size, size]; `empty` is the share of scenes without a building.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    built = bool(rng.uniform() >= empty)
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(36, 62))
    level = math.cos(elevation)
    sun = (level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation))
    canvas = Canvas(rng, 2 * size + 2 * MARGIN, sun)
    turn = rng.choice([0, math.pi / 2]) + rng.normal(0, 0.35)
    bend = rng.uniform(0, 5) if rng.uniform() < 0.5 else 0.0
    frame = Frame(float(turn), bend, rng.uniform(110, 200), rng.uniform(0, 2 * math.pi))
    place = rng.choice(4, p=[0.55, 0.17, 0.14, 0.14] if built else [0.1, 0.25, 0.65, 0.0])
    if place == 1:
        commercial(canvas, frame, built)
    elif place == 2:
        country(canvas, frame, built)
    else:
        keep = None
        if place == 3:  # the edge of town: fields on one side
            ground(canvas, None, str(rng.choice(["meadow", "crop", "dry"])))
            keep = frame.grid(canvas)[0] < rng.uniform(0, 15)
        suburb(canvas, frame, built, keep)
    m, n = MARGIN, 2 * size
    return photograph(canvas), halve(canvas.roof[m : m + n, m : m + n].astype(np.float32))


@dataclass(frozen=True)
class Frame:
    """Street coordinates: u along, v across, turned and gently bent."""

    turn: float
    bend: float
    wave: float
    phase: float

    def point(self, u: float, v: float) -> tuple[float, float, float]:
        """Canvas x, y and the heading of the street at (u, v)."""
        angle = 2 * math.pi * u / self.wave + self.phase
        v = v + self.bend * math.sin(angle)
        c, s = math.cos(self.turn), math.sin(self.turn)
        lean = math.atan(self.bend * 2 * math.pi / self.wave * math.cos(angle))
        return u * c - v * s, u * s + v * c, self.turn + lean

    def grid(self, canvas: Canvas) -> tuple[Array, Array]:
        """Coordinates u, v of every painted pixel."""
        c, s = np.float32(math.cos(self.turn)), np.float32(math.sin(self.turn))
        u, v = canvas.x * c + canvas.y * s, canvas.y * c - canvas.x * s
        angle = u * np.float32(2 * math.pi / self.wave) + np.float32(self.phase)
        return u, v - np.float32(self.bend) * np.sin(angle)


def _roads(
    canvas: Canvas, ways: Sequence[tuple[Array, Array]], half: float, *, paths: bool
) -> None:
    """Streets given as (along, across) in metres: footpaths, kerbs, worn lanes, patches, lines."""
    rng, n = canvas.rng, canvas.size
    everywhere = (slice(0, n), slice(0, n))
    ways = [way for way in ways if float(np.abs(way[1]).min()) < half + 3]
    if not ways:
        return
    along, across = ways[0]
    far = np.abs(across)
    for other_along, other_across in ways[1:]:
        nearer = np.abs(other_across) < far
        along = np.where(nearer, other_along, along)
        far = np.minimum(far, np.abs(other_across))
    if paths:
        path = (far > half + 1.2) & (far < half + 2.7)
        canvas.paint(everywhere, path, (0.66, 0.64, 0.60), 0.03, 0.03)
        canvas.albedo[path & (np.mod(along, 2.4) < 0.16)] *= np.float32(0.88)
        canvas.busy |= far < half + 2.7
    kerb = (far < half + 0.25) & (far >= half)
    canvas.paint(everywhere, kerb, (0.70, 0.69, 0.66), 0.03, 0.03)
    lane = far < half
    grey = rng.uniform(0.36, 0.56)
    tint = (grey, grey * rng.uniform(0.97, 1.0), grey * rng.uniform(0.93, 0.99))
    wear = np.cos((far - np.float32(half / 2)) * np.float32(4 * math.pi / half))
    tone = 1 + 0.045 * wear + 0.035 * canvas.coarse
    canvas.paint(everywhere, lane, tint, 0.045, 0.03, tone)
    marked = half > 3.6 and rng.uniform() < 0.8
    edged = rng.uniform() < 0.4
    for along, across in ways:
        for _ in range(rng.integers(0, 4)):
            u0, v0 = rng.uniform(-40, 40), rng.uniform(-half, half)
            size = rng.uniform(1, 4), rng.uniform(0.5, 1.6)
            patch = (np.abs(along - u0) < size[0]) & (np.abs(across - v0) < size[1])
            canvas.albedo[patch & lane] *= np.float32(rng.uniform(0.78, 0.92))
        if marked:
            mine = np.abs(across)
            line = (mine < 0.13) & (np.mod(along, 6.0) < 3.0)
            if edged:
                line |= (np.abs(far - (half - 0.5)) < 0.11) & (mine < half)
            canvas.paint(everywhere, line, (0.82, 0.82, 0.78))


@dataclass(frozen=True)
class _Part:
    """One rectangle of a roof, in the building's own metres."""

    u: float
    v: float
    length: float
    width: float
    across: bool  # the ridge runs across the building's heading


def _building(
    canvas: Canvas,
    x: float,
    y: float,
    turn: float,
    parts: Sequence[_Part],
    material: str,
    form: str,
) -> bool:
    """One building: footprint, roof planes, texture, ridge, gutter, fittings; False if no room."""
    rng = canvas.rng
    reach = max(math.hypot(p.u, p.v) + math.hypot(p.length, p.width) / 2 for p in parts) + 0.5
    at = canvas.window(x, y, reach)
    if at is None:
        return False
    u, v = canvas.local(at, x, y, turn)
    base, texture, _ = _ROOFS[material]
    slope = (
        0.0
        if form == "flat"
        else math.tan(math.radians(rng.uniform(15, 30) if reach < 14 else rng.uniform(5, 10)))
    )
    eave = rng.uniform(2.6, 3.4) + (2.7 if rng.uniform() < 0.3 and reach > 7 else 0.0)
    rise = np.full(u.shape, -1, np.float32)
    gu, gv, down = np.zeros_like(rise), np.zeros_like(rise), np.zeros_like(rise)
    edge, across_down = np.zeros_like(rise), np.zeros(u.shape, np.bool_)
    for part in parts:
        du, dv = u - np.float32(part.u), v - np.float32(part.v)
        to_end, to_side = part.length / 2 - np.abs(du), part.width / 2 - np.abs(dv)
        inside = (to_end > 0) & (to_side > 0)
        run, other = (to_end, to_side) if part.across else (to_side, to_end)
        drop = np.minimum(run, other) if form == "hip" else run
        z = np.where(inside, drop * np.float32(slope), np.float32(-1))
        wins = z > rise
        hipped = (other < run) & (form == "hip")
        falls_v = hipped == part.across  # this plane falls across the heading
        gu = np.where(wins, np.where(falls_v, 0, -np.sign(du) * slope), gu).astype(np.float32)
        gv = np.where(wins, np.where(falls_v, -np.sign(dv) * slope, 0), gv).astype(np.float32)
        across_down = np.where(wins, falls_v, across_down)
        down = np.where(wins, drop, down)
        edge = np.where(inside, np.maximum(edge, np.minimum(to_end, to_side)), edge)
        rise = np.maximum(rise, z)
    inside = rise >= 0
    yard = ndimage.binary_dilation(inside, iterations=5)
    if (canvas.roof[at] & yard).any() or not inside.any():
        return False
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    light = canvas.slope_light(gu * c - gv * s, gu * s + gv * c)
    along = np.where(across_down, u, v)  # runs parallel to the gutter
    tone = 1 + 0.03 * canvas.grain[at] + 0.035 * canvas.middle[at] + 0.03 * canvas.coarse[at]
    if texture == "tile":
        courses = np.sin(down * np.float32(2 * math.pi / 0.62))
        tone = tone + 0.045 * courses + 0.03 * canvas.fine[at]
    elif texture == "seam":
        gap = rng.uniform(0.75, 1.3)
        seam = np.mod(along, np.float32(gap)) < 0.16
        tone = tone - 0.10 * seam + 0.035 * np.sin(along * np.float32(2.1)) * canvas.coarse[at]
    elif texture == "gravel":
        tone = tone + 0.035 * canvas.fine[at] + 0.05 * canvas.middle[at]
    red, green, blue = np.asarray(base) * rng.normal(1, 0.05) * rng.normal(1, 0.03, 3)
    canvas.paint(at, inside, (red, green, blue), tone=tone)
    canvas.height[at] = np.where(inside, np.float32(eave) + rise, canvas.height[at])
    canvas.shade[at] = np.where(inside, light, canvas.shade[at])
    canvas.roof[at] |= inside
    canvas.busy[at] |= yard
    brighter = np.float32(rng.uniform(1.1, 1.25))
    if form == "flat":
        parapet = inside & (edge < 0.45)
        canvas.albedo[at][parapet] *= brighter if base[0] < 0.7 else np.float32(0.86)
        canvas.height[at][parapet] += np.float32(0.5)
    else:
        canvas.albedo[at][inside & (edge < 0.2)] *= np.float32(rng.choice([0.72, 1.3]))
        smooth = np.maximum(
            np.abs(np.diff(light, axis=0, append=light[-1:])),
            np.abs(np.diff(light, axis=1, append=light[:, -1:])),
        )
        ridge = inside & (smooth > 0.04) & (edge > 0.4)
        canvas.albedo[at][ridge] *= brighter
    _fittings(canvas, x, y, turn, parts[0], form, texture)
    return True


def _fittings(
    canvas: Canvas, x: float, y: float, turn: float, part: _Part, form: str, texture: str
) -> None:
    """Chimney, vents, skylights, solar panels or cooling units on the main part of a roof."""
    rng = canvas.rng
    c, s = math.cos(turn), math.sin(turn)

    def spot(room: float) -> tuple[float, float]:
        du = part.u + rng.uniform(-0.5, 0.5) * max(part.length - room, 0)
        dv = part.v + rng.uniform(-0.5, 0.5) * max(part.width - room, 0)
        return x + du * c - dv * s, y + du * s + dv * c

    if form == "flat":
        for _ in range(rng.integers(0, 2 + int(part.length * part.width / 60))):
            size = (rng.uniform(0.9, 2.6), rng.uniform(0.9, 1.9))
            grey = rng.uniform(0.55, 0.85)
            canvas.box(*spot(3.5), turn, size, rng.uniform(0.7, 1.5), (grey, grey, grey))
        if rng.uniform() < 0.4 and part.length > 12:
            for k in np.arange(-part.length / 2 + 2.5, part.length / 2 - 2, 3.4):
                at_x, at_y = x + (part.u + k) * c - part.v * s, y + (part.u + k) * s + part.v * c
                canvas.box(at_x, at_y, turn, (1.2, 1.2), 0.2, (0.70, 0.78, 0.84))
        return
    if part.length < 7:
        return
    if rng.uniform() < 0.4 and texture == "tile":
        canvas.box(*spot(3.0), turn, (0.8, 0.8), 0.9, (0.48, 0.37, 0.33))
    for _ in range(rng.integers(0, 3)):
        canvas.box(*spot(2.5), turn, (0.45, 0.45), 0.1, (0.78, 0.78, 0.76))
    if rng.uniform() < 0.15:
        px, py = spot(5.5)
        at = canvas.window(px, py, 3.5)
        if at is not None:
            u, v = canvas.local(at, px, py, turn)
            panel = (np.abs(u) < 2.2) & (np.abs(v) < 1.1) & canvas.roof[at]
            lines = (np.mod(u, 1.1) < 0.16) | (np.mod(v, 1.1) < 0.16)
            canvas.paint(at, panel, (0.12, 0.15, 0.24))
            canvas.paint(at, panel & lines, (0.32, 0.35, 0.42))


def _house_parts(rng: Generator, wide: float, deep: float) -> list[_Part]:
    """Rectangle, L, T or offset pair that fits a plot of the given room (metres)."""
    length = rng.uniform(0.82, 1.0) * wide
    width = min(rng.uniform(7.5, 10.5), deep)
    kind, side = rng.choice(4, p=[0.34, 0.34, 0.16, 0.16]), rng.choice([-1, 1])
    main = _Part(0, 0, length, width, across=False)
    reach = rng.uniform(3.0, 5.5)
    if kind == 1:
        wing = rng.uniform(5.5, 7.5)
        u = side * (length - wing) / 2
        return [main, _Part(u, reach / 2, wing, width + reach, across=True)]
    if kind == 2:
        wing = rng.uniform(5.0, 7.0)
        return [main, _Part(rng.uniform(-2, 2), reach / 2, wing, width + reach, across=True)]
    if kind == 3:
        shift = rng.uniform(1.5, 3.0)
        half = _Part(side * length / 4, shift, length / 2, width, across=False)
        return [_Part(0, 0, length, width - 0.5, across=False), half]
    return [main]


def _tree(canvas: Canvas, x: float, y: float, radius: float, tint: Colour) -> None:
    """A crown of overlapping puffs; it hides what lies below, and casts its own shadow."""
    rng = canvas.rng
    at = canvas.window(x, y, radius * 1.25)
    if at is None:
        return
    u, v = canvas.local(at, x, y, 0.0)
    count = int(np.clip(6 + 5 * radius, 8, 26))
    turn, far = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 1, count)) * 0.72
    size = radius * rng.uniform(0.26, 0.5, count)
    far[0], size[0] = 0, radius * 0.72
    lift = radius * (0.75 - 0.55 * far**2) + rng.uniform(-0.08, 0.08, count) * radius
    z = np.full(u.shape, -1, np.float32)
    gx, gy = np.zeros_like(z), np.zeros_like(z)
    for k in range(count):
        du = u - np.float32(radius * far[k] * math.cos(turn[k]))
        dv = v - np.float32(radius * far[k] * math.sin(turn[k]))
        squared = np.float32(size[k] ** 2) - du * du - dv * dv
        ball = np.sqrt(np.maximum(squared, np.float32(1e-3)))
        puff = np.where(squared > 0, ball + np.float32(lift[k]), np.float32(-1))
        wins = puff > z
        z = np.where(wins, puff, z)
        gx, gy = np.where(wins, -du / ball, gx), np.where(wins, -dv / ball, gy)
    top = z + np.float32(0.55 * radius + 0.8) + 0.12 * canvas.fine[at]
    crown = (z > 0) & (top > canvas.height[at])
    light = canvas.slope_light(np.clip(gx, -1.6, 1.6), np.clip(gy, -1.6, 1.6))
    light = 0.30 + 0.62 * np.minimum(light, 1.7) + 0.10 * canvas.middle[at]
    canvas.paint(at, crown, tint, 0.16)
    canvas.height[at] = np.where(crown, top, canvas.height[at])
    canvas.shade[at] = np.where(crown, light, canvas.shade[at])
    canvas.roof[at] &= ~crown


def _leaf(rng: Generator) -> Colour:
    base = [(0.25, 0.33, 0.18), (0.20, 0.29, 0.17), (0.31, 0.37, 0.20), (0.33, 0.33, 0.22)]
    colour = np.asarray(base[rng.choice(4, p=[0.4, 0.32, 0.2, 0.08])]) * rng.uniform(0.85, 1.15)
    return (float(colour[0]), float(colour[1]), float(colour[2]))


def _trees(
    canvas: Canvas, count: int, sizes: tuple[float, float], inside: Bool | None = None
) -> None:
    """Scatter trees on free ground (and inside a mask)."""
    rng = canvas.rng
    for _ in range(count):
        x, y = rng.uniform(-canvas.half, canvas.half, 2)
        radius = rng.uniform(*sizes) * rng.uniform(0.6, 1.0)
        tint = _leaf(rng)
        row, column = (min(int((w + canvas.half) / PX), canvas.size - 1) for w in (y, x))
        if canvas.busy[row, column] or (inside is not None and not inside[row, column]):
            continue
        near = canvas.window(x, y, 0.55 * radius)
        if near is not None and not canvas.roof[near].any():
            _tree(canvas, x, y, radius, tint)


def _car(canvas: Canvas, x: float, y: float, turn: float) -> None:
    """A parked car or van with glass front and rear."""
    rng = canvas.rng
    length, width = rng.uniform(3.9, 4.8), rng.uniform(1.7, 1.9)
    colour = _CARS[rng.integers(len(_CARS))]
    at = canvas.window(x, y, 3.2)
    if at is None:
        return
    u, v = canvas.local(at, x, y, turn)
    corner = (np.abs(u) / (length / 2)) ** 5 + (np.abs(v) / (width / 2)) ** 5
    body = (corner < 1) & ~canvas.roof[at]
    cabin = (np.abs(u + 0.2) < length * 0.30) & (np.abs(v) < width * 0.40) & body
    glass = cabin & ((np.abs(u + 0.2) > length * 0.19) | (np.abs(v) > width * 0.34))
    canvas.paint(at, body, colour)
    canvas.paint(at, glass, (0.10, 0.11, 0.13))
    canvas.height[at] = np.where(body, np.where(cabin, 1.5, 1.0), canvas.height[at])
    canvas.shade[at] = np.where(body, np.where(cabin, 1.08, 0.95), canvas.shade[at])


def _pool(canvas: Canvas, x: float, y: float, turn: float) -> None:
    """Water with a paved rim."""
    rng = canvas.rng
    length, width = rng.uniform(4, 7.5), rng.uniform(2.6, 3.8)
    canvas.slab(x, y, turn, length + 2, width + 2, (0.72, 0.70, 0.66))
    at = canvas.window(x, y, length)
    if at is not None:
        u, v = canvas.local(at, x, y, turn)
        power = rng.choice([2.5, 8.0])
        water = (np.abs(u) / (length / 2)) ** power + (np.abs(v) / (width / 2)) ** power < 1
        water &= ~canvas.roof[at]
        canvas.paint(at, water, (0.30, 0.58, 0.66), 0.02, 0.05)


def _court(canvas: Canvas, x: float, y: float, turn: float) -> None:
    """A tennis court with its lines: coloured, rectangular, and no roof."""
    rng = canvas.rng
    surface = [(0.28, 0.44, 0.34), (0.26, 0.38, 0.52), (0.56, 0.35, 0.28), (0.55, 0.54, 0.51)]
    canvas.slab(x, y, turn, 34, 17, surface[rng.integers(4)])
    canvas.slab(x, y, turn, 24.4, 11.6, surface[rng.integers(4)])
    at = canvas.window(x, y, 15)
    if at is None:
        return
    u, v = canvas.local(at, x, y, turn)
    far, wide = np.abs(u), np.abs(v)
    inside = (far < 11.95) & (wide < 5.55)
    sides = (np.abs(wide - 5.45) < 0.1) | (np.abs(wide - 4.1) < 0.1) | (np.abs(far - 11.85) < 0.1)
    service = (np.abs(far - 6.4) < 0.1) | ((wide < 0.1) & (far < 6.4))
    lines = inside & (sides | (service & (wide < 4.1))) & ~canvas.roof[at]
    canvas.paint(at, lines, (0.86, 0.86, 0.84))


def _parking(
    canvas: Canvas, x: float, y: float, turn: float, length: float, width: float, full: float
) -> None:
    """An asphalt yard with marked bays, some of them taken."""
    rng = canvas.rng
    grey = rng.uniform(0.36, 0.55)
    canvas.slab(x, y, turn, length, width, (grey, grey, grey * 0.98))
    at = canvas.window(x, y, 0.5 * math.hypot(length, width))
    if at is None:
        return
    u, v = canvas.local(at, x, y, turn)
    rows = np.arange(-width / 2 + 2.9, width / 2 - 2.0, 8.0)
    c, s = math.cos(turn), math.sin(turn)
    for row in rows:
        bay = (np.abs(v - np.float32(row)) < 2.4) & (np.abs(u) < length / 2 - 1)
        bay &= ~canvas.roof[at]
        canvas.paint(at, bay & (np.mod(u, 2.6) < 0.14), (0.80, 0.80, 0.77))
        # bays are counted from the same origin as their lines, so cars stand between lines
        for k in range(int(-length / 2 / 2.6) + 1, int(length / 2 / 2.6) - 1):
            if rng.uniform() < full:
                du, dv = 2.6 * k + 1.37, float(row) + rng.normal(0, 0.2)
                flip = math.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.03)
                _car(canvas, x + du * c - dv * s, y + du * s + dv * c, turn + flip)


def _plot(
    canvas: Canvas,
    frame: Frame,
    u: float,
    v: float,
    side: int,
    room: tuple[float, float],
    style: Callable[[], str],
    built: bool,
) -> None:
    """One plot along a street: drive, house, yard, shed, garden, pool, fences, car."""
    rng, (wide, deep) = canvas.rng, room
    x0, y0, turn = frame.point(u, v)
    c, s = math.cos(turn), math.sin(turn)

    def place(du: float, dv: float) -> tuple[float, float]:
        return x0 + du * c - side * dv * s, y0 + du * s + side * dv * c

    if rng.uniform() < 0.5:  # each garden has a tone of its own
        at = canvas.window(*place(0, deep / 2), 0.5 * math.hypot(wide, deep))
        if at is not None:
            lu, lv = canvas.local(at, *place(0, deep / 2), turn)
            lawn = (np.abs(lu) < wide / 2) & (np.abs(lv) < deep / 2) & ~canvas.busy[at]
            tone = rng.normal(1, 0.10) * rng.normal(1, 0.05, 3)
            if rng.uniform() < 0.3:  # dry, or half bare
                tone = np.asarray((1.32, 1.12, 1.22)) * rng.uniform(0.8, 1.1)
            canvas.albedo[at][lawn] *= tone.astype(np.float32)
    setback, heading = rng.uniform(3, 6.5), turn + (math.pi if side < 0 else 0)
    paving = _PAVING[rng.integers(len(_PAVING))]
    gate = rng.choice([-1, 1]) * (wide / 2 - rng.uniform(2.0, 2.8))
    long_drive = rng.uniform() < 0.4
    reach = rng.uniform(12, deep - 4) if long_drive else setback + 2
    canvas.slab(*place(gate, reach / 2 - 1.6), turn, rng.uniform(2.9, 3.8), reach + 3.2, paving)
    if rng.uniform() < 0.55:
        _car(canvas, *place(gate, rng.uniform(2.5, max(3.0, reach - 2))), turn + math.pi / 2)
    house_width = rng.uniform(8.0, 11)
    centre = (rng.uniform(-1, 1) - 0.18 * gate * long_drive, setback + house_width / 2 + 0.5)
    if built:
        parts = _house_parts(rng, min(wide - (5.5 if long_drive else 2.4), 19), house_width + 2)
        form = str(rng.choice(["gable", "hip", "flat"], p=[0.42, 0.5, 0.08]))
        material = str(rng.choice(_FLAT)) if form == "flat" else style()
        if rng.uniform() < 0.6:
            depth = rng.uniform(3, 5)
            spot = place(centre[0] + rng.uniform(-3, 3), centre[1] + house_width / 2 + depth / 2)
            canvas.slab(*spot, turn, rng.uniform(4, 9), depth + 3, _PAVING[rng.integers(4)])
        _building(canvas, *place(*centre), heading + rng.normal(0, 0.015), parts, material, form)
        if rng.uniform() < 0.6:
            size = (rng.uniform(2.6, 6.5), rng.uniform(2.6, 4.2))
            du = rng.choice([-1, 1]) * (wide / 2 - size[0] / 2 - 1.0)
            shed = [_Part(0, 0, size[0], size[1], across=False)]
            spot = place(du, deep - size[1] / 2 - rng.uniform(1.2, 4))
            _building(canvas, *spot, turn, shed, str(rng.choice(_PITCHED)), "gable")
    elif rng.uniform() < 0.6:  # an empty plot: a bare foundation, or yard
        canvas.slab(*place(*centre), turn, wide * 0.6, house_width, _PAVING[rng.integers(3)])
    back = setback + house_width + rng.uniform(4.5, 7)
    if rng.uniform() < 0.08 and back + 4 < deep:
        _pool(canvas, *place(rng.uniform(-0.2, 0.2) * wide, back + 1), turn)
    elif rng.uniform() < 0.15 and back + 3 < deep:
        spot = place(rng.uniform(-0.25, 0.25) * wide, back + 1)
        canvas.slab(*spot, turn, rng.uniform(4, 8), rng.uniform(3, 6), _PAVING[rng.integers(5)])
    hedge = bool(rng.uniform() < 0.3)
    canvas.wall(place(wide / 2, setback), place(wide / 2, deep), hedge)
    canvas.wall(place(-wide / 2, deep), place(wide / 2, deep), bool(rng.uniform() < 0.25))


def _styles(rng: Generator) -> Callable[[], str]:
    """A street's taste in roofs: a few materials, one of them leading."""
    chosen = rng.choice(_PITCHED, size=4, replace=False)
    weights = [0.55, 0.2, 0.15, 0.1] if rng.uniform() < 0.6 else [0.25] * 4
    return lambda: str(rng.choice(chosen, p=weights))


def suburb(canvas: Canvas, frame: Frame, built: bool, keep: Bool | None) -> None:
    """Parallel streets with plots on both sides, sometimes a crossing street."""
    rng = canvas.rng
    ground(canvas, keep, str(rng.choice(["lawn", "lawn", "dry"])))
    u, v = frame.grid(canvas)
    half, depth = rng.uniform(2.9, 4.6), rng.uniform(21, 31)
    pitch = 2 * (half + 3.0 + depth)
    offset = rng.uniform(-pitch / 2, pitch / 2)
    reach = canvas.half * 1.5
    streets = [w for w in np.arange(offset - 3 * pitch, reach, pitch) if abs(w) < reach + depth]
    if not built and keep is None:
        streets = [offset / 3]
    crossing = float(rng.uniform(-25, 25)) if rng.uniform() < 0.35 else math.inf
    ways = [(u, v - np.float32(street)) for street in streets]
    if math.isfinite(crossing):
        ways.append((v, u - np.float32(crossing)))
    _roads(canvas, ways, half, paths=True)
    style, vacancy = _styles(rng), (rng.uniform(0, 0.12) if built else 1.0)
    for street in streets:
        for side in (-1, 1):
            along = -reach - rng.uniform(0, 15)
            while along < reach:
                wide = rng.uniform(13.5, 21)
                middle = along + wide / 2
                along += wide
                edge = street + side * (half + 3.0)
                x, y, _ = frame.point(middle, edge + side * depth / 2)
                if (
                    abs(middle - crossing) < wide / 2 + half + 3
                    or max(abs(x), abs(y)) > canvas.half + 14
                ):
                    continue
                row, column = (
                    int(np.clip((w + canvas.half) / PX, 0, canvas.size - 1)) for w in (y, x)
                )
                if keep is not None and not keep[row, column]:
                    continue
                if built or rng.uniform() < 0.15:
                    _plot(
                        canvas,
                        frame,
                        middle,
                        edge,
                        side,
                        (wide, depth),
                        style,
                        rng.uniform() > vacancy,
                    )
        for _ in range(rng.integers(1, 5)):
            lane = rng.choice([-1, 1]) * (half - 1.1)
            x, y, turn = frame.point(rng.uniform(-reach, reach), street + lane)
            _car(canvas, x, y, turn + rng.normal(0, 0.03))
    area = (canvas.half / 45) ** 2
    _trees(canvas, int(rng.uniform(10, 75) * area), (1.2, 5.2))
    _trees(canvas, int(rng.uniform(40, 160) * area), (0.5, 1.3))


def commercial(canvas: Canvas, frame: Frame, built: bool) -> None:
    """Large flat or metal roofs between parking yards."""
    rng = canvas.rng
    ground(canvas, None, str(rng.choice(["lawn", "dry", "soil"])))
    u, v = frame.grid(canvas)
    half = rng.uniform(3.8, 5.5)
    street = rng.uniform(-12, 12)
    _roads(canvas, [(u, v - np.float32(street))], half, paths=True)
    for side in (-1, 1):
        along = -canvas.half * 1.4 + rng.uniform(-20, 0)
        while along < canvas.half * 1.4:
            wide = rng.uniform(24, 46)
            middle = along + wide / 2
            along += wide + rng.uniform(2, 7)
            yard, deep = rng.uniform(10, 24), rng.uniform(16, 34)
            edge = street + side * (half + 4.0)
            x, y, turn = frame.point(middle, edge + side * yard / 2)
            _parking(canvas, x, y, turn, wide, yard, rng.uniform(0.05, 0.7))
            x, y, turn = frame.point(middle, edge + side * (yard + 1 + deep / 2))
            if not built or rng.uniform() < 0.15:
                if rng.uniform() < 0.5:
                    _court(canvas, x, y, turn)
                else:
                    _parking(canvas, x, y, turn, wide, deep, rng.uniform(0, 0.5))
                continue
            flat = bool(rng.uniform() < 0.6)
            parts = [_Part(0, 0, wide * 0.92, deep, across=bool(rng.uniform() < 0.3))]
            if rng.uniform() < 0.4:
                parts.append(_Part(wide * 0.2, -side * 4, wide * 0.35, deep, across=True))
            metal = ["grey metal", "blue metal", "green metal", "dark metal"]
            material = str(rng.choice(_FLAT if flat else metal))
            _building(canvas, x, y, turn, parts, material, "flat" if flat else "gable")
    _trees(canvas, int(rng.uniform(10, 45) * (canvas.half / 45) ** 2), (1.0, 3.2))


def country(canvas: Canvas, frame: Frame, built: bool) -> None:
    """Fields, a track or lane, tree lines or a wood, a pond, a court; perhaps a farmyard."""
    rng, n = canvas.rng, canvas.size
    kinds = ["meadow", "lawn", "dry", "crop", "soil"]
    u, v = frame.grid(canvas)
    ground(canvas, None, str(rng.choice(kinds)))
    border = rng.uniform(-18, 18)
    ground(canvas, v > border, str(rng.choice(kinds)))
    if rng.uniform() < 0.5:
        ground(canvas, (v <= border) & (u > rng.uniform(-20, 20)), str(rng.choice(kinds)))
    if rng.uniform() < 0.7:
        _roads(canvas, [(u, v - np.float32(border))], rng.uniform(1.6, 3.4), paths=False)
    if rng.uniform() < 0.25:
        blob = canvas.coarse + 0.15 * canvas.middle > rng.uniform(1.2, 1.7)
        blob &= ~canvas.busy
        everywhere = (slice(0, n), slice(0, n))
        canvas.paint(everywhere, blob, (0.24, 0.27, 0.22), 0.02, 0.02)
    if built:
        side, style = rng.choice([-1, 1]), _styles(rng)
        centre = rng.uniform(-18, 18)
        x, y, turn = frame.point(centre, border + side * 17)
        canvas.slab(x, y, turn, rng.uniform(18, 30), rng.uniform(16, 22), (0.56, 0.51, 0.44))
        for k in range(rng.integers(2, 5)):
            x, y, turn = frame.point(centre + 17 * (k - 1), border + side * rng.uniform(12, 26))
            parts = _house_parts(rng, rng.uniform(9, 17), 10)
            turned = turn + rng.choice([0, math.pi / 2]) + rng.normal(0, 0.04)
            _building(canvas, x, y, turned, parts, style(), str(rng.choice(["gable", "hip"])))
    if rng.uniform() < 0.35:
        x, y = rng.uniform(-28, 28, 2)
        at = canvas.window(x, y, 13)
        if at is not None and not canvas.busy[at].any():
            _court(canvas, x, y, frame.turn)
    if rng.uniform() < 0.3:
        x, y, turn = frame.point(rng.uniform(-15, 15), border + rng.choice([-1, 1]) * 18)
        at = canvas.window(x, y, 10)
        if at is not None and not canvas.busy[at].any():
            size = rng.uniform(18, 30), rng.uniform(9, 18)
            _parking(canvas, x, y, turn, *size, rng.uniform(0, 0.5))
    for _ in range(rng.integers(0, 3)):  # tree lines
        offset, step = rng.uniform(-35, 35), rng.uniform(3.5, 7)
        for along in np.arange(-canvas.half * 1.3, canvas.half * 1.3, step):
            x, y, _ = frame.point(float(along) + rng.normal(0, 0.8), offset + rng.normal(0, 0.7))
            at = canvas.window(x, y, 2.0)
            if at is not None and not canvas.busy[at].any():
                _tree(canvas, x, y, rng.uniform(1.5, 3.4), _leaf(rng))
    if rng.uniform() < 0.35:
        wood = np.rot90(canvas.coarse) > 0.5
        _trees(canvas, int(230 * (canvas.half / 45) ** 2), (2.0, 4.2), wood)
    _trees(canvas, int(rng.uniform(0, 30) * (canvas.half / 45) ** 2), (0.8, 3.4))
