"""Figures per nail: found or missed, its finger, its direction; and what kind of image it is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nailcore.data.labels import IndexMap, Label, Labels, unit_vector
from nailcore.facts import ImageKind, Interval, NailAccuracy
from nailcore.preprocess import Letterbox
from nailcore.tryon.components import softmax
from nailcore.tryon.direction import angle_of, angular_error_deg, mean_direction
from nailcore.tryon.naming import name_fingers
from nailcore.variant import FINGER_CLASSES

FOUND_IOU = 0.5
REFERENCE_LONG_SIDE_PX = 480  # nail sizes are given for photos scaled to this long side
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


# -- one image ---------------------------------------------------------------------------------------
def measure_nails(
    predicted: Mask,
    labels: Labels,
    logits: dict[str, F32],
    box: Letterbox,
    heads: Sequence[str],
) -> list[NailAccuracy]:
    """Every annotated nail of one image.

    Args:
        predicted: (H, W) nail mask at the photo's own size.
        labels: of the same size.
        logits: ``fgbg`` (2, h, w), ``finger`` (10, h, w), ``direction`` (2, h, w) of the letterboxed photo.
        heads: names of the heads that are trained; the others are not judged.
    """
    index = labels.nail_index
    overlaps = match_blobs(predicted, index)
    scores = _NailScores(index, logits, box)
    scale = REFERENCE_LONG_SIDE_PX / max(index.shape)
    areas = np.bincount(index.ravel(), minlength=256)
    names = scores.name_fingers()
    found = []
    for k in range(1, int(index.max()) + 1):
        if not areas[k]:
            continue
        record = labels.nails[k - 1] if k <= len(labels.nails) else None
        right = right_alone = error = None
        if record is not None and record.finger and _can_judge("finger", heads, labels):
            right, right_alone = (name == record.finger for name in names.get(k, (None, None)))
        if record is not None and record.base and record.tip and _can_judge("direction", heads, labels):
            error = scores.direction_error_deg(k, unit_vector(record.base, record.tip))
        found.append(
            NailAccuracy(
                size_px=float(np.sqrt(areas[k])) * scale,
                iou=float(overlaps[k]),
                finger_right=right,
                finger_right_alone=right_alone,
                direction_error_deg=error,
            )
        )
    return found


def _can_judge(head: Label, heads: Sequence[str], labels: Labels) -> bool:
    return head in heads and head in labels.labels


def match_blobs(predicted: Mask, index: IndexMap) -> npt.NDArray[np.float64]:
    """(256,) IoU of each annotated nail with the predicted blob that overlaps it best."""
    import cv2

    count, blobs = cv2.connectedComponents(predicted.astype(np.uint8), connectivity=8)
    both = np.bincount(
        index.ravel().astype(np.int64) * count + np.asarray(blobs).ravel(), minlength=256 * count
    ).reshape(256, count)
    nails, sizes = both.sum(1, keepdims=True), both.sum(0, keepdims=True)
    union = nails + sizes - both
    iou = np.divide(both, union, out=np.zeros(both.shape), where=union > 0)
    return np.asarray(iou[:, 1:].max(axis=1, initial=0.0))


class _NailScores:
    """What the heads say inside annotated nails, at the network's input resolution."""

    def __init__(self, index: IndexMap, logits: dict[str, F32], box: Letterbox) -> None:
        import cv2

        size = (box.input_width, box.input_height)
        grown = {
            name: np.stack([cv2.resize(c, size, interpolation=cv2.INTER_LINEAR) for c in value])
            for name, value in logits.items()
        }
        height, width = box.scaled
        top, left = box.origin
        self.index = np.zeros((box.input_height, box.input_width), np.uint8)
        small = cv2.resize(index, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        self.index[top : top + height, left : left + width] = small
        self.nail = softmax(grown["fgbg"])[1]
        self.finger, self.direction = grown["finger"], grown["direction"]

    def name_fingers(self) -> dict[int, tuple[str, str]]:
        """Of each annotated nail that covers a pixel: its finger as try-on names it, and named by itself."""
        inside = {k: self.index == k for k in range(1, int(self.index.max()) + 1)}
        chances = {
            k: softmax(self.finger[:, cells]).mean(axis=1) for k, cells in inside.items() if cells.any()
        }
        together = name_fingers(np.reshape(list(chances.values()), (len(chances), len(FINGER_CLASSES))))
        return {
            k: (FINGER_CLASSES[name], FINGER_CLASSES[int(of_nail.argmax())])
            for (k, of_nail), name in zip(chances.items(), together, strict=True)
        }

    def direction_error_deg(self, k: int, truth: npt.NDArray[np.float64]) -> float | None:
        """Angle between the mean prediction, weighted by the nail's softmax, and the truth."""
        inside = self.index == k
        if not truth.any():
            return None
        mean = mean_direction(self.direction[0, inside], self.direction[1, inside], self.nail[inside])
        if mean is None:
            return 180.0 if inside.any() else None
        return float(angular_error_deg(mean.angle_deg, angle_of(truth[0], truth[1])))


# -- what kind of image ------------------------------------------------------------------------------
SLICES: dict[str, tuple[tuple[str, float, float], ...]] = {
    # of the mean nail, √area at a long side of 480 px
    "nail size": (("small", 0, 20), ("medium", 20, 40), ("large", 40, np.inf)),
    # individual typology angle, degrees (Chardon 1991), its six classes in three
    "skin tone": (("light", 41, np.inf), ("medium", 10, 41), ("deep", -np.inf, 10)),
    # mean L* of the whole image
    "brightness": (("dark", 0, 40), ("medium", 40, 65), ("bright", 65, np.inf)),
}


def describe_kind(image: npt.NDArray[np.uint8], index: IndexMap) -> ImageKind:
    """Nail size, skin tone and brightness of an annotated photo (H, W, 3) RGB, as ``SLICES`` counts them."""
    import cv2

    scale = min(1.0, REFERENCE_LONG_SIDE_PX / max(index.shape))
    size = (max(1, round(index.shape[1] * scale)), max(1, round(index.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    nails = np.asarray(cv2.resize(index, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    areas = np.bincount(index.ravel())[1:]
    areas = areas[areas > 0]
    to_reference = REFERENCE_LONG_SIDE_PX / max(index.shape)
    return ImageKind(
        nail_size_px=float(np.sqrt(areas.mean())) * to_reference if len(areas) else None,
        skin_ita_deg=measure_ita(small, lab, nails),
        brightness=float(lab[..., 0].mean()),
    )


def measure_ita(image: npt.NDArray[np.uint8], lab: F32, nails: IndexMap) -> float | None:
    """Individual typology angle atan((L* − 50) / b*) of the skin around the nails, in degrees.

    Skin: pixels within one nail's size of a nail, but not beside it (cuticle, shade, blur), in the
    chroma range of skin (Chai and Ngan 1999). None when fewer than 50 such pixels are found.
    """
    import cv2

    count = len(np.unique(nails)) - 1
    if count < 1:
        return None
    reach = max(3, round(float(np.sqrt(np.count_nonzero(nails) / count))))
    mask = (nails > 0).astype(np.uint8)

    def grow(radius: int) -> Mask:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        return np.asarray(cv2.dilate(mask, kernel) > 0)

    ring = grow(reach) & ~grow(max(2, reach // 6))
    _, cr, cb = np.moveaxis(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)), -1, 0)
    skin = ring & (cr >= 133) & (cr <= 173) & (cb >= 77) & (cb <= 127)
    if np.count_nonzero(skin) < 50:
        return None
    lightness, _, yellow = np.median(lab[skin], axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def find_slice(which: str, kind: ImageKind) -> str | None:
    """The name of the slice an image belongs to; None when its figure is unknown."""
    value = {
        "nail size": kind.nail_size_px,
        "skin tone": kind.skin_ita_deg,
        "brightness": kind.brightness,
    }[which]
    if value is None:
        return None
    return next((name for name, low, high in SLICES[which] if low <= value < high), None)


# -- intervals ---------------------------------------------------------------------------------------
def bootstrap_values(
    values: Sequence[Sequence[float]],
    statistic: Callable[[npt.NDArray[np.float64]], float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """A statistic over the pooled values with its 95 % bootstrap interval, images being resampled.

    ``values``: one sequence per image, possibly empty. None when there is no value at all.
    """
    images = [np.asarray(v, np.float64) for v in values]
    if not sum(len(v) for v in images):
        return None
    rng = np.random.default_rng(seed)
    drawn = []
    for picks in rng.integers(len(images), size=(resamples, len(images))):
        pooled = np.concatenate([images[i] for i in picks])
        if len(pooled):
            drawn.append(statistic(pooled))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=float(statistic(np.concatenate(images))), low=float(low), high=float(high))
