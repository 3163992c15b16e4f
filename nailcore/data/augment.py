"""Training crops: a plan drawn at random, then one resampling of image and labels, colour and blur."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from nailcore.data.labels import (
    MIRRORED_FINGER,
    UNKNOWN_FINGER,
    Label,
    NailRecord,
    Point,
    direction_table,
)
from nailcore.preprocess import PAD_VALUE

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

Crops = Literal["opencv", "kornia"]
IGNORE = 255  # as nailcore.losses has it: nobody annotated the masks of this image


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random crop; sizes are relative to a photo whose long side is ``long_side_px``."""

    crop_px: int = 288
    long_side_px: int = 480
    scale_low: float = 0.5
    scale_high: float = 1.8
    rotation_deg: float = 180.0
    perspective: float = 0.15  # depth differs by at most this share between centre and border
    nail_centred: float = 0.8  # share of crops placed over a nail; the rest anywhere in the photo
    # Share of crops that show the whole photo, as the network sees it in use, where its fingers are known.
    # Which hand it is can only be told with the thumb in sight: closer crops alone taught no more of it
    # than chance. Masks alone are learnt better from closer crops.
    whole_share: float = 0.0
    whole_scale_low: float = 0.75  # long side of the photo relative to the crop's
    whole_scale_high: float = 1.1
    repaint: float = 0.35  # probability of painting all nails in one random colour
    crops: Crops = "opencv"  # what makes the pixels; kornia is six times slower on a CPU


@dataclass(frozen=True)
class CropPlan:
    """Everything random about one crop, so that two implementations can make the same one."""

    matrix: Matrix  # (3, 3) from photo to crop; pixel centres have whole coordinates
    reflect: bool  # outside the photo: its reflection, or the letterbox's grey
    repaint_seed: int | None
    gain: npt.NDArray[np.float64]  # (3,) per channel: white balance times brightness
    saturation: float
    contrast: float
    blur_px: float
    noise: float  # standard deviation, 0..255
    jpeg_quality: int  # 0: not compressed again
    seed: int  # of the noise

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped, and so are the hands."""
        return bool(np.linalg.det(self.matrix[:2, :2]) < 0)

    @property
    def shrink(self) -> float:
        """Crop pixels per photo pixel at the crop's centre, roughly."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))


@dataclass(frozen=True)
class LabelledPhoto:
    """A decoded photo with its nail index map, records (in its own pixels), and what is labelled."""

    image: Image  # (H, W, 3)
    nail_index: Mask  # (H, W) 0 background, k: nails[k - 1]
    nails: tuple[NailRecord, ...]
    labels: frozenset[Label]


@dataclass(frozen=True)
class Crop:
    """A crop and its labels, all (S, S)."""

    image: Image  # (S, S, 3)
    mask: Mask  # 1 nail, 0 background, IGNORE
    finger: npt.NDArray[np.int8]  # 0..9 or UNKNOWN_FINGER
    direction: npt.NDArray[np.float32]  # (2, S, S), unit vectors or zeros


def draw_crop(photo: LabelledPhoto, config: AugmentConfig, rng: np.random.Generator) -> Crop:
    """One random crop of a photo at ``crop_px``."""
    if config.whole_share and "finger" not in photo.labels:
        config = replace(config, whole_share=0.0)
    plan = draw_plan(photo.nail_index, config, rng)
    if config.crops == "kornia":
        from nailcore.data.augment_kornia import apply_plan_kornia

        return apply_plan_kornia(photo, plan, config.crop_px)
    return apply_plan(photo, plan, config.crop_px)


# -- the plan ----------------------------------------------------------------------------------------
def draw_plan(nail_index: Mask, config: AugmentConfig, rng: np.random.Generator) -> CropPlan:
    """Draw geometry, paint, colour, blur and noise of one crop."""
    repaint = int(rng.integers(1 << 31)) if rng.random() < config.repaint else None
    # No number is drawn where none is needed: trainings without whole photos stay what they were.
    whole = config.whole_share > 0 and rng.random() < config.whole_share
    matrix = (_draw_whole if whole else _draw_matrix)(nail_index, config, rng)
    return CropPlan(
        matrix=matrix,
        # Half of the crops see the letterbox's grey outside the photo, half a mirrored world; beside a
        # whole hand, a mirrored one would contradict its fingers.
        reflect=bool(rng.random() < 0.5) and not whole,
        repaint_seed=repaint,
        gain=rng.uniform(0.85, 1.15, 3) * rng.uniform(0.6, 1.35),
        saturation=float(rng.uniform(0.5, 1.5)),
        contrast=float(rng.uniform(0.75, 1.3)),
        blur_px=float(rng.uniform(0.4, 1.8)) if rng.random() < 0.2 else 0.0,
        noise=float(rng.uniform(2, 12)) if rng.random() < 0.3 else 0.0,
        jpeg_quality=int(rng.integers(35, 90)) if rng.random() < 0.15 else 0,
        seed=int(rng.integers(1 << 31)),
    )


def _draw_matrix(nail_index: Mask, config: AugmentConfig, rng: np.random.Generator) -> Matrix:
    """(3, 3) matrix from photo to crop pixels, for a part of the photo."""
    height, width = nail_index.shape
    base = config.long_side_px / max(height, width)
    turn = _draw_turn(base, (config.scale_low, config.scale_high), 0.5, config, rng)
    centre = _pick_nail_pixel(nail_index, rng) if rng.random() < config.nail_centred else None
    if centre is None:
        centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    return _place(turn, centre, 0.35, config, rng)


def _draw_whole(nail_index: Mask, config: AugmentConfig, rng: np.random.Generator) -> Matrix:
    """(3, 3) matrix from photo to crop pixels, for the photo as a whole."""
    height, width = nail_index.shape
    base = config.crop_px / max(height, width)
    turn = _draw_turn(base, (config.whole_scale_low, config.whole_scale_high), 0.2, config, rng)
    return _place(turn, np.array([width / 2, height / 2]), 0.1, config, rng)


def _draw_turn(
    base: float,
    scales: tuple[float, float],
    any_angle: float,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Matrix:
    """(2, 2): scale, rotation, mirror and aspect; ``any_angle``: the share turned by more than a little."""
    scale = base * float(np.exp(rng.uniform(np.log(scales[0]), np.log(scales[1]))))
    # Hands stand upright more often than not: a narrow and a wide distribution of angles.
    spread = config.rotation_deg if rng.random() < any_angle else config.rotation_deg / 6
    angle = np.deg2rad(rng.uniform(-spread, spread))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    aspect = float(np.exp(rng.uniform(-0.12, 0.12)))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * scale * aspect, scale / aspect])
    return np.asarray(turn)


def _place(
    turn: Matrix,
    centre: npt.NDArray[np.float64],
    shift: float,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Matrix:
    """(3, 3): the photo's point ``centre`` within ``shift`` of the crop's side from its middle; tilted."""
    middle = config.crop_px / 2 + rng.uniform(-shift, shift, 2) * config.crop_px
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = turn, middle - turn @ centre
    if config.perspective and rng.random() < 0.3:
        matrix = tilt(matrix, rng.uniform(-config.perspective, config.perspective, 2), config.crop_px)
    return matrix


def _pick_nail_pixel(nail_index: Mask, rng: np.random.Generator) -> npt.NDArray[np.float64] | None:
    import cv2

    found = cv2.findNonZero(nail_index)
    if found is None or not len(found):
        return None
    places = np.asarray(found).reshape(-1, 2)  # x, y; OpenCV 4 puts an axis of length 1 between
    return np.asarray(places[rng.integers(len(places))], np.float64)


def tilt(matrix: Matrix, depth: npt.NDArray[np.float64], crop_px: int) -> Matrix:
    """Look at the crop's plane aslant: ``depth`` (2,) is how much farther its right and lower border lie."""
    half = (crop_px - 1) / 2
    to_middle = np.array([[1, 0, -half], [0, 1, -half], [0, 0, 1.0]])
    slant = np.eye(3)
    slant[2, :2] = depth / half
    tilted = np.linalg.inv(to_middle) @ slant @ to_middle @ matrix
    return np.asarray(tilted / tilted[2, 2])


# -- labels ------------------------------------------------------------------------------------------
def move_point(matrix: Matrix, point: Point) -> Point:
    """A keypoint of the photo (pixel (x, y) covers [x, x+1)) in the crop."""
    x, y, w = matrix @ (point[0] - 0.5, point[1] - 0.5, 1.0)
    return (float(x / w) + 0.5, float(y / w) + 0.5)


def move_nails(nails: tuple[NailRecord, ...], plan: CropPlan) -> tuple[NailRecord, ...]:
    """Records with base and tip where the crop shows them; directions are derived from these anew."""
    return tuple(
        nail.model_copy(
            update={
                "base": None if nail.base is None else move_point(plan.matrix, nail.base),
                "tip": None if nail.tip is None else move_point(plan.matrix, nail.tip),
            }
        )
        for nail in nails
    )


def label_crop(
    photo: LabelledPhoto, plan: CropPlan, mask: Mask, nail_index: Mask
) -> tuple[Mask, npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Mask, fingers and directions of a crop from its warped nail index (S, S).

    ``nail_index`` must be 0 outside the photo: a reflected nail has a mask, but its finger and its
    direction would be those of another hand.
    """
    import cv2

    fingers = np.full(256, UNKNOWN_FINGER, np.int8)
    if "finger" in photo.labels:
        for k, nail in enumerate(photo.nails, start=1):
            finger = nail.finger_class
            fingers[k] = MIRRORED_FINGER[finger] if plan.mirrored and finger >= 0 else finger
    directions = direction_table(move_nails(photo.nails, plan), photo.labels)
    seen = nail_index * mask  # the mask holds 0 and 1
    if "mask" not in photo.labels:
        mask = np.full_like(mask, IGNORE)
    # cv2.LUT is ten times as fast as indexing with an array.
    which = np.asarray(cv2.LUT(seen, fingers.view(np.uint8))).view(np.int8)
    return mask, which, np.stack([np.asarray(cv2.LUT(seen, axis), np.float32) for axis in directions])


# -- pixels ------------------------------------------------------------------------------------------
def apply_plan(photo: LabelledPhoto, plan: CropPlan, crop_px: int) -> Crop:
    """Make the crop a plan describes, with OpenCV."""
    import cv2

    image = photo.image
    if plan.shrink < 0.7:  # bilinear sampling would alias: blur to the new pixel size first
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 / plan.shrink), np.uint8)
    border = cv2.BORDER_REFLECT_101 if plan.reflect else cv2.BORDER_CONSTANT
    crop = _warp(image, plan.matrix, crop_px, cv2.INTER_LINEAR, border)
    nails = np.where(photo.nail_index > 0, np.uint8(255), np.uint8(0))
    outside = border if plan.reflect else cv2.BORDER_CONSTANT
    soft = _warp(nails, plan.matrix, crop_px, cv2.INTER_LINEAR, outside, value=0)
    index = _warp(photo.nail_index, plan.matrix, crop_px, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, value=0)
    shape = np.asarray(soft > 127, np.uint8)
    crop = colour_crop(crop, shape, plan)
    return Crop(crop, *label_crop(photo, plan, shape, index))


def _warp(
    image: Image, matrix: Matrix, size_px: int, flags: int, border: int, *, value: int = PAD_VALUE
) -> Image:
    import cv2

    size, fill = (size_px, size_px), (value,) * 3
    if np.array_equal(matrix[2], (0, 0, 1)):  # affine: three times as fast
        warped = cv2.warpAffine(image, matrix[:2], size, flags=flags, borderMode=border, borderValue=fill)
    else:
        warped = cv2.warpPerspective(image, matrix, size, flags=flags, borderMode=border, borderValue=fill)
    return np.asarray(warped, np.uint8)


def colour_matrix(plan: CropPlan, mean: npt.NDArray[np.float64]) -> Matrix:
    """(3, 4): gain, then saturation, then contrast about the mean, as one map of RGB in 0..255.

    ``mean`` (3,) is that of the crop before.
    """
    grey = np.full((3, 3), 1 / 3)
    linear = (grey + plan.saturation * (np.eye(3) - grey)) @ np.diag(plan.gain)
    middle = float((linear @ mean).mean())
    return np.column_stack([plan.contrast * linear, np.full(3, (1 - plan.contrast) * middle)])


def colour_crop(crop: Image, mask: Mask, plan: CropPlan) -> Image:
    """Polish, colours, blur, noise and compression, in this order."""
    import cv2

    if plan.repaint_seed is not None:
        crop = repaint_nails(crop, mask, np.random.default_rng(plan.repaint_seed))
    mean = np.asarray(cv2.mean(crop)[:3])
    crop = np.asarray(cv2.transform(crop, colour_matrix(plan, mean)), np.uint8)
    if plan.blur_px:
        crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), plan.blur_px), np.uint8)
    if plan.noise:
        grain = np.random.default_rng(plan.seed).standard_normal(crop.shape, dtype=np.float32)
        noisy = crop + grain * np.float32(plan.noise)
        crop = np.asarray(np.clip(noisy, 0, 255), np.uint8)
    if plan.jpeg_quality:
        done, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, plan.jpeg_quality])
        crop = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8) if done else crop
    return crop


def repaint_nails(image: Image, mask: Mask, rng: np.random.Generator) -> Image:
    """Paint the nails in one random polish, keeping their shading (and a soft edge)."""
    import cv2

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return image
    sigma = 0.8 + image.shape[0] / 1500
    margin = int(4 * sigma) + 1
    part = (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )
    near, inside = image[part], mask[part]
    soft = np.asarray(cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma))[..., None]
    grey = np.asarray(cv2.cvtColor(near, cv2.COLOR_RGB2GRAY), np.float32)[..., None] / 255
    mean = float(grey[inside > 0].mean())
    hue, saturation, value = rng.integers(180), rng.uniform(0.1, 1.0), rng.uniform(0.15, 1.0)
    hsv = np.array([[[hue, saturation * 255, value * 255]]], np.uint8)
    colour = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
    contrast = np.float32(rng.uniform(0.6, 1.6))
    opacity = np.float32(rng.uniform(0.5, 1.0)) * soft
    shaded = np.clip(colour * (1 + contrast * (grey - np.float32(mean))), 0, 255)
    painted = image.copy()
    painted[part] = np.clip(near * (1 - opacity) + shaded * opacity, 0, 255)
    return painted
