"""Segmentation figures: pooled binary mIoU, nail IoU and boundary F, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.facts import Interval

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.float64]

BOUNDARY_LONG_SIDE_PX = 480
BOUNDARY_TOLERANCE_PX = 2


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of one image, nail being the positive class."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def nail_iou(self) -> float | None:
        """IoU of the nail class; None when there is no nail and none was predicted."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else None


def count_confusion(predicted: Mask, truth: Mask) -> Confusion:
    """Confusion counts of two (H, W) masks."""
    tp = int(np.count_nonzero(predicted & truth))
    fp = int(np.count_nonzero(predicted & ~truth))
    fn = int(np.count_nonzero(~predicted & truth))
    return Confusion(tp, fp, fn, int(truth.size) - tp - fp - fn)


@dataclass(frozen=True)
class BoundaryCounts:
    """Boundary pixels of one image: matched and total, predicted and true."""

    matched_predicted: int
    predicted: int
    matched_truth: int
    truth: int


def count_boundary(predicted: Mask, truth: Mask) -> BoundaryCounts:
    """Boundary pixels within 2 px of each other after scaling to a long side of 480 px."""
    import cv2

    scale = BOUNDARY_LONG_SIDE_PX / max(truth.shape)
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    edges = []
    for mask in (predicted, truth):
        small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        inner = cv2.erode(small.astype(np.uint8), np.ones((3, 3), np.uint8))
        edges.append(small & (inner == 0))
    # The disc of radius 2, so that 2 px is a Euclidean distance.
    r = BOUNDARY_TOLERANCE_PX
    yy, xx = np.mgrid[-r : r + 1, -r : r + 1]
    disc = (xx**2 + yy**2 <= r**2).astype(np.uint8)
    near = [cv2.dilate(edge.astype(np.uint8), disc) > 0 for edge in edges]
    return BoundaryCounts(
        int(np.count_nonzero(edges[0] & near[1])),
        int(np.count_nonzero(edges[0])),
        int(np.count_nonzero(edges[1] & near[0])),
        int(np.count_nonzero(edges[1])),
    )


def _safe(numerator: Counts, denominator: Counts) -> Counts:
    # An absent class counts as perfectly segmented, as no pixel of it was missed or invented.
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), 1.0)


def nail_iou_of(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    """Nail IoU from summed counts (last axis already reduced)."""
    return _safe(tp, tp + fp + fn)


def miou_of(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    """Binary mIoU: the mean of nail and background IoU (paper section 4)."""
    return (nail_iou_of(tp, fp, fn, tn) + _safe(tn, tn + fp + fn)) / 2


def boundary_f_of(mp: Counts, p: Counts, mt: Counts, t: Counts) -> Counts:
    """Boundary F-score from summed counts."""
    precision, recall = _safe(mp, p), _safe(mt, t)
    both = precision + recall
    return np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)


_FIGURES = {"miou": miou_of, "nail_iou": nail_iou_of, "boundary_f": boundary_f_of}


def bootstrap(figure: str, counts: Counts, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """A pooled figure with its 95 % percentile bootstrap interval, images being resampled.

    ``counts`` is (images, 4) in the order of the figure's arguments; ``figure`` one of
    ``miou``, ``nail_iou``, ``boundary_f``.
    """
    if counts.ndim != 2 or counts.shape[1] != 4 or not len(counts):
        raise ValueError(f"counts {counts.shape}: expected (images, 4)")
    statistic = _FIGURES[figure]
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(counts), size=(resamples, len(counts)))
    sums = counts[picks].sum(axis=1)
    values = statistic(*sums.T)
    low, high = np.percentile(values, [2.5, 97.5])
    value = float(statistic(*counts.sum(axis=0)[:, None])[0])
    return Interval(value=value, low=float(low), high=float(high))


def bootstrap_drop(
    figure: str, reference: Counts, found: Counts, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How much a pooled figure falls from ``reference`` to ``found``, in points (100 x), with its interval.

    Both are (images, 4) over the same images, as ``bootstrap`` takes them. Each resample draws images, and
    both sides see the same draw: what makes an image hard for both cancels. The value is the pooled figure
    of the reference less that of what was found: above 0, something was lost.

    Raises:
        ValueError: the shapes are not (images, 4) and equal.
    """
    if reference.shape != found.shape or reference.ndim != 2 or reference.shape[1] != 4 or not len(found):
        raise ValueError(
            f"counts {reference.shape} and {found.shape}: expected (images, 4) of the same images"
        )
    statistic = _FIGURES[figure]
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(found), size=(resamples, len(found)))
    before, after = (statistic(*counts[picks].sum(axis=1).T) for counts in (reference, found))
    low, high = np.percentile(100 * (before - after), [2.5, 97.5])
    whole = [float(statistic(*counts.sum(axis=0)[:, None])[0]) for counts in (reference, found)]
    return Interval(value=100 * (whole[0] - whole[1]), low=float(low), high=float(high))
