"""How two nail masks and their classes and directions differ, in units a person can picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

BOUNDARY_WIDTH_PX = 2
ANGLE_STEP_DEG = 0.01


def find_boundary_band(mask: Mask, width_px: int = BOUNDARY_WIDTH_PX) -> Mask:
    """Pixels of an (H, W) mask at most ``width_px`` (chessboard distance) from a pixel outside it.

    What lies beyond the image counts as outside. This is the boundary region of Cheng et al. 2021
    ("Boundary IoU") as their code computes it: the mask less its ``width_px``-fold 3×3 erosion.
    """
    import cv2

    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(
        padded, np.ones((3, 3), np.uint8), iterations=width_px, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(mask & (eroded[1:-1, 1:-1] == 0))


def count_boundary_overlap(
    found: Mask, reference: Mask, width_px: int = BOUNDARY_WIDTH_PX
) -> tuple[int, int]:
    """(intersection, union) in pixels of both masks' boundary bands; their quotient is the boundary IoU."""
    a, b = find_boundary_band(found, width_px), find_boundary_band(reference, width_px)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))


@dataclass(frozen=True)
class ContourShift:
    """How far contours moved, and what has no contour to move from.

    ``shift_px`` is the symmetric Hausdorff distance between the contours of the blobs that both masks
    have: no contour pixel of either lies further from the other's nearest. A blob of one mask that
    touches no pixel of the other has appeared or vanished; it takes no part in ``shift_px`` and is
    counted instead. So is a hole.
    """

    shift_px: float = 0.0
    appeared: int = 0
    vanished: int = 0
    largest_lone_px: int = 0  # pixels of the largest blob or hole that appeared or vanished


def measure_contour_shift(found: Mask, reference: Mask) -> ContourShift:
    """Compare the contours of two (H, W) masks; see :class:`ContourShift`.

    Blobs are 8-connected, holes 4-connected. A contour pixel is a mask pixel with one of its four
    neighbours outside the mask or the image. Distances are Euclidean, in pixels of the masks.
    """
    if np.array_equal(found, reference):
        return ContourShift()
    new_blobs, old_blobs = _list_lone(found, reference, 8), _list_lone(reference, found, 8)
    # A hole that appeared is a blob of the outside that touches no outside pixel of the other mask.
    new_holes, old_holes = _list_lone_holes(found, reference), _list_lone_holes(reference, found)
    ours, theirs = found.copy(), reference.copy()
    for mask, blobs, holes in ((ours, new_blobs, new_holes), (theirs, old_blobs, old_holes)):
        for blob in blobs:
            mask[blob] = False
        for hole in holes:
            mask[hole] = True
    areas = [int(np.count_nonzero(lone)) for lone in (*new_blobs, *old_blobs, *new_holes, *old_holes)]
    return ContourShift(
        shift_px=_measure_hausdorff(_find_contour(ours), _find_contour(theirs)),
        appeared=len(new_blobs) + len(new_holes),
        vanished=len(old_blobs) + len(old_holes),
        largest_lone_px=max(areas, default=0),
    )


def _list_lone(mask: Mask, other: Mask, connectivity: int) -> list[Mask]:
    """Components of ``mask`` that share no pixel with ``other``."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    shared = set(np.unique(labels[other]).tolist())
    return [labels == label for label in range(1, count) if label not in shared]


def _list_lone_holes(mask: Mask, other: Mask) -> list[Mask]:
    # The ring around the image is outside in both masks: what is joined to it is no hole.
    holes = _list_lone(~np.pad(mask, 1), ~np.pad(other, 1), 4)
    return [hole[1:-1, 1:-1] for hole in holes]


def _find_contour(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def _measure_hausdorff(a: Mask, b: Mask) -> float:
    from scipy.ndimage import distance_transform_edt

    if not a.any() or not b.any():  # then both are empty: what has no partner was taken out before
        return 0.0
    to_b = distance_transform_edt(~b)[a].max()
    to_a = distance_transform_edt(~a)[b].max()
    return float(max(to_a, to_b))


def measure_angles_deg(found: Floats, reference: Floats) -> npt.NDArray[np.float64]:
    """Angle between (2, N) vectors x, y and their references, 0..180 degrees, (N,).

    A vector of no length has no direction: against a reference that has one it counts as 180, against
    one that has none either as 0.
    """
    ax, ay = found.astype(np.float64)
    bx, by = reference.astype(np.float64)
    angles = np.degrees(np.abs(np.arctan2(ax * by - ay * bx, ax * bx + ay * by)))
    no_length, expected_none = np.hypot(ax, ay) == 0, np.hypot(bx, by) == 0
    angles = np.where(no_length & ~expected_none, 180.0, angles)
    return np.where(expected_none & ~no_length, 180.0, np.where(no_length & expected_none, 0.0, angles))


@dataclass
class AngleHistogram:
    """Counts of angles in steps of 0.01 degrees: percentiles over any number of pixels in fixed memory."""

    counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(round(180 / ANGLE_STEP_DEG) + 1, np.int64)
    )

    def add(self, angles_deg: npt.NDArray[np.float64]) -> None:
        """Count angles of 0..180 degrees, each rounded up to the next step."""
        steps = np.ceil(np.clip(angles_deg, 0, 180) / ANGLE_STEP_DEG - 1e-9).astype(np.int64)
        self.counts += np.bincount(np.maximum(steps, 0), minlength=len(self.counts))

    def find_percentile(self, share: float) -> float | None:
        """The smallest step that at least this share (0..1) of the angles do not exceed; None: no angles."""
        total = int(self.counts.sum())
        if not total:
            return None
        wanted = max(1, int(np.ceil(share * total)))
        return float(np.searchsorted(np.cumsum(self.counts), wanted) * ANGLE_STEP_DEG)
