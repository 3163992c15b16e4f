"""Objects that lie about: books, mugs, pens, phones, bottles, and what else a table carries."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import bpy

Make = Callable[[random.Random, float], list[tuple[Any, str]]]
# A maker returns objects that stand on z = 0 around the origin, about ``size`` metres wide, each with
# the role of its material: main, second, paper, metal, glass.


def _link(mesh: Any, name: str) -> Any:
    thing = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(thing)
    return thing


def _box(w: float, d: float, h: float, z: float = 0.0, bevel: float = 0.08) -> Any:
    mesh = bpy.data.meshes.new("box")
    x, y = w / 2, d / 2
    corners = [(sx * x, sy * y, z + sz * h) for sz in (0, 1) for sy in (-1, 1) for sx in (-1, 1)]
    faces = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    mesh.from_pydata(corners, [], faces)
    box = _link(mesh, "box")
    modifier = box.modifiers.new("bevel", "BEVEL")
    modifier.width, modifier.segments = bevel * min(w, d, h), 2
    return box


def _lathe(profile: list[tuple[float, float]], segments: int = 40) -> Any:
    """A body of revolution about z from (radius, height) pairs."""
    points, faces = [], []
    for r, z in profile:
        for k in range(segments):
            a = 2 * math.pi * k / segments
            points.append((r * math.cos(a), r * math.sin(a), z))
    for row in range(len(profile) - 1):
        for k in range(segments):
            n = (k + 1) % segments
            faces.append(
                (row * segments + k, row * segments + n, (row + 1) * segments + n, (row + 1) * segments + k)
            )
    mesh = bpy.data.meshes.new("lathe")
    mesh.from_pydata(points, [], faces)
    for face in mesh.polygons:
        face.use_smooth = True
    body = _link(mesh, "lathe")
    body.modifiers.new("edges", "EDGE_SPLIT").split_angle = math.radians(50)
    return body


def _tube(points: list[tuple[float, float, float]], radius: float) -> Any:
    curve = bpy.data.curves.new("tube", "CURVE")
    curve.dimensions, curve.bevel_depth, curve.bevel_resolution = "3D", radius, 3
    spline = curve.splines.new("NURBS")
    spline.points.add(len(points) - 1)
    for target, point in zip(spline.points, points, strict=True):
        target.co = (*point, 1.0)
    spline.use_endpoint_u, spline.order_u = True, 4
    return _link(curve, "tube")


def _make_book(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    depth, height = size * rng.uniform(0.62, 0.8), size * rng.uniform(0.06, 0.2)
    parts = [
        (_box(size, depth, height * 0.12), "main"),
        (_box(size * 0.97, depth * 0.97, height * 0.76, height * 0.12, 0.02), "paper"),
        (_box(size, depth, height * 0.12, height * 0.88), "main"),
    ]
    spine = _box(size, depth * 0.03, height)
    spine.location.y = -depth / 2
    return [*parts, (spine, "main")]


def _make_mug(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    r, h = size / 2, size * rng.uniform(0.9, 1.25)
    flare = rng.uniform(0.8, 1.0)
    outer = [
        (0.01 * r, 0),
        (r * flare, 0),
        (r, h * 0.15),
        (r, h),
        (0.92 * r, h),
        (0.9 * r, h * 0.1),
        (0.01 * r, h * 0.1),
    ]
    handle = _tube(
        [(0.95 * r, 0, h * 0.8), (1.75 * r, 0, h * 0.85), (1.75 * r, 0, h * 0.25), (0.95 * r, 0, h * 0.2)],
        0.12 * r,
    )
    drink = _lathe([(0.001, h * 0.75), (0.91 * r, h * 0.75)])
    return [(_lathe(outer), "main"), (handle, "main"), (drink, "second")]


def _make_pen(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    r = size * 0.028
    body = _lathe(
        [
            (0.1 * r, -size / 2),
            (r, -size * 0.42),
            (r, size * 0.45),
            (0.7 * r, size / 2),
            (0.01 * r, size / 2),
        ],
        20,
    )
    clip = _box(r * 0.5, r * 0.4, size * 0.22, size * 0.22)
    clip.location.x = 1.1 * r
    for part in (body, clip):
        part.rotation_euler = (math.pi / 2, 0, 0)
        part.location.z += r
    return [(body, "main"), (clip, "metal")]


def _make_phone(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    w = size * 0.48
    return [
        (_box(w, size, size * 0.055, 0, 0.45), "second"),
        (_box(w * 0.94, size * 0.96, size * 0.002, size * 0.055, 0.3), "glass"),
    ]


def _make_bottle(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    """Nail polish."""
    r, h = size * 0.22, size * 0.5
    body = [(0.01 * r, 0), (r, 0), (1.05 * r, h * 0.1), (1.0 * r, h * 0.85), (0.5 * r, h), (0.01 * r, h)]
    cap = [(0.01 * r, h), (0.5 * r, h), (0.42 * r, size), (0.01 * r, size)]
    return [(_lathe(body), "glass-main"), (_lathe(cap), rng.choice(["black", "metal"]))]


def _make_sheet(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    parts = []
    for k in range(rng.randint(1, 3)):
        sheet = _box(size, size * 1.41, 0.0003, 0.0004 * k, 0.01)
        sheet.rotation_euler.z = rng.uniform(-0.3, 0.3)
        sheet.location.x = rng.uniform(-0.2, 0.2) * size
        parts.append((sheet, "paper"))
    return parts


def _make_ball(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    r = size / 2
    squash = rng.uniform(0.75, 1.0)
    steps = [
        (max(r * math.sin(a), 1e-4), squash * r * (1 - math.cos(a)))
        for a in (k * math.pi / 16 for k in range(17))
    ]
    return [(_lathe(steps), "main")]


def _make_cable(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    r = 0.0022
    turn, points, x, y = rng.uniform(0, 6.3), [], 0.0, 0.0
    for _ in range(12):
        points.append((x, y, r))
        x, y = x + 0.22 * size * math.cos(turn), y + 0.22 * size * math.sin(turn)
        turn += rng.uniform(-0.8, 0.8)
    return [(_tube(points, r), rng.choice(["black", "paper", "main"]))]


def _make_keyboard(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    key = size / 15
    parts = [(_box(size, key * 5.6, key * 0.5, 0, 0.2), "second")]
    cap = _box(key * 0.86, key * 0.86, key * 0.3, key * 0.5, 0.3)
    for row in range(5):
        for column in range(14):
            one = cap.copy()
            bpy.context.scene.collection.objects.link(one)
            one.location = ((column - 6.5) * key, (row - 2) * key, 0)
            parts.append((one, "black"))
    bpy.data.objects.remove(cap)
    return parts


def _make_box(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    body = _box(size, size * rng.uniform(0.4, 1.0), size * rng.uniform(0.2, 1.2), 0, 0.04)
    label = _box(size * 0.5, size * 0.3, size * 0.004, 0)
    label.location.z = body.dimensions.z if body.dimensions.z else size * 0.2
    return [(body, "main"), (label, "paper")]


def _make_plant(rng: random.Random, size: float) -> list[tuple[Any, str]]:
    r = size * 0.3
    pot = _lathe(
        [
            (0.01 * r, 0),
            (0.75 * r, 0),
            (r, 1.5 * r),
            (0.9 * r, 1.5 * r),
            (0.85 * r, 1.3 * r),
            (0.01 * r, 1.3 * r),
        ]
    )
    parts = [(pot, "main")]
    for _ in range(rng.randint(10, 18)):
        length, turn, lean = size * rng.uniform(0.4, 0.8), rng.uniform(0, 6.3), rng.uniform(0.15, 1.1)
        points, faces = [], []
        for k in range(7):
            t = k / 6
            out, up = (
                length * t * math.sin(lean * (0.4 + 0.8 * t)),
                length * t * math.cos(lean * (0.4 + 0.8 * t)),
            )
            wide = 0.11 * length * math.sin(math.pi * min(t + 0.08, 1.0))
            points += [(out, -wide, 1.3 * r + up), (out, wide, 1.3 * r + up)]
            if k:
                faces.append((2 * k - 2, 2 * k - 1, 2 * k + 1, 2 * k))
        mesh = bpy.data.meshes.new("leaf")
        mesh.from_pydata(points, [], faces)
        leaf = _link(mesh, "leaf")
        leaf.rotation_euler.z = turn
        parts.append((leaf, "leaf"))
    return parts


MAKERS: dict[str, Make] = {
    "book": _make_book,
    "mug": _make_mug,
    "pen": _make_pen,
    "phone": _make_phone,
    "bottle": _make_bottle,
    "sheet": _make_sheet,
    "ball": _make_ball,
    "cable": _make_cable,
    "keyboard": _make_keyboard,
    "box": _make_box,
    "plant": _make_plant,
}


def make_thing(spec: dict[str, Any], place: Any, make_solid: Callable[[dict[str, Any]], Any]) -> None:
    """Put one object into the scene; ``place`` is its 4×4 matrix: z is the surface's normal."""
    rng = random.Random(spec["seed"])  # noqa: S311 - for looks, not for secrets
    colours = {
        "main": spec["colour"],
        "second": spec["second"],
        "paper": (0.82, 0.80, 0.76),
        "black": (0.02, 0.02, 0.022),
        "metal": (0.75, 0.73, 0.70),
        "glass": (0.012, 0.012, 0.015),
        "glass-main": spec["colour"],
        "leaf": (0.05, 0.17, 0.04),
    }
    made: dict[str, Any] = {}
    main_roughness = rng.uniform(0.15, 0.7)
    for part, role in MAKERS[spec["kind"]](rng, spec["size_m"]):
        if role not in made:
            rough = {"metal": 0.22, "paper": 0.9, "glass": 0.04, "glass-main": 0.05, "leaf": 0.4}.get(
                role, main_roughness
            )
            made[role] = make_solid(
                {
                    "kind": role,
                    "colour": colours[role],
                    "roughness": rough,
                    "metal": role == "metal",
                    "coat": 1.0 if role.startswith("glass") else 0.0,
                }
            )
        if part.data.materials:
            part.data.materials[0] = made[role]
        else:
            part.data.materials.append(made[role])
        part.matrix_world = place @ part.matrix_basis
