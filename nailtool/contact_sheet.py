"""A contact sheet: images of a data folder side by side, each with the outline of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Sample
from nailcore.errors import DataError
from nailcore.storage import write_bytes

_CELL_PX = 240
_LABEL_PX = 18
_OUTLINE_BGR = (60, 255, 90)


def write_contact_sheet(samples: Sequence[Sample], out: Path, *, columns: int = 6) -> None:
    """Write a PNG with one cell of 240 px per sample, in the order given.

    Raises:
        DataError: there are no samples, one cannot be read, or ``out`` is no PNG.
    """
    import cv2

    if not samples:
        raise DataError("There are no images to show.")
    if out.suffix.lower() != ".png":
        raise DataError(f"{out}: a contact sheet is a PNG file.", hint="Give --out a name that ends in .png.")
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    sheet = np.full((rows * (_CELL_PX + _LABEL_PX), columns * _CELL_PX, 3), 255, np.uint8)
    for index, sample in enumerate(samples):
        top, left = (index // columns) * (_CELL_PX + _LABEL_PX), (index % columns) * _CELL_PX
        cell = draw_cell(sample)
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        place = (left + 3, top + _CELL_PX + 13)
        cv2.putText(sheet, sample.name[:34], place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    done, png = cv2.imencode(".png", sheet)
    if not done:
        raise DataError(f"{out}: the sheet of {len(samples)} images could not be encoded.")
    write_bytes(out, png.tobytes())


def draw_cell(sample: Sample) -> npt.NDArray[np.uint8]:
    """(h, w, 3) BGR with the longer side at 240 px; the outline is drawn after scaling, 1 px wide."""
    import cv2

    image = sample.load_image()
    scale = _CELL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    cell = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    mask = cv2.resize(sample.load_mask().astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(cell, contours, -1, _OUTLINE_BGR, 1)
    return np.asarray(cell, np.uint8)
