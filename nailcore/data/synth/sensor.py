"""From linear light to the picture a camera would store: lens, white balance, tone curve, noise, JPEG."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nailcore.data.synth.scene import Sensor
from nailcore.data.synth.subdivision import F32
from nailcore.errors import DataError

RGB8 = npt.NDArray[np.uint8]
KNEE = 0.55  # straight up to here, then a shoulder that never clips: pale skin keeps its drawing


def expose(sensor: Sensor, linear: F32) -> RGB8:
    """Blur, white balance, soft shoulder, sRGB curve and sensor noise.

    Args:
        linear: (H, W, 3) linear RGB, mid grey about 0.18.

    Returns:
        (H, W, 3) sRGB.
    """
    linear = blur(sensor, linear)
    linear = linear * (sensor.exposure * np.asarray(sensor.white_balance, dtype=np.float32))
    shoulder = KNEE + (1 - KNEE) * (1 - np.exp(-(linear - KNEE) / (1 - KNEE)))
    return add_noise(sensor, encode_srgb(np.where(linear > KNEE, shoulder, linear)))


def blur(sensor: Sensor, linear: F32) -> F32:
    """Defocus and camera shake, both symmetrical: the labels stay where they are."""
    import cv2

    scale = max(linear.shape[:2]) / 640
    if sensor.blur_px:
        linear = np.asarray(cv2.GaussianBlur(linear, (0, 0), sensor.blur_px * scale), dtype=np.float32)
    if sensor.motion_px * scale >= 1:
        reach = int(np.ceil(sensor.motion_px * scale / 2)) + 1
        fine = np.zeros((8 * (2 * reach + 1),) * 2, dtype=np.float32)
        middle, half = len(fine) / 2, 4 * sensor.motion_px * scale
        angle = np.radians(sensor.motion_deg)
        step = half * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(int(v) for v in np.round(middle + s * step)) for s in (-1, 1)]
        cv2.line(fine, ends[0], ends[1], 1.0, 8)
        kernel = cv2.resize(fine, (2 * reach + 1, 2 * reach + 1), interpolation=cv2.INTER_AREA)
        linear = cv2.filter2D(linear, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT).astype(
            np.float32
        )
    return linear


def encode_srgb(linear: F32) -> F32:
    """(H, W, 3) linear 0..1 to sRGB 0..255, not yet rounded."""
    return np.asarray(
        255
        * np.where(
            linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055
        ),
        dtype=np.float32,
    )


def add_noise(sensor: Sensor, encoded: F32) -> RGB8:
    """Sensor noise on (H, W, 3) sRGB values 0..255; part of it is coarse and coloured, as phones leave it."""
    import cv2

    rng = np.random.default_rng([sensor.seed, 5])
    height, width = encoded.shape[:2]
    coarse = rng.standard_normal((height // 2 + 1, width // 2 + 1, 3)).astype(np.float32)
    chroma = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    grain = rng.standard_normal((height, width, 1)).astype(np.float32) + 0.6 * chroma
    encoded = encoded + sensor.noise * grain * np.sqrt(np.maximum(1.25 - encoded / 255, 0))  # dark is noisier
    return np.asarray(np.clip(np.round(encoded), 0, 255), dtype=np.uint8)


def encode_jpeg(image: RGB8, quality: int) -> bytes:
    """An (H, W, 3) picture as JPEG bytes.

    Raises:
        DataError: it cannot be encoded.
    """
    import cv2

    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"A rendering of {image.shape} could not be encoded as JPEG.")
    return bytes(data.tobytes())
