"""From visible fragments to linear light: skin with soft red bleeding, nails with a clear coat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nailcore.data.synth.light import look_up_dome
from nailcore.data.synth.nail_plate import NailPlate
from nailcore.data.synth.noise import sample_solid_noise
from nailcore.data.synth.scene import Lighting, NailStyle, Skin
from nailcore.data.synth.subdivision import F32

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


@dataclass(frozen=True)
class SkinPoints:
    """Visible points of a hand's skin; fields as in ``geometry.SkinMarks`` and ``light.VertexLight``."""

    position: F32  # (N, 3) mm at rest; all others (N,)
    palm: F32
    joint: F32
    line: F32
    joint_mm: F32
    tip: F32
    fold: F32
    key: F32
    openness: F32
    blotch: F32  # from ``sample_slow_texture``
    patch: F32
    wander: F32
    depth: F32
    vein: F32


def sample_slow_texture(skin: Skin, position: F32) -> F32:
    """(V, 5) blotch, patch, wander, depth, vein: wider than the mesh's faces, so sampled on vertices."""
    blotch = sample_solid_noise(position, 9.0, skin.seed) + 0.5 * sample_solid_noise(
        position, 3.5, skin.seed + 1
    )
    patch = sample_solid_noise(position, 20.0, skin.seed + 3)
    # Lines over the joints wander and break: their phase and their depth both follow noise.
    wander = 1.3 * sample_solid_noise(position, 4.5, skin.seed + 2)
    depth = np.clip(0.6 + 0.5 * sample_solid_noise(position, 3.0, skin.seed + 3), 0, 1.4)
    # Veins run along the back of the hand, from the knuckles to the forearm: valleys of stretched noise.
    drawn_out = position * np.array([1.0, 0.3, 0.6], dtype=np.float32)
    valley = np.abs(sample_solid_noise(drawn_out, 13.0, skin.seed + 1))
    x_mm, y_mm = position[:, 0], position[:, 1]
    back = (
        np.clip((88 - y_mm) / 18, 0, 1) * np.clip((y_mm + 140) / 60, 0, 1) * np.clip((x_mm + 46) / 14, 0, 1)
    )
    vein = np.exp(-((valley / 0.16) ** 2)) * back
    return np.stack([blotch, patch, wander, depth, vein], axis=-1)


def colour_skin(skin: Skin, at: SkinPoints) -> F32:
    """(N, 3) reflectance."""
    base = np.asarray(skin.albedo, dtype=np.float32)
    light_pink = np.clip(base * 0.45 + np.array([0.42, 0.24, 0.19]), 0, 0.75)
    pale = (at.palm * skin.palm_lift)[:, None]
    albedo = base * (1 - pale) + light_pink * pale
    blood = skin.redness * (0.55 * at.joint + 0.5 * at.tip + 0.5 * at.fold) + 0.12 * skin.mottle * at.blotch
    # More blood takes away green and blue and leaves red almost alone.
    albedo = albedo * np.exp(-blood[:, None] * np.array([0.12, 0.5, 0.42]))
    vein = skin.veins * at.vein * (1 - at.palm)
    albedo = albedo * np.exp(-vein[:, None] * np.array([0.19, 0.10, 0.03]))  # blue comes through
    spots = np.clip(sample_solid_noise(at.position, 1.7, skin.seed + 2) - 1.3, 0, 1) * (1 - at.palm)
    tone = 1 + skin.mottle * (0.05 * at.patch - 0.3 * spots)
    albedo = albedo * (tone * (1 - 0.35 * at.fold**2))[:, None]
    return np.asarray(np.clip(albedo, 0.01, 0.9), dtype=np.float32)


def raise_skin(skin: Skin, at: SkinPoints) -> F32:
    """(N,) height of pores and of the lines over the joints, in mm."""
    pores = 0.03 * sample_solid_noise(at.position, 0.9, skin.seed)
    pores += 0.035 * sample_solid_noise(at.position, 2.2, skin.seed + 1)
    back = np.sin((at.joint_mm + at.wander) * (2 * np.pi / 2.1)) * at.line**2 * at.depth
    crease = -np.exp(-(((at.joint_mm + 0.5 * at.wander) / 0.7) ** 2)) * np.sqrt(at.joint)
    lines = 0.13 * back * (1 - at.palm) + 0.35 * crease * at.palm
    return np.asarray(pores + skin.wrinkle * lines, dtype=np.float32)


@dataclass(frozen=True)
class Lacquer:
    """What points of a nail are covered with."""

    albedo: F32  # (N, 3)
    gloss: F32  # (N,) 0 matte .. 1 clear coat
    metal: F32  # (N,) share that mirrors in its own colour


def colour_nail(style: NailStyle, skin: Skin, plate: NailPlate, across: F32, along_mm: F32) -> Lacquer:
    """Paint (N,) points of a plate, given by their place on it."""
    natural = _colour_bare(skin, plate, across, along_mm)
    colour = np.asarray(style.colours[plate.finger % len(style.colours)], dtype=np.float32)
    none = np.zeros(len(across), dtype=np.float32)
    if style.finish == "bare":
        return Lacquer(natural, none + 0.25 + 0.35 * style.gloss, none)
    if style.finish == "french":
        sheer = natural * 0.5 + 0.5 * np.array([0.74, 0.50, 0.45], dtype=np.float32)
        smile = min(plate.bed_mm * 0.86, plate.length_mm - 0.28 * plate.bed_mm)
        smile_mm = smile - 0.09 * plate.bed_mm * across**2
        tip = np.clip((along_mm - smile_mm) / 0.35 + 0.5, 0, 1)[:, None]
        return Lacquer(sheer * (1 - tip) + colour * tip, none + style.gloss, none)
    grown = np.clip((along_mm - style.grown_out_mm - 0.5 * across**2) / 0.3, 0, 1)
    cover = grown * np.clip((1.0 - np.abs(across)) / 0.03, 0, 1)
    flakes = sample_solid_noise(np.stack([across * 4, along_mm, none], axis=-1), 0.22, skin.seed)
    metal = np.clip(style.glitter * (0.35 + 0.9 * np.clip(flakes, 0, 1.5)) * cover, 0, 1)
    albedo = natural * (1 - cover[:, None]) + colour * cover[:, None]
    return Lacquer(albedo, style.gloss * cover + 0.4 * (1 - cover), metal)


def _colour_bare(skin: Skin, plate: NailPlate, across: F32, along_mm: F32) -> F32:
    base = np.asarray(skin.albedo, dtype=np.float32)
    bed = base * 0.62 + np.array([0.34, 0.17, 0.145], dtype=np.float32) * (
        0.55 + 0.45 * float(base @ LUMINANCE)
    )
    edge = base * 0.25 + np.array([0.52, 0.49, 0.43], dtype=np.float32)
    moon_mm = (0.24 if plate.finger < 3 else 0.13) * plate.bed_mm
    moon = np.clip((moon_mm * np.sqrt(np.clip(1 - across**2, 0, 1)) - along_mm) / 0.8, 0, 1) * 0.55
    free_mm = plate.bed_mm * (0.96 - 0.11 * across**2)
    free = np.clip((along_mm - free_mm) / 0.5 + 0.5, 0, 1)
    ridge = 1 + 0.015 * np.sin(across * 23 + plate.finger)
    rosy = 1 - 0.1 * np.clip(1 - np.abs(along_mm - 0.85 * plate.bed_mm) / 2, 0, 1)
    albedo = bed * ridge[:, None] * np.stack([0 * rosy + 1, rosy, rosy], axis=-1)
    albedo = albedo * (1 - moon[:, None]) + (bed * 0.6 + 0.28) * moon[:, None]
    return np.asarray(albedo * (1 - free[:, None]) + edge * free[:, None], dtype=np.float32)


def reflect_surroundings(lighting: Lighting, directions: F32, sharpness: float) -> F32:
    """(N, 3) radiance a mirror would show: dome, and the key light as a soft-edged window."""
    key = np.asarray(lighting.key_direction, dtype=np.float32)
    key = key / np.linalg.norm(key)
    side = np.cross(key, np.array([0.0, 1.0, 0.1], dtype=np.float32))
    side /= np.linalg.norm(side)
    up = np.cross(side, key)
    front = directions @ key
    safe = np.maximum(front, 1e-3)
    half = np.tan(np.radians(lighting.key_size_deg)) * 1.3
    soft = 0.04 + half * (1 - sharpness) * 1.5
    box = np.ones(len(directions), dtype=np.float32)
    for axis, reach in ((side, 0.75 * half), (up, 1.25 * half)):
        offset = np.abs(directions @ axis) / safe
        box *= np.clip((reach + soft - offset) / (2 * soft), 0, 1)
    box *= front > 0
    # A small window must be brighter to give the same light; the cap keeps highlights from clipping hard.
    strength = min(1.3 / half**2, 30.0) * (0.35 + 0.65 * sharpness)
    key_glow = strength * np.asarray(lighting.key_colour, dtype=np.float32)
    return np.asarray(look_up_dome(lighting, directions) + box[:, None] * key_glow, dtype=np.float32)


def fresnel(cosine: F32, at_normal: float) -> F32:
    """(N,) Schlick's share of light mirrored."""
    return np.asarray(at_normal + (1 - at_normal) * (1 - np.clip(cosine, 0, 1)) ** 5, dtype=np.float32)


def add_sheen(lighting: Lighting, skin: Skin, at: SkinPoints, normals: F32, view: F32) -> F32:
    """(N, 3) mirrored light of skin: broad, weak, strongest at grazing angles."""
    cosine = np.einsum("ij,ij->i", normals, view)
    mirrored = 2 * cosine[:, None] * normals - view
    light = np.asarray(lighting.key_direction, dtype=np.float32)
    half = view + light / np.linalg.norm(light)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    aligned = np.clip(np.einsum("ij,ij->i", normals, half), 0, 1)
    lobe = 0.6 * aligned**14 + 1.1 * aligned**50
    share = fresnel(cosine, 0.03) * skin.gloss
    glow = (lobe * at.key * 1.6)[:, None] * np.asarray(lighting.key_colour, dtype=np.float32)
    return np.asarray(
        share[:, None] * (glow + 0.55 * at.openness[:, None] * look_up_dome(lighting, mirrored)),
        dtype=np.float32,
    )


def add_clear_coat(lighting: Lighting, coat: Lacquer, normals: F32, view: F32, lit: F32) -> F32:
    """(N, 3) mirrored light of nails: a window's reflection in lacquer, tinted where flakes are metal.

    Args:
        lit: (N, 2) share of the key light, and of the dome, that reaches each point.
    """
    key, openness = lit.T
    gloss, metal, albedo = coat.gloss, coat.metal, coat.albedo
    cosine = np.clip(np.einsum("ij,ij->i", normals, view), 0, 1)
    mirrored = 2 * cosine[:, None] * normals - view
    mirrored /= np.linalg.norm(mirrored, axis=1, keepdims=True)
    sharp = float(np.median(gloss)) if len(gloss) else 0.0
    seen = reflect_surroundings(lighting, mirrored, sharp)
    seen = seen * (0.35 + 0.65 * np.minimum(openness, 1))[:, None] * (0.3 + 0.7 * key)[:, None]
    clear = (fresnel(cosine, 0.045) * gloss)[:, None] * seen
    broad = np.minimum(reflect_surroundings(lighting, mirrored, 0.1), 3.0)
    return np.asarray(clear + metal[:, None] * albedo * broad * 0.8, dtype=np.float32)


def tilt_normals(normals: F32, slope_x: F32, slope_y: F32) -> F32:
    """Bend (N, 3) normals by the slopes of a height map drawn on the picture (mm per mm)."""
    bent = normals.copy()
    bent[:, 0] -= slope_x
    bent[:, 1] -= slope_y
    return np.asarray(bent / np.linalg.norm(bent, axis=1, keepdims=True), dtype=np.float32)
