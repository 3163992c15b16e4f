"""The surface behind or under the hands, and the things that lie about on it without covering a nail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.data.synth.drawing import SUPERSAMPLING, Drawing, project
from nailcore.data.synth.scene import Scene
from nailcore.data.synth.subdivision import F32

# Width in mm, height over width, and how often it is met.
THINGS = {
    "book": (190.0, 0.2, 1.2),
    "mug": (84.0, 1.25, 1.0),
    "pen": (140.0, 0.06, 1.3),
    "phone": (150.0, 0.06, 1.0),
    "bottle": (62.0, 1.0, 1.5),
    "sheet": (205.0, 0.01, 1.0),
    "ball": (60.0, 1.0, 0.4),
    "cable": (150.0, 0.04, 0.8),
    "keyboard": (290.0, 0.07, 0.6),
    "box": (90.0, 1.2, 1.0),
    "plant": (120.0, 1.2, 0.5),
}
CLEAR_PX = 6  # between the hands' outline and a thing that stands higher than the gap behind them
TRIES = 14
_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """A plane in camera space, millimetres."""

    origin: _F64  # (3,)
    axes: _F64  # (2, 3) unit: right, far
    normal: _F64  # (3,) unit, towards the camera's side
    reach_mm: tuple[float, float, float]  # sideways, towards the camera, away
    texture_mm: float  # side of the texture's square
    turn_rad: float  # of the texture on the plane
    gap_mm: float  # least distance of what is seen of the hands

    def corners(self) -> tuple[F32, F32]:
        """(4, 3) corners in mm, and their (4, 2) texture coordinates."""
        side, near, far = self.reach_mm
        flat = np.array([[-side, -near], [side, -near], [side, far], [-side, far]])
        c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
        uv = flat @ np.array([[c, s], [-s, c]]) / self.texture_mm
        return (self.origin + flat @ self.axes).astype(np.float32), uv.astype(np.float32)


@dataclass(frozen=True)
class Thing:
    """One object that stands on the surface."""

    kind: str
    size_mm: float
    place: _F64  # (4, 4) metres and Blender's axes; z is the surface's normal
    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    seed: int

    def describe(self) -> dict[str, Any]:
        """Plain values for the job."""
        return {
            "kind": self.kind,
            "size_m": self.size_mm * 1e-3,
            "place": self.place.tolist(),
            "colour": list(self.colour),
            "second": list(self.second),
            "seed": self.seed,
        }


def lay_surface(scene: Scene, drawing: Drawing) -> Surface | None:
    """A plane that all visible points of the hands lie before; None when they are held up."""
    spec = scene.background
    if not spec.is_surface:
        return None
    rng = np.random.default_rng([spec.seed, 73])
    normal = _face(rng, scene, drawing)
    seen = _find_seen(scene, drawing)
    offset = float((seen @ normal).min()) - spec.gap_mm - 0.4
    # Where the middle of the view meets it; a steep table is met behind the hands at the latest.
    centre = np.mean(seen, axis=0)
    origin = centre - (centre @ normal - offset) * normal
    right = np.cross(normal, [0.0, 1.0, 0.0]) if abs(normal[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right -= (right @ normal) * normal
    right /= np.linalg.norm(right)
    far = np.cross(normal, right)
    if far[2] < 0:
        right, far = -right, -far
    steep = spec.tilt_deg > 42 and spec.gap_mm > 0
    depth_mm = float(np.linalg.norm(origin))
    height_mm = depth_mm * scene.camera.height_px / scene.camera.focal_px
    return Surface(
        origin=origin,
        axes=np.stack([right, far]),
        normal=normal,
        reach_mm=(1500.0, 1200.0, float(rng.uniform(350, 900)) if steep else 3000.0),
        texture_mm=float(1280 / 480 * min(height_mm, 420.0) * rng.uniform(0.7, 1.3)),
        turn_rad=float(rng.uniform(0, 2 * np.pi)),
        gap_mm=spec.gap_mm,
    )


def _face(rng: np.random.Generator, scene: Scene, drawing: Drawing) -> _F64:
    """(3,) the surface's normal: a hand that rests on it has its back square to it."""
    spec = scene.background
    lean, around = np.radians(spec.tilt_deg), rng.normal(0, 0.35)
    normal = np.array([np.sin(lean) * np.sin(around), -np.sin(lean) * np.cos(around), -np.cos(lean)])
    dorsal = np.mean([hand.dorsal for hand in drawing.hands], axis=0)
    dorsal = dorsal / np.linalg.norm(dorsal)
    if spec.gap_mm == 0 and dorsal[2] < -0.5:
        normal = dorsal + rng.normal(0, 0.05, 3)
    return np.asarray(normal / np.linalg.norm(normal))


def _find_seen(scene: Scene, drawing: Drawing) -> _F64:
    """(N, 3) points of the hands inside the picture or close to it."""
    points = np.concatenate([sheet.vertices for hand in drawing.hands for sheet in (hand, *hand.sheets)])
    pixels = project(points, scene.camera)
    size = np.array([scene.camera.width_px, scene.camera.height_px])
    inside = ((pixels > -0.12 * size) & (pixels < 1.12 * size)).all(axis=1) & (points[:, 2] > 50)
    return np.asarray(points[inside], dtype=np.float64)


def choose_things(scene: Scene, drawing: Drawing, surface: Surface) -> list[Thing]:
    """Objects at random places; a place where one could stand before a hand is not taken."""
    rng = np.random.default_rng([scene.background.seed, 79])
    covered = _grow_cover(scene, drawing)
    kinds = list(THINGS)
    chances = np.array([THINGS[k][2] for k in kinds])
    found: list[Thing] = []
    taken: list[tuple[_F64, float]] = []
    side_mm = surface.texture_mm * 480 / 1280
    for _ in range(scene.background.things):
        kind = str(rng.choice(kinds, p=chances / chances.sum()))
        width, tall, _ = THINGS[kind]
        size = width * float(rng.uniform(0.8, 1.25))
        colour, second = _any_colour(rng), _any_colour(rng)
        turn, seed = float(rng.uniform(0, 2 * np.pi)), int(rng.integers(1 << 30))
        for _ in range(TRIES):
            flat = rng.uniform(-1.1, 1.3, 2) * side_mm * (1.2, 1.0)
            base = surface.origin + flat @ surface.axes
            radius, height = 0.62 * size * (1.5 if kind == "sheet" else 1.0), size * tall
            if any(np.linalg.norm(base - other) < radius + reach for other, reach in taken):
                continue
            middle, reach = base + 0.5 * height * surface.normal, float(np.hypot(radius, 0.5 * height))
            if height > surface.gap_mm * 0.9 and _may_hide(scene, covered, middle, reach):
                continue
            taken.append((base, radius))
            found.append(Thing(kind, size, _stand(surface, base, turn), colour, second, seed))
            break
    return found


def _grow_cover(scene: Scene, drawing: Drawing) -> npt.NDArray[np.uint8]:
    """(H, W) 1 where a hand is seen, and a little around it."""
    import cv2

    camera = scene.camera
    wide = camera.width_px * SUPERSAMPLING
    cover = np.zeros((camera.height_px, camera.width_px), dtype=np.uint8)
    y, x = drawing.fragments.pixels // wide // SUPERSAMPLING, drawing.fragments.pixels % wide // SUPERSAMPLING
    cover[y, x] = 1
    return np.asarray(cv2.dilate(cover, np.ones((2 * CLEAR_PX + 1,) * 2, np.uint8)), dtype=np.uint8)


def _may_hide(scene: Scene, covered: npt.NDArray[np.uint8], middle: _F64, reach: float) -> bool:
    """Whether the ball around a thing, as the camera sees it, touches the hands or the camera itself."""
    if middle[2] - reach < 80:
        return True
    x, y = project(middle[None].astype(np.float32), scene.camera)[0]
    r = scene.camera.focal_px * reach / (middle[2] - reach)
    rows, columns = covered.shape
    top, bottom = np.clip([y - r, y + r + 1], 0, rows).astype(int)
    left, right = np.clip([x - r, x + r + 1], 0, columns).astype(int)
    yy, xx = np.mgrid[top:bottom, left:right]
    inside = (yy - y) ** 2 + (xx - x) ** 2 <= r * r
    return bool((covered[top:bottom, left:right][inside]).any())


def _stand(surface: Surface, base: _F64, turn: float) -> _F64:
    flip = np.array([1.0, -1.0, -1.0])
    z = surface.normal * flip
    x = (np.cos(turn) * surface.axes[0] + np.sin(turn) * surface.axes[1]) * flip
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([x, np.cross(z, x), z], axis=-1)
    matrix[:3, 3] = base * flip * 1e-3
    return matrix


def _any_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Linear; mostly greys and muted hues, as things are."""
    import colorsys

    saturation, value = float(min(rng.beta(1.1, 2.6), 0.85)), float(rng.uniform(0.08, 0.92))
    r, g, b = colorsys.hsv_to_rgb(float(rng.uniform()), saturation, value)
    return (r**2.2, g**2.2, b**2.2)
