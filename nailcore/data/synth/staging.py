"""From a scene to a job for the Blender script: plain numbers and arrays, in metres and Blender's axes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.data.synth import shade
from nailcore.data.synth.background import paint_texture
from nailcore.data.synth.drawing import Drawing, Part
from nailcore.data.synth.geometry import HandGeometry
from nailcore.data.synth.nail_plate import NailPlate
from nailcore.data.synth.scene import Scene
from nailcore.data.synth.subdivision import F32
from nailcore.data.synth.table import Surface, choose_things, lay_surface

SAMPLES = 6
PAINT_PX = (192, 96)  # a nail's painted picture: along, across
TEXTURE_PX = 1280
LAMP_MM = 800.0
WINDOW_SHARE = 0.75  # of pictures with a second lamp that the nails mirror
# Roughness, depth of relief in m, clear coat, sheen.
FINISH = {
    "wood": (0.42, 0.0004, 0.15, 0.0),
    "fabric": (0.92, 0.0009, 0.0, 0.3),
    "stone": (0.25, 0.0001, 0.4, 0.0),
    "paper": (0.85, 0.0002, 0.0, 0.0),
    "tiles": (0.30, 0.0010, 0.3, 0.0),
    "carpet": (0.97, 0.0030, 0.0, 0.3),
    "leather": (0.50, 0.0006, 0.1, 0.0),
    "plain": (0.48, 0.0000, 0.06, 0.0),
    "print": (0.80, 0.0002, 0.0, 0.1),
    "clutter": (0.60, 0.0000, 0.0, 0.0),
    "foliage": (0.60, 0.0000, 0.0, 0.0),
}
Arrays = dict[str, Any]
TO_BLENDER = np.array([1.0, -1.0, -1.0], dtype=np.float32)  # camera axes y down, z away


def to_blender(points_mm: F32) -> F32:
    """(N, 3) millimetres in camera axes to metres in Blender's."""
    return np.asarray(points_mm * TO_BLENDER * 1e-3, dtype=np.float32)


def write_job(
    folder: Path, scene: Scene, drawing: Drawing, *, samples: int = SAMPLES, labels: bool = False
) -> None:
    """Write ``job.json`` and ``arrays.npz``: everything the Blender script has to know.

    Args:
        labels: have a picture of labels rendered (part k in the colour (k + 1) / 255), no photograph.
    """
    job, arrays = stage_scene(scene, drawing, samples=samples, labels=labels)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "job.json").write_text(json.dumps(job, indent=1) + "\n", "utf-8")


def stage_scene(
    scene: Scene, drawing: Drawing, *, samples: int = SAMPLES, labels: bool = False
) -> tuple[dict[str, Any], Arrays]:
    """The job and its arrays; equal scenes give equal ones."""
    arrays: Arrays = {}
    meshes = [_stage_part(scene, drawing, number, arrays) for number in range(len(drawing.parts))]
    surface = lay_surface(scene, drawing)
    things = choose_things(scene, drawing, surface) if surface is not None else []
    if surface is not None:
        arrays["surface"] = paint_texture(scene.background, TEXTURE_PX)[::-1].astype(np.float16)
    job = {
        "seed": scene.seed % (1 << 31),
        "samples": samples,
        "threads": 1,
        "labels": labels,
        "camera": {
            "width_px": scene.camera.width_px,
            "height_px": scene.camera.height_px,
            "focal_px": scene.camera.focal_px,
            "f_number": scene.camera.f_number,
            "focus_m": _find_focus_m(drawing),
        },
        "light": _stage_light(scene, drawing, surface),
        "surface": _stage_surface(scene, surface),
        "things": [thing.describe() for thing in things],
        "meshes": meshes,
    }
    return job, arrays


def _find_focus_m(drawing: Drawing) -> float:
    """The camera focuses on the nails."""
    depths = [
        p.vertices[:, 2].mean() for hand in drawing.hands for p in hand.plates if _is_seen(drawing, p.label)
    ]
    return float(np.mean(depths)) * 1e-3 if depths else 0.5


def _is_seen(drawing: Drawing, label: str) -> bool:
    return any(nail.finger == label for nail in drawing.nails)


def _stage_part(scene: Scene, drawing: Drawing, number: int, arrays: Arrays) -> dict[str, Any]:
    part = drawing.parts[number]
    hand = drawing.hands[part.hand]
    sheet = hand if part.plate is None and part.worn is None else None
    label = (number + 1) / 255
    spec: dict[str, Any] = {"label": [label, label, label], "attributes": []}
    if sheet is not None:
        spec |= {"name": f"skin {part.hand}", "material": _describe_skin(hand)}
        own = _mark_skin(hand)
        vertices, quads = hand.vertices, hand.quads
    elif part.plate is not None:
        plate = hand.plates[part.plate]
        spec |= {"name": plate.label, "material": _describe_nail(hand, plate.plate)}
        arrays[f"{number}.paint"], arrays[f"{number}.coat"] = _paint_nail(hand, plate.plate)
        own = {"uv": _unwrap(plate.plate)}
        vertices, quads = plate.vertices, plate.quads
    else:
        worn = hand.worn[part.worn or 0]
        spec |= {
            "name": f"{worn.item.kind} {number}",
            "material": _describe_worn(worn.item.metal, worn.item.colour),
        }
        own, vertices, quads = {}, worn.vertices, worn.quads
    spec["attributes"] = sorted(own)
    arrays[f"{number}.vertices"], arrays[f"{number}.quads"] = to_blender(vertices), quads
    arrays.update({f"{number}.{key}": values for key, values in own.items()})
    _check_part(part, arrays[f"{number}.vertices"])
    return spec


def _check_part(part: Part, vertices: F32) -> None:
    if len(vertices) != part.vertex_count:
        raise ValueError(f"part {part} has {len(vertices)} vertices")


def _describe_skin(hand: HandGeometry) -> dict[str, Any]:
    skin = hand.hand.skin
    return {
        "kind": "skin",
        "wrinkle": skin.wrinkle,
        "mottle": skin.mottle,
        "gloss": skin.gloss,
        "bleed_m": 0.0022 * hand.hand.shape.scale,
    }


def _mark_skin(hand: HandGeometry) -> dict[str, F32]:
    """Per-vertex colour, rest position (mm) and marks."""
    marks, skin = hand.marks, hand.hand.skin
    count = len(marks.position)
    none = np.zeros(count, dtype=np.float32)
    texture = shade.sample_slow_texture(skin, marks.position)
    points = shade.SkinPoints(
        marks.position,
        marks.palm,
        marks.joint,
        marks.line,
        marks.joint_mm,
        marks.tip,
        marks.fold,
        none,
        none,
        *texture.T,
    )
    offset = np.float32(skin.seed % 1009)  # no two people have the same pores
    # As in shade.raise_skin: waves over the joints of the back, one crease on the palm's side.
    phase = (marks.joint_mm + points.wander) * (np.pi / 1.5)
    depth = marks.line**2 * (1 - marks.palm) * points.depth
    crease = np.exp(-(((marks.joint_mm + 0.5 * points.wander) / 0.8) ** 2)) * marks.joint * marks.palm
    return {
        "albedo": shade.colour_skin(skin, points),
        "rest": marks.position + offset,
        "lines": np.column_stack([phase, depth, crease]).astype(np.float32),
    }


def _unwrap(plate: NailPlate) -> F32:
    """(ROWS * COLUMNS, 2) place on the plate, 0..1 across and along."""
    return np.column_stack([(plate.across + 1) / 2, plate.along_mm / plate.length_mm]).astype(np.float32)


def _describe_nail(hand: HandGeometry, plate: NailPlate) -> dict[str, Any]:
    style = hand.hand.nails
    return {
        "kind": "nail",
        "seed": hand.hand.skin.seed + plate.finger,
        "ridges": 0.9 if style.finish == "bare" else 0.25,
        "bleed": 0.6 if style.finish == "bare" else 0.15,
        "thickness_m": 0.00032 if style.finish == "bare" else 0.00045,
    }


def _paint_nail(hand: HandGeometry, plate: NailPlate) -> tuple[F32, F32]:
    """(PAINT_PX, 3) linear colour, and (PAINT_PX, 3) gloss, metal, translucency; rows from base to tip."""
    rows, columns = PAINT_PX
    along, across = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    flat_across = across.ravel().astype(np.float32)
    flat_along = (along.ravel() * plate.length_mm).astype(np.float32)
    lacquer = shade.colour_nail(hand.hand.nails, hand.hand.skin, plate, flat_across, flat_along)
    free = np.clip((flat_along - plate.bed_mm) / 1.0, 0, 1)
    clear = free if hand.hand.nails.finish == "bare" else 0.15 * free
    coat = np.column_stack([lacquer.gloss, lacquer.metal, clear])
    return lacquer.albedo.reshape(rows, columns, 3), coat.reshape(rows, columns, 3).astype(np.float32)


def _describe_worn(metal: bool, colour: tuple[float, float, float]) -> dict[str, Any]:
    kind = "metal" if metal else "cloth"
    return {"kind": kind, "colour": list(colour), "metal": metal, "roughness": 0.2 if metal else 0.9}


def _stage_surface(scene: Scene, surface: Surface | None) -> dict[str, Any] | None:
    if surface is None:
        return None
    roughness, relief_m, coat, sheen = FINISH[scene.background.kind]
    corners, uv = surface.corners()
    return {
        "corners_m": to_blender(corners).tolist(),
        "uv": uv.tolist(),
        "roughness": roughness,
        "relief_m": relief_m,
        "coat": coat,
        "sheen": sheen,
    }


def _stage_light(scene: Scene, drawing: Drawing, surface: Surface | None) -> dict[str, Any]:
    """The lamps, and how the surroundings lie around the camera."""
    light = scene.lighting
    up = np.array([0.0, -1.0, 0.0]) if surface is None else surface.normal
    centre = np.mean([hand.centre_mm for hand in scene.hands], axis=0)
    share = light.surroundings_share if light.surroundings != "dome" else 0.0
    key = _lift(np.asarray(light.key_direction, dtype=np.float64), up)
    side = 2 * LAMP_MM * 1e-3 * np.tan(np.radians(light.key_size_deg))
    colour = np.asarray(light.key_colour)
    lamps = [_stage_lamp(centre, key, (0.9 * side, 1.5 * side), colour * (1 - 0.55 * share))]
    rng = np.random.default_rng([scene.seed, 13])
    if rng.uniform() < WINDOW_SHARE:
        # Who photographs nails turns them until a window shines in them.
        mirrored = _lift(_mirror_in_nails(drawing) + rng.normal(0, 0.16, 3), up)
        size = (float(rng.uniform(0.12, 0.5)), float(rng.uniform(0.3, 0.9)))
        lamps.append(
            _stage_lamp(centre, mirrored, size, np.asarray(light.sky_colour) * rng.uniform(0.6, 1.6))
        )
    return {
        "lamps": lamps,
        "to_world": _turn_to_world(up, light.surroundings_turn_deg),
        "sky": list(light.sky_colour),
        "ground": list(light.ground_colour),
        "panorama": light.surroundings,
        "panorama_share": share,
        "panorama_level": float(np.mean(light.sky_colour)) * 1.25,
    }


def _lift(direction: npt.NDArray[np.float64], up: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A unit direction that does not come from below the table."""
    direction = direction / np.linalg.norm(direction)
    low = 0.3 - float(direction @ up)
    if low > 0:
        direction = direction + (low + 0.1) * up
    return np.asarray(direction / np.linalg.norm(direction))


def _mirror_in_nails(drawing: Drawing) -> npt.NDArray[np.float64]:
    """(3,) where the camera's view goes when the seen nails mirror it."""
    mirrored = []
    for hand in drawing.hands:
        for plate in hand.plates:
            if _is_seen(drawing, plate.label):
                view = -plate.vertices.mean(axis=0)
                view /= np.linalg.norm(view)
                normal = plate.normals.mean(axis=0)
                normal /= np.linalg.norm(normal)
                mirrored.append(2 * float(normal @ view) * normal - view)
    return np.mean(mirrored, axis=0) if mirrored else np.array([0.0, -0.3, -1.0])


def _stage_lamp(
    centre_mm: npt.NDArray[np.float64],
    direction: npt.NDArray[np.float64],
    size_m: tuple[float, float],
    colour: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """A rectangular lamp that makes a white surface as bright as ``colour`` says.

    P watts at d metres give the irradiance P / (pi d²), and white returns a pi-th of it.
    """
    return {
        "size_m": list(size_m),
        "watts": float((np.pi * LAMP_MM * 1e-3) ** 2 * colour.max()),
        "colour": (colour / colour.max()).tolist(),
        "place": _look_from(centre_mm + LAMP_MM * direction, direction),
    }


def _look_from(place_mm: npt.NDArray[np.float64], away: npt.NDArray[np.float64]) -> list[list[float]]:
    """4×4 of a lamp at a place that shines against ``away``; Blender's lamps shine along their -z."""
    z = away * TO_BLENDER
    x = np.cross([0.13, 1.0, 0.21], z)
    x /= np.linalg.norm(x)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([x, np.cross(z, x), z], axis=-1)
    matrix[:3, 3] = to_blender(np.asarray(place_mm, dtype=np.float32))
    return [[float(v) for v in row] for row in matrix]


def _turn_to_world(up: npt.NDArray[np.float64], turn_deg: float) -> list[list[float]]:
    """4×4 that carries directions of Blender's axes to a panorama's, whose z is up."""
    z = np.asarray(up, dtype=np.float64) * TO_BLENDER
    z /= np.linalg.norm(z)
    forward = np.array([0.0, 0.0, -1.0]) if abs(z[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    x = np.cross(forward, z)
    x /= np.linalg.norm(x)
    frame = np.stack([x, np.cross(z, x), z])
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ frame
    return [[float(v) for v in row] for row in matrix]
