"""What a picture shows, renderer-neutral: typed, frozen, drawn at random from a seed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Vector = tuple[float, float, float]
Colour = tuple[float, float, float]  # linear RGB reflectance, 0..1
Side = Literal["left", "right"]
NailShape = Literal["round", "square", "almond", "coffin", "stiletto"]
NailFinish = Literal["bare", "polish", "french"]
BackgroundKind = Literal[
    "wood", "fabric", "stone", "clutter", "foliage", "paper", "tiles", "carpet", "leather", "plain", "print"
]
# "dome" is a plain sky; the others are panoramas that Blender ships (CC0), for the photoreal renderer.
Surroundings = Literal[
    "dome", "city", "courtyard", "forest", "interior", "night", "studio", "sunrise", "sunset"
]
WornKind = Literal["ring", "bracelet", "sleeve"]


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
    veins: float = 0.0  # how far veins show through the back of the hand, 0..1


class NailStyle(_Frozen):
    """How a subject wears the nails of one hand."""

    shape: NailShape
    free_edge_mm: float  # length past the fingertip's nail bed, middle finger
    finish: NailFinish
    colours: tuple[Colour, ...]  # per finger (one: all alike); of the polish or of the French tip
    gloss: float  # 0 matte .. 1 clear coat
    glitter: float  # 0..1
    grown_out_mm: float  # bare strip left at the base of old polish


class Worn(_Frozen):
    """A ring, bracelet or sleeve."""

    kind: WornKind
    finger: int = 0  # 0 thumb .. 4 little finger; of rings
    along_mm: float  # from the knuckle outwards (rings) or from the wrist (others: negative, up the arm)
    width_mm: float = 0.0
    thickness_mm: float
    loose_mm: float  # gap between it and the skin
    colour: Colour
    metal: bool
    seed: int


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
    tips_share: float = 0.6  # what lies at the centre: 0 the knuckles .. 1 the fingertips
    worn: tuple[Worn, ...] = ()


class Camera(_Frozen):
    """A pinhole camera at the origin."""

    width_px: int
    height_px: int
    focal_px: float
    f_number: float = 16.0  # of a lens before a 36 mm sensor; the rasteriser's hands are always sharp


class Lighting(_Frozen):
    """A soft key light, a sky and the ground's bounce; directions point from the hand to the light."""

    key_direction: Vector  # camera axes
    key_colour: Colour
    key_size_deg: float
    sky_colour: Colour
    ground_colour: Colour
    surroundings: Surroundings = "dome"
    surroundings_turn_deg: float = 0.0  # about the vertical
    surroundings_share: float = 0.0  # how much of the sky's light they give in place of the plain dome


class Background(_Frozen):
    """A procedural backdrop and how it lies behind the hands."""

    kind: BackgroundKind
    seed: int
    blur_px: float  # at 640 px width
    shadow: float  # strength of the hands' shadow on it, 0..1
    shadow_reach_px: float  # how far the shadow falls away from the light, at 640 px width
    tilt_deg: float = 0.0  # of the surface behind the hands, 0: square to the camera; photoreal only
    gap_mm: float = 0.0  # between hands and surface; photoreal only
    is_surface: bool = True  # False: the hands are held up before the surroundings; photoreal only
    things: int = 0  # how many objects lie about; photoreal only


class Sensor(_Frozen):
    """What the camera adds."""

    exposure: float
    noise: float  # standard deviation of mid grey, in 8-bit steps
    blur_px: float
    white_balance: Colour
    seed: int
    motion_px: float = 0.0  # path of a shaken camera, at 640 px width
    motion_deg: float = 0.0


class Scene(_Frozen):
    """Everything a renderer needs; equal scenes give equal labels in every renderer."""

    seed: int
    subject: str
    camera: Camera
    hands: tuple[Hand, ...]
    lighting: Lighting
    background: Background
    sensor: Sensor
