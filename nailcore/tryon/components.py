"""Nails from logits: connected components, finger classes, angles and extents, one record per nail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.tryon.direction import MeanDirection, mean_direction
from nailcore.tryon.mask import nail_mask, nail_score
from nailcore.tryon.naming import name_fingers
from nailcore.variant import FINGER_CLASSES

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Point = tuple[float, float]  # x, y


@dataclass(frozen=True)
class Nail:
    """One connected component of the nail mask. All lengths and points are in logits cells.

    A point (x, y) is the centre of the cell in column x and row y; :func:`nailcore.tryon.mask.
    input_to_photo` maps points to the photograph.
    """

    area: int
    left: int
    top: int
    width: int
    height: int
    centroid: Point
    finger: int  # index into nailcore.variant.FINGER_CLASSES
    finger_score: float  # mean softmax of that class inside the component, 0..1
    finger_chances: tuple[float, ...]  # the same of every class
    score: float  # mean foreground softmax, 0..1
    direction: MeanDirection | None  # base -> tip; None where the predictions cancel out
    base: Point | None  # the component's extents along the direction, through its centroid
    tip: Point | None

    @property
    def finger_name(self) -> str:
        """E.g. ``left index``."""
        return FINGER_CLASSES[self.finger]

    @property
    def angle_deg(self) -> float | None:
        """(-180, 180], image axes: 0 points right, 90 down; None where there is no direction."""
        return self.direction.angle_deg if self.direction else None


def label_components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """(h, w) mask -> (h, w) labels, 0 for background, 1.. in raster order of each first cell.

    8-connectivity, by Grana et al.'s block-based labelling (OpenCV's ``CCL_GRANA``), as the paper
    does. That algorithm numbers components by 2×2 blocks; the numbers are put into the order in which
    a reader meets the components, so that every implementation can name them alike.
    """
    import cv2

    count, labels = cv2.connectedComponentsWithAlgorithm(
        np.ascontiguousarray(mask, np.uint8), 8, cv2.CV_32S, cv2.CCL_GRANA
    )
    values, first = np.unique(labels, return_index=True)
    order = values[np.argsort(first)]
    rank = np.zeros(count, np.int32)
    rank[order[order != 0]] = np.arange(1, count, dtype=np.int32)
    return np.asarray(rank[labels], np.int32)


def find_nails(fgbg: F32, finger: F32, direction: F32, *, min_area_px: int) -> list[Nail]:
    """The nails of one image, in raster order of their first (topmost, then leftmost) cell.

    The mask is the argmax of ``fgbg`` (a tie is background). Components of fewer than ``min_area_px``
    cells are dropped. Fingers are named together, from the mean class softmax of each component
    (:func:`nailcore.tryon.naming.name_fingers`); the angle is that of the mean direction weighted by the
    foreground softmax (:func:`nailcore.tryon.direction.mean_direction`). Base and tip are the extents
    of the cells' squares along that direction, on the line through the centroid.

    Args:
        fgbg: (2, h, w) logits: background, nail.
        finger: (10, h, w) logits of ``FINGER_CLASSES``.
        direction: (2, h, w) x and y of base -> tip, image axes.
        min_area_px: >= 1, in logits cells.

    Raises:
        ValueError: shapes that do not fit each other, values that are not finite, or no such area.
    """
    _check(fgbg, finger, direction, min_area_px)
    labels = label_components(nail_mask(fgbg))
    return describe_nails(labels, nail_score(fgbg), finger, direction, min_area_px=min_area_px)


def describe_nails(
    labels: npt.NDArray[np.int32], score: F64, finger: F32, direction: F32, *, min_area_px: int
) -> list[Nail]:
    """The records of components that are known already: labels and foreground softmax (h, w)."""
    groups = [(rows, columns) for rows, columns in _group(labels) if len(rows) >= min_area_px]
    chances = [softmax(finger[:, rows, columns]).sum(axis=1) / len(rows) for rows, columns in groups]
    names = name_fingers(np.reshape(chances, (len(groups), len(FINGER_CLASSES))))
    return [
        _describe(*group, score, direction, finger=name, finger_chances=tuple(map(float, of_nail)))
        for group, name, of_nail in zip(groups, names, chances, strict=True)
    ]


def _check(fgbg: F32, finger: F32, direction: F32, min_area_px: int) -> None:
    for name, values, channels in (
        ("fgbg", fgbg, 2),
        ("finger", finger, len(FINGER_CLASSES)),
        ("direction", direction, 2),
    ):
        if values.ndim != 3 or values.shape != (channels, *fgbg.shape[1:]):
            raise ValueError(f"{name} {values.shape}: expected ({channels}, h, w), h and w those of fgbg")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    if min_area_px < 1:
        raise ValueError(f"min_area_px {min_area_px}: expected at least 1")


def _group(labels: npt.NDArray[np.int32]) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Rows and columns of each component, in the order of the labels; one sort for all of them."""
    flat = np.flatnonzero(labels)
    if not flat.size:
        return []
    values = labels.ravel()[flat]
    flat = flat[np.argsort(values, kind="stable")]
    ends = np.cumsum(np.bincount(values)[1:])[:-1]
    return [np.divmod(cells, labels.shape[1]) for cells in np.split(flat, ends)]


def _describe(
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    score: F64,
    direction: F32,
    *,
    finger: int,
    finger_chances: tuple[float, ...],
) -> Nail:
    weights = score[rows, columns]
    centroid = (float(columns.mean()), float(rows.mean()))
    mean = mean_direction(direction[0, rows, columns], direction[1, rows, columns], weights)
    base, tip = find_extents(rows, columns, centroid, mean) if mean else (None, None)
    left, top = int(columns.min()), int(rows.min())
    return Nail(
        area=len(rows),
        left=left,
        top=top,
        width=int(columns.max()) - left + 1,
        height=int(rows.max()) - top + 1,
        centroid=centroid,
        finger=finger,
        finger_score=finger_chances[finger],
        finger_chances=finger_chances,
        score=float(weights.mean()),
        direction=mean,
        base=base,
        tip=tip,
    )


def softmax(logits: F32 | F64) -> F64:
    """Softmax over the first axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=0)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=0))


def find_extents(
    rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], centroid: Point, mean: MeanDirection
) -> tuple[Point, Point]:
    """Base and tip: how far the cells' squares reach against and along a direction, from the centroid."""
    (cx, cy), (dx, dy) = centroid, (mean.x, mean.y)
    along = (columns - cx) * dx + (rows - cy) * dy
    half_cell = (abs(dx) + abs(dy)) / 2  # a unit square's reach along the direction
    low, high = float(along.min()) - half_cell, float(along.max()) + half_cell
    return (cx + low * dx, cy + low * dy), (cx + high * dx, cy + high * dy)
