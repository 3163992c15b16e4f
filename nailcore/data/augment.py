"""Training crops: one affine resampling (scale, rotation, mirror, crop), then colour and blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.preprocess import PAD_VALUE

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random crop; sizes are relative to a photo whose long side is ``long_side_px``."""

    crop_px: int = 288
    long_side_px: int = 480
    scale_low: float = 0.5
    scale_high: float = 1.8
    rotation_deg: float = 180.0
    nail_centred: float = 0.8  # share of crops placed over a nail; the rest anywhere in the photo
    repaint: float = 0.35  # probability of painting all nails in one random colour


def draw_crop(
    image: Image, mask: Mask, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Image, Mask]:
    """One random crop of a photo (H, W, 3) and its mask (H, W) in {0, 1}, at ``crop_px``."""
    import cv2

    if rng.random() < config.repaint:
        image = repaint_nails(image, mask, rng)
    matrix = _draw_affine(mask, config, rng)
    size = (config.crop_px, config.crop_px)
    # Half of the crops see the letterbox's grey outside the photo, half a mirrored world.
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REFLECT_101
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 0.7:  # bilinear sampling would alias: blur to the new pixel size first
        sigma = 0.35 / shrink
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    crop = cv2.warpAffine(
        image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=(PAD_VALUE,) * 3
    )
    soft = cv2.warpAffine(mask * np.uint8(255), matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return _draw_colour(np.asarray(crop, np.uint8), rng), np.asarray(soft > 127, np.uint8)


def _draw_affine(mask: Mask, config: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(2, 3) matrix from photo to crop pixels."""
    height, width = mask.shape
    base = config.long_side_px / max(height, width)
    scale = base * float(np.exp(rng.uniform(np.log(config.scale_low), np.log(config.scale_high))))
    # Hands stand upright more often than not: a narrow and a wide distribution of angles.
    spread = config.rotation_deg if rng.random() < 0.5 else config.rotation_deg / 6
    angle = np.deg2rad(rng.uniform(-spread, spread))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    aspect = float(np.exp(rng.uniform(-0.12, 0.12)))
    rows, columns = np.nonzero(mask)
    if len(rows) and rng.random() < config.nail_centred:
        pick = int(rng.integers(len(rows)))
        centre = np.array([columns[pick], rows[pick]], np.float64)
    else:
        centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * scale * aspect, scale / aspect])
    middle = config.crop_px / 2 + rng.uniform(-0.35, 0.35, 2) * config.crop_px
    return np.column_stack([turn, middle - turn @ centre])


def repaint_nails(image: Image, mask: Mask, rng: np.random.Generator) -> Image:
    """Paint the nails in one random polish, keeping their shading (and a soft edge)."""
    import cv2

    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8 + image.shape[0] / 1500)[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] / 255
    mean = float(grey[mask > 0].mean()) if mask.any() else 0.5
    hue, saturation, value = rng.integers(180), rng.uniform(0.1, 1.0), rng.uniform(0.15, 1.0)
    hsv = np.array([[[hue, saturation * 255, value * 255]]], np.uint8)
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32)
    contrast = rng.uniform(0.6, 1.6)
    painted = np.clip(colour * (1 + contrast * (grey - mean)), 0, 255)
    opacity = rng.uniform(0.5, 1.0)
    mixed = image * (1 - opacity * soft) + painted * opacity * soft
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


def _draw_colour(crop: Image, rng: np.random.Generator) -> Image:
    """White balance, brightness, contrast, saturation, then sometimes blur and sensor noise."""
    import cv2

    x: npt.NDArray[np.float32] = crop.astype(np.float32)
    x *= rng.uniform(0.85, 1.15, 3).astype(np.float32)  # white balance
    x *= np.float32(rng.uniform(0.6, 1.35))
    grey = np.asarray(x.mean(axis=2, keepdims=True))
    x = np.asarray(grey + (x - grey) * np.float32(rng.uniform(0.5, 1.5)), np.float32)
    middle = x.mean()
    x = np.asarray(middle + (x - middle) * np.float32(rng.uniform(0.75, 1.3)), np.float32)
    if rng.random() < 0.2:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.8)), np.float32)
    if rng.random() < 0.3:
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        x += noise * np.float32(rng.uniform(2, 12))
    return np.asarray(np.clip(x, 0, 255), np.uint8)
