"""Draw a plausible scene from a seed: who, which pose, which nails, where, in which light."""

from __future__ import annotations

import numpy as np

from nailcore.data.synth.sample_setting import choose_lens, lay_out, sample_worn, shake, surround
from nailcore.data.synth.scene import (
    Background,
    Camera,
    Colour,
    FingerPose,
    Hand,
    HandShape,
    Lighting,
    NailStyle,
    Pose,
    Scene,
    Sensor,
    Side,
    Skin,
)

# sRGB skin tones from light to deep.
SKIN_TONES = (
    (0.90, 0.76, 0.68),
    (0.86, 0.69, 0.59),
    (0.81, 0.62, 0.50),
    (0.75, 0.55, 0.42),
    (0.66, 0.46, 0.34),
    (0.55, 0.37, 0.27),
    (0.43, 0.28, 0.21),
    (0.33, 0.21, 0.16),
)
# sRGB lacquers as shops sell them: reds, pinks, nudes, darks, lights, and a few loud ones.
POLISHES = (
    (0.70, 0.04, 0.09), (0.42, 0.02, 0.09), (0.93, 0.38, 0.32), (0.86, 0.14, 0.42), (0.92, 0.66, 0.70),
    (0.80, 0.60, 0.52), (0.62, 0.42, 0.47), (0.06, 0.05, 0.07), (0.92, 0.91, 0.88), (0.08, 0.12, 0.34),
    (0.05, 0.42, 0.45), (0.60, 0.84, 0.76), (0.72, 0.64, 0.84), (0.48, 0.48, 0.50), (0.78, 0.62, 0.32),
    (0.72, 0.72, 0.74), (0.16, 0.36, 0.20), (0.92, 0.80, 0.30), (0.36, 0.18, 0.14), (0.30, 0.55, 0.85),
)  # fmt: skip
RACES = ("caucasian", "african", "asian")
KINDS = ("wood", "fabric", "stone", "clutter", "foliage", "paper", "tiles")
POSES = ("flat", "relaxed", "claw", "fist")
SPAN_MM = {"flat": 190.0, "relaxed": 175.0, "claw": 125.0, "fist": 110.0}
FAN = (-1.0, -0.3, 0.4, 1.1)  # sideways share of each finger, index to little finger


def _to_linear(colour: tuple[float, float, float]) -> Colour:
    r, g, b = (float(np.clip(c, 0.01, 0.98)) ** 2.2 for c in colour)
    return (r, g, b)


def sample_scene(
    seed: int, *, subject_seed: int | None = None, width_px: int = 640, height_px: int = 480
) -> Scene:
    """Draw everything a picture shows; equal arguments give an equal scene.

    Args:
        subject_seed: hand shape, skin and nail shape come from it alone (default: from ``seed``).
    """
    who = seed if subject_seed is None else subject_seed
    rng = np.random.default_rng([seed, 1])
    camera = Camera(
        width_px=width_px, height_px=height_px, focal_px=float(rng.uniform(1.05, 1.75)) * width_px
    )
    both = rng.uniform() < 0.12
    sides: tuple[Side, ...] = ("left", "right") if both else (("left", "right")[int(rng.integers(2))],)
    nails = sample_nails(rng, who)
    pose_name = str(rng.choice(POSES, p=(0.4, 0.3, 0.16, 0.14)))
    if both and pose_name in ("claw", "fist"):
        pose_name = "relaxed"
    span_mm = SPAN_MM[pose_name] * (1.9 if both else 1.0)
    fill = rng.uniform(0.75, 0.95) if both else rng.uniform(0.66, 1.15)
    setting = np.random.default_rng([seed, 9])
    near = not both and setting.uniform() < 0.42
    if near:  # most photographs of nails show fingers, not whole hands
        fill *= (
            setting.uniform(1.25, 2.0) if pose_name in ("flat", "relaxed") else setting.uniform(0.95, 1.25)
        )
    distance_mm = camera.focal_px * span_mm / (fill * height_px * (1.25 if both else 1.0))
    worn = sample_worn(setting)
    hands = tuple(
        _sample_hand(
            rng,
            side,
            who=sample_subject(who),
            nails=nails,
            pose_name=pose_name,
            distance_mm=distance_mm,
            both=both,
        ).model_copy(
            update={
                "worn": worn if side == sides[0] else tuple(w for w in worn if w.kind == "sleeve"),
                "tips_share": 0.92 if near else 0.6,
            }
        )
        for side in sides
    )
    background = lay_out(setting, _sample_background(rng), pose_name)
    lighting = surround(setting, _sample_lighting(rng))
    if not background.is_surface and lighting.surroundings_share < 0.5:  # nothing else would be behind
        lighting = lighting.model_copy(update={"surroundings_share": 0.9})
    return Scene(
        seed=seed,
        subject=f"rendered-{who:06d}",
        camera=choose_lens(setting, camera),
        hands=hands,
        lighting=lighting,
        background=background,
        sensor=shake(setting, _sample_sensor(rng)),
    )


def sample_subject(seed: int) -> tuple[HandShape, Skin]:
    """A person: bones, flesh and skin."""
    rng = np.random.default_rng([seed, 2])
    share = rng.dirichlet((0.6, 0.6, 0.6))
    male = float(np.clip(rng.normal(0.25, 0.3), 0, 1))
    targets = [
        (f"macrodetails/{race}-female-young", float(w) * (1 - male))
        for race, w in zip(RACES, share, strict=True)
    ]
    targets.append(("macrodetails/caucasian-male-young", male))
    weight = rng.normal(0, 0.5)
    build = "maxweight" if weight > 0 else "minweight"
    prefix = "macrodetails/universal-female-young-averagemuscle-"
    targets.append((prefix + build, float(min(abs(weight), 1))))
    for name, spread in (("fingers-diameter", 0.35), ("fingers-length", 0.18)):
        amount = float(np.clip(rng.normal(0, spread), -0.6, 0.5))
        targets.append((f"hands/r-hand-{name}-{'incr' if amount > 0 else 'decr'}", abs(amount)))
    place = rng.uniform(0, len(SKIN_TONES) - 1)
    low = int(place)
    high = min(low + 1, len(SKIN_TONES) - 1)
    tone = np.asarray(SKIN_TONES[low]) * (1 - place + low) + np.asarray(SKIN_TONES[high]) * (place - low)
    tone = tone + rng.normal(0, (0.012, 0.01, 0.014))
    skin = Skin(
        albedo=_to_linear(tuple(tone)),
        palm_lift=float(np.clip(0.25 + 0.06 * place + rng.normal(0, 0.05), 0, 0.8)),
        redness=float(rng.uniform(0.3, 0.9)),
        mottle=float(rng.uniform(0.4, 1.2)),
        wrinkle=float(rng.uniform(0.5, 1.4)),
        gloss=float(rng.uniform(0.5, 1.0)),
        seed=int(rng.integers(1 << 20)),
        veins=float(np.clip(rng.normal(0.55, 0.4), 0, 1.2) * (1 - 0.08 * place)),
    )
    return HandShape(targets=tuple(targets), scale=float(np.clip(rng.normal(1.06, 0.06), 0.92, 1.22))), skin


def sample_nails(rng: np.random.Generator, subject_seed: int) -> NailStyle:
    """Nails: the shape belongs to the subject, length and paint to the picture."""
    own = np.random.default_rng([subject_seed, 3])
    shapes = ("round", "square", "almond", "coffin", "stiletto")
    shape = shapes[int(own.choice(5, p=(0.34, 0.18, 0.24, 0.14, 0.10)))]
    reach = {
        "round": (0.6, 3.0),
        "square": (1.0, 7.0),
        "almond": (3.0, 9.0),
        "coffin": (5, 13),
        "stiletto": (6, 14),
    }
    finish = str(rng.choice(("bare", "polish", "french"), p=(0.3, 0.55, 0.15)))
    if finish == "french" and rng.uniform() < 0.7:
        colours = [(0.93, 0.92, 0.89)]
    else:
        colours = [_sample_polish(rng)] * 5
        accent = rng.uniform()
        if accent < 0.12:
            colours = [_sample_polish(rng) for _ in range(5)]
        elif accent < 0.27:
            colours[3] = _sample_polish(rng)
    return NailStyle(
        shape=shape,
        free_edge_mm=float(rng.uniform(*reach[shape])),
        finish=finish,
        colours=tuple(_to_linear(c) for c in colours),
        gloss=float(rng.choice((0.12, 0.8, 1.0), p=(0.15, 0.35, 0.5))),
        glitter=float(rng.uniform(0.3, 0.9)) if rng.uniform() < 0.2 else 0.0,
        grown_out_mm=float(rng.uniform(0.6, 2.0)) if rng.uniform() < 0.15 else 0.0,
    )


def _sample_polish(rng: np.random.Generator) -> tuple[float, float, float]:
    if rng.uniform() < 0.75:
        colour = np.asarray(POLISHES[int(rng.integers(len(POLISHES)))]) + rng.normal(0, 0.025, 3)
    else:
        colour = rng.uniform(0.03, 0.95, 3)
    r, g, b = np.clip(colour, 0.03, 0.95)
    return (float(r), float(g), float(b))


def sample_pose(rng: np.random.Generator, name: str) -> Pose:
    """One of POSES with every joint shaken."""
    low, high, fan = {
        "flat": ((-20, -4, -18), (2, 8, 0), (-5, 6)),  # the mesh rests with its fingers a little bent
        "relaxed": ((-8, 6, -12), (18, 32, 12), (-5, 4)),
        "claw": ((2, 58, 30), (26, 78, 46), (-5, 0)),
        "fist": ((48, 78, 38), (62, 90, 52), (-6, -3)),
    }[name]
    common = rng.uniform(low, high)
    spread = rng.uniform(*fan)
    fingers = [_sample_thumb(rng, name)]
    for share in FAN:
        closing = 1.0 + 0.1 * (share + 0.3) * (name in ("relaxed", "fist"))  # the little finger curls most
        bends = common * closing + rng.normal(0, (4, 5, 3))
        bends[2] = max(bends[2], -22.0)
        side = share * spread + rng.normal(0, 1.2)
        fingers.append(FingerPose(bends_deg=tuple(float(b) for b in bends), spread_deg=float(side)))
    return Pose(
        name=name,
        fingers=tuple(fingers),
        wrist_bend_deg=float(rng.normal(0, 10)),
        wrist_side_deg=float(rng.normal(0, 7)),
    )


def _sample_thumb(rng: np.random.Generator, name: str) -> FingerPose:
    low, high = {
        "flat": ((-8, -5, -5), (12, 15, 18)),
        "relaxed": ((0, 0, 5), (18, 18, 28)),
        "claw": ((5, 5, 5), (22, 22, 30)),
        "fist": ((22, 22, 10), (34, 34, 40)),
    }[name]
    bends = tuple(float(b) for b in rng.uniform(low, high))
    return FingerPose(
        bends_deg=bends,
        spread_deg=float(rng.uniform(-14, 8)),
        twist_deg=float(rng.uniform(-5, 32)) if name != "fist" else float(rng.uniform(-10, 10)),
    )


def _sample_hand(
    rng: np.random.Generator,
    side: Side,
    *,
    who: tuple[HandShape, Skin],
    nails: NailStyle,
    pose_name: str,
    distance_mm: float,
    both: bool,
) -> Hand:
    pose = sample_pose(rng, pose_name)
    # Bent fingers turn their nails from the back of the hand to its front: follow them with the view.
    nail_turn = float(np.mean([sum(f.bends_deg) for f in pose.fingers[1:]]))
    pitch = nail_turn * rng.uniform(0.65, 0.95) + rng.uniform(-30, 18)
    if pose_name in ("flat", "relaxed"):  # an arm that points straight away from the camera looks cut off
        pitch = min(pitch, rng.uniform(20, 45))
    else:
        pitch += 12.0
    if both:
        inwards = 1 if side == "left" else -1
        roll = inwards * rng.uniform(-15, 30)
        centre_x = -inwards * rng.uniform(0.5, 0.58) * SPAN_MM[pose_name]
    else:
        roll = rng.uniform(-180, 180) if rng.uniform() < 0.2 else rng.normal(0, 32)
        centre_x = rng.normal(0, 0.06) * distance_mm
        roll += 180.0 if pitch > 120 and rng.uniform() < 0.7 else 0.0
    return Hand(
        side=side,
        shape=who[0],
        skin=who[1],
        nails=nails,
        pose=pose,
        pitch_deg=float(pitch),
        yaw_deg=float(
            rng.normal(8, 17) if rng.uniform() < 0.82 else rng.normal(5, 45)
        ),  # now and then: aside
        roll_deg=float(roll),
        centre_mm=(float(centre_x), float(rng.normal(0, 0.035) * distance_mm), float(distance_mm)),
    )


def _sample_lighting(rng: np.random.Generator) -> Lighting:
    azimuth = rng.uniform(0, 2 * np.pi)
    lean = rng.uniform(0.35, 1.1)  # radians away from the camera's axis
    x, y, z = np.sin(lean) * np.cos(azimuth), np.sin(lean) * np.sin(azimuth) - 0.35, -np.cos(lean)
    warmth = rng.uniform(-0.16, 0.16)
    key = rng.uniform(0.65, 1.05) * np.array([1 + warmth, 1.0, 1 - 1.2 * warmth])
    sky = rng.uniform(0.26, 0.46) * np.array([1 - 0.7 * warmth, 1.0, 1 + 0.8 * warmth])
    ground = rng.uniform(0.06, 0.2) * rng.uniform(0.7, 1.1, 3) * np.array([1.15, 1.0, 0.85])
    return Lighting(
        key_direction=(float(x), float(y), float(z)),
        key_colour=tuple(float(c) for c in key),
        key_size_deg=float(rng.uniform(5, 20)),
        sky_colour=tuple(float(c) for c in sky),
        ground_colour=tuple(float(c) for c in ground),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(KINDS, p=(0.2, 0.22, 0.12, 0.2, 0.06, 0.12, 0.08)))
    low, high = {"clutter": (2.0, 9.0), "foliage": (2.0, 8.0)}.get(kind, (0.4, 3.0))
    return Background(
        kind=kind,
        seed=int(rng.integers(1 << 30)),
        blur_px=float(rng.uniform(low, high)),
        shadow=float(rng.uniform(0.35, 0.7)) if kind not in ("clutter", "foliage") else 0.0,
        shadow_reach_px=float(rng.uniform(4, 38)),
    )


def _sample_sensor(rng: np.random.Generator) -> Sensor:
    balance = 1 + rng.normal(0, (0.03, 0.01, 0.04))
    return Sensor(
        exposure=float(rng.uniform(0.85, 1.2)),
        noise=float(rng.uniform(0.8, 3.2)),
        blur_px=float(rng.choice((0.0, 0.5, 0.9), p=(0.4, 0.4, 0.2))),
        white_balance=tuple(float(b) for b in balance),
        seed=int(rng.integers(1 << 30)),
    )
