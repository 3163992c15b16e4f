"""From a scene to a picture with labels: draw, light, shade, lay over the backdrop, expose."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.data.labels import NailRecord
from nailcore.data.synth import shade
from nailcore.data.synth.background import paint_background
from nailcore.data.synth.drawing import SUPERSAMPLING, Drawing, Part, draw
from nailcore.data.synth.light import VertexLight, cast_shadows, light_vertices, sample_light
from nailcore.data.synth.mesh import load_hand
from nailcore.data.synth.raster import Fragments, interpolate
from nailcore.data.synth.sample import sample_scene
from nailcore.data.synth.scene import Scene
from nailcore.data.synth.sensor import expose
from nailcore.data.synth.subdivision import F32
from nailcore.errors import DataError

MIN_NAILS = 3
ATTEMPTS = 40


@dataclass(frozen=True)
class Rendering:
    """One picture with exact labels."""

    scene: Scene
    image: npt.NDArray[np.uint8]  # (H, W, 3) sRGB
    nail_index: npt.NDArray[np.uint8]  # (H, W) 0 background, k: nails[k - 1]
    nails: tuple[NailRecord, ...]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) all nails."""
        return self.nail_index > 0


def render_scene(
    seed: int, *, subject_seed: int | None = None, width_px: int = 640, height_px: int = 480
) -> Rendering:
    """Render the scene that ``find_scene`` finds; arguments and errors as there."""
    with _one_thread():
        return _finish(*find_scene(seed, subject_seed=subject_seed, width_px=width_px, height_px=height_px))


def find_scene(
    seed: int, *, subject_seed: int | None = None, width_px: int = 640, height_px: int = 480
) -> tuple[Scene, Drawing]:
    """The first scene of a seed in which at least MIN_NAILS nails can be seen, apart and whole.

    Args:
        subject_seed: whose hand it is (default: a person of this seed's own).

    Raises:
        DataError: no such scene in ATTEMPTS draws.
    """
    for attempt in range(ATTEMPTS):
        drawn_seed = seed + 1_000_003 * attempt
        who = seed if subject_seed is None else subject_seed
        scene = sample_scene(drawn_seed, subject_seed=who, width_px=width_px, height_px=height_px)
        with _one_thread():
            drawing = draw(scene)
        if len(drawing.nails) >= MIN_NAILS and _are_apart(drawing):
            return scene, drawing
    raise DataError(f"Seed {seed} gave no scene with {MIN_NAILS} visible nails.", hint="Use another seed.")


def render(scene: Scene) -> Rendering:
    """Render exactly this scene, however many nails it shows."""
    with _one_thread():
        return _finish(scene, draw(scene))


def _one_thread() -> AbstractContextManager[object]:
    """Hold matrix products to one thread: their sums, and so a few pixels, depend on the number."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def _are_apart(drawing: Drawing) -> bool:
    """Whether each nail is one blob and no two touch, so that a mask alone tells them apart."""
    import cv2

    blobs, _ = cv2.connectedComponents((drawing.nail_index > 0).astype(np.uint8), connectivity=8)
    if blobs - 1 != len(drawing.nails):
        return False
    return all(
        cv2.connectedComponents((drawing.nail_index == k).astype(np.uint8), connectivity=8)[0] == 2
        for k in range(1, len(drawing.nails) + 1)
    )


def _finish(scene: Scene, drawing: Drawing) -> Rendering:
    colour, cover = _shade_hands(scene, drawing)
    backdrop = _light_backdrop(scene, cover)
    linear = colour + backdrop * (1 - cover)[..., None]
    return Rendering(scene, expose(scene.sensor, linear), drawing.nail_index, drawing.nails)


def _shade_hands(scene: Scene, drawing: Drawing) -> tuple[F32, F32]:
    """(H, W, 3) linear light of the hands times their cover, and (H, W) cover."""
    import cv2

    height, width = scene.camera.height_px * SUPERSAMPLING, scene.camera.width_px * SUPERSAMPLING
    canvas = np.zeros((height * width, 4), dtype=np.float32)
    lights = _light_parts(scene, drawing)
    for number, part in enumerate(drawing.parts):
        rows = np.flatnonzero(drawing.fragment_part == number)
        if not len(rows):
            continue
        found = drawing.fragments
        mine = Fragments(found.pixels[rows], found.triangles[rows], found.weights[rows], found.depth_mm[rows])
        paint = _shade_nail if part.plate is not None else _shade_skin if part.worn is None else _shade_worn
        canvas[mine.pixels, :3] = paint(scene, drawing, part, lights[number], mine)
        canvas[mine.pixels, 3] = 1
    # Highlights are cut before averaging, as a sensor's wells would be: no jagged bright edges.
    canvas = np.minimum(canvas, 3.0).reshape(height, width, 4)
    small = cv2.resize(
        canvas, (scene.camera.width_px, scene.camera.height_px), interpolation=cv2.INTER_AREA
    ).astype(np.float32)
    return small[..., :3], small[..., 3]


def _light_parts(scene: Scene, drawing: Drawing) -> list[VertexLight]:
    samples = sample_light(scene.lighting)
    lights = []
    diffusion = load_hand().diffusion
    for hand, (skin, plates) in zip(drawing.hands, cast_shadows(list(drawing.hands), samples), strict=True):
        bounce = np.asarray(hand.hand.skin.albedo, dtype=np.float32)
        lights.append(light_vertices(hand.normals, skin, samples, bounce, diffusion))
        for sheet, visible in zip(hand.sheets, plates, strict=True):
            lights.append(light_vertices(sheet.normals, visible, samples, bounce, None))
    return lights


def _carry(drawing: Drawing, part: Part, values: F32, fragments: Fragments) -> F32:
    """Interpolate one part's per-vertex values over its fragments."""
    return interpolate(values.astype(np.float32), drawing.triangles - part.first_vertex, fragments)


def _look(drawing: Drawing, fragments: Fragments) -> tuple[F32, F32]:
    """Unit normals and unit directions to the camera, (P, 3) each."""
    normals = interpolate(drawing.normals, drawing.triangles, fragments)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = interpolate(drawing.vertices, drawing.triangles, fragments)
    return normals, np.asarray(-points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)


def _shade_skin(scene: Scene, drawing: Drawing, part: Part, light: VertexLight, fragments: Fragments) -> F32:
    hand = drawing.hands[part.hand]
    marks, skin = hand.marks, hand.hand.skin
    scalars = [
        marks.palm,
        marks.joint,
        marks.line,
        marks.joint_mm,
        marks.tip,
        marks.fold,
        light.key,
        light.open,
    ]
    texture = shade.sample_slow_texture(skin, marks.position)
    values = np.column_stack([marks.position, light.diffuse, *scalars, texture])
    carried = _carry(drawing, part, values, fragments)
    points = shade.SkinPoints(carried[:, :3], *carried[:, 6:].T)
    diffuse = carried[:, 3:6]
    normals, view = _look(drawing, fragments)
    slope_x, slope_y = _measure_slopes(scene, fragments, shade.raise_skin(skin, points))
    bent = shade.tilt_normals(normals, slope_x, slope_y)
    towards = np.asarray(scene.lighting.key_direction, dtype=np.float32)
    relief = 1 + 0.9 * ((bent - normals) @ (towards / np.linalg.norm(towards)))
    body = shade.colour_skin(skin, points) * diffuse * np.clip(relief, 0.4, 1.5)[:, None]
    return np.asarray(body + shade.add_sheen(scene.lighting, skin, points, bent, view), dtype=np.float32)


def _measure_slopes(scene: Scene, fragments: Fragments, height_mm: F32) -> tuple[F32, F32]:
    """Slopes (mm per mm) of a height given at fragments, along the picture's axes; 0 at its borders."""
    high, wide = scene.camera.height_px * SUPERSAMPLING, scene.camera.width_px * SUPERSAMPLING
    field = np.full(high * wide, np.nan, dtype=np.float32)
    field[fragments.pixels] = height_mm
    field = field.reshape(high, wide)
    pixel_mm = fragments.depth_mm / (scene.camera.focal_px * SUPERSAMPLING)
    slopes = []
    for axis in (1, 0):
        difference = (np.roll(field, -1, axis) - np.roll(field, 1, axis)).ravel()[fragments.pixels]
        slopes.append(np.clip(np.nan_to_num(difference) / (2 * pixel_mm), -0.45, 0.45).astype(np.float32))
    return slopes[0], slopes[1]


def _shade_nail(scene: Scene, drawing: Drawing, part: Part, light: VertexLight, fragments: Fragments) -> F32:
    hand = drawing.hands[part.hand]
    plate = hand.plates[part.plate or 0].plate
    values = np.column_stack([plate.across, plate.along_mm, light.diffuse, light.key, light.open])
    carried = _carry(drawing, part, values, fragments)
    diffuse = carried[:, 2:5]
    normals, view = _look(drawing, fragments)
    lacquer = shade.colour_nail(hand.hand.nails, hand.hand.skin, plate, carried[:, 0], carried[:, 1])
    body = lacquer.albedo * diffuse * (1 - 0.6 * lacquer.metal)[:, None]
    outer = body + shade.add_clear_coat(scene.lighting, lacquer, normals, view, carried[:, 5:])
    under = 0.45 * (0.4 * lacquer.albedo + 0.3) * diffuse.mean()  # dull and in its own shade
    front = np.isin(fragments.triangles, drawing.front_triangles)
    return np.asarray(np.where(front[:, None], outer, under), dtype=np.float32)


def _shade_worn(scene: Scene, drawing: Drawing, part: Part, light: VertexLight, fragments: Fragments) -> F32:
    """Cloth with a fine weave, or metal."""
    sheet = drawing.hands[part.hand].worn[part.worn or 0]
    carried = _carry(drawing, part, np.column_stack([light.diffuse, light.key, light.open]), fragments)
    normals, view = _look(drawing, fragments)
    colour = np.asarray(sheet.item.colour, dtype=np.float32)
    if not sheet.item.metal:
        y, x = np.divmod(fragments.pixels, scene.camera.width_px * SUPERSAMPLING)
        weave = 1 + 0.1 * np.sin(1.9 * x + 0.7 * y) * np.sin(1.7 * y - 0.5 * x)
        return np.asarray(colour * carried[:, :3] * weave[:, None], dtype=np.float32)
    none = np.zeros(len(carried), dtype=np.float32)
    metal = shade.Lacquer(np.tile(colour, (len(carried), 1)), none + 0.7, none + 1)
    shine = shade.add_clear_coat(scene.lighting, metal, normals, view, carried[:, 3:])
    return np.asarray(0.25 * colour * carried[:, :3] + shine, dtype=np.float32)


def _light_backdrop(scene: Scene, cover: F32) -> F32:
    """(H, W, 3) linear light of the backdrop with the hands' soft shadow on it."""
    import cv2

    height, width = cover.shape
    spec, light = scene.background, scene.lighting
    reflectance = paint_background(spec, height, width)
    scale = width / 640
    key = np.asarray(light.key_direction) / np.linalg.norm(light.key_direction)
    reach = spec.shadow_reach_px * scale
    side = np.hypot(key[0], key[1]) + 1e-6
    move = np.array([[1, 0, -key[0] / side * reach], [0, 1, -key[1] / side * reach]], dtype=np.float32)
    moved = cv2.warpAffine(cover, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
    sharp = cv2.GaussianBlur(moved, (0, 0), max(0.35 * reach, 2.0 * scale))
    wide = cv2.GaussianBlur(cover, (0, 0), 22 * scale)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    falloff = np.clip(1 + 0.35 * (key[0] * x + key[1] * y), 0.5, 1.5)
    lit = 0.75 * max(-key[2], 0.25) * (1 - spec.shadow * sharp) * falloff
    ambient = 1 - 0.7 * spec.shadow * wide
    total = lit[..., None] * np.asarray(light.key_colour) + ambient[..., None] * np.asarray(light.sky_colour)
    return np.asarray(reflectance * total, dtype=np.float32)
