"""Heat-maps of the images a file gets most wrong: where logits moved, and which pixels flipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.comparison import Suspect
from nailcore.errors import DataError
from nailcore.facts import WorstImage
from nailcore.storage import write_bytes

DIMMED = 0.5
RINGED_CELLS = 12
RING_RADIUS = 0.035  # of the image's width
MOVED = np.array([255, 196, 64], np.float32)  # amber: how much of the way to the other side a cell moved
APPEARED = np.array([255, 45, 85], np.float32)  # red: nail only in the file
VANISHED = np.array([64, 156, 255], np.float32)  # blue: nail only in the network


def draw_heatmap(suspect: Suspect) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB: the photo grey and dimmed, the network's nails outlined, differences in colour.

    Amber grows with how far the margin (logit of nail less that of background) moved, as a share of
    the way to nought, where a cell changes side: what rounding does deep inside nail or background
    stays dark. Red cells are nail in the file only, blue ones in the network only; small patches of them
    are ringed.
    """
    import cv2

    height, width = suspect.image.shape[:2]
    grey = suspect.image.astype(np.float32).mean(axis=2, keepdims=True) * DIMMED
    canvas = np.repeat(grey, 3, axis=2)
    moved = np.abs(suspect.found - suspect.reference)
    share = np.clip(moved / np.maximum(np.abs(suspect.reference), 1e-6), 0, 1)
    heat = 0.8 * _enlarge(share, width, height)[..., None]
    canvas = canvas * (1 - heat) + MOVED * heat
    ours, theirs = suspect.reference > 0, suspect.found > 0
    outline = _enlarge(ours, width, height).astype(np.uint8)
    contours, _ = cv2.findContours(outline, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
    cv2.drawContours(drawn, contours, -1, (235, 235, 235), 1)
    for flipped, colour in ((theirs & ~ours, APPEARED), (ours & ~theirs, VANISHED)):
        drawn[_enlarge(flipped, width, height) > 0] = colour.astype(np.uint8)
        _ring_patches(drawn, flipped, colour)
    return drawn


def _ring_patches(
    drawn: npt.NDArray[np.uint8], flipped: npt.NDArray[np.bool_], colour: npt.NDArray[np.float32]
) -> None:
    """A thin ring around each patch that is too small to catch the eye."""
    import cv2

    scale = drawn.shape[1] / flipped.shape[1]
    count, _, stats, centres = cv2.connectedComponentsWithStats(flipped.astype(np.uint8), connectivity=8)
    pale = tuple(int(v) for v in (colour + 255) / 2)
    for patch in range(1, count):
        if stats[patch, cv2.CC_STAT_AREA] <= RINGED_CELLS:
            centre = tuple(int(v) for v in np.round((centres[patch] + 0.5) * scale))
            cv2.circle(drawn, centre, round(RING_RADIUS * drawn.shape[1]), pale, 1, cv2.LINE_AA)


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
