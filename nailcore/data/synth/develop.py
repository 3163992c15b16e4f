"""What a camera makes of rendered light: metering, white balance, lens shading, tone curve, sharpening."""

from __future__ import annotations

import numpy as np

from nailcore.data.synth.scene import Sensor
from nailcore.data.synth.sensor import RGB8, add_noise, blur, encode_srgb
from nailcore.data.synth.subdivision import F32

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def develop(sensor: Sensor, linear: F32, cover: F32) -> RGB8:
    """Develop a rendering as a phone would.

    Args:
        linear: (H, W, 3) linear light of unknown level.
        cover: (H, W) 1 where hands are: half of the metering looks there, as at what is in focus.

    Returns:
        (H, W, 3) sRGB.
    """
    rng = np.random.default_rng([sensor.seed, 11])
    linear = np.maximum(linear, 0)
    linear = linear * _balance(rng, linear) * np.asarray(sensor.white_balance, dtype=np.float32)
    linear = blur(sensor, linear * _meter(rng, sensor, linear, cover))
    linear = linear * _shade_corners(rng, linear.shape[0], linear.shape[1])[..., None]
    encoded = encode_srgb(_curve(rng, linear))
    return add_noise(sensor, _sharpen(rng, encoded))


def _balance(rng: np.random.Generator, linear: F32) -> F32:
    """(3,) gains that take away most, not all, of the light's colour."""
    bright = linear.reshape(-1, 3)
    lesser = bright.max(axis=1) < np.percentile(bright.max(axis=1), 97)
    mean = (bright[lesser] if lesser.any() else bright).mean(axis=0) + 1e-4
    gains = (mean @ LUMINANCE / mean) ** rng.uniform(0.0, 0.3)
    return np.asarray(np.clip(gains, 0.7, 1.45), dtype=np.float32)


def _meter(rng: np.random.Generator, sensor: Sensor, linear: F32, cover: F32) -> float:
    luminance = np.minimum(linear @ LUMINANCE, 4 * float(np.median(linear @ LUMINANCE)) + 1e-3)
    whole = float(np.mean(luminance))
    hands = float(np.mean(luminance[cover > 0.5])) if (cover > 0.5).any() else whole
    level = whole**0.35 * hands**0.65
    # Light skin stays lighter than deep skin: metering goes only part of the way to mid grey.
    gain = 0.225 / max(level, 1e-4) ** 0.88 * 0.225**-0.12 * sensor.exposure * np.exp2(rng.normal(0, 0.28))
    # Skin is never burnt out altogether: its brighter part stays below the shoulder.
    bright = float(np.percentile((linear @ LUMINANCE)[cover > 0.5], 85)) if (cover > 0.5).any() else level
    return float(min(gain, 0.62 / max(bright, 1e-4)))


def _shade_corners(rng: np.random.Generator, height: int, width: int) -> F32:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    return np.asarray(1 - rng.uniform(0, 0.22) * (x * x + y * y) / 2, dtype=np.float32)


def _curve(rng: np.random.Generator, linear: F32) -> F32:
    """A shoulder towards white, and a phone's contrast and colour."""
    knee = 0.5
    shoulder = knee + (1 - knee) * (1 - np.exp(-(linear - knee) / (1 - knee)))
    linear = np.where(linear > knee, shoulder, linear)
    grey = (linear @ LUMINANCE)[..., None]
    linear = np.maximum(grey + (linear - grey) * rng.uniform(0.9, 1.12), 0)
    contrast = rng.uniform(0.95, 1.2)
    pivot = 0.2
    return np.asarray(np.minimum(pivot * (linear / pivot + 1e-6) ** contrast, 1.0), dtype=np.float32)


def _sharpen(rng: np.random.Generator, encoded: F32) -> F32:
    import cv2

    amount = float(rng.choice((0.0, 0.35, 0.8), p=(0.4, 0.4, 0.2)))
    if not amount:
        return encoded
    soft = cv2.GaussianBlur(encoded, (0, 0), 1.1)
    return np.asarray(encoded + amount * np.clip(encoded - soft, -18, 18), dtype=np.float32)
