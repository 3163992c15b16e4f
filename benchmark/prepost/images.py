"""How two renderings of one photograph differ: code values, offset, channel order and tone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.generic]  # (H, W, 3), any real dtype
F32 = npt.NDArray[np.float32]

CHANNEL_ORDERS = {
    "RGB": (0, 1, 2),
    "BGR": (2, 1, 0),
    "RBG": (0, 2, 1),
    "GRB": (1, 0, 2),
    "GBR": (1, 2, 0),
    "BRG": (2, 0, 1),
}
_MIN_CONTRAST = 1.0  # code values; flatter images have no offset one could measure


@dataclass(frozen=True)
class ImageDifference:
    """One rendering against the reference, in uint8 code values and pixels."""

    max_abs: float
    mean_abs: float
    over_1_share: float  # pixels with a channel more than one code value off, 0..1
    shift_x_px: float  # what the found image is moved by, right and down positive
    shift_y_px: float
    channel_order: str  # the order of the found image's channels that fits best; "RGB" is right
    gamma: float  # found = 255 · (reference / 255) ** gamma fits best; 1 is right

    @property
    def shift_px(self) -> float:
        """Length of the offset."""
        return float(np.hypot(self.shift_x_px, self.shift_y_px))


def mean_abs(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference of two images of one shape."""
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean())


def measure_difference(
    reference: Pixels, found: Pixels, region: tuple[slice, slice] | None = None
) -> ImageDifference:
    """Compare two (H, W, 3) images of one shape.

    ``region`` (rows, columns) is where offset, channels and tone are looked for: the photo without the
    padding around it, whose fixed edges would hide that its content moved.
    """
    a, b = reference.astype(np.float32), found.astype(np.float32)
    difference = np.abs(a - b)
    inner_a, inner_b = (a[region], b[region]) if region else (a, b)
    shift_x, shift_y = estimate_shift(inner_a, inner_b)
    return ImageDifference(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        over_1_share=float((difference.max(axis=2) > 1).mean()),
        shift_x_px=shift_x,
        shift_y_px=shift_y,
        channel_order=find_channel_order(inner_a, inner_b),
        gamma=estimate_gamma(inner_a, inner_b),
    )


def estimate_shift(reference: F32, found: F32) -> tuple[float, float]:
    """(x, y) offset in pixels of ``found`` against ``reference``, by phase correlation of the luma.

    (0, 0) where an image is too flat or too small for an answer.
    """
    import cv2

    if np.array_equal(reference, found) or min(reference.shape[:2]) < 16:
        return 0.0, 0.0
    a, b = reference.mean(axis=2), found.mean(axis=2)
    if min(a.std(), b.std()) < _MIN_CONTRAST:
        return 0.0, 0.0
    # Normalised: a tone curve or another range of values is no offset.
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    window = cv2.createHanningWindow((a.shape[1], a.shape[0]), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(a, b, window)
    return float(x), float(y)


def find_channel_order(reference: F32, found: F32) -> str:
    """The order of ``found``'s channels that is nearest to the reference; RGB when nothing is nearer."""
    errors = {name: mean_abs(reference[..., list(order)], found) for name, order in CHANNEL_ORDERS.items()}
    best = min(errors, key=lambda name: errors[name])
    # Grey photographs fit in any order: another one must be clearly nearer.
    return best if errors[best] < 0.7 * errors["RGB"] else "RGB"


def estimate_gamma(reference: F32, found: F32) -> float:
    """The exponent that maps the reference's values to the found ones; 1 where it cannot be told."""
    usable = (reference > 16) & (reference < 239) & (found > 1) & (found < 254)
    if np.count_nonzero(usable) < 100:
        return 1.0
    ratio = np.log(found[usable] / 255) / np.log(reference[usable] / 255)
    return float(np.median(ratio))
