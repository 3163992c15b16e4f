"""Soft light on the hands: directional samples of the surroundings, each with a depth map for shadows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from nailcore.data.synth.geometry import HandGeometry
from nailcore.data.synth.raster import rasterise, split_quads
from nailcore.data.synth.scene import Lighting
from nailcore.data.synth.subdivision import F32, I32

DOME_SAMPLES = 20
KEY_SAMPLES = 5
MAP_PX = 160
MAP_RADIUS_MM = 190.0
BIAS_MM = 1.6
# Blood lets red light travel farthest: rounds of averaging over neighbouring vertices per channel.
DIFFUSION_ROUNDS = (9, 3, 1)
WRAP = (0.22, 0.08, 0.04)  # how far light reaches past the terminator, per channel


@dataclass(frozen=True)
class LightSamples:
    """Directions towards the light and the irradiance each gives a surface that faces it."""

    directions: F32  # (K, 3) unit, camera axes
    irradiance: F32  # (K, 3)
    is_key: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VertexLight:
    """What reaches each vertex."""

    diffuse: F32  # (V, 3) irradiance over pi
    key: F32  # (V,) share of the key light that is visible, 0..1
    open: F32  # (V,) share of the dome that is visible, 0..1


def sample_light(lighting: Lighting) -> LightSamples:
    """Spread fixed directions over the dome and over the key light's disc."""
    k = np.arange(DOME_SAMPLES) + 0.5
    height, turn = 1 - 2 * k / DOME_SAMPLES, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    dome = np.stack([radius * np.cos(turn), -height, radius * np.sin(turn)], axis=-1)
    colour = look_up_dome(lighting, dome.astype(np.float32))
    key = np.asarray(lighting.key_direction) / np.linalg.norm(lighting.key_direction)
    side = np.cross(key, [0.31, 0.87, 0.38])
    side /= np.linalg.norm(side)
    spread = np.tan(np.radians(lighting.key_size_deg))
    angle = 2 * np.pi * np.arange(KEY_SAMPLES) / KEY_SAMPLES
    disc = key + spread * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * np.cross(key, side))
    disc /= np.linalg.norm(disc, axis=1, keepdims=True)
    return LightSamples(
        directions=np.concatenate([dome, disc]).astype(np.float32),
        irradiance=np.concatenate(
            [colour * 4 / DOME_SAMPLES, np.tile(lighting.key_colour, (KEY_SAMPLES, 1)) / KEY_SAMPLES]
        ).astype(np.float32),
        is_key=np.arange(DOME_SAMPLES + KEY_SAMPLES) >= DOME_SAMPLES,
    )


def look_up_dome(lighting: Lighting, directions: F32) -> F32:
    """(N, 3) radiance of sky and ground for (N, 3) directions; up leans from -y to the camera."""
    up = np.clip(0.5 - 0.45 * directions[:, 1:2] - 0.6 * directions[:, 2:], 0, 1)
    up = up * up * (3 - 2 * up)
    sky, ground = np.asarray(lighting.sky_colour), np.asarray(lighting.ground_colour)
    return np.asarray(sky * up + ground * (1 - up), dtype=np.float32)


def cast_shadows(hands: list[HandGeometry], samples: LightSamples) -> list[tuple[F32, list[F32]]]:
    """Visibility of every light sample, per hand: of its skin (V, K), and of each of its plates and
    worn things (P, K), in this order."""
    blockers, triangles = _gather_blockers(hands)
    a, b, c = (blockers[triangles[:, i]] for i in range(3))
    facing = np.cross(b - a, c - a)
    centre = np.mean([p.base for h in hands for p in h.plates], axis=0)
    count = len(samples.directions)
    seen = [
        (
            np.ones((len(hand.vertices), count), np.float32),
            [np.ones((len(sheet.vertices), count), np.float32) for sheet in hand.sheets],
        )
        for hand in hands
    ]
    for k, direction in enumerate(samples.directions):
        frame = _look_along(-direction)
        depth_map = _draw_depth(blockers, triangles[facing @ direction > 0], centre, frame)
        for hand, (skin, plates) in zip(hands, seen, strict=True):
            skin[:, k] = _is_lit(hand.vertices + hand.normals * 1.2, depth_map, centre, frame)
            for sheet, column in zip(hand.sheets, plates, strict=True):
                column[:, k] = _is_lit(sheet.vertices + sheet.normals * 1.2, depth_map, centre, frame)
    return seen


def _gather_blockers(hands: list[HandGeometry]) -> tuple[F32, I32]:
    vertices, quads, start = [], [], 0
    for hand in hands:
        parts = [(hand.coarse_vertices, hand.coarse_quads)] + [(p.vertices, p.quads) for p in hand.plates]
        for points, faces in parts:
            vertices.append(points)
            quads.append(faces + start)
            start += len(points)
    return np.concatenate(vertices), split_quads(np.concatenate(quads))


def _look_along(direction: F32) -> F32:
    z = direction / np.linalg.norm(direction)
    x = np.cross([0.37, 0.61, 0.70], z)
    x /= np.linalg.norm(x)
    return np.asarray(np.stack([x, np.cross(z, x), z]), dtype=np.float32)


def _draw_depth(blockers: F32, triangles: I32, centre: F32, frame: F32) -> F32:
    """(MAP_PX, MAP_PX) distance along the light's rays to what it meets first; inf where nothing."""
    points = (blockers - centre) @ frame.T
    pixel = (points[:, :2] / MAP_RADIUS_MM + 1) * (MAP_PX / 2)
    found = rasterise(pixel, points[:, 2] + 2000, triangles, (MAP_PX, MAP_PX), perspective=False)
    depth = np.full(MAP_PX * MAP_PX, np.inf, dtype=np.float32)
    depth[found.pixels] = found.depth_mm
    return depth.reshape(MAP_PX, MAP_PX)


def _is_lit(points: F32, depth_map: F32, centre: F32, frame: F32) -> npt.NDArray[np.bool_]:
    local = (points - centre) @ frame.T
    pixel = ((local[:, :2] / MAP_RADIUS_MM + 1) * (MAP_PX / 2)).astype(int)
    x, y = np.clip(pixel, 0, MAP_PX - 1).T
    outside = (x != pixel[:, 0]) | (y != pixel[:, 1])
    return np.asarray(outside | (local[:, 2] + 2000 < depth_map[y, x] + BIAS_MM))


def light_vertices(
    normals: F32, visible: F32, samples: LightSamples, bounce: F32, diffusion: sp.csr_matrix | None
) -> VertexLight:
    """Add up the samples; blocked ones give the colour of nearby skin instead of darkness.

    Args:
        normals: (V, 3); visible: (V, K) from ``cast_shadows``; bounce: (3,) reflectance of what blocks.
        diffusion: neighbour averaging for translucent skin, or None for nails.
    """
    cosine = normals @ samples.directions.T  # (V, K)
    rounds, wraps = (DIFFUSION_ROUNDS, WRAP) if diffusion is not None else ((0, 0, 0), (0.0, 0.0, 0.0))
    if diffusion is not None:  # shadow maps are coarse: soften their steps
        visible = diffusion @ (diffusion @ visible)
    total = samples.irradiance.sum(axis=0) * 0.22
    light = np.empty((len(normals), 3), dtype=np.float32)
    facing = np.clip(cosine, 0, None)
    blocked = ((1 - visible) * facing)[:, ~samples.is_key].sum(axis=1) * (2.0 / DOME_SAMPLES)
    for c in range(3):
        lit = np.clip((cosine + wraps[c]) / (1 + wraps[c]), 0, None) * visible
        light[:, c] = lit @ samples.irradiance[:, c] + blocked * bounce[c] * total[c]
        for _ in range(rounds[c]):
            light[:, c] = diffusion @ light[:, c]  # type: ignore[operator]
    weight = facing[:, ~samples.is_key]
    openness = (visible[:, ~samples.is_key] * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-6)
    return VertexLight(light, visible[:, samples.is_key].mean(axis=1), openness.astype(np.float32))
