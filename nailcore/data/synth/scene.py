"""What a picture shows, renderer-neutral: typed, frozen, drawn at random from a seed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Vector = tuple[float, float, float]
Colour = tuple[float, float, float]  # linear RGB reflectance, 0..1
Side = Literal["left", "right"]
NailShape = Literal["round", "square", "almond", "coffin", "stiletto"]
NailFinish = Literal["bare", "polish", "french"]
BackgroundKind = Literal["wood", "fabric", "stone", "clutter", "foliage", "paper", "tiles"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HandShape(_Frozen):
    """A subject's bones and flesh: weights of the mesh's shape targets, and an overall scale."""

    targets: tuple[tuple[str, float], ...]
    scale: float


class Skin(_Frozen):
    """A subject's skin."""

    albedo: Colour
    palm_lift: float  # how far the palm goes from the skin's colour towards a light pink, 0..1
    redness: float  # blood at joints and fingertips, 0..1
    mottle: float  # strength of blotches and spots
    wrinkle: float  # depth of lines over the joints
    gloss: float  # strength of the sheen, 0..1
    seed: int


class NailStyle(_Frozen):
    """How a subject wears the nails of one hand."""

    shape: NailShape
    free_edge_mm: float  # length past the fingertip's nail bed, middle finger
    finish: NailFinish
    colours: tuple[Colour, ...]  # per finger (one: all alike); of the polish or of the French tip
    gloss: float  # 0 matte .. 1 clear coat
    glitter: float  # 0..1
    grown_out_mm: float  # bare strip left at the base of old polish


class FingerPose(_Frozen):
    """Degrees from the rest pose: three joints from the palm outwards; the first also turns otherwise."""

    bends_deg: Vector
    spread_deg: float  # sideways, positive towards the little finger
    twist_deg: float = 0.0  # about the finger's own axis


class Pose(_Frozen):
    """One hand's pose; fingers from thumb to little finger."""

    name: str
    fingers: tuple[FingerPose, FingerPose, FingerPose, FingerPose, FingerPose]
    wrist_bend_deg: float
    wrist_side_deg: float


class Hand(_Frozen):
    """One hand in front of the camera.

    Turns are applied in the order yaw (about the fingers, positive: the thumb's side comes forward),
    pitch (fingertips towards the camera) and roll (in the picture). All zero shows the back of the
    hand, fingers up.
    """

    side: Side
    shape: HandShape
    skin: Skin
    nails: NailStyle
    pose: Pose
    pitch_deg: float
    yaw_deg: float
    roll_deg: float
    centre_mm: Vector  # camera axes: x right, y down, z away


class Camera(_Frozen):
    """A pinhole camera at the origin."""

    width_px: int
    height_px: int
    focal_px: float


class Lighting(_Frozen):
    """A soft key light, a sky and the ground's bounce; directions point from the hand to the light."""

    key_direction: Vector  # camera axes
    key_colour: Colour
    key_size_deg: float
    sky_colour: Colour
    ground_colour: Colour


class Background(_Frozen):
    """A procedural backdrop and how it lies behind the hands."""

    kind: BackgroundKind
    seed: int
    blur_px: float  # at 640 px width
    shadow: float  # strength of the hands' shadow on it, 0..1
    shadow_reach_px: float  # how far the shadow falls away from the light, at 640 px width


class Sensor(_Frozen):
    """What the camera adds."""

    exposure: float
    noise: float  # standard deviation of mid grey, in 8-bit steps
    blur_px: float
    white_balance: Colour
    seed: int


class Scene(_Frozen):
    """Everything a renderer needs; equal scenes give equal labels in every renderer."""

    seed: int
    subject: str
    camera: Camera
    hands: tuple[Hand, ...]
    lighting: Lighting
    background: Background
    sensor: Sensor
