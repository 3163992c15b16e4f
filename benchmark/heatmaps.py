"""Heat-maps of the images a file gets most wrong: where logits moved, and which pixels flipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.comparison import Suspect
from nailcore.errors import DataError
from nailcore.facts import WorstImage
from nailcore.storage import write_bytes

DIMMED = 0.42
MOVED = np.array([255, 196, 64], np.float32)  # amber: |difference of the margin|, full at the image's largest
APPEARED = np.array([255, 45, 85], np.float32)  # red: nail only in the file
VANISHED = np.array([64, 156, 255], np.float32)  # blue: nail only in the network


def draw_heatmap(suspect: Suspect) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB: the photo grey and dimmed, the network's nails outlined, differences in colour.

    Amber grows with the difference of the margin (logit of nail less that of background), relative to
    the largest in this image. Red pixels are nail in the file only, blue ones in the network only.
    """
    import cv2

    height, width = suspect.image.shape[:2]
    grey = suspect.image.astype(np.float32).mean(axis=2, keepdims=True) * DIMMED
    canvas = np.repeat(grey, 3, axis=2)
    moved = np.abs(suspect.found - suspect.reference)
    # The power keeps the noise of rounding, which is everywhere, from hiding the photo.
    share = 0.7 * _enlarge(moved / max(float(moved.max()), 1e-12), width, height)[..., None] ** 1.6
    canvas = canvas * (1 - share) + MOVED * share
    ours, theirs = suspect.reference > 0, suspect.found > 0
    outline = _enlarge(ours, width, height).astype(np.uint8)
    contours, _ = cv2.findContours(outline, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
    cv2.drawContours(drawn, contours, -1, (235, 235, 235), 1)
    for flipped, colour in ((theirs & ~ours, APPEARED), (ours & ~theirs, VANISHED)):
        drawn[_enlarge(flipped, width, height) > 0] = colour.astype(np.uint8)
    return drawn


def _enlarge(values: npt.NDArray[np.generic], width: int, height: int) -> npt.NDArray[np.float32]:
    """Cells of the logits as blocks: what is seen is exactly what was compared."""
    import cv2

    enlarged = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(enlarged, np.float32)


def write_heatmaps(suspects: list[Suspect], folder: Path) -> list[WorstImage]:
    """Write ``folder/<rank>-<image>.png`` for each, worst first; returns what a fact says of them."""
    import cv2

    worst = []
    for rank, suspect in enumerate(suspects, start=1):
        path = folder / f"{rank}-{suspect.name}.png"
        encoded, data = cv2.imencode(".png", draw_heatmap(suspect)[..., ::-1])
        if not encoded:
            raise DataError(f"{path}: the heat-map could not be encoded.")
        write_bytes(path, data.tobytes())
        worst.append(
            WorstImage(name=suspect.name, flipped_permille=suspect.flipped_permille, heatmap=path.name)
        )
    return worst
