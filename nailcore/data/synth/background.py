"""Procedural backdrops: wood, cloth, stone, things out of focus, leaves, paper and tiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nailcore.data.synth.noise import paint_noise
from nailcore.data.synth.scene import Background, BackgroundKind
from nailcore.data.synth.subdivision import F32

Painter = Callable[[np.random.Generator, int, int], F32]
MARGIN = 1.25  # painted larger than the picture, then laid into perspective


def paint_background(spec: Background, height_px: int, width_px: int) -> F32:
    """(H, W, 3) float32 linear RGB reflectance, about 0..1."""
    import cv2

    rng = np.random.default_rng([spec.seed, 71])
    high, wide = round(480 * MARGIN), round(640 * MARGIN)  # one texture scale, whatever the picture's size
    canvas = np.clip(_PAINTERS[spec.kind](rng, high, wide), 0.005, 1.0).astype(np.float32)
    canvas *= (1 + 0.012 * rng.standard_normal((high, wide, 1))).astype(np.float32)
    laid = _lay_into_perspective(rng, canvas, height_px, width_px, flat=spec.kind in ("clutter", "foliage"))
    blur = spec.blur_px * width_px / 640
    if blur > 0.3:
        laid = np.asarray(cv2.GaussianBlur(laid, (0, 0), blur), dtype=np.float32)
    return np.clip(laid, 0.0, 1.0)


def paint_texture(spec: Background, size_px: int) -> F32:
    """(size, size, 3) float32 linear RGB reflectance of a surface seen square on; 480 px are about a hand."""
    rng = np.random.default_rng([spec.seed, 71])
    return np.clip(_PAINTERS[spec.kind](rng, size_px, size_px), 0.005, 0.95).astype(np.float32)


def _lay_into_perspective(
    rng: np.random.Generator, canvas: F32, height_px: int, width_px: int, *, flat: bool
) -> F32:
    import cv2

    h, w = canvas.shape[:2]
    turn = rng.uniform(-0.1, 0.1) if flat else rng.uniform(-np.pi, np.pi)
    zoom = 480 / height_px / rng.uniform(1.0, 1.25)
    c, s = np.cos(turn) * zoom, np.sin(turn) * zoom
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * [width_px, height_px]
    source = corners @ np.array([[c, s], [-s, c]])
    far = 1 if flat else rng.uniform(1.0, 1.45)
    source[:2] *= far  # the upper side is farther away
    matrix = cv2.getPerspectiveTransform(
        (corners + np.array([width_px / 2, height_px / 2])).astype(np.float32),
        (source + np.array([w / 2, h / 2])).astype(np.float32),
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpPerspective(
        canvas, matrix, (width_px, height_px), flags=flags, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(laid, dtype=np.float32)


def _pick(rng: np.random.Generator, colours: list[tuple[float, float, float]]) -> F32:
    """One sRGB colour of a list, shaken a little, as linear reflectance."""
    colour = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, 0.03, 3)
    return np.asarray(np.clip(colour, 0.02, 0.98) ** 2.2, dtype=np.float32)


def _any_colour(rng: np.random.Generator) -> F32:
    """A random everyday colour: mostly muted, now and then vivid."""
    import colorsys

    saturation = min(rng.beta(1.2, 4.6), 0.72)
    # Rooms are full of warm hues: wood, skin-coloured plastic, cardboard, walls.
    hue = rng.normal(0.08, 0.05) % 1 if rng.uniform() < 0.4 else rng.uniform()
    rgb = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.12, 0.92))
    return np.asarray(np.asarray(rgb) ** 2.2, dtype=np.float32)


def _paint_wood(rng: np.random.Generator, h: int, w: int) -> F32:
    tones = [
        (0.72, 0.54, 0.36),
        (0.55, 0.37, 0.24),
        (0.36, 0.23, 0.15),
        (0.82, 0.70, 0.54),
        (0.62, 0.58, 0.53),
    ]
    base, dark = _pick(rng, tones), rng.uniform(0.35, 0.65)
    plank_px = rng.uniform(90, 260)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    plank = np.floor((y + rng.uniform(0, plank_px)) / plank_px).astype(int)
    shade = rng.normal(1, 0.1, plank.max() + 1)[plank].astype(np.float32)
    shift = rng.uniform(0, 500, plank.max() + 1)[plank].astype(np.float32)
    slow = paint_noise(rng, h, w, 90, octaves=2, stretch=6)
    rings = np.sin((y * 0.16 + shift + 5.0 * slow) * rng.uniform(0.5, 1.0))
    fibre = paint_noise(rng, h, w, 5, octaves=3, stretch=22)
    pores = np.clip(paint_noise(rng, h, w, 2.5, octaves=2, stretch=14) - 1.1, 0, 2)
    grain = 0.5 + 0.2 * rings + 0.16 * fibre - 0.25 * pores
    seam = np.abs((y + 0.0) / plank_px % 1 - 0.5) > 0.5 - 1.2 / plank_px
    colour = base * (dark + (1 - dark) * 1.3 * np.clip(grain, 0, 1.3))[..., None] * shade[..., None]
    return np.asarray(colour * np.where(seam, 0.35, 1.0)[..., None] + 0 * x[..., None], dtype=np.float32)


def _paint_fabric(rng: np.random.Generator, h: int, w: int) -> F32:
    y, x = np.mgrid[:h, :w].astype(np.float32)
    drift = 3 * paint_noise(rng, h, w, 190, octaves=1)
    u, v = x + drift, y + 3 * paint_noise(rng, h, w, 230, octaves=1)
    pitch = rng.uniform(3.0, 9.0)
    base, second = _any_colour(rng), _any_colour(rng)
    kind = rng.integers(4)
    if kind == 0:  # plain or twill weave
        thread = 0.5 + 0.5 * np.sin(2 * np.pi * (u + v) / pitch) * np.cos(2 * np.pi * (u - v) / pitch)
        share = np.zeros_like(x)
    elif kind == 1:  # knit: rows of slanted loops
        loop = np.abs((u / (2 * pitch)) % 1 - 0.5)
        thread = 0.5 + 0.5 * np.sin(2 * np.pi * (v / (1.4 * pitch) + 1.2 * loop))
        share = np.zeros_like(x)
    else:  # stripes or checks
        thread = 0.5 + 0.5 * np.sin(2 * np.pi * u / 3.3) * np.sin(2 * np.pi * v / 3.3)
        wide = rng.uniform(22, 80)
        share = ((u / wide) % 1 < 0.5).astype(np.float32)
        if kind == 3:
            share = 0.5 * share + 0.5 * ((v / wide) % 1 < 0.5)
    colour = base * (1 - share[..., None]) + second * share[..., None]
    folds = paint_noise(rng, h, w, 140, octaves=3, stretch=2.2)
    shade = (0.72 + 0.28 * thread) * np.clip(1 + 0.17 * folds, 0.4, 1.5)
    fuzz = 1 + 0.06 * paint_noise(rng, h, w, 2, octaves=2)
    return np.asarray(colour * (shade * fuzz)[..., None], dtype=np.float32)


def _paint_stone(rng: np.random.Generator, h: int, w: int) -> F32:
    tones = [
        (0.88, 0.87, 0.85),
        (0.25, 0.25, 0.27),
        (0.62, 0.60, 0.57),
        (0.75, 0.68, 0.60),
        (0.35, 0.42, 0.40),
    ]
    base, vein = _pick(rng, tones), _pick(rng, tones)
    cloud = paint_noise(rng, h, w, 170, octaves=5)
    if rng.uniform() < 0.55:  # marble
        ridge = 1 - np.abs(paint_noise(rng, h, w, 150, octaves=5, stretch=1.6))
        share = np.clip((ridge - 0.8) * 4, 0, 1) * np.clip(0.5 + 0.5 * cloud, 0, 1)
    else:  # granite, concrete
        grains = paint_noise(rng, h, w, rng.uniform(2.5, 7), octaves=2)
        share = np.clip(grains - rng.uniform(0.3, 1.2), 0, 1) * 0.8
    colour = base * (1 - share[..., None]) + vein * share[..., None]
    return np.asarray(colour * np.clip(1 + 0.08 * cloud, 0.5, 1.4)[..., None], dtype=np.float32)


def _paint_clutter(rng: np.random.Generator, h: int, w: int) -> F32:
    """A room or desk out of focus: a horizon, then things nearer and nearer."""
    import cv2

    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    wall, table = _any_colour(rng), _any_colour(rng)
    edge = rng.uniform(0.25, 0.75)
    canvas = np.where(y < edge, wall * (0.7 + 0.5 * y), table * (0.6 + 0.6 * y)) * np.ones(
        (h, w, 1), np.float32
    )
    canvas = np.ascontiguousarray(canvas, dtype=np.float32)
    for layer in range(3):
        for _ in range(rng.integers(7, 18)):
            colour = _any_colour(rng) * rng.uniform(0.5, 1.3)
            centre = np.asarray(rng.uniform(0, [w, h]))
            size = np.asarray(rng.uniform(12, [150, 110]) * (0.6 + 0.3 * layer))
            _draw_thing(
                rng,
                canvas,
                centre.astype(np.float32),
                size.astype(np.float32),
                np.clip(colour, 0, 1).astype(np.float32),
            )
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), (5.0, 2.5, 1.2)[layer]), dtype=np.float32)
    return np.asarray(canvas * (1 + 0.05 * paint_noise(rng, h, w, 40, octaves=4))[..., None])


def _draw_thing(rng: np.random.Generator, canvas: F32, centre: F32, size: F32, colour: F32) -> None:
    import cv2

    turn = float(rng.uniform(0, 180))
    kind = rng.integers(4)
    layer = np.zeros(canvas.shape[:2], dtype=np.float32)
    point, half = (int(centre[0]), int(centre[1])), (int(size[0] / 2) + 1, int(size[1] / 2) + 1)
    if kind == 0:
        cv2.ellipse(layer, point, half, turn, 0, 360, 1.0, -1, cv2.LINE_AA)
    elif kind == 1:  # a pen, a cable, a stem
        reach = rng.uniform(40, 260) * np.array([np.cos(turn), np.sin(turn)])
        end = (int(centre[0] + reach[0]), int(centre[1] + reach[1]))
        cv2.line(layer, point, end, 1.0, int(rng.integers(3, 16)), cv2.LINE_AA)
    else:
        box = cv2.boxPoints((point, (float(size[0]), float(size[1])), turn if kind == 2 else 0.0))
        cv2.fillPoly(layer, [np.round(box).astype(np.int32)], 1.0, cv2.LINE_AA)
    ramp = np.linspace(rng.uniform(0.6, 1.0), rng.uniform(0.9, 1.3), canvas.shape[1], dtype=np.float32)
    x, y, wide, high = cv2.boundingRect((layer > 0).astype(np.uint8))
    if not wide:
        return
    margin = 26  # the shadow's reach: everything farther off stays as it is
    rows, columns = slice(max(y - margin, 0), y + high + margin), slice(max(x - margin, 0), x + wide + margin)
    layer, under = layer[rows, columns], canvas[rows, columns]
    shadow = cv2.GaussianBlur(np.roll(layer, (6, 5), (0, 1)), (0, 0), 6)
    under *= 1 - 0.4 * shadow[..., None]
    under += layer[..., None] * (colour * ramp[None, columns, None] - under)


def _paint_foliage(rng: np.random.Generator, h: int, w: int) -> F32:
    import cv2

    canvas = np.full((h, w, 3), 0.03, dtype=np.float32) * np.array([0.6, 1.0, 0.4], dtype=np.float32)
    canvas = np.ascontiguousarray(canvas)
    for layer in range(4):
        for _ in range(70):
            green = rng.uniform([0.02, 0.10, 0.01], [0.20, 0.36, 0.08]) * (0.35 + 0.25 * layer)
            if rng.uniform() < 0.05:
                green = _any_colour(rng)
            at = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
            axes = (int(rng.uniform(18, 60)), int(rng.uniform(5, 18)))
            turn = float(rng.uniform(0, 360))
            colour = tuple(float(c) for c in green)
            cv2.ellipse(canvas, at, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
            vein = (int(axes[0] * np.cos(np.radians(turn))), int(axes[0] * np.sin(np.radians(turn))))
            lighter = tuple(min(1.0, c * 1.5) for c in colour)
            cv2.line(canvas, at, (at[0] + vein[0], at[1] + vein[1]), lighter, 1, cv2.LINE_AA)
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), (6.0, 3.0, 1.5, 0.6)[layer]), dtype=np.float32)
    for _ in range(rng.integers(0, 14)):  # gaps of sky
        at = (int(rng.uniform(0, w)), int(rng.uniform(0, h * 0.6)))
        cv2.circle(canvas, at, int(rng.uniform(4, 16)), (0.75, 0.85, 0.9), -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 1.5), dtype=np.float32)


def _paint_paper(rng: np.random.Generator, h: int, w: int) -> F32:
    """A wall, a sheet or a painted board; some carry lines of print."""
    base = _any_colour(rng) if rng.uniform() < 0.6 else _pick(rng, [(0.93, 0.92, 0.89), (0.80, 0.80, 0.82)])
    second = base * rng.uniform(0.55, 1.25) + 0.02
    y, x = np.mgrid[:h, :w].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (np.cos(turn) * (x / w - 0.5) + np.sin(turn) * (y / h - 0.5)), 0, 1)[..., None]
    canvas = base * (1 - ramp) + second * ramp
    canvas *= (1 + 0.035 * paint_noise(rng, h, w, 60, octaves=5))[..., None]
    if rng.uniform() < 0.2:
        line = int(rng.integers(13, 26))
        words = paint_noise(rng, h // line + 1, w, 12, octaves=2) > -0.5
        strokes = paint_noise(rng, h, w, 3, octaves=2) > 0.1
        inside = (y % line < line * 0.45) & words[(y // line).astype(int), x.astype(int)] & strokes
        canvas = np.where(inside[..., None], canvas * 0.25, canvas)
    return np.asarray(canvas, dtype=np.float32)


def _paint_tiles(rng: np.random.Generator, h: int, w: int) -> F32:
    size_x = rng.uniform(80, 220)
    size_y = size_x * rng.choice([1.0, 0.5, 0.34])
    y, x = np.mgrid[:h, :w].astype(np.float32)
    row = (y // size_y).astype(int)
    offset = 0.5 * (row % 2) if rng.uniform() < 0.6 else 0.0
    column = np.floor(x / size_x + offset).astype(int)
    shade = rng.normal(1, rng.uniform(0.02, 0.22), (row.max() + 1, column.max() + 1))[row, column]
    base, grout = _any_colour(rng), _pick(rng, [(0.82, 0.80, 0.77), (0.35, 0.34, 0.33)])
    gap_x = np.abs((x / size_x + offset) % 1 - 0.5) * size_x
    gap_y = np.abs((y / size_y) % 1 - 0.5) * size_y
    joint = np.clip(np.maximum(gap_x - size_x / 2, gap_y - size_y / 2) + 2.6, 0, 1)[..., None]
    face = base * np.clip(shade * (1 + 0.07 * paint_noise(rng, h, w, 45, octaves=4)), 0.2, 1.8)[..., None]
    return np.asarray(face * (1 - joint) + grout * joint, dtype=np.float32)


def _paint_carpet(rng: np.random.Generator, h: int, w: int) -> F32:
    """Short pile, felt or terry: soft clumps of single threads."""
    base = _any_colour(rng) * rng.uniform(0.5, 1.0)
    pile = paint_noise(rng, h, w, rng.uniform(2.5, 5), octaves=2, gain=0.8)
    clumps = paint_noise(rng, h, w, rng.uniform(8, 18), octaves=2)
    trodden = paint_noise(rng, h, w, 120, octaves=3)
    flecks = np.clip(paint_noise(rng, h, w, 3, octaves=1) - 1.4, 0, 1) * rng.uniform(0, 0.6)
    shade = np.clip(1 + 0.20 * pile + 0.08 * clumps + 0.08 * trodden, 0.25, 1.9)[..., None]
    return np.asarray(base * shade + flecks[..., None] * _any_colour(rng), dtype=np.float32)


def _paint_leather(rng: np.random.Generator, h: int, w: int) -> F32:
    """Hide or imitation: cells between fine furrows, worn at places."""
    tones = [
        (0.12, 0.11, 0.11),
        (0.33, 0.20, 0.13),
        (0.56, 0.36, 0.22),
        (0.82, 0.78, 0.72),
        (0.45, 0.12, 0.12),
    ]
    base = _pick(rng, tones)
    cells = np.abs(paint_noise(rng, h, w, rng.uniform(5, 9), octaves=2))
    furrow = np.clip(1 - cells * 3.2, 0, 1)
    worn = paint_noise(rng, h, w, 150, octaves=4)
    return np.asarray(base * ((1 - 0.45 * furrow) * np.clip(1 + 0.12 * worn, 0.5, 1.6))[..., None])


def _paint_plain(rng: np.random.Generator, h: int, w: int) -> F32:
    """A desk top, board or car part: one colour, faint smears, specks of dust, a scratch or two."""
    import cv2

    tones = [
        (0.10, 0.10, 0.11),
        (0.93, 0.92, 0.90),
        (0.55, 0.56, 0.57),
        (0.22, 0.23, 0.26),
        (0.80, 0.74, 0.66),
    ]
    base = _pick(rng, tones) if rng.uniform() < 0.7 else _any_colour(rng)
    smear = paint_noise(rng, h, w, 90, octaves=5, stretch=rng.uniform(1, 5))
    canvas = base * np.clip(1 + 0.05 * smear, 0.6, 1.4)[..., None]
    marks = np.zeros((h, w), dtype=np.float32)
    for _ in range(rng.integers(0, 5)):
        ends = rng.uniform(0, [w, h], (2, 2)).astype(int)
        cv2.line(marks, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 1.0, 1, cv2.LINE_AA)
    dust = np.clip(paint_noise(rng, h, w, 2, octaves=1) - 3.0, 0, 1)
    return np.asarray(canvas + (0.04 * marks + 0.1 * dust)[..., None], dtype=np.float32)


def _paint_print(rng: np.random.Generator, h: int, w: int) -> F32:
    """Printed cloth or wrapping paper: one motif repeated in rows."""
    import cv2

    base, ink, second = _any_colour(rng), _any_colour(rng), _any_colour(rng)
    pitch = int(rng.integers(34, 110))
    tile = np.zeros((pitch, pitch), dtype=np.float32)
    middle = (pitch // 2, pitch // 2)
    kind = rng.integers(4)
    if kind == 0:
        cv2.circle(tile, middle, int(pitch * rng.uniform(0.12, 0.36)), 1.0, -1, cv2.LINE_AA)
    elif kind == 1:  # a flower
        for k in range(5):
            turn = 2 * np.pi * k / 5
            at = (int(middle[0] + 0.2 * pitch * np.cos(turn)), int(middle[1] + 0.2 * pitch * np.sin(turn)))
            axes = (int(0.17 * pitch), int(0.1 * pitch))
            cv2.ellipse(tile, at, axes, float(np.degrees(turn)), 0, 360, 1.0, -1, cv2.LINE_AA)
        cv2.circle(tile, middle, max(2, pitch // 12), 0.5, -1, cv2.LINE_AA)
    elif kind == 2:  # little crosses
        for turn in (0.8, 2.4):
            reach = 0.22 * pitch * np.array([np.cos(turn), np.sin(turn)])
            ends = [tuple(int(v) for v in middle + s * reach) for s in (-1, 1)]
            cv2.line(tile, ends[0], ends[1], 1.0, max(2, pitch // 16), cv2.LINE_AA)
    else:  # a lattice
        cv2.rectangle(tile, (2, 2), (pitch - 3, pitch - 3), 1.0, int(rng.integers(1, 5)), cv2.LINE_AA)
        cv2.line(tile, (0, 0), (pitch, pitch), 0.5, 2, cv2.LINE_AA)
    rows = np.hstack([tile] * (w // pitch + 3))
    sheet = np.vstack([np.roll(rows, (k % 2) * pitch // 2, axis=1) for k in range(h // pitch + 2)])[:h, :w]
    wear = np.clip(1 + 0.06 * paint_noise(rng, h, w, 60, octaves=5), 0.5, 1.5)[..., None]
    thread = 1 + 0.05 * paint_noise(rng, h, w, 2, octaves=1)[..., None]
    share = sheet[..., None]
    colour = np.where(share > 0.75, ink, second)
    return np.asarray((base * (1 - share) + colour * share) * wear * thread, dtype=np.float32)


_PAINTERS: dict[BackgroundKind, Painter] = {
    "wood": _paint_wood,
    "fabric": _paint_fabric,
    "stone": _paint_stone,
    "clutter": _paint_clutter,
    "foliage": _paint_foliage,
    "paper": _paint_paper,
    "tiles": _paint_tiles,
    "carpet": _paint_carpet,
    "leather": _paint_leather,
    "plain": _paint_plain,
    "print": _paint_print,
}
