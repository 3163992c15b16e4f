"""Pre- and post-processing every runtime shares: letterbox in, mask at the photo's own size out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAD_VALUE = 128  # the nearest uint8 to the networks' mean: padding is "nothing" to them


@dataclass(frozen=True)
class Letterbox:
    """How an (height, width) photo lies inside a network input: scaled, then padded evenly."""

    height: int
    width: int
    input_height: int
    input_width: int

    @property
    def scale(self) -> float:
        """Input pixels per photo pixel."""
        return min(self.input_height / self.height, self.input_width / self.width)

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) of the photo inside the input."""
        return (
            max(1, min(self.input_height, round(self.height * self.scale))),
            max(1, min(self.input_width, round(self.width * self.scale))),
        )

    @property
    def origin(self) -> tuple[int, int]:
        """(top, left) of the photo inside the input."""
        height, width = self.scaled
        return (self.input_height - height) // 2, (self.input_width - width) // 2


def letterbox(image: npt.NDArray[np.uint8], height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB -> (height_px, width_px, 3): aspect kept, padded with ``PAD_VALUE``."""
    import cv2

    box = Letterbox(image.shape[0], image.shape[1], height_px, width_px)
    (h, w), (top, left) = box.scaled, box.origin
    shrinking = box.scale < 1
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    canvas = np.full((height_px, width_px, 3), PAD_VALUE, np.uint8)
    canvas[top : top + h, left : left + w] = resized
    return canvas


def unletterbox_mask(
    fgbg: npt.NDArray[np.float32], box: Letterbox, output_stride: int
) -> npt.NDArray[np.bool_]:
    """(2, h, w) logits -> (H, W) nail mask at the photo's size.

    The logit difference is resampled bilinearly (half-pixel centres) and cut at zero: the same as
    the argmax of the resampled pair.
    """
    import cv2

    margin = np.ascontiguousarray(fgbg[1] - fgbg[0], dtype=np.float32)
    # photo pixel (x, y) -> logits cell; centres: (x + .5) * scale + left = (u + .5) * stride
    sy = box.scaled[0] / box.height / output_stride
    sx = box.scaled[1] / box.width / output_stride
    top, left = box.origin
    matrix = np.array(
        [
            [sx, 0, 0.5 * sx + left / output_stride - 0.5],
            [0, sy, 0.5 * sy + top / output_stride - 0.5],
        ]
    )
    warped = cv2.warpAffine(
        margin,
        matrix,
        (box.width, box.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(warped > 0)
