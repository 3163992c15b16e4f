"""Draw what surrounds a hand: rings and sleeves, the lens, surroundings, and the surface behind it."""

from __future__ import annotations

import numpy as np

from nailcore.data.synth.scene import Background, Camera, Colour, Lighting, Sensor, Worn

METALS = ((0.83, 0.69, 0.35), (0.78, 0.78, 0.76), (0.80, 0.58, 0.46), (0.35, 0.35, 0.36))  # linear
# sRGB cloth: blacks, greys, navy, denim, white, beige, and a few colours.
CLOTHS = (
    (0.07, 0.07, 0.08), (0.16, 0.16, 0.18), (0.35, 0.36, 0.38), (0.62, 0.62, 0.63), (0.10, 0.13, 0.24),
    (0.25, 0.34, 0.48), (0.90, 0.89, 0.87), (0.74, 0.66, 0.55), (0.45, 0.10, 0.13), (0.20, 0.30, 0.22),
    (0.75, 0.52, 0.56), (0.42, 0.30, 0.24),
)  # fmt: skip
# Surroundings and how often they are met; most nails are photographed indoors.
SURROUNDINGS = {
    "interior": 0.30, "studio": 0.24, "courtyard": 0.14, "city": 0.10, "forest": 0.08, "sunset": 0.05,
    "sunrise": 0.05, "night": 0.04,
}  # fmt: skip
SURFACES = {
    "wood": 0.17, "fabric": 0.20, "stone": 0.11, "paper": 0.10, "tiles": 0.06, "carpet": 0.08,
    "leather": 0.06, "plain": 0.14, "print": 0.08,
}  # fmt: skip


def _tint(rng: np.random.Generator, srgb: tuple[float, float, float]) -> Colour:
    r, g, b = np.clip(np.asarray(srgb) + rng.normal(0, 0.02, 3), 0.02, 0.97) ** 2.2
    return (float(r), float(g), float(b))


def sample_worn(rng: np.random.Generator) -> tuple[Worn, ...]:
    """Rings (never the thumb's), now and then a bracelet; a sleeve on about every other arm."""
    worn = []
    metal = METALS[int(rng.integers(len(METALS)))]
    for finger, share in ((1, 0.06), (2, 0.09), (3, 0.22), (4, 0.05)):
        if rng.uniform() < share:
            worn.append(
                Worn(
                    kind="ring",
                    finger=finger,
                    along_mm=float(rng.uniform(15, 23) * (0.85 if finger == 4 else 1.0)),
                    width_mm=float(rng.uniform(1.6, 5.0)),
                    thickness_mm=float(rng.uniform(0.9, 1.7)),
                    loose_mm=0.0,
                    colour=metal,
                    metal=True,
                    seed=int(rng.integers(1 << 20)),
                )
            )
    sleeve = rng.uniform() < 0.5
    cuff_mm = float(rng.uniform(-75, -14))
    if sleeve:
        thick = float(rng.uniform(1.2, 3.5))
        cloth = CLOTHS[int(rng.integers(len(CLOTHS)))]
        worn.append(
            Worn(
                kind="sleeve",
                along_mm=cuff_mm,
                thickness_mm=thick,
                loose_mm=thick + float(rng.uniform(2.5, 9.0)),
                colour=_tint(rng, cloth),
                metal=False,
                seed=int(rng.integers(1 << 20)),
            )
        )
    if rng.uniform() < 0.12 and not (sleeve and cuff_mm > -26):
        worn.append(
            Worn(
                kind="bracelet",
                along_mm=-13.0,
                width_mm=float(rng.uniform(1.5, 9)),
                thickness_mm=float(rng.uniform(1.0, 2.2)),
                loose_mm=float(rng.uniform(0.3, 1.5)),
                colour=metal,
                metal=True,
                seed=int(rng.integers(1 << 20)),
            )
        )
    return tuple(worn)


def choose_lens(rng: np.random.Generator, camera: Camera) -> Camera:
    """Phones see nearly everything sharp, other cameras blur what is far from the nails."""
    return camera.model_copy(update={"f_number": float(np.exp(rng.uniform(np.log(7), np.log(26))))})


def surround(rng: np.random.Generator, lighting: Lighting) -> Lighting:
    """Put a plain sky and lamp into a place."""
    names, shares = zip(*SURROUNDINGS.items(), strict=True)
    return lighting.model_copy(
        update={
            "surroundings": str(rng.choice(names, p=shares)),
            "surroundings_turn_deg": float(rng.uniform(0, 360)),
            "surroundings_share": float(rng.choice((0.0, 0.5, 0.9), p=(0.08, 0.37, 0.55))),
        }
    )


def lay_out(rng: np.random.Generator, background: Background, pose_name: str) -> Background:
    """Decide on a surface, its tilt, and what lies about on it; hands held up have none."""
    if background.kind in ("clutter", "foliage") or rng.uniform() < 0.12:
        return background.model_copy(update={"is_surface": False})
    names, shares = zip(*SURFACES.items(), strict=True)
    resting = pose_name in ("flat", "relaxed") and rng.uniform() < 0.6
    steep = rng.uniform() < 0.25 and not resting
    return background.model_copy(
        update={
            "kind": str(rng.choice(names, p=shares)),
            "tilt_deg": float(rng.uniform(45, 80) if steep else rng.uniform(0, 40)),
            "gap_mm": 0.0 if resting else float(rng.uniform(0, 90)),
            "things": int(rng.integers(0, 7)) if rng.uniform() < 0.6 else 0,
        }
    )


def shake(rng: np.random.Generator, sensor: Sensor) -> Sensor:
    """One picture in eight is shaken."""
    if rng.uniform() > 0.12:
        return sensor
    return sensor.model_copy(
        update={"motion_px": float(rng.uniform(1.5, 4.5)), "motion_deg": float(rng.uniform(0, 180))}
    )
