"""Masks and points between the logits' grid and the photograph, through the letterbox's inverse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nailcore.preprocess import Letterbox, unletterbox_mask

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def nail_mask(fgbg: F32) -> npt.NDArray[np.bool_]:
    """(2, h, w) logits -> (h, w) nail mask by argmax; a tie is background."""
    return np.asarray(fgbg[1] > fgbg[0])


def nail_score(fgbg: F32) -> F64:
    """(2, h, w) logits -> (h, w) softmax of the nail class, 0..1."""
    # The softmax of two classes is the logistic function of their difference.
    margin = fgbg[1].astype(np.float64) - fgbg[0]
    return np.asarray(np.exp(-np.logaddexp(0.0, -margin)))


def mask_on_photo(fgbg: F32, box: Letterbox, output_stride: int) -> npt.NDArray[np.bool_]:
    """(2, h, w) logits -> (H, W) nail mask at the photograph's own size.

    Settled reading: the logits are stretched bilinearly (half-pixel centres) and the argmax is taken
    last, so that contours are smooth; stretching the mask itself would leave steps of ``output_stride``
    pixels.
    """
    return unletterbox_mask(fgbg, box, output_stride)


def input_to_photo(points: npt.ArrayLike, box: Letterbox, output_stride: int) -> F64:
    """(..., 2) x, y in logits cells -> (..., 2) x, y in photo pixels.

    In both, a whole number is the *centre* of a cell or pixel.
    """
    scale, origin = _frame(box)
    corner = (np.asarray(points, np.float64) + 0.5) * output_stride
    return np.asarray((corner - origin) / scale - 0.5)


def photo_to_input(points: npt.ArrayLike, box: Letterbox, output_stride: int) -> F64:
    """The inverse of :func:`input_to_photo`."""
    scale, origin = _frame(box)
    corner = (np.asarray(points, np.float64) + 0.5) * scale + origin
    return np.asarray(corner / output_stride - 0.5)


def _frame(box: Letterbox) -> tuple[F64, F64]:
    """Scale and origin as (x, y); scaled sizes are whole, so the axes' scales differ a little."""
    (height, width), (top, left) = box.scaled, box.origin
    scale = np.array([width / box.width, height / box.height])
    return scale, np.array([left, top], np.float64)
