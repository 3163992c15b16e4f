"""A contact sheet: images side by side, each nail with its outline, finger and arrow from base to tip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Sample
from nailcore.data.labels import IndexMap, NailRecord, Point
from nailcore.errors import DataError
from nailcore.storage import write_bytes

CELL_PX = 320
_LABEL_PX = 18
_LEGEND = (
    "green: left hand, orange: right hand, blue: unknown finger; "
    "T I M R P: thumb to pinky; ?: guessed by a machine"
)
_NUMBERED = "green: left hand, orange: right hand, blue: unknown finger; numbers as `data name` takes them"
# Colours as BGR, told apart by colour-blind people as well (Okabe and Ito).
_COLOURS = {"left": (115, 158, 0), "right": (0, 159, 230), "": (233, 180, 86)}
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_FINE = 4  # fractional bits of OpenCV's coordinates
Cell = npt.NDArray[np.uint8]


def write_contact_sheet(
    samples: Sequence[Sample],
    out: Path,
    *,
    columns: int = 6,
    cell_px: int = CELL_PX,
    numbers: bool = False,
) -> None:
    """Write a PNG with one cell per sample, in the order given, and a line that explains the colours.

    With ``numbers`` each nail shows its number instead of its finger and arrow: for ``data name``.

    Raises:
        DataError: there are no samples, one cannot be read, or ``out`` is no PNG.
    """
    import cv2

    if not samples:
        raise DataError("There are no images to show.")
    if out.suffix.lower() != ".png":
        raise DataError(f"{out}: a contact sheet is a PNG file.", hint="Give --out a name that ends in .png.")
    columns = min(columns, len(samples))
    strips = []
    for start in range(0, len(samples), columns):
        row = samples[start : start + columns]
        cells = [draw_cell(sample, cell_px, numbers=numbers) for sample in row]
        height = max(cell.shape[0] for cell in cells)
        strip = np.full((height + _LABEL_PX, columns * cell_px, 3), 255, np.uint8)
        for column, (sample, cell) in enumerate(zip(row, cells, strict=True)):
            left = column * cell_px
            strip[: cell.shape[0], left : left + cell.shape[1]] = cell
            # the name right below what it names, whatever stands beside it
            _write(strip, sample.name[: cell_px // 7], (left + 3, cell.shape[0] + 13))
        strips.append(strip)
    legend = np.full((_LABEL_PX, columns * cell_px, 3), 255, np.uint8)
    _write(legend, (_NUMBERED if numbers else _LEGEND)[: columns * cell_px // 6], (3, _LABEL_PX - 5))
    done, png = cv2.imencode(".png", np.vstack([*strips, legend]))
    if not done:
        raise DataError(f"{out}: the sheet of {len(samples)} images could not be encoded.")
    write_bytes(out, png.tobytes())


def _write(sheet: Cell, text: str, place: tuple[int, int]) -> None:
    import cv2

    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, _BLACK, 1, cv2.LINE_AA)


def draw_cell(sample: Sample, cell_px: int = CELL_PX, *, numbers: bool = False) -> Cell:
    """(h, w, 3) BGR with the longer side at ``cell_px``; lines are drawn after scaling, 1 px wide.

    Machine-made fingers and directions are shown as well, with a question mark.
    """
    import cv2

    image = sample.load_image()
    index = sample.load_labels().nail_index
    scale = cell_px / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    shrinking = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(image, size, interpolation=shrinking)
    cell = np.ascontiguousarray(np.asarray(small, np.uint8)[..., ::-1])
    for k in range(1, int(index.max(initial=0)) + 1):
        nail = sample.record.nails[k - 1] if k <= len(sample.record.nails) else None
        _draw_outline(cell, np.asarray(index == k), scale, _colour(nail))
    letter_size = 0.36 * max(1.0, cell_px / CELL_PX)
    if numbers:
        _draw_numbers(cell, index, scale, 1.4 * letter_size)
        return cell
    for nail in sample.record.nails:
        _draw_direction(cell, nail, scale, letter_size)
    return cell


def _colour(nail: NailRecord | None) -> tuple[int, int, int]:
    return _COLOURS[nail.finger.partition(" ")[0] if nail is not None and nail.finger else ""]


def _draw_outline(
    cell: Cell, mask: npt.NDArray[np.bool_], scale: float, colour: tuple[int, int, int]
) -> None:
    """The border of the mask's pixels, not of their centres: what looks tight is tight."""
    import cv2

    fine = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    fine = cv2.resize(fine, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # Doubled pixel (u, v) has its centre at (u + 0.5) / 2 - 1 of the image's coordinates.
    lines = [np.round((((c + 0.5) / 2 - 1) * scale - 0.5) * (1 << _FINE)).astype(np.int32) for c in contours]
    cv2.polylines(cell, lines, isClosed=True, color=colour, thickness=1, lineType=cv2.LINE_AA, shift=_FINE)


def _draw_numbers(cell: Cell, index: IndexMap, scale: float, size: float) -> None:
    for k in range(1, int(index.max(initial=0)) + 1):
        rows, columns = np.nonzero(index == k)
        if len(rows):
            middle = round(float(columns.mean()) * scale) - 5, round(float(rows.mean()) * scale) + 5
            _draw_text(cell, str(k), middle, size)


def _draw_direction(cell: Cell, nail: NailRecord, scale: float, letter_size: float) -> None:
    """Arrow from base to tip and the finger's letter behind the base."""
    import cv2

    if nail.base is None or nail.tip is None:
        return

    def place(point: Point) -> tuple[int, int]:
        return round(point[0] * scale - 0.5), round(point[1] * scale - 0.5)

    base, tip = place(nail.base), place(nail.tip)
    for colour, width in ((_BLACK, 3), (_WHITE, 1)):
        cv2.arrowedLine(cell, base, tip, colour, width, cv2.LINE_AA, tipLength=0.3)
    text = _letters(nail)
    back = np.subtract(nail.base, nail.tip)
    back = back / max(float(np.hypot(*back)), 1e-6) * 9
    corner = (round(base[0] + back[0] - 4 * len(text)), round(base[1] + back[1] + 4))
    _draw_text(cell, text, corner, letter_size)


def _draw_text(cell: Cell, text: str, corner: tuple[int, int], size: float) -> None:
    import cv2

    for colour, width in ((_BLACK, 3), (_WHITE, 1)):
        cv2.putText(cell, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, colour, width, cv2.LINE_AA)


def _letters(nail: NailRecord) -> str:
    letter = nail.finger.partition(" ")[2][0].upper() if nail.finger else ""
    guessed = nail.machine is not None and (
        nail.machine.guessed("finger") or nail.machine.guessed("direction")
    )
    return letter + ("?" if guessed else "")
